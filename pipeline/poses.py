"""Skeleton files: `.npy` arrays, one per clip, and PYSKL pickles with many annotations."""

from __future__ import annotations

import codecs
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import UniegoError, UsageError

Reason = Literal["missing", "unreadable", "truncated"]
Keypoints = npt.NDArray[np.float32]

# An annotation may end this much before its clip does: pose estimators drop frames at the end of a file.
_SHORTEST = 0.9
_CACHED_FILES = 2

# Coordinates that never exceed this are no pixels: they were normalised to about -1..1 before they were stored.
LARGEST_NORMALISED = 4.0


class PoseError(UniegoError):
    """One clip's skeleton cannot be had; `reason` is missing, unreadable or truncated, `path` the file."""

    def __init__(self, reason: Reason, path: str | Path, message: str) -> None:
        self.reason, self.path = reason, str(path)
        super().__init__(f"{self.path}: {message}" if self.path else message)

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions with other arguments do not survive pickling
        return _restore, (self.reason, self.path, str(self))


def _restore(reason: Reason, path: str, text: str) -> PoseError:
    return PoseError(reason, path, text.removeprefix(f"{path}: "))


@dataclass(frozen=True)
class Pose:
    """The skeleton of one clip.

    `keypoints` is float32 [M, T, V, C], finite: M persons, T frames, V joints. 2-D: C = 3 with x and y in
    pixels and the detector's score; 3-D: C = 3 with x, y, z. A joint that was not found is all zeros.
    `image_size` is (height, width) in pixels of the image that 2-D coordinates refer to, None where the file
    does not say.
    """

    keypoints: Keypoints
    image_size: tuple[int, int] | None
    path: str = ""


def read_pose(
    path: str | Path,
    *,
    clip_id: str,
    video_stem: str | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    fps: float | None = None,
    image_size: tuple[int, int] | None = None,
) -> Pose:
    """Read the skeleton of one clip.

    A `.npy` file ([T, V, C] or [M, T, V, C]; C = 2 gets score 1) belongs to the clip as a whole. In a PYSKL
    pickle (`.pkl`, `.pickle`; a list of annotations, or a dict with `annotations`) the annotation whose
    `frame_dir` is `clip_id` is taken whole; otherwise that of `video_stem`, cut to frames round(start_s *
    fps) up to, not including, round(end_s * fps) (seconds; None: from the start, to the end).

    `image_size`, (height, width) of the video, stands in where the file does not say it: for `.npy` files, whose
    coordinates are pixels unless all of them lie within -4..4. Pickles may hold NumPy arrays and plain Python values
    only, and are kept parsed for the next clip.

    Raises:
        PoseError: no such file or annotation (missing), a file that is not what it should be (unreadable), or
            one that ends before the clip does (truncated).
        UsageError: another kind of file, or a pickle that asks for any other class; the message names it.
    """
    path = Path(path)
    if path.suffix not in {".npy", ".pkl", ".pickle"}:
        raise UsageError(f"{path}: skeleton files are .npy, .pkl or .pickle")
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PoseError("missing", path, "no such file") from error
    if path.suffix == ".npy":
        keypoints = _shaped(_read_npy(path, stat.st_size), None, path)
        normalised = np.abs(keypoints[..., :2]).max() <= LARGEST_NORMALISED
        return Pose(keypoints, None if normalised else image_size, str(path))
    annotations = _annotations(str(path), stat.st_mtime_ns, stat.st_size)
    if clip_id in annotations:
        return _pose(annotations[clip_id], path, image_size)
    if video_stem is None or video_stem not in annotations:
        names = f"{clip_id!r}" + (f" or {video_stem!r}" if video_stem else "")
        raise PoseError("missing", path, f"no annotation with frame_dir {names}")
    return _cut(_pose(annotations[video_stem], path, image_size), start_s, end_s, fps)


def _cut(pose: Pose, start_s: float | None, end_s: float | None, fps: float | None) -> Pose:
    if start_s is None and end_s is None:
        return pose
    if fps is None or not fps > 0:
        raise UsageError(f"{pose.path}: cutting a clip out of a video's skeleton needs the frame rate, got {fps}")
    count = pose.keypoints.shape[1]
    first = round((start_s or 0.0) * fps)
    last = count if end_s is None else round(end_s * fps)
    if min(last, count) - first < max(1.0, _SHORTEST * (last - first)):
        message = f"the skeleton has {count} frames, the clip is frames {first} to {last}"
        raise PoseError("truncated", pose.path, message)
    return Pose(pose.keypoints[:, first:last], pose.image_size, pose.path)


def _read_npy(path: Path, size: int) -> npt.NDArray[Any]:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if file.tell() + math.prod(shape) * dtype.itemsize > size:
                raise PoseError("truncated", path, f"ends before its {list(shape)} {dtype} values do")
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        reason: Reason = "truncated" if "EOF" in str(error) else "unreadable"
        raise PoseError(reason, path, f"not a NumPy array of numbers: {error}") from error


