"""What is known of the paper's nine teachers (arXiv 2606.20559), and of the licences of published weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .config import Network, View
from .sources import WeightsSource


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of one of the paper's teachers.

    `dim` is the feature's width; `hub` the Hugging Face id of the published weights, None where the paper's teacher
    was trained on the target data; `gigabytes` what fetching them takes, about. `reconstruction`: the paper's network
    is not published, and this is another one in its place.
    """

    view: View
    network: Network
    feature: str
    dim: int
    hub: str | None
    gigabytes: float | None
    note: str
    reconstruction: bool = False


class Licence(NamedTuple):
    """A licence's name, "unknown" where it is not known, and whether it forbids commercial use."""

    name: str
    non_commercial: bool = False


def _siglip(view: View) -> TeacherFacts:
    note = "SigLIP So400m/14 at 384, output of the pooling head"
    return TeacherFacts(view, "siglip", "pooled", 1152, "google/siglip-so400m-patch14-384", 3.5, note)


def _depth(view: View) -> TeacherFacts:
    note = (
        "encoder of Depth Anything V1-L, mean of the patch tokens; the paper does not say which output it "
        "used. V2-L fits too, but its licence is CC-BY-NC-4.0"
    )
    return TeacherFacts(view, "depth_anything", "patch_mean", 1024, "LiheYoung/depth-anything-large-hf", 1.3, note)


def _dino(view: View) -> TeacherFacts:
    return TeacherFacts(view, "dinov2", "cls", 1024, "facebook/dinov2-large", 1.2, "DINOv2 ViT-L/14, CLS token")


TEACHERS: dict[str, TeacherFacts] = {
    "exo_rgb": TeacherFacts(
        "exo",
        "timesformer",
        "cls",
        768,
        None,
        None,
        "TimeSformer-B trained on the target data's exo clips; the released Kinetics checkpoints stand in "
        "for it, they are CC-BY-NC-4.0",
    ),
    "exo_skl": TeacherFacts(
        "exo",
        "stgcn",
        "pooled",
        256,
        None,
        None,
        "ST-GCN trained on the target data's skeletons; PYSKL's NTU checkpoints (Apache-2.0) stand in for it",
    ),
    "exo_skego": TeacherFacts(
        "exo",
        "clip",
        "image_embeds",
        512,
        "openai/clip-vit-base-patch16",
        0.6,
        "a reconstruction, not the authors' model: CLIP ViT-B/16 on a pose-guided crop round the hands. The authors' "
        "SK-EGO is unpublished",
        reconstruction=True,
    ),
    "exo_siglip": _siglip("exo"),
    "ego_siglip": _siglip("ego"),
    "exo_depth": _depth("exo"),
    "ego_depth": _depth("ego"),
    "exo_dino": _dino("exo"),
    "ego_dino": _dino("ego"),
}

TEACHER_VIEWS: dict[str, View] = {key: facts.view for key, facts in TEACHERS.items()}

OWN_CHECKPOINT = "that of your checkpoint"

_APACHE, _MIT, _NC = Licence("Apache-2.0"), Licence("MIT"), Licence("CC-BY-NC-4.0", non_commercial=True)

# By the beginning of the published name: the last part of a hub id, or a file's or folder's name. The first counts.
_LICENCES: tuple[tuple[str, Licence], ...] = (
    ("dinov2", _APACHE),
    ("siglip", _APACHE),
    ("depth-anything-v2-small", _APACHE),
    ("depth_anything_v2_vits", _APACHE),
    ("depth-anything-v2", _NC),
    ("depth_anything_v2", _NC),
    ("depth-anything", _APACHE),
    ("depth_anything", _APACHE),
    ("clip-vit", _MIT),
    ("timesformer_div", _NC),
    ("timesformer-base-finetuned", _NC),
    ("timesformer-hr-finetuned", _NC),
    ("stgcn_pyskl", _APACHE),
    ("stgcnpp_ntu", _APACHE),
)
_OWNERS = ("facebook", "google", "liheyoung", "depth-anything", "openai")


def licence_of(source: WeightsSource | None) -> Licence:
    """The licence of published weights, told by their published name; of weights named otherwise it is unknown.

    A hub id counts if its owner published the original; of a file or folder the name counts, and for ST-GCN that of
    the folder around a file, since its checkpoints are all called `j.pth`.
    """
    if source is None or source.kind == "random":
        return Licence("unknown")
    if source.shipped:
        return _APACHE
    parts = [part.lower() for part in source.location.replace("\\", "/").rstrip("/").split("/")]
    if source.kind == "hub" and (len(parts) != 2 or parts[0] not in _OWNERS):
        return Licence("unknown")
    around = parts[-2] if source.kind == "file" and len(parts) > 1 else ""
    for beginning, licence in _LICENCES:
        if parts[-1].startswith(beginning) or (beginning.startswith("stgcn") and around.startswith(beginning)):
            return licence
    return Licence("unknown")
