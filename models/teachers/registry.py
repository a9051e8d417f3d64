"""The paper's nine teachers as configurations, and how a teacher is built from its key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigError
from .base import Teacher
from .clip import ClipTeacher
from .config import FRAME_NETWORKS, PRECOMPUTED, TeacherConfig, View
from .facts import TEACHERS
from .frames import FrameTeacher
from .own import own_teacher
from .precomputed import PrecomputedTeacher
from .skeleton import SkeletonTeacher

if TYPE_CHECKING:
    import torch


def teacher_view(key: str, config: TeacherConfig) -> View:
    """The camera that teacher `key` watches: `config.view`, or the prefix of its key.

    Raises `ConfigError` when neither says it, or when they contradict each other.
    """
    prefix: View | None = "ego" if key.startswith("ego_") else "exo" if key.startswith("exo_") else None
    view = config.view or prefix
    if view is None:
        raise ConfigError(f"teacher {key!r}: name it ego_… or exo_…, or set its view")
    if prefix is not None and view != prefix:
        raise ConfigError(f"teacher {key!r}: its name says {prefix}, its view says {view}")
    return view


def default_teachers() -> dict[str, TeacherConfig]:
    """The paper's nine. `exo_rgb` and `exo_skl` come without weights: they are trained on the target data."""
    return {
        key: TeacherConfig(
            network=facts.network,
            weights=None if facts.hub is None else f"hub:{facts.hub}",
            feature=facts.feature,
            crop="hands" if key == "exo_skego" else None,
        )
        for key, facts in TEACHERS.items()
    }


_VIT = {"num_hidden_layers": 2, "num_attention_heads": 2}
_TINY: dict[str, dict[str, object]] = {
    "dinov2": {"hidden_size": 32, "mlp_ratio": 2, "image_size": 28, "patch_size": 14, **_VIT},
    "siglip": {"hidden_size": 48, "intermediate_size": 96, "image_size": 32, "patch_size": 16, **_VIT},
    "depth_anything": {"hidden_size": 40, "mlp_ratio": 2, "image_size": 28, "patch_size": 14, **_VIT},
    "clip": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 24,
        "image_size": 32,
        "patch_size": 16,
        **_VIT,
    },
    "timesformer": {
        "image_size": 32,
        "patch_size": 16,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "num_classes": 4,
    },
    "stgcn": {"base_width": 8, "stages": 4, "inflate": [2, 3], "classes": 4},
}
_TINY_SIZE: dict[str, int | None] = {"dinov2": 28, "depth_anything": 28}


def tiny_teachers() -> dict[str, TeacherConfig]:
    """The nine with networks of the same kinds, small, seeded and untrained: for tests and dry runs."""
    return {
        key: TeacherConfig(
            network=facts.network,
            weights=f"random:{seed}",
            feature=facts.feature,
            image_size=_TINY_SIZE.get(facts.network),
            crop="hands" if key == "exo_skego" else None,
            pose_frames=20 if facts.network == "stgcn" else 100,
            architecture=dict(_TINY[facts.network]),
            allow_random=True,
        )
        for seed, (key, facts) in enumerate(TEACHERS.items())
    }


def build_teacher(key: str, config: TeacherConfig, device: str | torch.device = "cpu") -> Teacher:
    """Build teacher `key`, load its weights and put it on `device`, frozen and in eval mode.

    `key` need not be one of the nine. Raises `ConfigError` for a view nobody states and for a class of the user's
    own that is none, `WeightsError` for weights that are not set, cannot be found or do not fit.
    """
    view = teacher_view(key, config)
    if config.is_own:
        return own_teacher(key, view, config).to(device)
    return _kind(config.network)(key, view, config).to(device)


def _kind(network: str) -> type[FrameTeacher | ClipTeacher | SkeletonTeacher | PrecomputedTeacher]:
    if network in FRAME_NETWORKS:
        return FrameTeacher
    if network == PRECOMPUTED:
        return PrecomputedTeacher
    return ClipTeacher if network == "timesformer" else SkeletonTeacher
