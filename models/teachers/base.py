"""What all teachers share: the view they watch, what they read, how features are shaped and named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...pipeline.poses import Pose
from .config import TeacherConfig, View

Reads = Literal["frames", "clip", "skeleton"]


class Teacher(ABC):
    """A frozen network that gives a feature of a clip.

    Attributes:
        key: its name, for example `exo_dino`.
        view: the camera it watches, `ego` or `exo`.
        reads: `frames` (each on its own), `clip` (all frames together) or `skeleton`.
        needs_pose: whether `prepare` wants the clip's skeleton.
        frames: how many frames `prepare` wants, at the centres of equal parts of the clip; 0 for `skeleton`.
        rows: feature rows per clip: `frames` for `frames`, 1 otherwise.
        dim: width D of a row.
        weights_hash: hash of the weights' content, whatever file they came in (see `weights.state_hash`).
        is_random: the weights are untrained; features carry no knowledge.
        module: the network, in eval mode, float32, without gradients.

    Use: `prepare` each clip (on the CPU, in any thread), then `features` of a list of prepared clips.
    """

    reads: Reads
    needs_pose: bool = False

    def __init__(
        self, key: str, view: View, config: TeacherConfig, module: nn.Module, dim: int, weights_hash: str
    ) -> None:
        self.key, self.view, self.config = key, view, config
        self.module = module.eval().requires_grad_(False)
        self.dim, self.weights_hash = dim, weights_hash
        self.frames = 0 if self.reads == "skeleton" else config.frames
        self.rows = config.frames if self.reads == "frames" else 1
        self.is_random = config.source is not None and config.source.kind == "random"
        self.device = torch.device("cpu")

    def to(self, device: str | torch.device) -> Self:
        """Move the network; returns the teacher itself."""
        self.device = torch.device(device)
        self.module.to(self.device)
        return self

    @abstractmethod
    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """Bring one clip into the network's form, on the CPU, without random choices.

        Args:
            frames: uint8 [T, H, W, 3] with T = `self.frames`, RGB; for all but `skeleton`.
            pose: the whole clip's skeleton, if `needs_pose`; frames lie at the centres of equal parts of it.

        Returns:
            uint8 [T, 3, h, w] for `frames` and `clip`, float32 [M, T, V, C] for `skeleton`. h and w may
            differ from clip to clip where the network keeps the aspect.

        Raises:
            UsageError: an input is missing or of the wrong shape or dtype.
            PoseError: this clip's skeleton is not what the network reads, or shows nobody.
        """

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What `prepare` does, JSON-able."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """The network's settings that its weights do not tell, JSON-able."""

    @abstractmethod
    def forward(self, batch: Tensor) -> Tensor:
        """Features of clips of one shape, stacked on the device: [B, ...] -> [B, rows, dim]."""

    @torch.inference_mode()
    def features(self, batch: Sequence[Tensor] | Tensor) -> Tensor:
        """Features of prepared clips, a list or one stacked tensor -> float32 [B, rows, dim] on `device`.

        Clips of one shape go through the network together. The result of a clip depends on its companions by
        rounding alone; where equal bytes matter more than speed, pass one clip at a time.
        """
        clips = list(batch)
        out = torch.empty((len(clips), self.rows, self.dim), dtype=torch.float32, device=self.device)
        groups: dict[torch.Size, list[int]] = {}
        for index, clip in enumerate(clips):
            groups.setdefault(clip.shape, []).append(index)
        for indices in groups.values():
            stacked = torch.stack([clips[index] for index in indices]).to(self.device)
            out[indices] = self.check(self.forward(stacked).float(), len(indices))
        return out

    def check(self, features: Tensor, clips: int | None = None) -> Tensor:
        """Return `features` if they are [B, rows, dim]; raise `UsageError` with both shapes otherwise."""
        wanted = (features.shape[0] if clips is None else clips, self.rows, self.dim)
        if tuple(features.shape) != wanted:
            raise UsageError(
                f"teacher {self.key!r}: features of shape {list(wanted)} expected, got {list(features.shape)}"
            )
        return features

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the features' values, JSON-able; where the weights lie does not."""
        return {
            "network": self.config.network,
            "view": self.view,
            "feature": self.config.output,
            "frames": self.frames,
            "rows": self.rows,
            "dim": self.dim,
            "architecture": self.architecture(),
            "weights": self.weights_hash,
            "random": self.is_random,
            "preprocessing": self.preprocessing(),
        }

    def describe(self) -> dict[str, Any]:
        """Remarks for a reader of stored features: where the weights came from, what is known. JSON-able."""
        from .registry import TEACHERS

        facts = TEACHERS.get(self.key)
        source = self.config.source
        if source is not None and source.shipped:
            note = "a small network trained on rendered clips for the demo; see demo/weights/README.md"
            return {"key": self.key, "source": str(source), "licence": "Apache-2.0", "note": note}
        published = facts is not None and source is not None and source.location == facts.hub
        return {
            "key": self.key,
            "source": str(source),
            "licence": facts.licence if facts and published else "unknown",
            "note": facts.note if facts and facts.network == self.config.network else "",
        }

    def _checked_frames(self, frames: Tensor | None) -> Tensor:
        if frames is None or len(frames) != self.frames:
            got = "none" if frames is None else str(len(frames))
            raise UsageError(f"teacher {self.key!r} needs {self.frames} frames, got {got}")
        return frames

    def _checked_pose(self, pose: Pose | None) -> Pose:
        if pose is None:
            raise UsageError(f"teacher {self.key!r} needs the clip's skeleton")
        return pose
