"""The report's pictures: real frames of the right clips, gaps with their reasons, and what stands beside them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from uniego.pipeline import segmentation as layouts
from uniego.pipeline.clips import Clip
from uniego.pipeline.poses import Pose
from uniego.pipeline.presets import preset
from uniego.pipeline.rundir import Run
from uniego.pipeline.video import open_video, segment
from uniego.stages.report.answers import network_answers, proxies_on_train
from uniego.stages.report.choice import hits_and_misses, spread
from uniego.stages.report.gallery import retrieval_gallery
from uniego.stages.report.pictures import Budget, Picture, Wanted, look, render, shown
from uniego.stages.report.samples import sample_clips
from uniego.stages.report.section import Absent, Section
from uniego.stages.report.skeletons import skeleton_svg
from uniego.stages.report.strips import segmentation_strips


class Page(HTMLParser):
    """What stands in a body: tags with their attributes, and all text."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.body, self.text = body, ""
        self.feed(body)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str, word: str = "") -> list[dict[str, str | None]]:
        """Attributes of the tags of that kind that have the class."""
        return [a for name, a in self.tags if name == tag and (not word or word in (a.get("class") or "").split())]


def section(made: Section | Absent) -> Page:
    assert isinstance(made, Section), made
    return Page(str(made.body))


def absent(made: Section | Absent) -> str:
    assert isinstance(made, Absent)
    return made.reason


def pixels(source: str | None) -> np.ndarray:
    assert source is not None
    assert source.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        return np.asarray(image)


def middle(clip: Clip, view: Any) -> np.ndarray:
    with open_video(str(clip.video(view))) as video:
        first, end = segment(video.info, clip.start_s, clip.end_s)
        frame: np.ndarray = video.frames([first + (end - first) // 2])[0]
    return frame


def nearest(source: str | None, clips: list[Clip], view: str) -> Clip:
    """The clip whose middle frame is most like a picture of the page, and like it indeed."""
    distances = [np.abs(pixels(source).astype(float) - middle(clip, view)).mean() for clip in clips]
    assert min(distances) < 8
    return clips[int(np.argmin(distances))]


# --- frames --------------------------------------------------------------------------------------------------------


def test_a_frame_is_that_of_its_clip(finished: Run) -> None:
    clips = finished.table().split("test")
    budget = Budget()
    for clip, looked in zip(clips, look(finished, [Wanted(clip, "exo", 1) for clip in clips]), strict=True):
        (picture,) = shown(looked, budget, (64, 64), "exo")
        assert nearest(picture.source, clips, "exo") is clip


def test_a_video_that_fails_is_a_gap_with_its_reason(finished: Run, tmp_path: Path) -> None:
    clip = finished.table().split("test")[0]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    late = replace(clip, start_s=900.0, end_s=901.0)
    broken, gone = (replace(clip, ego_path=tmp_path / name) for name in ("broken.mp4", "gone.mp4"))
    bare = replace(clip, exo_path=None)
    wanted = [Wanted(c, "ego", 3) for c in (late, broken, clip, gone)] + [Wanted(bare, "exo", 1)]
    looks = list(look(finished, wanted))
    assert [looked.wanted for looked in looks] == wanted
    assert [looked.frames is None for looked in looks] == [True, True, False, True, True]
    for looked, word in zip(looks, ("truncated", "unreadable", "", "missing", "names no exo video"), strict=True):
        if looked.frames is None:
            (gap,) = shown(looked, Budget(), (64, 64), "frame of it")
            assert word in gap.reason
            assert not gap.source
        else:
            assert len(shown(looked, Budget(), (64, 64), "frame")) == 3


def test_the_budget_is_shared_and_never_exceeded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 400, 3), np.uint8)
    budget = Budget(12_000)
    made = [budget.picture(noise, (100, 100), "noise") for _ in range(9)]
    kept = [picture for picture in made if picture.source]
    assert 0 < len(kept) < 9
    assert sum(len(picture.source) for picture in kept) + budget.left == 12_000
    assert budget.left >= 0
    assert (kept[0].width, kept[0].height) == (100, 50)
    assert all("no room" in picture.reason for picture in made if not picture.source)
    assert Budget().picture(noise[:8, :8], (100, 100), "small").width == 8  # never enlarged


def test_names_are_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    body = str(render("pictures_macros.html"))
    picture = Picture(evil, reason=evil)
    from uniego.stages.report.pictures import _templates

    module: Any = _templates().get_template("pictures_macros.html").module
    body += str(module.shot(picture)) + str(skeleton_svg(Pose(np.ones((1, 2, 17, 3), np.float32), (9, 9)), 0, picture))
    assert "<script" not in body


