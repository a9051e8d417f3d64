"""Level I of UNIEGO (arXiv 2606.20559): a proxy learns one teacher's features beside the labels.

L = CE(logits, y) + weight * mean over clips with a target of [1 - cos(W token + b, f)]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import TimeSformer
from ..pipeline.config import ProxiesConfig
from .batches import Batch
from .spd import token_distance
from .supervised import Supervised, VideoTask
from .targets import Targets
from .view import take


def feature_loss(
    projected: Tensor, target: Tensor, present: Tensor, distance: str = "cosine", weight: float = 1.0
) -> Tensor:
    """Distance between projected tokens and teacher features, averaged over the clips that have a target.

    Args:
        projected: float [B, D].
        target: float [B, D], not normalised; rows that are not present may hold anything, NaN included.
        present: bool [B].
        distance: "cosine" (1 - cos) or "mse" (mean over components).
        weight: factor of the result.

    Returns:
        float32, 0-dim; exactly 0 when no clip has a target. A genuine all-zero feature counts.
    """
    clean = torch.where(present.unsqueeze(1), target.float(), 0.0)
    per_clip = torch.where(present, token_distance(projected.float(), clean, distance), 0.0)  # [B]
    return weight * per_clip.sum() / present.sum().clamp(min=1)


class ProxyTask(VideoTask):
    """Training of the proxy of one teacher."""

    def __init__(
        self, title: str, teacher: str, config: ProxiesConfig, base: Supervised[TimeSformer], targets: Targets
    ) -> None:
        super().__init__(title, config.train, base)
        self._teacher, self._config = teacher, config
        self._targets = targets

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy and feature distance of one micro-batch."""
        out = self.forward(batch, epoch)
        ce = F.cross_entropy(out.logits.float(), self.labels[batch.indices])
        feature = feature_loss(
            out.projected[self._teacher],
            take(self._targets.values, batch),
            take(self._targets.present, batch),
            self._config.feature_distance,
            self._config.feature_weight,
        )
        return {"loss": ce + feature, "ce": ce, "feature": feature}
