"""What a user may set about one teacher. Everything is checked when the configuration is read."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...errors import ConfigError, UsageError
from ..graphs import JointGraph, graph_from_edges
from .sources import WeightsSource, parse_source

Network = Literal["dinov2", "siglip", "depth_anything", "clip", "timesformer", "stgcn"]
View = Literal["ego", "exo"]
Graph = Literal["coco", "openpose", "nturgb+d", "handmp"]
Modality = Literal["j", "b", "jm", "bm"]

PRECOMPUTED = "precomputed"
"""The network of a teacher whose features are read from files."""
_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

# Which outputs of a network may serve as the feature; the first is the default.
FEATURES: dict[str, tuple[str, ...]] = {
    "dinov2": ("cls", "patch_mean"),
    "siglip": ("pooled", "patch_mean"),
    "depth_anything": ("patch_mean", "cls"),
    "clip": ("image_embeds",),
    "timesformer": ("cls",),
    "stgcn": ("pooled",),
}
FRAME_NETWORKS = ("dinov2", "siglip", "depth_anything", "clip")

# Kinds of source that each network loads from, besides random weights.
SOURCES: dict[str, tuple[str, ...]] = {
    "dinov2": ("hub", "dir", "file"),
    "siglip": ("hub", "dir"),
    "depth_anything": ("hub", "dir", "file"),
    "clip": ("hub", "dir"),
    "timesformer": ("file", "dir", "hub"),
    "stgcn": ("file",),
    PRECOMPUTED: ("dir", "file"),
}
_FORMS = {"hub": "hub:<id>", "dir": "dir:<folder>", "file": "file:<checkpoint>"}
LAYERED = ("dinov2", "depth_anything")  # networks of which single layers can be taken

# What the shapes in a single file do not tell.
UNTOLD = {"dinov2": "num_attention_heads", "depth_anything": "num_attention_heads", "timesformer": "heads"}


class TeacherConfig(BaseModel):
    """One teacher: a network, where its weights come from, and which of its outputs is the feature.

    Unknown fields and wrong types are refused (`pydantic.ValidationError`, a `ValueError`), and so are
    combinations that cannot work, such as a feature that the network does not have.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    network: str = Field(
        description="Architecture: dinov2, siglip, depth_anything or clip (single frames), timesformer (a "
        "clip), stgcn (a skeleton sequence); precomputed: no network, features made elsewhere are read from files; "
        "or package.module:Class, a teacher of your own (docs/teachers.md)."
    )
    weights: str | None = Field(
        default=None,
        description="Where the weights come from: hub:<id>[@<revision>] (Hugging Face hub or its local "
        "cache), dir:<folder written by save_pretrained>, file:<checkpoint> (timesformer, stgcn, and the official .pth "
        "of dinov2 and depth_anything), "
        "demo:<network> (the demo's small ones), or random:<seed> (tests and dry runs). precomputed: dir:<folder of "
        ".npy files, or Zarr group>, or file:<HDF5 file>. Empty: timesformer and stgcn are those that `uniego "
        "train-teacher` trained in this run; extracting any other, or one not trained yet, is refused.",
    )
    view: View | None = Field(
        default=None,
        description="Which camera the teacher watches: ego or exo. Empty: from the key's prefix, ego_ or exo_.",
    )
    frames: int = Field(
        default=8,
        ge=1,
        description="Frames taken from the clip, at the centres of equal parts. Frame networks give one "
        "feature row per frame; timesformer sees them as one clip. Unused by stgcn.",
    )
    feature: str | None = Field(
        default=None,
        description="Which output is the feature. dinov2: cls or patch_mean; siglip: pooled or patch_mean; "
        "depth_anything: patch_mean or cls; clip: image_embeds; timesformer: cls; stgcn: pooled. Empty: the first "
        "named.",
    )
    layers: list[int] | None = Field(
        default=None,
        min_length=1,
        description="Blocks of dinov2 or depth_anything whose features (each after the final norm) are put side by "
        "side, counted from 0, or from the last with -1. Empty: the last block alone.",
    )
    dim: int | None = Field(
        default=None,
        ge=1,
        description="Width that the feature must have; a network of another width is refused. precomputed: files that "
        "hold [dim, T] are transposed. Empty: any.",
    )
    image_size: int | None = Field(
        default=None,
        ge=1,
        description="Side, in pixels, of the square the network sees; for depth_anything of the side that is scaled, "
        "keeping the aspect. A multiple of the patch. Empty: the size the network was trained at (dinov2 224, "
        "depth_anything 518, otherwise from the weights). Unused by stgcn.",
    )
    crop: Literal["hands"] | None = Field(
        default=None,
        description="hands: frame networks see a square round the forearms instead of the whole frame, found "
        "with the clip's 2-D skeleton (17 COCO joints, pixels). Empty: the whole frame.",
    )
    graph: Graph | None = Field(
        default=None,
        description="Joint layout of stgcn: coco (17), openpose (18), nturgb+d (25) or handmp (21). Empty: "
        "from the number of joints in the weights; coco for random weights.",
    )
    edges: list[list[int]] | None = Field(
        default=None,
        description="A joint layout of your own instead of graph: pairs [child, parent], joints counted from 0. "
        "Together they form one tree; the joint without a parent is its centre.",
    )
    pose_dims: Literal[2, 3] | None = Field(
        default=None,
        description="2: joints are (x, y, score); 3: (x, y, z), moved so that the centre joint starts at the "
        "origin, and nturgb+d also turned upright. Empty: 3 for nturgb+d, otherwise 2. For stgcn.",
    )
    modality: Modality = Field(
        default="j",
        description="What stgcn reads: j (joints), b (bones: joint less parent), jm or bm (their motion from frame to "
        "frame). It must be what the weights were trained on; the file does not say.",
    )
    pose_frames: int = Field(
        default=100,
        ge=4,
        description="Skeleton frames that stgcn sees, at the centres of equal parts; shorter clips "
        "start over. Unused by the other networks.",
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        description="precomputed: rows kept of each clip's [T, dim], at floor(linspace(0, T - 1, rows)), where T "
        "differs from clip to clip. Empty: all, and every clip must have as many as the first.",
    )
    zero_is_missing: bool | None = Field(
        default=None,
        description="precomputed: whether a feature of zeros alone (up to 1e-6) means that the clip has none. Empty: "
        "true for .npy files, as in the released layout, false for HDF5 and Zarr.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of a teacher of your own, by name; its class reads them. Part of the fingerprint.",
    )
    allow_random: bool = Field(
        default=False,
        description="Permit weights random:<seed>. Such features carry no knowledge; they are for tests only.",
    )
    architecture: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the network's own configuration to change, by name. Only with weights "
        "random:<seed>; other weights bring their architecture along. For file:<checkpoint> only what it cannot tell: "
        "num_attention_heads of dinov2 and depth_anything, heads of timesformer, where they are not width / 64.",
    )

    @field_validator("network")
    @classmethod
    def _check_network(cls, value: str) -> str:
        if value not in FEATURES and value != PRECOMPUTED and not _CLASS.fullmatch(value):
            raise ConfigError(f"{value!r}: expected {', '.join(FEATURES)}, {PRECOMPUTED}, or package.module:Class")
        return value

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: str | None) -> str | None:
        if value is not None:
            parse_source(value)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> TeacherConfig:
        self._check_source()
        self._check_made_elsewhere()
        allowed = FEATURES.get(self.network, ())
        if self.feature is not None and self.feature not in allowed and not self.is_own:
            raise ConfigError(f"feature {self.feature!r}: network {self.network} has {', '.join(allowed)}")
        self._check_skeleton()
        if self.layers is not None and self.network not in LAYERED:
            raise ConfigError(f"layers is for {', '.join(LAYERED)}; not for {self.network}")
        if self.crop is not None and self.network not in FRAME_NETWORKS and not self.is_own:
            raise ConfigError(f"crop is for {', '.join(FRAME_NETWORKS)}; not for {self.network}")
        if self.image_size is not None and self.network in {"stgcn", PRECOMPUTED}:
            what = "skeletons" if self.network == "stgcn" else "files"
            raise ConfigError(f"image_size: {self.network} reads {what}, not images")
        return self

    def _check_made_elsewhere(self) -> None:
        """Fields of `precomputed` and of own classes."""
        precomputed = self.network == PRECOMPUTED
        kind = self.source.kind if self.source else None
        if precomputed and (kind in {"hub", "random"} or (self.source and self.source.shipped)):
            raise ConfigError(f"weights {self.weights!r}: precomputed reads dir:<folder> or file:<HDF5 file>")
        if precomputed and self.feature is not None:
            raise ConfigError("feature: precomputed has only what the files hold")
        if not precomputed and (self.rows is not None or self.zero_is_missing is not None):
            raise ConfigError("rows and zero_is_missing are for network precomputed")
        if self.options and not self.is_own:
            raise ConfigError("options are for a teacher of your own (network: package.module:Class)")

    def _check_source(self) -> None:
        source = self.source
        kind = source.kind if source else None
        if kind == "random" and not self.allow_random:
            raise ConfigError(
                f"weights {self.weights!r}: features of random weights carry no knowledge; "
                "set allow_random: true if that is what you want (tests, dry runs)"
            )
        free = {UNTOLD.get(self.network)} if kind == "file" else set()
        if kind != "random" and not set(self.architecture) <= free:
            raise ConfigError(
                "architecture: only with weights random:<seed>; other weights bring their own"
                + "".join(f"; with file: only {name} can be set" for name in free if name)
            )
        allowed = SOURCES.get(self.network, tuple(_FORMS))
        if kind in _FORMS and kind not in allowed:
            forms = " or ".join(_FORMS[each] for each in allowed)
            raise ConfigError(f"weights {self.weights!r}: {self.network} loads from {forms}")

    def _check_skeleton(self) -> None:
        given = {"graph": self.graph, "edges": self.edges, "pose_dims": self.pose_dims}
        named = [name for name, value in given.items() if value is not None] + ["modality"] * (self.modality != "j")
        if named and self.network != "stgcn":
            raise ConfigError(f"{named[0]} is for network stgcn; {self.network} reads no skeleton")
        if self.graph is not None and self.edges is not None:
            raise ConfigError("graph and edges both name a joint layout; give one of them")
        try:
            _ = self.own_graph
        except UsageError as error:
            raise ConfigError(f"edges: {error}") from error

    @property
    def own_graph(self) -> JointGraph | None:
        """The joint layout that `edges` describes, if any."""
        return None if self.edges is None else graph_from_edges(self.edges)

    @property
    def source(self) -> WeightsSource | None:
        """The parsed `weights`, or None while they are not set."""
        return None if self.weights is None else parse_source(self.weights)

    @property
    def is_own(self) -> bool:
        """Whether the network is a class of the user's own."""
        return ":" in self.network

    @property
    def output(self) -> str:
        """The feature in force: `feature`, or the network's default; "" where there is no choice."""
        return self.feature or (*FEATURES.get(self.network, ()), "")[0]