# --- choice --------------------------------------------------------------------------------------------------------


def test_choice_is_spread_over_classes_and_does_not_depend_on_order(finished: Run) -> None:
    clips = list(finished.table().clips)
    chosen = spread(clips, 8, 3)
    assert sorted(clip.label for clip in chosen) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert spread(clips[::-1], 8, 3) == chosen
    assert spread(clips, 8, 4) != chosen
    right, wrong = clips[:10], clips[10:12]
    both = hits_and_misses(right, wrong, 8, 0)
    assert len(both) == 8
    assert sum(clip in wrong for clip in both) == 2
    assert len(hits_and_misses([], wrong, 8, 0)) == 2


# --- sections ------------------------------------------------------------------------------------------------------


def test_the_gallery_marks_right_and_wrong(finished: Run) -> None:
    page = section(retrieval_gallery(finished, Budget()))
    queries = page.of("div", "pic-query")
    assert len(queries) == 16  # eight of ego → ego, eight of ego → exo
    labels = {clip.clip_id: clip.label for clip in finished.table().clips}
    folder = finished.evaluation_folder("student").path / "retrieval"
    lines = [json.loads(line) for line in (folder / "nearest.jsonl").read_text().splitlines()]
    right = sum(labels[e["clip_id"]] == labels[near] for e in lines for near, _ in e["nearest"][:5])
    body = page.body.partition("Ego → exo")[0]
    ego = Page(body)
    assert len(ego.of("figure", "pic-right")) == right == ego.text.count("✓ same class")
    assert len(ego.of("figure", "pic-wrong")) == 40 - right == ego.text.count("✗ other class")
    assert f"{lines[0]['nearest'][0][1]:.3f}" in ego.text
    assert "exo_skl" in page.text
    assert all((a["src"] or "").startswith("data:image/jpeg") for a in page.of("img"))
    asked = re.findall(r'pic-asked">.*?src="(.*?)".*?query (.*?)<', body, re.DOTALL)
    assert len(asked) == 8
    clips = finished.table().split("test")
    assert [nearest(source, clips, "ego").clip_id for source, _ in asked] == [clip_id for _, clip_id in asked]


def test_exo_galleries_hold_the_partner(finished: Run) -> None:
    """The nearest exo clips are written with the query's own partner among them, best first."""
    path = finished.evaluation_folder("student").path / "retrieval" / "exo" / "exo_skl.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 8
    for entry in lines:
        ids, cosines = zip(*entry["nearest"], strict=True)
        assert ids.index(entry["clip_id"]) == entry["first"] - 1
        assert list(cosines) == sorted(cosines, reverse=True)


def test_samples_show_every_modality_and_who_taught(finished: Run) -> None:
    page = section(sample_clips(finished, Budget()))
    assert len(page.of("article", "pic-sample")) == 6
    assert "no picture" not in page.text
    assert len(page.of("svg", "pic-skeleton")) == 6
    alts = [a["alt"] or "" for a in page.of("img")]
    assert sum("depth" in alt for alt in alts) == 12
    assert sum(alt.startswith("ego frame") for alt in alts) == sum(alt.startswith("exo frame") for alt in alts) == 18
    assert page.text.count("student, ego video alone") == 6
    assert "exo_skl" in page.text


def test_answers_are_those_of_the_stages(finished: Run) -> None:
    test, train = finished.table().split("test"), finished.table().split("train")
    lines = (finished.evaluation_folder("student").path / "predictions.csv").read_text().splitlines()[1:]
    names = finished.table().classes
    answers = network_answers(finished, "student", "test", test)
    assert [f"{names[answers[c.clip_id].top[0][0]]}" for c in test] == [line.split(",")[2] for line in lines]
    known = network_answers(finished, "student", "train", train)
    taught = proxies_on_train(finished, train, known)
    assert set(known) == set(taught) == {clip.clip_id for clip in train}
    for clip in train:
        for proxy in taught[clip.clip_id].values():
            right = proxy.answer.top[0][0] == clip.label
            assert (proxy.part == "wrong") == (not right)
            if proxy.part in ("teaches", "taught"):
                assert (proxy.part == "teaches") == (proxy.answer.entropy < known[clip.clip_id].entropy)
    without = proxies_on_train(finished, train, {})
    assert {p.part for by in without.values() for p in by.values()} <= {"chosen", "out", "wrong"}


