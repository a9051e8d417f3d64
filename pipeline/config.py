"""The configuration of a run: one documented field each, checked at once, unknown names refused.

`run.yaml` is written from these classes (see `configfile`): a field's docstring becomes its comment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import nn

from ..models.teachers import TeacherConfig, teacher_view

_TAKEN = ("index", *sorted(name for name in dir(nn.ModuleDict) if not name.startswith("_")))
"""Names of the cache's own folder and of what a module holds already."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A part of the configuration: frozen, strictly typed, unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class DataConfig(Section):
    """Which clips."""

    table: str = "clips.csv"
    """Clip table (CSV or Parquet); absolute, or relative to the folder of run.yaml."""
    root: str | None = None
    """Folder that relative video and pose paths start from; null: the table's own folder."""
    num_classes: Positive | None = None
    """Number of classes; null: as many as the table names. Labels outside 0..num_classes-1 are refused."""
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the train split held out as `val`, drawn with the seed; only for a table without a `val` split."""


class VideoConfig(Section):
    """How videos are decoded."""

    backend: Literal["pyav", "decord"] = "pyav"
    """Decoder. Both pick the same frames; their pixels differ by a level or two, so it is part of the fingerprint."""


class ClipsConfig(Section):
    """The clip store: ego clips that `uniego prepare-clips` decodes once, for training to read instead of videos."""

    source: Literal["videos", "store"] = "videos"
    """What training, its validation and the export of proxies read; evaluation and encoders always read videos. The
    frames drawn are the same, their pixels are not quite (docs/clip-store.md), so it is part of the fingerprint."""
    root: str | None = None
    """Folder of the store, relative to the run; several runs may share one. null: clip-store in the cache's folder, or
    in the run's where the cache is in object storage."""
    short_side: Positive = 320
    """Short side of stored frames, pixels; smaller videos keep theirs. At least the longest that training draws."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Quality of their JPEG images, 1 to 100."""
    fps: Annotated[float, Field(gt=0.0)] | None = None
    """Most frames per second that are kept; null: every frame, so that draws find exactly theirs. With fewer a draw
    takes the nearest one kept."""


class CacheConfig(Section):
    """Where features lie."""

    root: str = "cache"
    """Folder of the feature store, relative to the run; several runs may share one. Or object storage:
    s3://bucket/prefix."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of stored teacher features. Proxy outputs are always float32."""
    rows_per_shard: Positive | None = None
    """Clips per shard, the unit of work and of resuming; null: 8 to 1024, by the number of clips and a
    few that are timed when the cache is made."""


class ExtractConfig(Section):
    """Stage 1: running the teachers."""

    batch_clips: Positive = 8
    """Clips per forward pass; does not change which features are stored. A GPU without the memory gets fewer."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the teachers. auto: bf16 on a GPU, fp32 on a CPU, or what the features that are there were made
    with. Reduced precision is compared with fp32 on a few clips first; where it differs too much, auto takes fp32."""
    decode_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds, plus one for every megabyte of the file, after which a decoder counts as hanging and is replaced."""
    frames_gb: Annotated[float, Field(gt=0)] = 2.0
    """Memory, 1e9 bytes, that decoded frames may take while they wait for the teachers; decoders pause above it."""
    min_coverage: Fraction = 0.95
    """Least share of clips with features, per teacher, among those whose row names the input; less exits with 3."""


class StudentConfig(Section):
    """The network of the student and of every proxy: TimeSformer with divided space-time attention."""

    image_size: Positive = 224
    """Side of the square input, pixels."""
    patch_size: Positive = 16
    """Side of a patch, pixels."""
    num_frames: Positive = 8
    """Frames per clip."""
    width: Positive = 768
    """Width of the tokens."""
    depth: Positive = 12
    """Number of blocks."""
    heads: Positive = 12
    """Attention heads; must divide the width."""
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Drop-path rate of the last block; grows linearly from 0 in the first."""
    init: str | None = None
    """ImageNet ViT weights that training starts from: a .safetensors or .pth file, a save_pretrained folder, or
    hub:<id>; null: random, which is for trying things out only."""

    @model_validator(mode="after")
    def _divisible(self) -> StudentConfig:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) is smaller than patch_size ({self.patch_size})")
        return self


