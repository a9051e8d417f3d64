"""A trained network on disk (a folder with config.json and model.safetensors), and embeddings of video with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import MissingInputError, WeightsError
from ..models import TimeSformer, TimeSformerOutput
from ..pipeline import files
from ..pipeline.clips import Clip
from .batches import ClipReader, Protocol
from .checkpoints import save_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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
    partial = folder / f".{WEIGHTS}.partial"
    save_tensors(partial, tensors)
    partial.replace(folder / WEIGHTS)
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
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    model = TimeSformer(**config["geometry"])
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise WeightsError(f"{folder / WEIGHTS} does not fit {CONFIG} beside it: {error}") from error
    return model.eval(), config


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
    def encode(self, video: str | Path, start_s: float | None = None, end_s: float | None = None) -> Tensor:
        """Embedding of a video or of a segment of it, in seconds.

        Returns the token averaged over the views and crops of the evaluation protocol, float32 [width], CPU.
        Raises `VideoError` for a file that cannot be decoded.
        """
        return self._look(video, start_s, end_s).token.float().mean(0).cpu()

    @torch.inference_mode()
    def classify(self, video: str | Path, start_s: float | None = None, end_s: float | None = None) -> dict[str, float]:
        """Probability of every class, most likely first."""
        logits = self._look(video, start_s, end_s).logits.float().sum(0).softmax(-1).cpu()
        names = [*self.classes, *(str(i) for i in range(len(self.classes), len(logits)))]
        order = logits.argsort(descending=True, stable=True).tolist()
        return {names[i]: float(logits[i]) for i in order}

    def _look(self, video: str | Path, start_s: float | None, end_s: float | None) -> TimeSformerOutput:
        path = Path(video)
        clip = Clip(
            clip_id=str(path),
            split="test",
            label=0,
            ego_path=path,
            exo_path=None,
            start_s=start_s,
            end_s=end_s,
            pose_path=None,
            extra={},
            sources={"ego": str(path)},
        )
        device = self.model.cls_token.device
        out: TimeSformerOutput = self.model(self.reader.test(clip, self.protocol).to(device))
        return out


def load(folder: str | Path) -> Encoder:
    """The encoder of a run (its distilled student) or of an exported folder.

    Raises `MissingInputError` naming what is missing and the command that makes it.
    """
    path = Path(folder)
    if (path / "run.yaml").exists():
        student = path / "distill" / "student" / "model"
        if not (student / CONFIG).exists():
            raise MissingInputError(f"the run in {path} has no student yet: run `uniego distill` there first")
        path = student
    model, config = read_model(path)
    return Encoder(
        model, ClipReader.from_json(config["input"]), Protocol(**config["protocol"]), tuple(config["classes"])
    )
