"""A trained network on disk (a folder with config.json and model.safetensors), and embeddings of video with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import MissingInputError, UsageError, WeightsError
from ..models import TimeSformer, TimeSformerOutput
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.config import RunConfig
from ..pipeline.configfile import load_config
from .batches import ClipReader, Protocol
from .checkpoints import replace_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"

Video = str | Path | npt.NDArray[np.uint8] | Tensor
"""A path, or frames uint8 [T, H, W, 3]."""


def write_model(
    folder: Path,
    model: TimeSformer,
    tensors: Mapping[str, Tensor],
    reader: ClipReader,
    protocol: Protocol,
    classes: tuple[str, ...],
) -> str:
    """Write a network as a folder that `load` opens anywhere; returns the hash of its weights file."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_tensors(folder / WEIGHTS, tensors)
    config = {
        "format": 1,
        "geometry": model.geometry,
        "input": asdict(reader),
        "protocol": protocol._asdict(),
        "classes": list(classes),
    }
    files.write_json(folder / CONFIG, config)
    return files.hash_file(folder / WEIGHTS)


def read_model(folder: Path) -> tuple[TimeSformer, dict[str, Any]]:
    """The network of such a folder in eval mode on the CPU, and its config.

    Raises `MissingInputError` where there is none, `WeightsError` when weights and config do not fit.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise MissingInputError(f"no {name} in {folder}: it is not a folder of a trained network")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = TimeSformer(**config["geometry"])
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{folder / CONFIG} describes no encoder of uniego: {error!r}") from error
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder / WEIGHTS} does not fit {CONFIG} beside it: {error}") from error
    return model.eval(), config


def run_protocol(run: RunConfig, model: Mapping[str, Any]) -> tuple[Protocol, ClipReader]:
    """How a run looks at clips with a trained network: the network's own input, the run's evaluation protocol."""
    reader = ClipReader.from_json(model["input"])
    reader = replace(reader, single_short_side=run.evaluate.single_short_side, backend=run.video.backend)
    return Protocol(run.evaluate.views, run.evaluate.crops), reader


@dataclass(frozen=True)
class Encoder:
    """One encoder that needs the ego video alone."""

    model: TimeSformer
    reader: ClipReader
    protocol: Protocol
    classes: tuple[str, ...]

    def to(self, device: str | torch.device) -> Encoder:
        """Move the network to a device."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def encode(
        self,
        video: Video | Sequence[Video],
        start_s: float | None = None,
        end_s: float | None = None,
        *,
        fps: float = 30.0,
    ) -> Tensor:
        """Embedding of a video, of a segment of it in seconds, or of several videos.

        A video is a path, or its frames as an array or tensor uint8 [T, H, W, 3], RGB, at `fps` frames per second.

        Returns the token averaged over the views and crops of the evaluation protocol, float32 on the CPU: [width] of
        one video, [N, width] of a list. Raises `VideoError` for a file that cannot be decoded, `UsageError` for frames
        of another shape or type, and for a segment of anything but one file.
        """
        if isinstance(video, (list, tuple)):
            _refuse_segment(start_s, end_s, "a list of videos")
            tokens = [self._look(one, None, None, fps)[0] for one in video]
            return torch.stack(tokens).cpu() if tokens else torch.empty(0, self.model.geometry["width"])
        return self._look(cast("Video", video), start_s, end_s, fps)[0].cpu()

    @torch.inference_mode()
    def classify(
        self, video: Video, start_s: float | None = None, end_s: float | None = None, *, fps: float = 30.0
    ) -> dict[str, float]:
        """Probability of every class, most likely first; see `encode`."""
        logits = self._look(video, start_s, end_s, fps)[1].softmax(-1).cpu()
        order = logits.argsort(descending=True, stable=True).tolist()
        return {self.class_name(i): float(logits[i]) for i in order}

    def class_name(self, label: int) -> str:
        """Name of a class; its number where the classes have no names."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def forward(self, looks: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens float32 [B, width], averaged over the looks, and logits float32 [B, C], summed over them.

        looks: [B, V, 3, T, H, W], as `ClipReader.test` gives them, on any device.
        """
        out: TimeSformerOutput = self.model(looks.to(self.device, non_blocking=True).flatten(0, 1))
        token, logits = (part.float().reshape(*looks.shape[:2], -1) for part in (out.token, out.logits))
        return token.mean(1), logits.sum(1)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.model.cls_token.device

    def _look(self, video: Video, start_s: float | None, end_s: float | None, fps: float) -> tuple[Tensor, Tensor]:
        """Token float32 [width] and summed logits float32 [C] of one video."""
        if isinstance(video, (str, Path)):
            looks = self.reader.test(lone_clip(Path(video), start_s=start_s, end_s=end_s), self.protocol)
        else:
            _refuse_segment(start_s, end_s, "frames")
            looks = self.reader.test_frames(_checked_frames(video, fps), fps, self.protocol)
        token, logits = self.forward(looks[None])
        return token[0], logits[0]