def test_strips_are_the_predictions(finished: Run) -> None:
    page = section(segmentation_strips(finished, Budget()))
    strips = page.of("svg", "pic-strip")
    assert [a["aria-label"].split(":")[0] for a in strips if a["aria-label"]] == [
        "truth of s002_ego",
        "student's prediction of s002_ego",
    ]
    folder = finished.evaluation_folder("student").path / "segmentation"
    predicted = layouts.read_prediction(folder / "predictions" / "s002_ego.txt")
    wanted, at = [], 0
    for place in range(1, len(predicted) + 1):
        if place == len(predicted) or predicted[place] != predicted[at]:
            wanted.append(f"{predicted[at].replace('_', ' ')} {at}–{place}")
            at = place
    assert (strips[1]["aria-label"] or "").partition(": ")[2] == ", ".join(wanted)
    mof = json.loads((folder / "record.json").read_text())["results"]["mof"]
    assert page.text.count(f"{mof:.1f}") >= 2  # one test video: its score is that of all


def test_long_videos_are_drawn_coarser_and_told_in_short(run: Run) -> None:
    folder = run.evaluation_folder("student").path / "segmentation"
    layout = run.table().path.parent
    names = [name for name in layouts.read_mapping(layout / "mapping.txt") if name != "background"]
    labels = [names[place % 7] for place in range(700)]
    changed = run.root / "layout"
    shutil.copytree(layout / "splits", changed / "splits")
    shutil.copy(layout / "mapping.txt", changed)
    shutil.copytree(layout / "groundTruth", changed / "groundTruth")
    (changed / "groundTruth" / "s002_ego.txt").write_text("\n".join(labels) + "\n")
    layouts.write_prediction(folder / "predictions" / "s002_ego.txt", labels[:690])
    evaluate_config = run.config.evaluate
    cut = evaluate_config.segmentation.model_copy(update={"layout": str(changed)})
    config = run.config.model_copy(update={"evaluate": evaluate_config.model_copy(update={"segmentation": cut})})
    budget = Budget()
    made = segmentation_strips(replace(run, config=config), budget)
    page = section(made)
    assert Budget().left - budget.left == len(page.body) < 300_000
    assert len(page.of("title")) < 801
    assert all("more segments; drawn from 400 samples" in (a["aria-label"] or "") for a in page.of("svg"))
    assert not page.of("rect", "pic-off")


def test_a_student_trained_anew_is_told(run: Run) -> None:
    path = run.student_folder.path / "record.json"
    record = json.loads(path.read_text())
    record["results"]["weights"] = "0" * 32
    path.write_text(json.dumps(record))
    for make in (retrieval_gallery, sample_clips, segmentation_strips):
        made = make(run, Budget())
        assert isinstance(made, Section)
        assert "an earlier student" in made.note


def test_what_is_missing_says_which_command_brings_it(run: Run) -> None:
    folder = run.evaluation_folder("student").path
    (folder / "retrieval" / "exo" / "exo_skl.jsonl").unlink()
    assert "--overwrite" in section(retrieval_gallery(run, Budget())).text
    shutil.rmtree(folder)
    shutil.rmtree(run.student_folder.path)
    assert "uniego evaluate --task retrieval" in absent(retrieval_gallery(run, Budget()))
    assert "uniego evaluate --task segmentation" in absent(segmentation_strips(run, Budget()))
    page = section(sample_clips(run, Budget()))  # its pictures need no network
    assert "uniego evaluate" in page.text
    assert "the student is not finished" in page.text
    assert len(page.of("svg", "pic-skeleton")) == 6


def test_untrained_depth_teachers_draw_nothing(clip_table: Path, tmp_path: Path) -> None:
    """A run of which only the table is there: frames all the same, gaps for the rest."""
    config = preset("tiny")
    data = config.data.model_copy(update={"table": str(clip_table)})
    run = Run.create(tmp_path / "run", config.model_copy(update={"data": data}))
    page = section(sample_clips(run, Budget(9_000)))
    assert "depth pictures need network depth_anything with trained weights" in page.text
    assert "no room for more pictures" in page.text


@pytest.mark.parametrize("joints", [17, 25, 21, 5])
def test_skeletons_of_all_layouts(joints: int, frame_number: Callable[..., int]) -> None:
    points = np.random.default_rng(joints).uniform(-1, 1, (2, 10, joints, 3)).astype(np.float32)
    points[1] = 0.0
    svg = str(skeleton_svg(Pose(points, None), 0.99, Picture("skeleton")))
    assert svg.count("<circle") == joints
    places = [float(x) for x in re.findall(r'c[xy]="([-.\d]+)"', svg)]
    assert min(places) > 0
    assert max(places) < 200
    points[0] = 0.0
    assert "nobody is seen" in str(skeleton_svg(Pose(points, None), 0.5, Picture("skeleton")))
