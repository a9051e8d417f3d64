"""A trained network on disk (a folder with config.json and model.safetensors), and embeddings of video with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import MissingInputError, WeightsError
from ..models import TimeSformer, TimeSformerOutput
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.config import RunConfig
from ..pipeline.configfile import load_config
from .batches import ClipReader, Protocol
from .checkpoints import replace_tensors

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
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    model = TimeSformer(**config["geometry"])
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
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
    if not (path / "run.yaml").exists():
        model, config = read_model(path)
        protocol, reader = Protocol(**config["protocol"]), ClipReader.from_json(config["input"])
        return Encoder(model, reader, protocol, tuple(config["classes"]))
    student = path / "distill" / "student" / "model"
    if not (student / CONFIG).exists():
        raise MissingInputError(f"the run in {path} has no student yet: run `uniego distill` there first")
    model, config = read_model(student)
    protocol, reader = run_protocol(load_config(path / "run.yaml"), config)
    return Encoder(model, reader, protocol, tuple(config["classes"]))