def _shaped(points: Any, scores: Any, path: Path) -> Keypoints:
    """float32 [M, T, V, 3] of an array and, for 2-D, its scores; a non-finite joint counts as not found."""
    points = np.asarray(points)
    if points.ndim == 3:
        points = points[None]
    if points.dtype.kind not in "fiu" or points.ndim != 4 or points.shape[-1] not in {2, 3} or points.size == 0:
        message = f"keypoints are numbers [M, T, V, 2 or 3]; got {points.dtype} {list(points.shape)}"
        raise PoseError("unreadable", path, message)
    if points.shape[-1] == 2:
        scores = np.ones(points.shape[:-1]) if scores is None else np.asarray(scores)
        if scores.shape != points.shape[:-1] or scores.dtype.kind not in "fiu":
            message = f"scores {list(scores.shape)} do not fit keypoints {list(points.shape)}"
            raise PoseError("unreadable", path, message)
        points = np.concatenate([points, scores[..., None]], axis=-1)
    result: Keypoints = points.astype(np.float32)
    result[~np.isfinite(result).all(axis=-1)] = 0.0
    return result


def _pose(annotation: dict[str, Any], path: Path, image_size: tuple[int, int] | None) -> Pose:
    name = annotation["frame_dir"]
    if "keypoint" not in annotation:
        raise PoseError("unreadable", path, f"annotation {name!r} has no keypoint")
    keypoints = _shaped(annotation["keypoint"], annotation.get("keypoint_score"), path)
    total = annotation.get("total_frames")
    if isinstance(total, int) and keypoints.shape[1] < total:
        message = f"annotation {name!r} has {keypoints.shape[1]} of its {total} frames"
        raise PoseError("truncated", path, message)
    return Pose(keypoints, _image_size(annotation, path) or image_size, str(path))


def _image_size(annotation: dict[str, Any], path: Path) -> tuple[int, int] | None:
    shape = annotation.get("img_shape", annotation.get("original_shape"))
    if shape is None:
        return None
    try:
        height, width = (int(side) for side in shape)
    except (TypeError, ValueError) as error:
        raise PoseError("unreadable", path, f"img_shape is (height, width); got {shape!r}") from error
    if height < 1 or width < 1:
        raise PoseError("unreadable", path, f"img_shape is (height, width); got {shape!r}")
    return height, width


@lru_cache(maxsize=_CACHED_FILES)
def _annotations(path: str, _mtime_ns: int, _size: int) -> dict[str, dict[str, Any]]:
    content = _load_pickle(Path(path))
    found = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(found, list):
        raise PoseError("unreadable", path, "neither a list of annotations nor a dict with `annotations`")
    table: dict[str, dict[str, Any]] = {}
    for index, annotation in enumerate(found):
        name = annotation.get("frame_dir") if isinstance(annotation, dict) else None
        if not isinstance(name, str) or name in table:
            fault = f"a second {name!r}" if isinstance(name, str) else "no frame_dir"
            raise PoseError("unreadable", path, f"annotation {index}: {fault}")
        table[name] = annotation
    return table


def _load_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file).load()
    except UniegoError as error:
        raise type(error)(f"{path}: {error}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        ended = isinstance(error, EOFError) or "truncated" in str(error)
        raise PoseError("truncated" if ended else "unreadable", path, f"damaged pickle: {error}") from error


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Array bytes in old pickles arrive as latin-1 text; no other codec is offered."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise UsageError(f"pickle asks for codec {encoding!r}; only arrays and plain values are read")
    return text.encode("latin1")


def _numpy_globals() -> dict[tuple[str, str], Callable[..., Any]]:
    # What NumPy itself writes for arrays, scalars and dtypes, under its old and new module names.
    reconstruct = np.zeros(0).__reduce__()[0]
    scalar = np.float32(0).__reduce__()[0]
    frombuffer = np.zeros(1).__reduce_ex__(5)[0]
    table: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for core in ("numpy.core", "numpy._core"):
        table[core + ".multiarray", "_reconstruct"] = reconstruct
        table[core + ".multiarray", "scalar"] = scalar
        table[core + ".numeric", "_frombuffer"] = frombuffer
    return table


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    **_numpy_globals(),
    ("_codecs", "encode"): _latin1,
    **{
        (module, plain.__name__): plain
        for module in ("builtins", "__builtin__")
        for plain in (set, frozenset, bytearray, complex)
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values; every other class is refused by name, before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UsageError(
                f"pickle asks for {module}.{name}; only NumPy arrays and plain values are read, as code in a "
                "file could do anything. Save the annotations again without it"
            ) from None