class SamplingConfig(Section):
    """Which frames of a clip the student and the proxies see."""

    policy: Literal["fit", "window"] = "fit"
    """fit: picks spread evenly over min(clip, window); window: the released code's rule, for parity."""
    rate: Positive = 32
    """Spacing of picks in frames of a 30 fps video; the window lasts num_frames * rate / 30 seconds."""


class AugmentConfig(Section):
    """Training-time augmentation, the same for all frames of a clip; and normalisation."""

    short_side: list[Positive] = Field(default=[256, 320], min_length=2, max_length=2)
    """Short side before the random crop, drawn uniformly between these two, pixels."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    mean: float = 0.45
    """Mean subtracted from RGB/255, every channel."""
    std: Annotated[float, Field(gt=0.0)] = 0.225
    """Standard deviation that divides it, every channel."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.short_side[0] > self.short_side[1]:
            raise ValueError(f"short_side {self.short_side} must be [least, most]")
        return self


class OptimizerConfig(Section):
    """Stochastic gradient descent on all parameters."""

    lr: Annotated[float, Field(gt=0.0)] = 0.005
    """Base learning rate."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: NonNegative = 1e-4
    """Weight decay, on every parameter."""


class ScheduleConfig(Section):
    """Learning rate as a function of the fractional epoch."""

    kind: Literal["steps", "cosine"] = "steps"
    """steps: `factors[i]` times the base rate from epoch `steps[i]` on; cosine: down to `end_lr` over all epochs."""
    steps: list[NonNegative] = Field(default=[0.0, 11.0, 14.0], min_length=1)
    """Epochs at which a factor begins to hold, boundary included; the first is 0."""
    factors: list[NonNegative] = Field(default=[1.0, 0.1, 0.01], min_length=1)
    """Factor of the base rate per step."""
    end_lr: NonNegative = 0.0
    """Last rate of the cosine."""
    warmup_epochs: NonNegative = 0.0
    """Epochs of linear warm-up to the schedule's value at their end."""
    warmup_lr: NonNegative = 0.0
    """Rate at the start of the warm-up."""

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleConfig:
        if len(self.steps) != len(self.factors):
            raise ValueError(f"steps has {len(self.steps)} entries, factors {len(self.factors)}")
        if self.steps[0] != 0 or any(a >= b for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps {self.steps} must start at 0 and increase")
        return self


class CheckpointConfig(Section):
    """When training saves what it needs to continue."""

    every_seconds: Annotated[float, Field(gt=0.0)] = 600.0
    """Longest time between checkpoints, seconds; one is also written at the end of every epoch and on a stop."""
    every_steps: Positive | None = None
    """Optimiser steps between checkpoints; null: by time alone."""


class TrainConfig(Section):
    """A training run."""

    epochs: Positive = 15
    """Passes over the train split."""
    global_batch: Positive = 64
    """Clips per optimiser step."""
    micro_batch: Positive = 8
    """Clips per forward pass; gradients accumulate to the global batch. An incomplete last step is dropped."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _whole_steps(self) -> TrainConfig:
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"micro_batch ({self.micro_batch}) must divide global_batch ({self.global_batch}): "
                "gradients accumulate over whole micro-batches"
            )
        return self


class VideoTeacherTraining(Section):
    """Teachers with network timesformer, on clips of the view they watch; sampling and augmentation are the student's.

    The short sides of the augmentation keep their ratio to the image size.
    """

    network: StudentConfig | None = None
    """Its shape and start, with the fields of `student`; null: those of the student."""
    train: TrainConfig = TrainConfig()


class SkeletonTeacherTraining(Section):
    """Teachers with network stgcn, on skeletons; joints, modality and pose_frames are those set for the teacher."""

    variant: Literal["stgcn", "stgcn++"] = "stgcn"
    """stgcn, or stgcn++: a learned graph, and time convolutions of several scales."""
    base_width: Annotated[int, Field(ge=6)] = 64
    """Channels of the first block."""
    stages: Positive = 10
    """Number of blocks."""
    inflate: list[Positive] = [5, 8]
    """Blocks, counted from 1, that double the channels and halve the frames."""
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Most by which each axis is stretched or shrunk in training, as a share; every axis has its own draw."""
    train: TrainConfig = TrainConfig(
        epochs=80,
        global_batch=128,
        micro_batch=16,
        optimizer=OptimizerConfig(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleConfig(kind="cosine"),
    )


class TrainTeachersConfig(Section):
    """`uniego train-teacher`: teachers that have to be trained on the data set itself, exo_rgb and exo_skl."""

    video: VideoTeacherTraining = VideoTeacherTraining()
    skeleton: SkeletonTeacherTraining = SkeletonTeacherTraining()


class ProxiesConfig(Section):
    """Stage 2: one proxy per teacher."""

    feature_distance: Literal["cosine", "mse"] = "cosine"
    """Distance between the projected token and the teacher's feature."""
    feature_weight: NonNegative = 1.0
    """Weight of that distance beside the cross-entropy."""
    train: TrainConfig = TrainConfig()


MergeMemory = Literal["auto", "device", "host"]


class MergeConfig(Section):
    """Stage 3, first part: the learned convex combination of the proxies."""

    level: Literal["model", "layer", "parameter", "average"] = "model"
    """model: one weight per proxy (the paper's); layer: one per proxy and layer; parameter: one per proxy and
    tensor; average: fixed 1/R."""
    epochs: Positive = 2
    """Passes over the train split."""
    lr: Annotated[float, Field(gt=0.0)] = 0.01
    """Adam's learning rate."""
    memory: MergeMemory = "auto"
    """Where the proxies lie meanwhile. device: all on it; host: in their files, read tensor by tensor, so that the
    device holds one network; auto: on the device when they fit. On a CPU both give the same bytes."""


class SPDOptions(Section):
    """Selective Proxy Distillation: a clip learns only from the proxies that are right and sure about it."""

    top_k: Positive = 1
    """Most proxies that teach one clip (K); per view when grouped by view."""
    threshold: float = 4.0
    """Greatest cross-entropy of a proxy that may teach (tau)."""
    require_correct: bool = True
    """Whether a proxy must predict the clip's label to teach it."""
    select: Literal["confident", "random", "all"] = "confident"
    """confident: smallest cross-entropy first; random: K draws with replacement, each kept only if valid; all: every
    proxy with an output, right or wrong, averaged."""
    feature_weight: NonNegative = 5.0
    """Weight of the token distance (w_f); 0 switches the branch off."""
    logit_weight: NonNegative = 1.0
    """Weight of the KL divergence between predictions (w_l); 0 switches the branch off."""
    feature_distance: Literal["cosine", "mse"] = "cosine"
    """Distance between the student's projected token and a proxy's token."""
    normalise_over: Literal["global_batch", "micro_batch"] = "global_batch"
    """Which clips with a selection divide the sums. With accumulation the count of the global batch is not known
    in time, so the micro-batch's is used there, unless `exact_normaliser` is set."""


class SPDConfig(SPDOptions):
    """What the loss itself needs: the options, and the proxies' views when the choice is made per view."""

    group_by_view: Sequence[Literal["ego", "exo"]] | None = None
    """Views of the proxies when the top K are taken separately from exo and ego ones; null: all together."""


Method = Literal["spd", "naive", "all-proxies", "random", "best-proxy", "ce"]
METHODS: tuple[Method, ...] = get_args(Method)


class DistillConfig(SPDOptions):
    """Stage 3, second part: training the student by Selective Proxy Distillation, or by what it is compared with."""

    method: Method = "spd"
    """spd: from the proxies that are right and sure; naive: from the teachers' features, a linear head for each;
    all-proxies: from all of them, averaged; random: K drawn ones, kept if valid; best-proxy: from the one best proxy;
    ce: from the labels alone. Each method and start has a folder of its own."""
    init: str = "merged"
    """What the student starts from. merged: the learned merge; average: the uniform one; imagenet: `student.init`;
    proxy:KEY: that teacher's proxy."""
    exact_normaliser: bool = False
    """With accumulation: count the clips with a selection in a pass without gradients over the whole global batch
    first. It costs a forward pass, about a third of a step; how much is logged."""
    by_view: bool = False
    """Take K proxies from the exo ones and K from the ego ones instead of K from all."""
    snapshots: Annotated[int, Field(ge=0)] = 0
    """Weights kept over training for `uniego analyze conflicts`: at the start and after each of so many equal parts of
    the steps, in the student's folder; 486 MB each for ViT-B/16. 0: none."""
    train: TrainConfig = TrainConfig()

    @field_validator("init")
    @classmethod
    def _known_start(cls, init: str) -> str:
        if not re.fullmatch(r"merged|average|imagenet|proxy:.+", init):
            raise ValueError("use merged, average, imagenet or proxy:KEY")
        return init

    @model_validator(mode="after")
    def _one_normaliser(self) -> DistillConfig:
        if self.exact_normaliser and self.normalise_over == "micro_batch":
            raise ValueError("exact_normaliser counts over the global batch: set normalise_over: global_batch")
        return self

    @property
    def variant(self) -> str:
        """Name of the network that comes out: "student", or "<method>-<init>" of one that it is compared with."""
        return "student" if (self.method, self.init) == ("spd", "merged") else f"{self.method}-{self.init}"

    def as_variant(self, name: str) -> DistillConfig | None:
        """These settings with the method and the start of a variant of that name; None: none is called so."""
        method, init = "spd", "merged"
        if name != "student":
            methods = [known for known in METHODS if name.startswith(f"{known}-")]
            if not methods:
                return None
            method, init = methods[0], name.removeprefix(f"{methods[0]}-")
        try:
            made = DistillConfig.model_validate({**dict(self), "method": method, "init": init})
        except ValueError:
            return None
        return made if made.variant == name else None

    def spd(self, views: Sequence[Literal["ego", "exo"]]) -> SPDConfig:
        """The loss's configuration for proxies that read these views, in the order of the bank."""
        options = {name: getattr(self, name) for name in SPDOptions.model_fields}
        named: dict[Method, str] = {"random": "random", "all-proxies": "all", "best-proxy": "all"}
        if self.method in named:
            options["select"] = named[self.method]
        return SPDConfig(**options, group_by_view=list(views) if self.by_view else None)


class RetrievalConfig(Section):
    """Retrieval on the test split."""

    leave_out: Literal["clip", "video"] = "clip"
    """What a query is not compared with: clip, itself; video, every clip of its own ego video."""
    nearest: Positive = 10
    """Nearest clips that are written down per query."""
    ridge: NonNegative = 1.0
    """Weight of the penalty of the map from the ego token to an exo teacher's features, times the train clips."""


class ProbeConfig(Section):
    """Quick checks of frozen embeddings: fitted on train, measured on test."""

    l2: NonNegative = 1e-3
    """Penalty of the linear probe: mean cross-entropy + l2/2 of the squared weights."""
    neighbours: Positive = 20
    """Train clips that vote in k-NN."""


class SegmentationHeadConfig(Section):
    """The built-in head, MS-TCN++ (arXiv 2006.09220), and its training with Adam on one video at a time."""

    layers: Positive = 11
    """Layers of the first stage; their dilations go up to 2^(layers-1)."""
    refinements: Annotated[int, Field(ge=0)] = 3
    """Further stages, which refine the prediction of the one before."""
    refinement_layers: Positive = 10
    """Layers of each of them."""
    width: Positive = 64
    """Channels."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Dropout inside the layers."""
    smoothing: NonNegative = 0.15
    """Weight of the truncated mean squared error between neighbouring steps' log-probabilities."""
    epochs: Positive = 100
    """Passes over the train videos; the last epoch's head is measured."""
    lr: Annotated[float, Field(gt=0.0)] = 5e-4
    """Adam's learning rate."""


class SegmentationConfig(Section):
    """Temporal action segmentation: dense features of untrimmed videos, and a head on them."""

    layout: str | None = None
    """Folder with groundTruth/, splits/ and mapping.txt, absolute or relative to run.yaml's; null: the table's."""
    split: str = "split1"
    """Which of its splits: splits/train.<split>.bundle and splits/test.<split>.bundle."""
    stride: Positive = 8
    """Labels (frames) per feature."""
    window_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds that a feature looks at; null: the median length of the train clips that have bounds, and no more than
    the sampling window."""
    label_fps: Annotated[float, Field(gt=0.0)] | None = None
    """Labels per second; null: a label per frame of the video."""
    background: list[str] = ["background"]
    """Classes that are no segments for Edit and F1."""
    head: SegmentationHeadConfig = SegmentationHeadConfig()


class EvaluateConfig(Section):
    """The protocol of evaluation and of `uniego.load(RUN).encode`; an exported folder keeps its own."""

    views: Positive = 1
    """Temporal views per clip; raw logits are summed over views and crops."""
    crops: Literal[1, 3] = 3
    """Spatial crops per view: 3 = left/centre/right at short side image_size; 1 = centre."""
    single_short_side: Positive = 256
    """Short side before the centre crop, pixels: for crops = 1 and for the export of proxy outputs."""
    resamples: Annotated[int, Field(ge=0)] = 1000
    """Resamples of the test clips for 95 % bootstrap intervals; 0: none."""
    retrieval: RetrievalConfig = RetrievalConfig()
    probe: ProbeConfig = ProbeConfig()
    segmentation: SegmentationConfig = SegmentationConfig()


class ComputeConfig(Section):
    """Where and how things are computed."""

    device: str = "auto"
    """auto: a GPU when there is one; or cpu, cuda, cuda:1."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of training: fp32, or mixed precision (bf16; fp16 with loss scaling, GPUs only)."""
    threads: Positive | None = None
    """Threads of the arithmetic on a CPU; null: all cores. Results repeat bit for bit at a fixed number."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode videos (0: in the main process)."""
    recompute: bool = False
    """Keep only the borders of the network's blocks for the backward pass and compute the inside again: about a third
    more work for a fraction of the memory, the same result."""
    compile: bool = False
    """Compile the blocks of video networks for training (torch.compile), which takes a minute before the first step;
    results differ by rounding. Where it cannot be done, training goes on without, with a warning."""
    rank_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that processes which train together (torchrun) wait for one that does not answer."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory that a training's targets may take, 1e9 bytes; null: half of what is free. More of them are mapped from a
    file under the run, which slows training where the disk is slow."""
    tensorboard: bool = False
    """Also write TensorBoard event files beside metrics.jsonl; needs the package tensorboardX (uniego[tensorboard])."""


class RunConfig(Section):
    """Everything a run needs."""

    schema_version: Literal[1] = 1
    """Version of this file's layout."""
    preset: str = "tiny"
    """The preset this file began as; a note, nothing is read from it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw is a function of (seed, epoch, clip)."""
    data: DataConfig = DataConfig()
    video: VideoConfig = VideoConfig()
    clips: ClipsConfig = ClipsConfig()
    cache: CacheConfig = CacheConfig()
    teachers: dict[str, TeacherConfig] = Field(min_length=1)
    """The pool: every entry is a frozen teacher, and gets a proxy."""
    train_teachers: TrainTeachersConfig = TrainTeachersConfig()
    extract: ExtractConfig = ExtractConfig()
    student: StudentConfig = StudentConfig()
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    proxies: ProxiesConfig = ProxiesConfig()
    merge: MergeConfig = MergeConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compute: ComputeConfig = ComputeConfig()

    @field_validator("teachers")
    @classmethod
    def _plain_names(cls, teachers: dict[str, TeacherConfig]) -> dict[str, TeacherConfig]:
        for key, config in teachers.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", key) or key in _TAKEN:
                raise ValueError(f"{key!r} cannot name a teacher: use letters, digits and _, and none of {_TAKEN}")
            teacher_view(key, config)
        return teachers

    @model_validator(mode="after")
    def _start_exists(self) -> RunConfig:
        kind, _, key = self.distill.init.partition(":")
        if kind == "proxy" and key not in self.teachers:
            raise ValueError(f"distill.init names no teacher of this run: {key!r}; they are {', '.join(self.teachers)}")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> RunConfig:
        least = min(self.augment.short_side[0], self.evaluate.single_short_side)
        if least < self.student.image_size:
            raise ValueError(
                f"short sides (augment.short_side {self.augment.short_side}, evaluate.single_short_side "
                f"{self.evaluate.single_short_side}) must be at least student.image_size ({self.student.image_size})"
            )
        return self

    @model_validator(mode="after")
    def _store_fits(self) -> RunConfig:
        drawn = max(self.augment.short_side[1], self.evaluate.single_short_side)
        if self.clips.source == "store" and self.clips.short_side < drawn:
            raise ValueError(
                f"clips.short_side ({self.clips.short_side}) is below a short side that training and export look at "
                f"({drawn}, of augment.short_side and evaluate.single_short_side)"
            )
        return self
