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
from .facts import TEACHERS, licence_of
from .weights import state_hash

Reads = Literal["frames", "clip", "skeleton", "stored"]
Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(ABC):
    """A frozen network that gives a feature of a clip.

    Attributes:
        key: its name, for example `exo_dino`.
        view: the camera it watches, `ego` or `exo`.
        reads: `frames` (each on its own), `clip` (all frames together), `skeleton`, or `stored` (files of features;
            see `PrecomputedTeacher`).
        needs_pose: whether `prepare` wants the clip's skeleton.
        frames: how many frames `prepare` wants, at the centres of equal parts of the clip; 0 for `skeleton`
            and `stored`.
        rows: feature rows per clip: unless the class says otherwise, `frames` for `frames`, 1 for the rest.
        dim: width D of a row.
        weights_hash: hash of the weights' content, whatever file they came in (see `weights.state_hash`).
        is_random: the weights are untrained; features carry no knowledge. A class may set it itself.
        code_hash: hash of the source file of a user's own class, None for the teachers of this package.
        module: the network, in eval mode, float32, without gradients.
        prepares_on_device: whether `prepare` may be given frames on `device`, and then answers there.
        precision: arithmetic of `features`: below fp32, PyTorch's autocast.

    Use: `prepare` each clip (in any thread), then `features` of a list of prepared clips.
    """

    reads: Reads
    needs_pose: bool = False
    prepares_on_device: bool = False
    precision: Precision = "fp32"
    code_hash: str | None = None

    def __init__(
        self,
        key: str,
        view: View,
        config: TeacherConfig,
        module: nn.Module,
        dim: int,
        weights_hash: str | None = None,
        rows: int | None = None,
    ) -> None:
        """`weights_hash`: None hashes the module's state; `rows`: None as described above."""
        self.key, self.view, self.config = key, view, config
        self.module = module.eval().requires_grad_(False)
        self.dim = dim
        self.weights_hash = state_hash(self.module.state_dict()) if weights_hash is None else weights_hash
        self.frames = config.frames if self.reads in {"frames", "clip"} else 0
        self.rows = rows if rows is not None else config.frames if self.reads == "frames" else 1
        self.is_random = config.source is not None and config.source.kind == "random"
        self.device = torch.device("cpu")

    def to(self, device: str | torch.device) -> Self:
        """Move the network; returns the teacher itself."""
        self.device = torch.device(device)
        self.module.to(self.device)
        return self

    @abstractmethod
    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """Bring one clip into the network's form, without random choices.

        Args:
            frames: uint8 [T, H, W, 3] with T = `self.frames`, RGB; for all but `skeleton`. On the CPU, unless
                `prepares_on_device`.
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
            with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
                features = self.forward(stacked)
            out[indices] = self.check(features, len(indices)).float()
        return out

    def check(self, features: Tensor, clips: int | None = None) -> Tensor:
        """Return `features` if they are [B, rows, dim]; raise `UsageError` with both shapes otherwise."""
        if not isinstance(features, Tensor):
            raise UsageError(f"teacher {self.key!r}: forward must return a tensor, not {type(features).__name__}")
        wanted = (features.shape[0] if clips is None else clips, self.rows, self.dim)
        if tuple(features.shape) != wanted:
            raise UsageError(
                f"teacher {self.key!r}: features of shape {list(wanted)} expected, got {list(features.shape)}"
            )
        return features

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the features' values, JSON-able; where the weights lie does not.

        For a class of the user's own also the hash of its source file and all settings it may have read.
        """
        own: dict[str, Any] = {}
        if self.config.is_own:
            left_out = {"network", "weights", "view", "allow_random"}
            own = {"code": self.code_hash, "settings": self.config.model_dump(mode="json", exclude=left_out)}
        return {
            **own,
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
        facts, source = TEACHERS.get(self.key), self.config.source
        papers = facts is not None and facts.network == self.config.network
        notes = [facts.note] if facts is not None and papers else []
        if source is not None and source.shipped:
            shipped = "a small network trained on rendered clips for the demo; see demo/weights/README.md"
            notes = [shipped, *(notes if facts is not None and facts.reconstruction else [])]
        licence = licence_of(source)
        return {
            "key": self.key,
            "source": None if source is None else str(source),
            "licence": licence.name,
            "non_commercial": licence.non_commercial,
            "reconstruction": facts is not None and papers and facts.reconstruction,
            "note": "; ".join(notes),
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
