"""What all trainings of classifiers have in common: the network, SGD, labels, drop-path, validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models import TimeSformer, TimeSformerOutput, draw_drop_masks
from ..pipeline.clips import Clip
from ..pipeline.config import TrainConfig
from ..pipeline.randomness import clip_stream
from .batches import Batch
from .compiling import compile_blocks
from .loop import Task
from .schedule import learning_rate
from .utilisation import BACKWARD, forward_flops

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Supervised(Generic[Network]):
    """A network and the clips that it learns from."""

    model: Network
    clips: Sequence[Clip]
    seed: int
    device: torch.device
    validate: Callable[[Network], dict[str, float]] | None = None


class SupervisedTask(Task, Generic[Network]):
    """SGD on all parameters of a network whose output has logits [B, C]. L = mean CE(logits, y)."""

    def __init__(self, title: str, config: TrainConfig, base: Supervised[Network]) -> None:
        self.title, self._train, self.base = title, config, base
        self.model = base.model.to(base.device).train()
        self.labels = torch.tensor([clip.label for clip in base.clips], device=base.device)  # [N]
        settings = config.optimizer
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=settings.weight_decay,
            fused=True,  # one pass over each tensor
        )

    def forward(self, batch: Batch, epoch: int) -> Any:
        """The network on a micro-batch, in training mode."""
        return self.model(batch.videos)

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of one micro-batch."""
        out = self.forward(batch, epoch)
        return {"loss": F.cross_entropy(out.logits.float(), self.labels[batch.indices])}

    def tensors(self) -> dict[str, Tensor]:
        """The network's state."""
        return dict(self.model.state_dict())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back a network's state; every key must fit."""
        self.model.load_state_dict(tensors)

    def statistics(self) -> list[Tensor]:
        """Running means and variances of batch normalisation."""
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        return [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]

    def rate(self, epoch: float) -> float:
        """The schedule's learning rate."""
        return learning_rate(epoch, self._train.optimizer, self._train.schedule, epochs=self._train.epochs)

    def validate(self) -> dict[str, float] | None:
        """Metrics on the val split."""
        if self.base.validate is None:
            return None
        self.model.eval()
        try:
            return self.base.validate(self.model)
        finally:
            self.model.train()


class VideoTask(SupervisedTask[TimeSformer]):
    """Training of a TimeSformer, with drop-path masks that are functions of (seed, epoch, clip)."""

    def __init__(self, title: str, config: TrainConfig, base: Supervised[TimeSformer]) -> None:
        super().__init__(title, config, base)
        self.flops_per_clip = (1 + BACKWARD) * forward_flops(base.model.geometry)

    def compile(self, batch: int, precision: str) -> None:
        """Compile the network's blocks."""
        compile_blocks(self.model, batch, precision)

    def forward(self, batch: Batch, epoch: int) -> TimeSformerOutput:
        """The network on a micro-batch, in training mode."""
        rates = self.model.drop_rates
        if not any(rates):
            return self.model(batch.videos)  # type: ignore[no-any-return]
        frames, height, width = batch.videos.shape[2:]
        rows, columns = self.model.grid(height, width)
        ids = [self.base.clips[i].clip_id for i in batch.rows]
        streams = [clip_stream(self.base.seed, epoch, clip_id, "drop_path") for clip_id in ids]
        masks = draw_drop_masks(rates, rows * columns, frames, streams, self.base.device)
        return self.model(batch.videos, drop_masks=masks)  # type: ignore[no-any-return]
