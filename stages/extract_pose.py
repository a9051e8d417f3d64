"""Skeletons out of exo videos: BlazePose follows one person through each, and a PYSKL pickle takes them all.

A video is the unit of work. Its skeleton lies in OUT.parts/<stem>.npz as soon as it is whole, and the pickle is put
together from there; videos that are added later cost their own frames only.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..errors import UniegoError, UsageError
from ..models.blazepose import COCO, BlazePose
from ..models.graphs import GRAPHS
from ..pipeline import files
from ..pipeline.clips import ClipTable
from ..pipeline.progress import Meter, count, duration, say, warn
from ..pipeline.sampling import spread_indices
from ..pipeline.signals import StopFlag
from ..pipeline.video import Video, VideoError, VideoInfo, open_video

RECIPE = 1
"""Raised when a change here changes skeletons; parts of another recipe are made again."""

OVERLAYS = 8  # pictures per video
_CHUNK_BYTES = 128 << 20  # of decoded frames held at a time; twice that with the chunk being decoded ahead
_CHUNK_FRAMES = 128
_DRAWN_SCORE = 0.3
_LISTED = 10
_MAGIC = 4  # pickle protocol: read by every Python 3

Part = dict[str, npt.NDArray[Any]]
"""keypoint float16 [1, T, 17, 2] in pixels, keypoint_score float16 [1, T, 17], img_shape int64 [2] (height, width)."""


def exo_videos(table: ClipTable) -> list[Path]:
    """The exo videos that a table names, each once, in its order."""
    videos = list(dict.fromkeys(clip.exo_path for clip in table.clips if clip.exo_path is not None))
    if not videos:
        raise UsageError(f"{table.path}: no row names an exo_path; skeletons are taken from exo videos")
    return videos


def extract_pose(
    videos: Sequence[Path],
    out: Path,
    *,
    overlay: Path | None = None,
    weights: Path | None = None,
    backend: str = "pyav",
) -> None:
    """Write the skeletons of `videos` to the PYSKL pickle `out`, one annotation per video, named after its stem.

    17 COCO joints of one person; frames in which nobody is found are zeros with score 0. `overlay`: a folder for
    pictures of some frames with the skeleton drawn in. `weights`: see `BlazePose`.

    Continues where it stopped; a video is done again when its size or the networks changed. Raises `UsageError` for
    two videos of one stem, `WeightsError` when the networks are not there, `Stopped` between two chunks of
    frames when asked to stop, and, after everything else is written, `UniegoError` naming videos that cannot be read.
    """
    if out.suffix not in {".pkl", ".pickle"}:
        raise UsageError(f"--out {out}: skeletons are written as a pickle; name it {out.with_suffix('.pkl')}")
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder; name a file that is not there yet, or one to replace")
    _check_stems(videos)
    with StopFlag() as flag:
        network = BlazePose(weights)
        work = _Work(out, network, backend)
        infos, failed = _open_all(videos, backend, flag)
        work.announce(infos)
        work.run(infos, failed, overlay, flag)
    work.join([video for video in videos if video not in failed])
    if failed:
        lines = [f"  {error}" for error in list(failed.values())[:_LISTED]]
        more = [f"  and {len(failed) - _LISTED} more"] if len(failed) > _LISTED else []
        text = "\n".join([f"{len(failed)} of {count(len(videos), 'video')} cannot be read:", *lines, *more])
        raise UniegoError(f"{text}\nmend them and run the same command again; the others are done")


def _check_stems(videos: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for video in videos:
        other = seen.setdefault(video.stem, video)
        if other is not video:
            raise UsageError(
                f"{other} and {video}: a skeleton is found by its video's stem, and both are {video.stem!r}; "
                "extract them one by one into files of their own, and name these in the table's pose_path"
            )


def _open_all(
    videos: Sequence[Path], backend: str, flag: StopFlag
) -> tuple[dict[Path, VideoInfo], dict[Path, VideoError]]:
    infos: dict[Path, VideoInfo] = {}
    failed: dict[Path, VideoError] = {}
    for path in videos:
        flag.check()
        try:
            with open_video(path, backend) as video:
                infos[path] = video.info
        except VideoError as error:
            failed[path] = error
    return infos, failed


@dataclass
class _Work:
    """Where the parts lie, and what they must have been made by to be used again."""

    out: Path
    network: BlazePose
    backend: str

    def announce(self, infos: dict[Path, VideoInfo]) -> None:
        """Say what is about to be done, and how long it may take."""
        if not infos:
            return
        new = [info for path, info in infos.items() if self.read_part(path) is None]
        if not new:
            say(f"extract-pose: the skeletons of {count(len(infos), 'video')} are there")
            return
        frames = sum(info.frame_count for info in new)
        each = self.network.seconds_per_frame()
        say(
            f"extract-pose: {len(new)} of {count(len(infos), 'video')}, {count(frames, 'frame')}; at least "
            f"{1000 * each:.0f} ms a frame on this machine, about {duration(frames * each)}; {frames * 102 / 1e6:.1f} "
            f"MB into {self.out}"
        )

    def run(
        self, infos: dict[Path, VideoInfo], failed: dict[Path, VideoError], overlay: Path | None, flag: StopFlag
    ) -> None:
        """Make what parts are missing; a video that does not decode goes to `failed`."""
        files.remove_partials(self.folder)
        pending = [path for path in infos if self.read_part(path) is None]
        total = sum(info.frame_count for info in infos.values())
        resumed = total - sum(infos[path].frame_count for path in pending)
        with Meter("extract-pose", total, unit="frames", resumed=resumed) as meter:
            for path, info in infos.items():
                try:
                    if path in pending:
                        files.write_bytes(
                            self.part_path(path), _packed(self._follow(path, meter, flag), self._of(path))
                        )
                    if overlay is not None:
                        self._draw(path, info, overlay)
                except VideoError as error:
                    failed[path] = error

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    def part_path(self, video: Path) -> Path:
        return self.folder / f"{video.stem}.npz"

    def read_part(self, video: Path) -> Part | None:
        """The skeleton of a video, None if there is none of its present file by the present networks."""
        try:
            with np.load(self.part_path(video), allow_pickle=False) as stored:
                part = {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            return None
        except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
            warn(f"{self.part_path(video)}: damaged ({error}); its video is done again")
            return None
        return part if str(part.pop("made_from", "")) == self._of(video) else None

    def join(self, videos: Sequence[Path]) -> None:
        """Write the pickle, unless it has these very bytes already, and say how much was found."""
        annotations, shares = [], []
        for video in videos:
            part = self.read_part(video)
            if part is None:
                raise UniegoError(f"{self.part_path(video)} disappeared; run the same command again")
            annotations.append(_annotation(video.stem, part))
            shares.append((video.stem, *_found(part)))
        if not annotations:
            return
        made_by = {"network": "BlazePose full", "weights": self.network.hashes, "recipe": RECIPE}
        data = pickle.dumps({"split": {}, "annotations": annotations, "made_by": made_by}, protocol=_MAGIC)
        if not self.out.exists() or self.out.read_bytes() != data:
            files.write_bytes(self.out, data)
        _report(self.out, shares)

    def _of(self, video: Path) -> str:
        made = {"bytes": video.stat().st_size, "weights": self.network.hashes, "recipe": RECIPE}
        return json.dumps(made, sort_keys=True)

    def _follow(self, path: Path, meter: Meter, flag: StopFlag) -> Part:
        self.network.forget()
        with open_video(path, self.backend) as video, closing(_chunks(video)) as chunks:  # its thread ends first
            info = video.info
            points = np.zeros((info.frame_count, len(COCO), 3), dtype=np.float32)
            at = 0
            for frames in chunks:
                for frame in frames:
                    found = self.network.joints(frame)
                    if found is not None:
                        points[at] = found
                    at += 1
                meter.advance(len(frames), path.stem)
                flag.check()
        return {
            "keypoint": points[None, ..., :2].astype(np.float16),
            "keypoint_score": points[None, ..., 2].astype(np.float16),
            "img_shape": np.array([info.height, info.width], dtype=np.int64),
        }

    def _draw(self, path: Path, info: VideoInfo, folder: Path) -> None:
        part = self.read_part(path)
        if part is None:
            return
        picks = np.unique(spread_indices(info.frame_count, OVERLAYS))
        with open_video(path, self.backend) as video:
            for number in picks.tolist():
                picture = drawn(
                    video.frames([number])[0], part["keypoint"][0, number], part["keypoint_score"][0, number]
                )
                buffer = io.BytesIO()
                picture.save(buffer, "png")
                files.write_bytes(folder / f"{path.stem}-{number:06d}.png", buffer.getvalue())


def _chunks(video: Video) -> Generator[npt.NDArray[np.uint8], None, None]:
    """All frames in order, uint8 [n, H, W, 3]; the next chunk is decoded while one is in use."""
    info = video.info
    size = max(1, min(_CHUNK_FRAMES, _CHUNK_BYTES // (info.height * info.width * 3)))
    spans = [range(at, min(at + size, info.frame_count)) for at in range(0, info.frame_count, size)]
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        ahead = pool.submit(video.frames, spans[0])
        for following in [*spans[1:], None]:
            frames = ahead.result()
            if following is not None:
                ahead = pool.submit(video.frames, following)
            yield frames


def drawn(frame: npt.NDArray[np.uint8], points: npt.NDArray[Any], scores: npt.NDArray[Any]) -> Image.Image:
    """A frame [H, W, 3] with a skeleton: points [17, 2] in pixels, scores [17]; joints of a low score are hollow."""
    picture = Image.fromarray(frame)
    pen, thick = ImageDraw.Draw(picture), max(2, min(picture.size) // 200)
    x, y = points.astype(float).T
    for child, parent in GRAPHS["coco"].bones:
        if min(scores[child], scores[parent]) >= _DRAWN_SCORE:
            pen.line([(x[child], y[child]), (x[parent], y[parent])], fill=(80, 255, 80), width=thick)
    for joint in np.flatnonzero(scores > 0):
        box = [x[joint] - 2 * thick, y[joint] - 2 * thick, x[joint] + 2 * thick, y[joint] + 2 * thick]
        fill = (255, 90, 40) if scores[joint] >= _DRAWN_SCORE else None
        pen.ellipse(box, fill=fill, outline=(255, 90, 40), width=max(1, thick // 2))
    return picture


def _packed(part: Part, made_from: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, made_from=np.array(made_from), **part)  # type: ignore[arg-type]
    return buffer.getvalue()


def _annotation(name: str, part: Part) -> dict[str, Any]:
    height, width = part["img_shape"].tolist()
    return {
        "frame_dir": name,
        "total_frames": part["keypoint"].shape[1],
        "img_shape": (height, width),
        "original_shape": (height, width),
        "keypoint": part["keypoint"],
        "keypoint_score": part["keypoint_score"],
    }


def _found(part: Part) -> tuple[int, int]:
    """(frames that show someone, all frames)."""
    seen = part["keypoint_score"][0].any(axis=1)
    return int(seen.sum()), len(seen)


def _report(out: Path, shares: Sequence[tuple[str, int, int]]) -> None:
    found, total = sum(share[1] for share in shares), sum(share[2] for share in shares)
    say(
        f"{out}: {count(len(shares), 'video')}, {count(total, 'frame')}, someone found in {found} "
        f"({100 * found / total:.1f} %); the other frames are zeros"
    )
    worst = sorted((share for share in shares if share[1] < share[2]), key=lambda share: share[1] / share[2])
    for name, seen, frames in worst[:_LISTED]:
        say(f"  {name}: nobody in {frames - seen} of {count(frames, 'frame')}")
    if len(worst) > _LISTED:
        say(f"  and {len(worst) - _LISTED} more with frames that show nobody")
    nobody = [name for name, seen, _ in shares if not seen]
    if nobody:
        warn(f"{count(len(nobody), 'video')} in which nobody was found at all: {', '.join(nobody[:_LISTED])}")
    say(f"next: name {out} in the pose_path of the clips; videos' skeletons are found by their stem")
