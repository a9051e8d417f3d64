"""PYSKL pickles: many annotations in one file, read without running what a pickle may ask for."""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UniegoError, UsageError
from .poses_common import Pose, PoseError, shaped

_CACHED_FILES = 2


@lru_cache(maxsize=_CACHED_FILES)
def read_annotations(path: str, _mtime_ns: int, _size: int) -> dict[str, dict[str, Any]]:
    """The annotations of a file by their `frame_dir`, kept parsed while the file stays as it is."""
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


def annotated_pose(annotation: dict[str, Any], path: Path, image_size: tuple[int, int] | None) -> Pose:
    """The pose that an annotation holds; `image_size` stands in where it does not say it."""
    name = annotation["frame_dir"]
    if "keypoint" not in annotation:
        raise PoseError("unreadable", path, f"annotation {name!r} has no keypoint")
    keypoints = shaped(annotation["keypoint"], annotation.get("keypoint_score"), path)
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
