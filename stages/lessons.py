"""What training a teacher on the data set takes: which clips, how they are read, which network, which loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import ConfigError, UsageError
from ..models.teachers import TeacherConfig, teacher_view
from ..models.teachers.preprocess import KINETICS
from ..models.teachers.skeleton import SkeletonTeacher, widths_of
from ..pipeline.clips import Clip, Split, View
from ..pipeline.config import StudentConfig, TrainConfig
from ..pipeline.progress import warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .batches import SINGLE, ClipReader, Protocol, Reader
from .compute import resolve_device
from .fingerprints import clips_hash, init_hash, settings_of
from .skeleton_reader import SkeletonReader
from .supervised import Supervised, SupervisedTask, VideoTask
from .training import evaluation_protocol, initial_proxy, make_validator

TRAINABLE = ("timesformer", "stgcn")
"""Networks that can be trained here."""

_SKELETON = {"graph", "edges", "pose_dims", "modality", "pose_frames"}
"""Fields of a teacher that say what its network reads."""

_NETWORK = {"variant", "base_width", "stages", "inflate"}
"""Fields of `train_teachers.skeleton` that say what the network is."""


@dataclass(frozen=True)
class Lesson(ABC):
    """The training of teacher `key` in a run; `lesson_of` gives that of its kind."""

    run: Run
    key: str

    @property
    def config(self) -> TeacherConfig:
        """The teacher's settings."""
        return self.run.config.teachers[self.key]

    @property
    def view(self) -> View:
        """The camera that the teacher watches."""
        return teacher_view(self.key, self.config)

    def clips(self, split: Split) -> list[Clip]:
        """The clips of a split whose rows name the teacher's input."""
        return [clip for clip in self.run.table().split(split) if self.sees(clip)]

    def fingerprint(self) -> dict[str, Any]:
        """What the trained weights depend on, JSON-able."""
        config = self.run.config
        return {
            "seed": config.seed,
            "train_clips": clips_hash(self.clips("train")),
            "num_classes": self.run.table().num_classes,
            "video": config.video.model_dump(),
            "precision": config.compute.precision,
            "train": settings_of(self.train),
            **self.settings(),
        }

    def check_dim(self) -> None:
        """Raise `ConfigError` when the teacher's `dim` is not the width of what would be trained."""
        if self.config.dim not in (None, self.width):
            raise ConfigError(
                f"teachers.{self.key}.dim is {self.config.dim}, but the network that is trained here gives features of "
                f"width {self.width}; change dim, or the network (docs/train-teacher.md)"
            )

    @property
    @abstractmethod
    def input(self) -> str:
        """What the teacher sees, in words."""

    @property
    @abstractmethod
    def train(self) -> TrainConfig:
        """For how long, and how."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the feature."""

    @property
    @abstractmethod
    def protocol(self) -> Protocol:
        """How test clips are looked at."""

    @abstractmethod
    def sees(self, clip: Clip) -> bool:
        """Whether the clip's row names the teacher's input."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The part of the fingerprint that is of this kind alone."""

    @abstractmethod
    def reader(self) -> Reader:
        """How clips are read, in training and in testing."""

    @abstractmethod
    def task(self, clips: Sequence[Clip], flag: StopFlag) -> SupervisedTask[Any]:
        """A network at its start, and its loss on `clips`."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """What loading the network takes besides its tensors."""


class VideoLesson(Lesson):
    """A TimeSformer, on the clips of one view."""

    @property
    def network(self) -> StudentConfig:
        """The network, which sees as many frames of the size that extraction will show it."""
        shape = self.run.config.train_teachers.video.network or self.run.config.student
        size = self.config.image_size or shape.image_size
        return shape.model_copy(update={"num_frames": self.config.frames, "image_size": size})

    @property
    def input(self) -> str:
        return f"an {self.view} video"

    @property
    def train(self) -> TrainConfig:
        return self.run.config.train_teachers.video.train

    @property
    def width(self) -> int:
        return self.network.width

    @property
    def protocol(self) -> Protocol:
        return evaluation_protocol(self.run)

    def sees(self, clip: Clip) -> bool:
        return clip.video(self.view) is not None

    def settings(self) -> dict[str, Any]:
        return {
            "network": self.network.model_dump(),
            "init": init_hash(self.run, self.network.init),
            "input": asdict(self.reader()),
        }

    def reader(self) -> ClipReader:
        (mean, *_), (std, *_) = KINETICS  # what extraction uses, whatever the student's are
        return replace(ClipReader.from_config(self.run.config, self.view, self.network), mean=mean, std=std)

    def task(self, clips: Sequence[Clip], flag: StopFlag) -> VideoTask:
        if self.network.init is None:
            warn(f"teacher {self.key} starts from random weights, since `init` of its network is null")
        device = resolve_device(self.run.config.compute)
        validate = make_validator(self.run, flag, self.clips("val"), self.reader())
        base = Supervised(initial_proxy(self.run, {}, self.network), clips, self.run.config.seed, device, validate)
        return VideoTask(f"teacher {self.key}", self.train, base)

    def metadata(self) -> dict[str, str]:
        return {"heads": str(self.network.heads)}


class SkeletonLesson(Lesson):
    """An ST-GCN, on skeletons."""

    @property
    def input(self) -> str:
        return "a skeleton"

    @property
    def train(self) -> TrainConfig:
        return self.run.config.train_teachers.skeleton.train

    @property
    def width(self) -> int:
        return widths_of(self._shape)[-1]

    @property
    def protocol(self) -> Protocol:
        return SINGLE

    def sees(self, clip: Clip) -> bool:
        return clip.pose_path is not None

    def settings(self) -> dict[str, Any]:
        network = self.run.config.train_teachers.skeleton.model_dump(exclude={"train"})
        return {"network": network, "skeleton": self.config.model_dump(include=_SKELETON)}

    def reader(self) -> SkeletonReader:
        config, scale = self.run.config, self.run.config.train_teachers.skeleton.scale
        teacher = self._teacher(base_width=6, stages=1, inflate=[])  # prepares skeletons; its network does not run
        return SkeletonReader(teacher, scale, config.video.backend, config.seed)

    def task(self, clips: Sequence[Clip], flag: StopFlag) -> SupervisedTask[Any]:
        model = self._teacher(**self._shape).module.requires_grad_(True)
        device = resolve_device(self.run.config.compute)
        validate = make_validator(self.run, flag, self.clips("val"), self.reader())
        base = Supervised(model, clips, self.run.config.seed, device, validate)
        return SupervisedTask(f"teacher {self.key}", self.train, base)

    def metadata(self) -> dict[str, str]:
        return {}

    @property
    def _shape(self) -> dict[str, Any]:
        """The network's settings, as a teacher's `architecture` names them."""
        return self.run.config.train_teachers.skeleton.model_dump(include=_NETWORK)

    def _teacher(self, **architecture: Any) -> SkeletonTeacher:
        """The teacher with random weights of the run's seed."""
        changes = {
            "weights": f"random:{self.run.config.seed}",
            "allow_random": True,
            "dim": None,
            "architecture": {"classes": self.run.table().num_classes, **architecture},
        }
        return SkeletonTeacher(self.key, self.view, self.config.model_copy(update=changes))


def lesson_of(run: Run, key: str) -> Lesson:
    """The lesson of a teacher. Raises `UsageError` for one that is not in the pool or cannot be trained."""
    (key,) = run.choose([key])
    network = run.config.teachers[key].network
    if network == "timesformer":
        return VideoLesson(run, key)
    if network == "stgcn":
        return SkeletonLesson(run, key)
    able = [name for name, config in run.config.teachers.items() if config.network in TRAINABLE]
    raise UsageError(
        f"teacher {key}: a network {network} is not trained here; what can be trained in this run: "
        f"{', '.join(able) or 'nothing'}"
    )
