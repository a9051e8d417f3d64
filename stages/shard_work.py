"""The features of one shard of clips: decode each view once, prepare for every teacher, run the networks in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache import Failure, RowStatus, fits
from ..models.teachers import FeatureFileError, PrecomputedTeacher, Teacher
from ..pipeline.clips import Clip, View
from ..pipeline.config import RunConfig
from ..pipeline.poses import Pose, PoseError, read_pose
from ..pipeline.sampling import spread_indices
from ..pipeline.signals import StopFlag
from ..pipeline.video import VideoError, VideoInfo, open_video, segment

Prepared = Tensor | Failure | None
"""What a teacher gets of one clip: its input, why there is none, or None when the row names no such input."""

ShardResult = tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.uint8], list[Failure]]
"""Values, status per row and failures, as `FeatureStore.write_shard` takes them."""


class ShardWork:
    """Reads clips ahead in threads (decoders release the interpreter) while the networks run.

    Batches never cross a shard, and what is stored for a clip does not depend on which other teachers run.
    """

    def __init__(self, config: RunConfig, clips: Mapping[int, Clip]) -> None:
        self._config, self._clips = config, clips
        self._pool = ThreadPoolExecutor(max(1, config.compute.workers), thread_name_prefix="decode")

    def __enter__(self) -> ShardWork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, rows: range, teachers: Sequence[Teacher], flag: StopFlag) -> dict[str, ShardResult]:
        """Features of the clips in `rows` by every teacher. Raises `Stopped` and drops the shard when asked to stop.

        Rows of clips that are not this run's stay pending. Clips that cannot be read or whose features are not
        finite are failed, each with its reason; a feature of another shape than the teacher promised is an error.
        """
        outcomes = {t.key: _Outcome(t, rows, self._config.cache.dtype) for t in teachers}
        size = self._config.extract.batch_clips
        for row, prepared in self._read_ahead([row for row in rows if row in self._clips], teachers):
            flag.check()
            for key, item in prepared.items():
                outcomes[key].take(row, self._clips[row], item, size)
        for outcome in outcomes.values():
            outcome.flush()
        return {key: outcome.result() for key, outcome in outcomes.items()}

    def _read_ahead(
        self, rows: Sequence[int], teachers: Sequence[Teacher]
    ) -> Iterator[tuple[int, dict[str, Prepared]]]:
        """Prepared inputs in the order of the rows; a bounded number of clips is held at a time."""
        ahead = 2 * max(1, self._config.compute.workers)
        waiting: deque[tuple[int, Future[dict[str, Prepared]]]] = deque()
        for row in rows:
            clip = self._clips[row]
            waiting.append((row, self._pool.submit(prepare_clip, clip, teachers, self._config.video.backend)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for row, future in waiting:
            yield row, future.result()


def prepare_clip(clip: Clip, teachers: Sequence[Teacher], backend: str) -> dict[str, Prepared]:
    """The inputs of one clip for all teachers, by key; each view is decoded once, at the union of their frames."""
    prepared: dict[str, Prepared] = {}
    views: tuple[View, ...] = ("ego", "exo")
    for view in views:
        watching = [t for t in teachers if t.view == view and t.reads in {"frames", "clip"}]
        for teacher, frames in _decode(clip, view, watching, backend).items():
            prepared[teacher.key] = _prepare(clip, teacher, frames, backend)
    for teacher in teachers:
        if teacher.reads == "skeleton":
            prepared[teacher.key] = _prepare(clip, teacher, None, backend)
        elif isinstance(teacher, PrecomputedTeacher):
            prepared[teacher.key] = _stored(clip, teacher)
    return prepared


def _stored(clip: Clip, teacher: PrecomputedTeacher) -> Prepared:
    """The stored feature of a clip; None when there is none and the row names no such video either."""
    path = clip.video(teacher.view)
    try:
        return teacher.read(clip.clip_id, None if path is None else path.stem)
    except FeatureFileError as error:
        if error.reason == "missing" and path is None:
            return None
        return Failure(clip.clip_id, error.reason, str(error))


def _decode(clip: Clip, view: View, teachers: Sequence[Teacher], backend: str) -> dict[Teacher, Prepared]:
    """Frames uint8 [T, H, W, 3] for each teacher, at the centres of equal parts of the clip."""
    path = clip.video(view)
    if not teachers or path is None:
        return dict.fromkeys(teachers)
    try:
        with open_video(path, backend) as video:
            first, end = segment(video.info, clip.start_s, clip.end_s)
            picks = {t: spread_indices(end - first, t.frames) + first for t in teachers}
            wanted = np.unique(np.concatenate(list(picks.values())))
            frames = torch.from_numpy(video.frames(wanted.tolist()))  # [U,H,W,3]
    except VideoError as error:
        return {t: Failure(clip.clip_id, error.reason, str(error)) for t in teachers}
    return {t: frames[torch.from_numpy(np.searchsorted(wanted, p))] for t, p in picks.items()}


def _prepare(clip: Clip, teacher: Teacher, frames: Prepared, backend: str) -> Prepared:
    """A teacher's input out of its frames and, if it wants one, the clip's skeleton."""
    if isinstance(frames, Failure):
        return frames
    if teacher.reads != "skeleton" and frames is None:
        return None
    wants_pose = teacher.needs_pose or teacher.reads == "skeleton"
    if wants_pose and clip.pose_path is None:
        return None
    try:
        pose = clip_pose(clip, teacher.view, backend) if wants_pose else None
        return teacher.prepare(frames, pose)
    except PoseError as error:
        return Failure(clip.clip_id, error.reason, str(error))


def clip_pose(clip: Clip, view: View, backend: str) -> Pose:
    """The clip's skeleton; the video it was taken from gives the frame rate and the size of the image.

    Raises `PoseError`.
    """
    assert clip.pose_path is not None
    path = clip.video(view)
    info = _info(clip, view, backend)
    return read_pose(
        clip.pose_path,
        clip_id=clip.clip_id,
        video_stem=path.stem if path is not None else None,
        start_s=clip.start_s,
        end_s=clip.end_s,
        fps=info.fps if info is not None else None,
        image_size=(info.height, info.width) if info is not None else None,
    )


def _info(clip: Clip, view: View, backend: str) -> VideoInfo | None:
    """What the video says about itself; None when there is none or it cannot be opened: the skeleton may do without."""
    path = clip.video(view)
    if path is None:
        return None
    try:
        with open_video(path, backend) as video:
            return video.info
    except VideoError:
        return None


class _Outcome:
    """One teacher's rows of a shard, as they come."""

    def __init__(self, teacher: Teacher, rows: range, dtype: str) -> None:
        self._teacher, self._rows, self._dtype = teacher, rows, dtype
        self._values = np.full((len(rows), teacher.rows, teacher.dim), np.nan, dtype=dtype)
        self._status = np.full(len(rows), RowStatus.PENDING, dtype=np.uint8)
        self._failures: list[Failure] = []
        self._batch: list[tuple[int, Clip, Tensor]] = []

    def take(self, row: int, clip: Clip, item: Prepared, batch: int) -> None:
        """Take one clip's input; the network runs when `batch` have come together."""
        if isinstance(item, Tensor):
            self._batch.append((row - self._rows.start, clip, item))
            if len(self._batch) >= batch:
                self.flush()
        elif item is None:
            self._status[row - self._rows.start] = RowStatus.ABSENT
        else:
            self._fail(row - self._rows.start, item)

    def flush(self) -> None:
        """Run the network on what has come together."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        features = self._teacher.features([item for _, _, item in batch]).cpu().numpy()  # [b,T,D]
        storable = fits(features, self._dtype)
        for (place, clip, _), feature, good in zip(batch, features, storable, strict=True):
            if good:
                self._values[place] = feature
                self._status[place] = RowStatus.DONE
            else:
                self._fail(place, Failure(clip.clip_id, "non_finite", self._why(feature)))

    def result(self) -> ShardResult:
        """What is written."""
        return {"features": self._values}, self._status, self._failures

    def _fail(self, place: int, failure: Failure) -> None:
        self._status[place] = RowStatus.FAILED
        self._failures.append(failure)

    def _why(self, feature: npt.NDArray[np.float32]) -> str:
        if np.isfinite(feature).all():
            return f"the feature reaches {np.abs(feature).max():.3g}, beyond {self._dtype}; use cache.dtype float32"
        return "the network's output is not finite"
