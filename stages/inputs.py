"""What each teacher gets of one clip: a view is decoded once, and every teacher prepares its input from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..cache import Failure
from ..models.teachers import FeatureFileError, PrecomputedTeacher, Teacher
from ..pipeline.clips import Clip, View
from ..pipeline.decode import Decoded, DecodeJob, Shape, decode
from ..pipeline.poses import Pose, PoseError, read_pose

Prepared = Tensor | Failure | None
"""What a teacher gets of one clip: its input, why there is none, or None when the row names no such input."""

_VIEWS: tuple[View, ...] = ("ego", "exo")


def decode_jobs(clip: Clip, teachers: Sequence[Teacher], backend: str) -> dict[View, DecodeJob]:
    """What has to be decoded of a clip for these teachers, by view."""
    jobs: dict[View, DecodeJob] = {}
    for view in _VIEWS:
        path, mine = clip.video(view), [teacher for teacher in teachers if teacher.view == view]
        counts = sorted({teacher.frames for teacher in mine if _watches(teacher)})
        posing = clip.pose_path is not None and any(_wants_pose(teacher) for teacher in mine)
        if path is not None and (counts or posing):
            jobs[view] = DecodeJob(str(path), clip.start_s, clip.end_s, tuple(counts), backend)
    return jobs


def prepare_all(
    clip: Clip, teachers: Sequence[Teacher], decoded: Mapping[View, Decoded], device: torch.device | None = None
) -> dict[str, Prepared]:
    """The inputs of one clip for all teachers, by key, out of what `decode_jobs` gave.

    Teachers that can do so prepare on `device`, the others and None: on the CPU. A teacher's input does not depend on
    which others there are.
    """
    prepared: dict[str, Prepared] = {}
    for view in _VIEWS:
        pictures = _Pictures(decoded.get(view), device)
        for teacher in teachers:
            if teacher.view != view:
                continue
            if isinstance(teacher, PrecomputedTeacher):
                prepared[teacher.key] = _stored(clip, teacher)
            else:
                prepared[teacher.key] = _prepare(clip, teacher, pictures)
    return prepared


def prepare_clip(clip: Clip, teachers: Sequence[Teacher], backend: str) -> dict[str, Prepared]:
    """`prepare_all` of one clip, decoded here and now."""
    jobs = decode_jobs(clip, teachers, backend)
    return prepare_all(clip, teachers, {view: decode(job) for view, job in jobs.items()})


def clip_pose(clip: Clip, view: View, backend: str) -> Pose:
    """The clip's skeleton; the video it was taken from gives the frame rate and the size of the image.

    Raises `PoseError`.
    """
    path = clip.video(view)
    return _pose(clip, view, None if path is None else decode(DecodeJob(str(path), None, None, (), backend)).shape)


class _Pictures:
    """One view's frames as tensors, moved to the device at most once."""

    def __init__(self, decoded: Decoded | None, device: torch.device | None) -> None:
        self.decoded, self._device = decoded, device
        self._frames: dict[bool, Tensor] = {}

    def of(self, teacher: Teacher) -> Tensor:
        """A copy of the teacher's own frames: uint8 [T, H, W, 3]."""
        assert self.decoded is not None
        there = teacher.prepares_on_device and self._device is not None and self._device.type != "cpu"
        if there not in self._frames:
            frames = torch.from_numpy(self.decoded.frames)
            self._frames[there] = frames.pin_memory().to(self._device, non_blocking=True) if there else frames
        frames = self._frames[there]
        return frames[torch.from_numpy(self.decoded.places(teacher.frames)).to(frames.device)]


def _prepare(clip: Clip, teacher: Teacher, pictures: _Pictures) -> Prepared:
    """A teacher's input out of its frames and, if it wants one, the clip's skeleton."""
    decoded, watches, wants_pose = pictures.decoded, _watches(teacher), _wants_pose(teacher)
    if watches and decoded is None:
        return None
    if watches and decoded is not None and decoded.error is not None:
        return Failure(clip.clip_id, decoded.error.reason, str(decoded.error))
    if wants_pose and clip.pose_path is None:
        return None
    try:
        pose = _pose(clip, teacher.view, decoded.shape if decoded is not None else None) if wants_pose else None
        return teacher.prepare(pictures.of(teacher) if watches else None, pose)
    except PoseError as error:
        return Failure(clip.clip_id, error.reason, str(error))


def _pose(clip: Clip, view: View, shape: Shape | None) -> Pose:
    """The clip's skeleton; without a video that can be opened it may do without."""
    assert clip.pose_path is not None
    path = clip.video(view)
    return read_pose(
        clip.pose_path,
        clip_id=clip.clip_id,
        video_stem=path.stem if path is not None else None,
        start_s=clip.start_s,
        end_s=clip.end_s,
        fps=shape.fps if shape is not None else None,
        image_size=(shape.height, shape.width) if shape is not None else None,
    )


def _stored(clip: Clip, teacher: PrecomputedTeacher) -> Prepared:
    """The stored feature of a clip; None when there is none and the row names no such video either."""
    path = clip.video(teacher.view)
    try:
        return teacher.read(clip.clip_id, None if path is None else path.stem)
    except FeatureFileError as error:
        if error.reason == "missing" and path is None:
            return None
        return Failure(clip.clip_id, error.reason, str(error))


def _watches(teacher: Teacher) -> bool:
    return teacher.reads in {"frames", "clip"}


def _wants_pose(teacher: Teacher) -> bool:
    return teacher.needs_pose or teacher.reads == "skeleton"
