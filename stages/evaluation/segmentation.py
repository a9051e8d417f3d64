"""Temporal action segmentation of untrimmed videos: dense features, and an MS-TCN++ head on them.

The head is trained on the train videos and predicts the test videos. RUN/evaluate/<model>/dense holds the features in
the layout that public heads read, with a label per feature.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from ...errors import MissingInputError, UniegoError, UsageError
from ...metrics import SegmentationScores
from ...models.mstcn import MSTCN, mstcn_loss
from ...pipeline import files
from ...pipeline import segmentation as layouts
from ...pipeline.clips import Clip
from ...pipeline.config import CheckpointConfig
from ...pipeline.progress import say, warn
from ...pipeline.randomness import clip_stream, order
from ...pipeline.rundir import Run, TaskFolder
from ...pipeline.sampling import WINDOW_FPS
from ...pipeline.signals import StopFlag
from ...pipeline.sliding import Sliding
from ..batches import Batch, ClipFailure
from ..checkpoints import check_finite, replace_tensors
from ..compute import resolve_device
from ..dense import NON_FINITE, Slider, video_identities, write_dense
from ..loop import Loop, Plan, Task
from ..training import remove_scaffold
from ..video_list import SUFFIXES
from .measure import Measure, percent
from .subjects import NetworkSubject, Subject

_SUFFIXES = (*SUFFIXES, ".frames")
HEAD = "head"
NAMES = ("mof", "edit", "f1@10", "f1@25", "f1@50")


def layout_folder(run: Run) -> Path:
    """Where the annotations of the untrimmed videos lie: named, or beside the clip table."""
    named = run.config.evaluate.segmentation.layout
    return run.table().path.parent if named is None else run.base / named


def why_not(subject: Subject) -> str | None:
    """A network that can slide over videos, and frame labels are needed."""
    if not isinstance(subject, NetworkSubject):
        return "a teacher's cached features are of clips, not of every step of a video"
    folder = layout_folder(subject.run)
    split = subject.run.config.evaluate.segmentation.split
    missing = layouts.missing_part(folder, split)
    if missing:
        return f"{folder} has no {missing} (evaluate.segmentation.layout names another folder)"
    try:
        video_files(subject.run, layouts.read_layout(folder, split))
    except UniegoError as error:
        return str(error)
    return None


def settings(subject: Subject) -> dict[str, Any]:
    """The settings, and what the annotations say."""
    run = subject.run
    layout = layouts.read_layout(layout_folder(run), run.config.evaluate.segmentation.split)
    digest = hashlib.blake2b(json.dumps([layout.classes, layout.parts], sort_keys=True).encode(), digest_size=16)
    for video in layout.videos:
        digest.update(layout.labels[video].tobytes())
    videos = files.hash_bytes(json.dumps(video_identities(video_files(run, layout)), sort_keys=True).encode())
    section = run.config.evaluate.segmentation.model_dump(exclude={"layout"})
    return {
        **section,
        "window_s": window_seconds(run),
        "annotations": digest.hexdigest(),
        "videos": videos,
        "seed": run.config.seed,
    }


def window_seconds(run: Run) -> float:
    """Seconds of a window: as set, or the median length of the train clips, no more than the sampling window."""
    named = run.config.evaluate.segmentation.window_s
    most = run.config.student.num_frames * run.config.sampling.rate / WINDOW_FPS
    lengths = [clip.end_s - (clip.start_s or 0.0) for clip in run.table().split("train") if clip.end_s is not None]
    return named if named is not None else min(most, statistics.median(lengths)) if lengths else most


def video_files(run: Run, layout: layouts.Layout) -> dict[str, Path]:
    """The file of every video of the layout: the table's ego video of that name, or videos/<name>.* in its folder.

    Raises `MissingInputError` naming those that are nowhere, `UsageError` where a name stands for two files.
    """
    found = ego_videos(run.table().clips, layout.videos)
    folder = layout.folder / "videos"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.stem in layout.videos and path.stem not in found and path.suffix.lower() in _SUFFIXES:
            beside = [other for other in folder.iterdir() if other.stem == path.stem]
            videos = sorted(other.name for other in beside if other.suffix.lower() in _SUFFIXES)
            if len(videos) > 1:
                raise UsageError(f"{folder}: {path.stem} may be {' or '.join(videos)}: leave one of them")
            found[path.stem] = path
    missing = [name for name in layout.videos if name not in found]
    if missing:
        raise MissingInputError(
            f"no video file for {len(missing)} of {len(layout.videos)} videos of {layout.folder} "
            f"({', '.join(missing[:5])}): neither an ego video of the clip table has that name, nor a file in videos/"
        )
    return found


def ego_videos(clips: Sequence[Clip], names: Sequence[str]) -> dict[str, Path]:
    """The clips' ego videos by those names. Raises `UsageError` where two files in different folders have one name."""
    wanted, found = set(names), dict[str, Path]()
    for clip in clips:
        path = clip.ego_path
        if path.stem in wanted and found.setdefault(path.stem, path) != path:
            raise UsageError(
                f"the labels of {path.stem} may be of {found[path.stem]} or of {path}: rename one of the videos, or "
                "make a clip table without the other for evaluate.segmentation"
            )
    return found


