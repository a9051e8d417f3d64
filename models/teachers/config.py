"""What a user may set about one teacher. Everything is checked when the configuration is read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...errors import ConfigError
from .sources import WeightsSource, parse_source

Network = Literal["dinov2", "siglip", "depth_anything", "clip", "timesformer", "stgcn"]
View = Literal["ego", "exo"]
Graph = Literal["coco", "openpose", "nturgb+d", "handmp"]

# Which outputs of a network may serve as the feature; the first is the default.
FEATURES: dict[str, tuple[str, ...]] = {
    "dinov2": ("cls", "patch_mean"),
    "siglip": ("pooled",),
    "depth_anything": ("patch_mean", "cls"),
    "clip": ("image_embeds",),
    "timesformer": ("cls",),
    "stgcn": ("pooled",),
}
FRAME_NETWORKS = ("dinov2", "siglip", "depth_anything", "clip")


class TeacherConfig(BaseModel):
    """One teacher: a network, where its weights come from, and which of its outputs is the feature.

    Unknown fields and wrong types are refused (`pydantic.ValidationError`, a `ValueError`), and so are
    combinations that cannot work, such as a feature that the network does not have.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    network: Network = Field(
        description="Architecture: dinov2, siglip, depth_anything or clip (single frames), timesformer (a "
        "clip), stgcn (a skeleton sequence)."
    )
    weights: str | None = Field(
        default=None,
        description="Where the weights come from: hub:<id>[@<revision>] (Hugging Face hub or its local "
        "cache), dir:<folder written by save_pretrained>, file:<checkpoint> (timesformer, stgcn), "
        "demo:<network> (the demo's small ones), or random:<seed> (tests and dry runs). Empty: not set yet; "
        "extracting this teacher is refused until it is.",
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
        description="Which output is the feature. dinov2: cls or patch_mean; siglip: pooled; depth_anything: "
        "patch_mean or cls; clip: image_embeds; timesformer: cls; stgcn: pooled. Empty: the first named.",
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
    pose_frames: int = Field(
        default=100,
        ge=4,
        description="Skeleton frames that stgcn sees, at the centres of equal parts; shorter clips "
        "start over. Unused by the other networks.",
    )
    allow_random: bool = Field(
        default=False,
        description="Permit weights random:<seed>. Such features carry no knowledge; they are for tests only.",
    )
    architecture: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the network's own configuration to change, by name. Only with weights "
        "random:<seed>; other weights bring their architecture along.",
    )

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: str | None) -> str | None:
        if value is not None:
            parse_source(value)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> TeacherConfig:
        self._check_source()
        allowed = FEATURES[self.network]
        if self.feature is not None and self.feature not in allowed:
            raise ConfigError(f"feature {self.feature!r}: network {self.network} has {', '.join(allowed)}")
        if self.graph is not None and self.network != "stgcn":
            raise ConfigError(f"graph is for network stgcn; {self.network} reads no skeleton")
        if self.crop is not None and self.network not in FRAME_NETWORKS:
            raise ConfigError(f"crop is for {', '.join(FRAME_NETWORKS)}; not for {self.network}")
        if self.image_size is not None and self.network == "stgcn":
            raise ConfigError("image_size: stgcn reads skeletons, not images")
        return self

    def _check_source(self) -> None:
        source = self.source
        kind = source.kind if source else None
        if kind == "random" and not self.allow_random:
            raise ConfigError(
                f"weights {self.weights!r}: features of random weights carry no knowledge; "
                "set allow_random: true if that is what you want (tests, dry runs)"
            )
        if self.architecture and kind != "random":
            raise ConfigError("architecture: only with weights random:<seed>; other weights bring their own")
        if self.network in FRAME_NETWORKS and kind == "file":
            raise ConfigError(
                f"weights {self.weights!r}: {self.network} loads from dir:<folder> or hub:<id>, not from one file"
            )
        if self.network in {"timesformer", "stgcn"} and kind in {"hub", "dir"}:
            raise ConfigError(f"weights {self.weights!r}: {self.network} loads from file:<checkpoint>")

    @property
    def source(self) -> WeightsSource | None:
        """The parsed `weights`, or None while they are not set."""
        return None if self.weights is None else parse_source(self.weights)

    @property
    def output(self) -> str:
        """The feature in force: `feature`, or the network's default."""
        return self.feature or FEATURES[self.network][0]
