"""Sample clips with every modality that the run has of them, and what student and proxies say."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from ...errors import UniegoError
from ...models.teachers import teacher_view
from ...pipeline.clips import Clip, View
from ...pipeline.poses import Pose
from ...pipeline.rundir import Run
from ..evaluation.recognition import class_names
from ..inputs import clip_pose
from .answers import PARTS, Answer, ProxyAnswer, network_answers, outdated, proxies_on_test, proxies_on_train
from .choice import hits_and_misses, spread
from .depth import DepthPictures
from .pictures import Box, Budget, Looked, Picture, Wanted, look, render, shown
from .section import Absent, Section
from .skeletons import skeleton_svg

ID, TITLE = "sample-clips", "Sample clips"
TEST_CLIPS, TRAIN_CLIPS, FRAMES = 4, 2, 3
BOX: Box = (232, 174)

Shown = list[Picture | Markup]


@dataclass(frozen=True)
class Sample:
    """A clip as the page shows it: pictures or drawings by modality, the answers, what is missing and why."""

    clip_id: str
    split: str
    name: str
    modes: dict[str, Shown]
    student: Answer | None
    proxies: dict[str, ProxyAnswer]
    label: int
    missing: str

    @property
    def parts(self) -> dict[str, str]:
        """What the words in the column "taught" mean, of those that occur."""
        there = {proxy.part for proxy in self.proxies.values()}
        return {part: words for part, words in PARTS.items() if part in there}


def sample_clips(run: Run, budget: Budget) -> Section | Absent:
    """A few clips of test, right and wrong ones, and of train, where proxies taught."""
    table = run.table()
    test, train = _test_clips(run), spread(_fullest(table.split("train")), TRAIN_CLIPS, run.config.seed)
    clips = test + train
    if not clips:
        return Absent(ID, TITLE, "the clip table has neither a test nor a train clip")
    pictures, looks = _pictures(run, budget, clips)
    answers = {**_test_answers(run, test), **_train_answers(run, train)}
    samples = []
    for clip in clips:
        student, proxies, missing = answers[clip.clip_id]
        name = class_names(run, table.num_classes)[clip.label]
        modes = pictures[clip.clip_id]
        modes["skeleton"] = [_skeleton(run, clip, looks[clip.clip_id, _pose_view(run)], budget)]
        samples.append(Sample(clip.clip_id, clip.split, name, modes, student, proxies, clip.label, missing))
    common = _common(samples)
    body = render("pictures_samples.html", samples=samples, names=class_names(run, table.num_classes), common=common)
    return Section(ID, TITLE, body, f"{_NOTE} {outdated(run)}".strip())


def _common(samples: list[Sample]) -> list[str]:
    """What all of them lack, said once: modalities that no clip has, which are taken out, and the same words."""
    said = []
    for mode in list(samples[0].modes):
        shots = [one for sample in samples for one in sample.modes[mode]]
        reasons = dict.fromkeys(one.reason for one in shots if isinstance(one, Picture) and one.reason)
        if not any(isinstance(one, Markup) or one.source for one in shots):
            said.append(f"No {mode.partition(':')[0]}: {'; '.join(list(reasons)[:3])}.")
            for sample in samples:
                del sample.modes[mode]
    for words in dict.fromkeys(sample.missing for sample in samples if sample.missing):
        alike = [place for place, sample in enumerate(samples) if sample.missing == words]
        if len(alike) > 1:
            said.append(f"{samples[alike[0]].split.capitalize()} clips: {words}")
            for place in alike:
                samples[place] = replace(samples[place], missing="")
    return said


_NOTE = (
    "Clips are drawn by the run's seed, spread over classes: of test, half of them recognised, half not, as far as "
    "there are as many; of train, where proxies taught. Depth is relative, from dark (far) to light (near)."
)

Answers = dict[str, tuple[Answer | None, dict[str, ProxyAnswer], str]]


def _test_clips(run: Run) -> list[Clip]:
    """Test clips that the student is right and wrong about; any, where it was not evaluated."""
    clips = {clip.clip_id: clip for clip in run.table().split("test")}
    path = run.evaluation_folder("student").path / "predictions.csv"
    if not path.exists():
        return spread(_fullest(list(clips.values())), TEST_CLIPS, run.config.seed)
    right: list[Clip] = []
    wrong: list[Clip] = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["clip_id"] in clips and row["label_rank"]:
                (right if row["label_rank"] == "1" else wrong).append(clips[row["clip_id"]])
    return hits_and_misses(_fullest(right), _fullest(wrong), TEST_CLIPS, run.config.seed)


def _fullest(clips: Sequence[Clip]) -> list[Clip]:
    """Those with the most modalities among the clips."""
    most = max((len(clip.sources) for clip in clips), default=0)
    return [clip for clip in clips if len(clip.sources) == most]


def _test_answers(run: Run, clips: Sequence[Clip]) -> Answers:
    student, said = _attempt(lambda: network_answers(run, "student", "test", clips))
    proxies, _ = _attempt(lambda: proxies_on_test(run, clips))
    if not student and not said:
        said = f"The student was not evaluated: run `{run.command('evaluate')}`."
    elif not any(proxies.values()):
        said = f"Proxies were not evaluated: `{run.command('evaluate --model proxy:<teacher>')}`."
    return {c.clip_id: (student.get(c.clip_id), proxies.get(c.clip_id, {}), said) for c in clips}


def _train_answers(run: Run, clips: Sequence[Clip]) -> Answers:
    student, said = _attempt(lambda: network_answers(run, "student", "train", clips))
    proxies, why = _attempt(lambda: proxies_on_train(run, clips, student))
    if not student and not said:
        said = f"The student was not run on train clips: `{run.command('evaluate --task probe')}` does."
    said = " ".join(part for part in (said, why) if part)
    return {c.clip_id: (student.get(c.clip_id), proxies.get(c.clip_id, {}), said) for c in clips}


def _attempt(act: Callable[[], Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """What it gives, or nothing and why."""
    try:
        return act(), ""
    except UniegoError as error:
        return {}, str(error)


def _pictures(
    run: Run, budget: Budget, clips: Sequence[Clip]
) -> tuple[dict[str, dict[str, Shown]], dict[tuple[str, View], Looked]]:
    """Frames of both views and depth pictures by clip and modality; and the frames themselves, by clip and view."""
    views: tuple[View, ...] = ("ego", "exo")
    wanted = [Wanted(clip, view, FRAMES) for clip in clips for view in views]
    looks = {(item.wanted.clip.clip_id, item.wanted.view): item for item in look(run, wanted)}
    depth = DepthPictures(run)
    pictures: dict[str, dict[str, Shown]] = {}
    for clip in clips:
        found = pictures[clip.clip_id] = {}
        for view in views:
            alt = f"{view} frame of {clip.clip_id}"
            found[f"{view} video"] = [*shown(looks[clip.clip_id, view], budget, BOX, alt)]
        found["depth: ego, exo"] = [_depth(depth, looks[clip.clip_id, view], budget) for view in views]
    return pictures, looks


def _depth(depth: DepthPictures, looked: Looked, budget: Budget) -> Picture:
    """The depth of the middle frame."""
    view, alt = looked.wanted.view, f"{looked.wanted.view} depth of {looked.wanted.clip.clip_id}"
    if looked.frames is None:
        return Picture(alt, reason=str(looked.error))
    middle = len(looked.frames) // 2
    made, said = depth.of(view, looked.frames[middle : middle + 1])
    return Picture(alt, reason=said) if made is None else budget.picture(made[0], BOX, f"{alt} by {said}")


def _pose_view(run: Run) -> View:
    """The view that skeletons belong to: that of the first skeleton teacher."""
    views = [teacher_view(key, config) for key, config in run.config.teachers.items() if config.network == "stgcn"]
    return views[0] if views else "exo"


def _skeleton(run: Run, clip: Clip, looked: Looked, budget: Budget) -> Markup | Picture:
    """The skeleton at the middle frame, over it where that can be."""
    alt = f"skeleton of {clip.clip_id}"
    if clip.pose_path is None:
        return Picture(alt, reason="the clip table names no skeleton for it")
    try:
        pose: Pose = clip_pose(clip, looked.wanted.view, run.config.video.backend)
    except (UniegoError, OSError) as error:
        return Picture(alt, reason=str(error))
    if looked.frames is None:
        return skeleton_svg(pose, 0.5, Picture(alt, reason=str(looked.error)))
    middle = len(looked.frames) // 2
    frame = budget.picture(looked.frames[middle], BOX, alt)
    return skeleton_svg(pose, (int(np.asarray(looked.numbers)[middle]) + 0.5) / looked.length, frame)