@dataclass(frozen=True)
class Timeline:
    """One video: features float32 [D, T], its label at each step int64 [T], labels int64 [frames], `place` of every
    label among the steps int64 [frames]."""

    name: str
    features: Tensor
    steps: Tensor
    labels: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]


def compute(subject: Subject, folder: Path, flag: StopFlag) -> dict[str, Any]:
    """MoF, Edit and F1 of the head's predictions on the test videos; features in the field's layout, predictions."""
    assert isinstance(subject, NetworkSubject)
    run, config = subject.run, subject.run.config.evaluate.segmentation
    layout = layouts.read_layout(layout_folder(run), config.split)
    videos = video_files(run, layout)
    seen = _seen_in_training(run, layout, videos)
    every, fps = config.stride, config.label_fps
    sliding = Sliding(window_seconds(run), every=every) if fps is None else Sliding(window_seconds(run), every / fps)
    dense, failures = _dense(subject, videos, sliding, flag)
    there = [name for name in layout.videos if layouts.features_path(dense, name).exists()]
    sequences = {name: _sequence(dense, name, layout.labels[name], config.stride) for name in there}
    parts = {part: [name for name in names if name in sequences] for part, names in layout.parts.items()}
    if not all(parts.values()):
        raise UniegoError(f"no {'train' if not parts['train'] else 'test'} video of {layout.folder} could be decoded")
    steps = {name: sequence.steps.tolist() for name, sequence in sequences.items()}
    layouts.write_layout(dense, layout.classes, parts, steps, config.split)
    head = _trained_head(run, layout, [sequences[name] for name in parts["train"]], folder / HEAD, flag)
    scores = SegmentationScores(frozenset(config.background))
    for name in parts["test"]:
        flag.check()
        predicted = _predict(head, sequences[name], layout.classes)
        layouts.write_prediction(folder / "predictions" / f"{name}.txt", predicted)
        scores.add(predicted, [layout.classes[label] for label in sequences[name].labels])
    protocol = {
        "split": f"{config.split}: {len(parts['train'])} train, {len(parts['test'])} test videos",
        "features": f"token of {sliding.window_s:g} s windows, one per {config.stride} labels",
        **subject.protocol(single=True),
        "head": f"MS-TCN++, {config.head.epochs} epochs, seed {run.config.seed}, trained on this encoder's features",
        "labels": f"{'one per frame' if fps is None else f'{fps:g} per second'}; predictions are repeated to that rate",
        "background": [name for name in config.background if name in layout.classes],
        "mof": "frames of all test videos, background included",
        "edit_f1": "background is no segment; edit: mean over videos, F1: of sums over videos",
        **({"seen_in_training": seen} if seen else {}),
    }
    return {"protocol": protocol, **scores.metrics(), "failed": [list(failure) for failure in failures]}


def _seen_in_training(run: Run, layout: layouts.Layout, videos: Mapping[str, Path]) -> list[str]:
    """Test videos that train clips were cut from: said aloud, since the encoder knows them."""
    train = {clip.ego_path for clip in run.table().split("train")}
    seen = [name for name in layout.parts["test"] if videos[name] in train]
    if seen:
        warn(f"{len(seen)} test videos of {layout.folder} were seen in training (their clips are in the train split)")
    return seen


def _dense(
    subject: NetworkSubject, videos: Mapping[str, Path], sliding: Sliding, flag: StopFlag
) -> tuple[Path, list[ClipFailure]]:
    """The folder of the videos' features, and the videos that could not be decoded."""
    run = subject.run
    folder = TaskFolder(run.evaluation_folder(subject.name).path / "dense", f"dense features of {subject.name}")
    compute, weights = run.config.compute, subject.fingerprint["weights"]
    slider = Slider(
        subject.model,
        subject.reader,
        sliding,
        compute.precision,
        workers=compute.workers,
        timeout_s=run.config.extract.decode_timeout_s,
    )
    fingerprint = {**slider.fingerprint(weights), "videos": video_identities(videos)}
    missing = any(not layouts.features_path(folder.path, name).exists() for name in videos)
    failures: list[ClipFailure] = []
    changed = bool(folder.differences(fingerprint))
    with folder.work(fingerprint, overwrite=changed, incomplete=missing) as needed:
        if needed:
            failures = write_dense(slider, videos, folder.path, flag)
            if any(failure.reason == NON_FINITE for failure in failures):
                raise UniegoError(f"{folder.title}: not finite numbers: the network's training has failed")
            folder.finish({"videos": len(videos), "failed": len(failures)})
    return folder.path, failures


