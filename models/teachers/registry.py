"""The nine teachers of UNIEGO (arXiv 2606.20559), their sources, and how a teacher is built from its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ConfigError
from .config import FRAME_NETWORKS, Network, TeacherConfig, View

if TYPE_CHECKING:
    import torch

    from .base import Teacher

_DINO = "facebook/dinov2-large"
_SIGLIP = "google/siglip-so400m-patch14-384"
_DEPTH = "LiheYoung/depth-anything-large-hf"
_CLIP = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of one of the paper's teachers.

    `dim` is the feature's width; `hub` the Hugging Face id of the published weights, None where the paper's
    teacher was trained on the target data; `licence` is that of the weights, `non_commercial` whether it
    forbids commercial use.
    """

    view: View
    network: Network
    feature: str
    dim: int
    hub: str | None
    licence: str
    non_commercial: bool
    note: str


def _siglip(view: View) -> TeacherFacts:
    return TeacherFacts(
        view, "siglip", "pooled", 1152, _SIGLIP, "Apache-2.0", False, "SigLIP So400m/14 at 384, pooling head"
    )


def _depth(view: View) -> TeacherFacts:
    note = (
        "encoder of Depth Anything V1-L, mean of the patch tokens; the paper does not say which output it "
        "used. V2-L fits too, but its licence is CC-BY-NC-4.0"
    )
    return TeacherFacts(view, "depth_anything", "patch_mean", 1024, _DEPTH, "Apache-2.0", False, note)


def _dino(view: View) -> TeacherFacts:
    return TeacherFacts(view, "dinov2", "cls", 1024, _DINO, "Apache-2.0", False, "DINOv2 ViT-L/14, CLS token")


TEACHERS: dict[str, TeacherFacts] = {
    "exo_rgb": TeacherFacts(
        "exo",
        "timesformer",
        "cls",
        768,
        None,
        "that of your checkpoint",
        False,
        "TimeSformer-B trained on the target data's exo clips; the released Kinetics checkpoints stand in "
        "for it, they are CC-BY-NC-4.0",
    ),
    "exo_skl": TeacherFacts(
        "exo",
        "stgcn",
        "pooled",
        256,
        None,
        "that of your checkpoint",
        False,
        "ST-GCN trained on the target data's skeletons; PYSKL's NTU checkpoints (Apache-2.0) stand in for it",
    ),
    "exo_skego": TeacherFacts(
        "exo",
        "clip",
        "image_embeds",
        512,
        _CLIP,
        "MIT",
        False,
        "a reconstruction: CLIP ViT-B/16 on a pose-guided crop round the hands. The authors' SK-EGO is unpublished",
    ),
    "exo_siglip": _siglip("exo"),
    "ego_siglip": _siglip("ego"),
    "exo_depth": _depth("exo"),
    "ego_depth": _depth("ego"),
    "exo_dino": _dino("exo"),
    "ego_dino": _dino("ego"),
}

TEACHER_VIEWS: dict[str, View] = {key: facts.view for key, facts in TEACHERS.items()}


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

    `key` need not be one of the nine. Raises `ConfigError` for a view nobody states, `WeightsError` for
    weights that are not set, cannot be found or do not fit. The networks' libraries are imported here, not
    before.
    """
    view = teacher_view(key, config)
    teacher: Teacher
    if config.network in FRAME_NETWORKS:
        from .frames import FrameTeacher

        teacher = FrameTeacher(key, view, config)
    elif config.network == "timesformer":
        from .clip import ClipTeacher

        teacher = ClipTeacher(key, view, config)
    else:
        from .skeleton import SkeletonTeacher

        teacher = SkeletonTeacher(key, view, config)
    return teacher.to(device)