def _refuse_segment(start_s: float | None, end_s: float | None, what: str) -> None:
    if start_s is not None or end_s is not None:
        raise UsageError(f"start_s and end_s cut a video file, not {what}: slice the frames, or encode file by file")


def _checked_frames(video: object, fps: float) -> npt.NDArray[np.uint8]:
    frames = video.cpu().numpy() if isinstance(video, Tensor) else np.asarray(video)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        got = f"{frames.dtype} {list(frames.shape)}"
        raise UsageError(f"a video must be a path, or frames uint8 [T, H, W, 3] with T of at least 1; got {got}")
    if not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"fps must be a number of frames per second above 0, got {fps}")
    return frames


def lone_clip(path: Path, name: str | None = None, *, start_s: float | None = None, end_s: float | None = None) -> Clip:
    """A clip of a video that no table names; `name`: its id and how its file is called (None: the path)."""
    name = str(path) if name is None else name
    return Clip(
        clip_id=name,
        split="test",
        label=0,
        ego_path=path,
        exo_path=None,
        start_s=start_s,
        end_s=end_s,
        pose_path=None,
        extra={},
        sources={"ego": name},
    )


def load(place: str | Path) -> Encoder:
    """The encoder of a run (its distilled student), of an exported folder, or of the hub: `hub:<owner>/<name>`.

    Raises `MissingInputError` naming what is missing and the command that makes it, `WeightsError` where the hub does
    not give it.
    """
    folder = model_folder(place)
    model, config = read_model(folder)
    run = run_file(place)
    if run is None:
        protocol, reader = Protocol(**config["protocol"]), ClipReader.from_json(config["input"])
    else:
        protocol, reader = run_protocol(load_config(run), config)
    return Encoder(model, reader, protocol, tuple(config["classes"]))


def model_folder(place: str | Path) -> Path:
    """The folder with the network that `load` opens."""
    if isinstance(place, str) and place.startswith("hub:"):
        return _fetched(place)
    if run_file(place) is None:
        return Path(place)
    student = Path(place) / "distill" / "student" / "model"
    if not (student / CONFIG).exists():
        raise MissingInputError(f"the run in {place} has no student yet: run `uniego distill` there first")
    return student


def run_file(place: str | Path) -> Path | None:
    """The run.yaml of a run's folder; None for other places."""
    path = Path(place) / "run.yaml"
    return path if path.exists() else None


def _fetched(place: str) -> Path:
    """The local copy of an encoder on the hub."""
    from huggingface_hub import snapshot_download

    name, _, revision = place.removeprefix("hub:").partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # whatever the network or the hub says, the way out is the same
        raise WeightsError(
            f"{place} cannot be fetched here ({type(error).__name__}: {error}); download it on a machine that can "
            f"(`hf download {name} --local-dir DIR`) and name that folder"
        ) from error