def _sequence(folder: Path, name: str, labels: npt.NDArray[np.int64], stride: int) -> Timeline:
    """Features and labels of a video, side by side: what one has more of is cut off, and said where it is a step."""
    features = layouts.read_features(layouts.features_path(folder, name))
    steps = -(-len(labels) // stride)
    if steps != features.shape[1]:
        warn(
            f"video {name}: {features.shape[1]} features of {stride} labels, but {len(labels)} labels; cut to the less"
        )
        steps = min(steps, features.shape[1])
        labels = labels[: steps * stride]
    middles = np.minimum(np.arange(steps) * stride + (stride - 1) // 2, len(labels) - 1)
    at_steps = torch.from_numpy(labels[middles])
    return Timeline(
        name, torch.from_numpy(features[:, :steps].copy()), at_steps, labels, np.arange(len(labels)) // stride
    )


class _HeadTask(Task):
    """Training of the head, one video a step."""

    def __init__(self, head: MSTCN, sequences: list[Timeline], run: Run, device: torch.device) -> None:
        self.title, self.head, self.seed = "MS-TCN++", head.to(device).train(), run.config.seed
        self.names = [sequence.name for sequence in sequences]
        self.features = [sequence.features for sequence in sequences]
        self.steps = [sequence.steps.to(device) for sequence in sequences]
        config = run.config.evaluate.segmentation.head
        self.epochs = config.epochs
        self._rate, self._smoothing, self._device = config.lr, config.smoothing, device
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=config.lr)

    def stream(self, epoch: int, step: int) -> Iterator[Batch]:
        """Videos in the order of (seed, epoch), from a step on."""
        for current in range(epoch, self.epochs):
            places = order(self.seed, current, self.names)
            for place in places[step if current == epoch else 0 :]:
                yield Batch.of([int(place)], self.features[place][None])

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy and smoothing; dropout is a function of (seed, epoch, video)."""
        (place,) = batch.rows
        draw = clip_stream(self.seed, epoch, self.names[place], "dropout").integers(2**62)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(int(draw))
            scores = self.head(batch.videos)
        entropy, smoothing = mstcn_loss(scores, self.steps[place][None], self._smoothing)
        return {"loss": entropy + smoothing, "cross_entropy": entropy, "smoothing": smoothing}

    def tensors(self) -> dict[str, Tensor]:
        """The head's weights."""
        return dict(self.head.state_dict())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.head.load_state_dict(tensors)

    def rate(self, epoch: float) -> float:
        """Constant."""
        return self._rate


def _trained_head(run: Run, layout: layouts.Layout, train: list[Timeline], folder: Path, flag: StopFlag) -> MSTCN:
    """The head after its last epoch, in eval mode; trained, or taken from `folder`."""
    config, device = run.config.evaluate.segmentation.head, resolve_device(run.config.compute)
    head = MSTCN(
        train[0].features.shape[0],
        len(layout.classes),
        layers=config.layers,
        refinements=config.refinements,
        refinement_layers=config.refinement_layers,
        width=config.width,
        dropout=config.dropout,
        seed=run.config.seed,
    )
    path, names = folder / "model.safetensors", [sequence.name for sequence in train]
    work = TaskFolder(folder, "the segmentation head")
    with work.work({"videos": names}, overwrite=bool(work.differences({"videos": names}))) as needed:
        if needed:
            task = _HeadTask(head, train, run, device)
            Loop(task, Plan(config.epochs, len(train), 1, 1, CheckpointConfig(), device), folder, flag).run(task.stream)
            check_finite(task.tensors(), work.title)
            replace_tensors(path, task.tensors())
            remove_scaffold(folder)
            work.finish({})
            say(f"segmentation head: trained on {len(train)} videos")
    head.load_state_dict(load_file(path))
    return head.to(device).eval()


@torch.inference_mode()
def _predict(head: MSTCN, sequence: Timeline, classes: tuple[str, ...]) -> list[str]:
    """The class of every frame that has a label."""
    device = next(head.parameters()).device
    best = head(sequence.features[None].to(device))[-1, 0].argmax(0).cpu().numpy()
    return [classes[label] for label in best[sequence.place]]


def tables(model: str, results: dict[str, Any]) -> list[Table]:
    """One row."""
    head = ("test videos", "MoF", "Edit", "F1@10", "F1@25", "F1@50")
    table = Table(*head, title=f"{model}: temporal action segmentation", caption=results["protocol"]["features"])
    table.add_row(str(results["videos"]), *(percent(results[name]) for name in NAMES))
    return [table]


SEGMENTATION = Measure(why_not, settings, compute, tables)
