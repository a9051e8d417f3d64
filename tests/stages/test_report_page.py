"""The report as a page: every part is there or says why not, the numbers are those of the run, all of it is text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import CoverageError
from uniego.pipeline.presets import preset
from uniego.pipeline.rundir import Run
from uniego.stages import report as package
from uniego.stages.ablate_report import COLUMNS
from uniego.stages.extract_teachers import extract_teachers
from uniego.stages.report import analyses, classes, coverage, lessons, measured, overview, page, plots, trainings
from uniego.stages.report.section import Absent, Section
from uniego.stages.teaching import read_teaching

TEMPLATES = Path(package.__file__).parent / "templates"
PARTS = {part.id for parts in page._NUMBERS.values() for part in parts} | {part[0] for part in page._PICTURES}
EVIL = "<script>alert(1)</script>"
EVIL_FOLDER = "<img src=x onerror=alert(1)>&\"'"


class Tree(HTMLParser):
    """Anchors of the sections, those that are absent, rows of tables by their first cell, all text, all addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.absent: set[str] = set()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self._section, self._cell = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        self.links += [str(known[name]) for name in ("src", "href", "srcset", "action") if name in known]
        if tag == "section":
            self._section = str(known["id"])
            self.sections[self._section] = ""
            if known.get("class") == "absent":
                self.absent.add(self._section)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._section:
            self.sections[self._section] += data
        if self._cell:
            self.rows[-1][-1] += data.strip()

    def row(self, *first: str) -> list[str]:
        return next(row for row in self.rows if row[: len(first)] == list(first))


def tree(made: Section | Absent) -> Tree:
    assert isinstance(made, Section), made
    return Tree(f'<section id="{made.id}">{made.body}</section>')


def absent(made: Section | Absent) -> str:
    assert isinstance(made, Absent), made
    return made.reason


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_holds_every_part_and_loads_nothing(run: Run) -> None:
    result = CliRunner().invoke(cli.app, ["report", "--run", str(run.root)])
    assert result.exit_code == 0, result.output
    written = (run.root / "report.html").read_bytes()
    assert len(written) < page.LIMIT
    text = written.decode()
    found = Tree(text)
    assert set(found.sections) == PARTS
    assert found.absent == {"methods", "ablations"}
    assert "uniego ablate" in found.sections["ablations"]
    assert "uniego distill --method naive" in found.sections["methods"]
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert not re.search(r"url\(|@import|https?://", text)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert page.write_report(run, run.root / "again.html").read_bytes() == written


def test_a_run_with_nothing_says_what_makes_it(clip_table: Path, tmp_path: Path) -> None:
    config = preset("tiny")
    data = config.data.model_copy(update={"table": str(clip_table)})
    run = Run.create(tmp_path / "run", config.model_copy(update={"data": data}))
    found = Tree(page.report(run))
    there = {"stages", "quarantined", "made-with", "configuration", "sample-clips"}
    assert found.absent == PARTS - there
    for name in found.absent:
        assert re.search(
            r"uniego (extract-teachers|train-proxies|distill|evaluate|analyze|ablate)", found.sections[name]
        )
    assert "pending" in found.row("extract-teachers", "exo_rgb")[2]
    assert "polyline" not in found.tags


# --- numbers -------------------------------------------------------------------------------------------------------


def test_stages_tell_their_states_apart(run: Run) -> None:
    found = tree(overview.stages(run))
    assert found.row("train-proxies", "exo_skl")[2] == "done"
    change(run.proxy_folder("exo_skl").path / "record.json", state="failed", message="the disk is full")
    config = run.config.model_copy(update={"seed": 7})
    shutil.rmtree(run.merge_folder.path)
    found = tree(overview.stages(run))
    assert found.row("train-proxies", "exo_skl")[2:4] == ["failed", "failed (the disk is full)"]
    assert found.row("distill", "merge")[2] == "pending"
    assert "uniego distill --run" in found.row("distill", "merge")[3]
    found = tree(overview.stages(replace(run, config=config)))
    assert "seed" in found.row("train-proxies", "ego_depth")[3]
    assert found.row("train-proxies", "ego_depth")[2] == "stale"


def test_settings_versions_and_fingerprints_are_those_of_the_run(finished: Run) -> None:
    found = tree(overview.configuration(finished))
    assert found.row("distill.top_k")[1] == str(finished.config.distill.top_k)
    assert found.row("teachers.exo_skl.network")[1] == '"stgcn"'
    made = tree(overview.made_with(finished))
    assert "torch" in made.sections["made-with"]
    weights = finished.student_folder.results["weights"]
    assert f"weights {weights[:16]}" in made.sections["made-with"]


def test_quarantined_clips_have_their_reasons(run: Run, tmp_path: Path) -> None:
    data = (tmp_path / "data").resolve()
    (tmp_path / "data").unlink()
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "videos" / "s000_ego.mp4").write_bytes(b"no video")
    assert "None" in tree(coverage.quarantined(run)).sections["quarantined"]
    with pytest.raises(CoverageError):
        extract_teachers(Run.open(run.root))
    run = Run.open(run.root)
    found = tree(coverage.quarantined(run))
    assert found.row("ego_depth")[1:] == ["unreadable", "8"]
    assert found.row("s000_00")[1:4] == ["train", "ego_depth", "unreadable"]
    covered = tree(coverage.cache_coverage(run))
    train = len(run.table().split("train"))
    assert covered.row("ego_depth")[1] == f"{train - 8} done8 failed"
    assert covered.row("exo_skl")[1] == f"{train} done"


def test_curves_merge_and_lessons_are_those_of_the_logs(finished: Run) -> None:
    curves = trainings.training_curves(finished)
    found = tree(curves)
    lines = (finished.student_folder.path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines if '"step"' in line]
    assert found.row("student")[3] == str(len(steps))
    assert f"loss: {steps[0]['loss']:.4g} at step 0" in found.sections["training-curves"]
    alphas = finished.merge_folder.results["alpha"]["model"]
    assert tree(lessons.merge_weights(finished)).row("model") == ["model", *(f"{100 * a:.1f}" for a in alphas)]
    (epoch,) = read_teaching(finished.student_folder.path)
    found = tree(lessons.who_taught_whom(finished))
    for place, key in enumerate(epoch.proxies):
        row = found.row(key)
        assert row[1] == str(int(epoch.taught[:, place].sum()))
        assert row[4] == f"{100 * (epoch.agreement[place] or 0):.0f} %"
    label = int(epoch.clips.argmax())
    name = finished.table().classes[label]
    assert found.row(name)[-1] == f"{100 * epoch.untaught[label] / epoch.clips[label]:.0f}"


def test_every_number_has_its_protocol_and_interval(finished: Run) -> None:
    found = tree(measured.metrics(finished))
    results = finished.evaluation_folder("student").results["tasks"]
    top1, (low, high) = results["recognition"]["top1"], results["recognition"]["interval"]["top1"]
    assert f"{top1:.1f} ({low:.1f} to {high:.1f})" in found.sections["metrics"]
    text = " ".join(found.sections["metrics"].split())
    for words in ("raw logits summed over views and crops", "95 % percentile bootstrap over clips, 40 resamples"):
        assert words in text
    assert "proxy:exo_skl" in text
    assert "ego → exo, the clip's own other view" in text
    assert f"{results['segmentation']['mof']:.1f}" in [cell for row in found.rows for cell in row]
    row = tree(classes.per_class(finished))
    (_, *lines) = (finished.evaluation_folder("student").path / "recognition/per_class.csv").read_text().splitlines()
    for line in lines:
        name, clips, predicted, recall, _ = line.split(",")
        assert row.row(name)[1:4] == [clips, predicted, f"{float(recall):.1f}"]
    matrix = tree(classes.confusion(finished))
    (_, *lines) = (finished.evaluation_folder("student").path / "recognition/confusion.csv").read_text().splitlines()
    for line in lines:
        name, *counts = line.split(",")
        assert matrix.row(name) == [name, *("·" if count == "0" else count for count in counts)]


def test_many_classes_show_those_that_are_confused(run: Run) -> None:
    folder = run.evaluation_folder("student").path / "recognition"
    names = [f"class {i}" for i in range(60)]
    rows = [[name, *(str(int(i == j) or int(j == i + 1 and i < 5)) for j in range(60))] for i, name in enumerate(names)]
    (folder / "confusion.csv").write_text("\n".join(",".join(row) for row in [["truth", *names], *rows]) + "\n")
    made = classes.confusion(run)
    assert isinstance(made, Section)
    assert "32 classes of 60" in made.note
    found = tree(made)
    assert found.row("class 0")[:3] == ["class 0", "1", "1"]
    assert ["class 0", "class 1", "1", "2"] in found.rows


def test_analyses_are_those_on_disk(run: Run) -> None:
    report = json.loads((run.root / "analyze/cka/cka.json").read_text())
    value = report["pairs"]["exo_skl"]["proxy_student"]
    assert tree(analyses.likeness(run)).row("exo_skl")[2] == ("–" if value is None else f"{value:.3f}")
    made = analyses.conflicts(run)
    assert isinstance(made, Section)
    assert "global batches of" in made.note
    folder = run.root / "ablate" / "selection"
    folder.mkdir(parents=True)
    (folder / "grid.yaml").write_text("name: selection\nseeds: [0, 1]\nbaseline: a\narms:\n  a: {}\n  b: {seed: 1}\n")
    rows = [
        ["a", "0", "done", "50.0"],
        ["a", "1", "done", "52.0"],
        ["b", "0", "done", "40.0"],
        ["b", "1", "missing", ""],
    ]
    cells = [",".join([*row, *[""] * (len(COLUMNS) - 4)]) for row in rows]
    (folder / "results.csv").write_text("\n".join([",".join(COLUMNS), *cells]) + "\n")
    text = tree(analyses.ablations(run)).sections["ablations"]
    assert "cannot be read" in text  # seed is no field of an arm: every cell instead
    (folder / "grid.yaml").write_text(
        "name: selection\nseeds: [0, 1]\nbaseline: a\narms:\n  a: {}\n  b: {distill.top_k: 2}\n"
    )
    found = tree(analyses.ablations(run))
    assert found.row("a")[1:3] == ["2 of 2", "51.00"]
    assert found.row("b")[1:5] == ["1 of 2", "40.00", "one seed", "-10.00"]


def test_curves_leave_out_what_is_no_number_and_thin_what_is_long() -> None:
    long = [(float(i), float(i % 7)) for i in range(5000)]
    drawn = str(plots.lines("t", {"a": [(0, float("nan")), (1, 2.0)], "b": long}, "step"))
    assert drawn.count("<circle") == 81
    assert "nan" not in drawn
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.lines("t", {"a": [(0, float("inf"))]}, "step")
    assert "50 % at epoch 3" in str(plots.lines("t", {"a": [(3, 0.5)]}, "epoch", shares=True))


# --- damage and hostile names --------------------------------------------------------------------------------------


def test_damage_takes_its_sections_alone(run: Run) -> None:
    (run.root / "analyze/cka/cka.json").write_text('{"names": [')
    log = run.proxy_folder("exo_skl").path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"epoch": 1, "st')
    (run.proxy_folder("ego_depth").path / "record.json").write_text("{")
    (run.evaluation_folder("student").path / "recognition/per_class.csv").write_text("class\nx\n")
    found = Tree(page.report(run))
    assert set(found.sections) == PARTS
    for name in ("cka", "per-class", "stages"):
        assert name in found.absent
        assert "it cannot be read" in found.sections[name]
    assert "1 torn lines" in found.sections["training-curves"]
    assert found.absent.isdisjoint({"cache-coverage", "metrics", "confusion", "merge-weights", "configuration"})


def hostile(run: Run, folder: Path) -> Run:
    """A copy in a folder with an evil name, with evil names of classes, clips, and a message of failure."""
    root, name = folder / EVIL_FOLDER, run.table().classes[0]
    data = (folder / "data").resolve()
    (folder / "data").unlink()
    shutil.copytree(data, folder / "data", symlinks=True)
    shutil.move(run.root, root)
    evaluated = root / "evaluate" / "student"
    for path in (folder / "data/clips.csv", root / "classes.json", *evaluated.glob("recognition/*.csv")):
        path.write_text(path.read_text().replace(name, EVIL))
    nearest = evaluated / "retrieval" / "nearest.jsonl"
    lines = [json.loads(line) for line in nearest.read_text().splitlines()]
    for line in lines:
        line["nearest"][0][0] = EVIL
    nearest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(root / "proxies" / "exo_skl" / "record.json", state="failed", message=f"{EVIL} & \"quotes\" 'too'")
    return Run.open(root)


def test_names_are_text(run: Run, tmp_path: Path) -> None:
    text = page.report(hostile(run, tmp_path))
    found = Tree(text)
    assert found.tags.count("script") == 1
    assert "onerror" not in re.sub(r"&lt;img src=x onerror=alert\(1\)&gt;", "", text)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    for name in ("stages", "per-class", "confusion", "who-taught-whom", "retrieval-gallery"):
        assert EVIL in found.sections[name], name


# --- colours -------------------------------------------------------------------------------------------------------


def colours(block: str) -> dict[str, tuple[float, ...]]:
    found = {
        name: tuple(int(v[i : i + 2], 16) for i in (0, 2, 4)) for name, v in re.findall(r"--([\w-]+): #(\w{6})", block)
    }
    return found | {n: tuple(map(int, v.split())) for n, v in re.findall(r"--([\w-]+): (\d+ \d+ \d+)", block)}


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrasts_are_those_of_wcag_aa() -> None:
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    light, dark, chosen, printed = re.findall(r"color-scheme: (?:light|dark);(.*?)\}", css, re.DOTALL)
    assert colours(dark) == colours(chosen)
    for block in (light, dark, printed):
        theme = colours(block)
        for ground in ("ground", "raised"):
            for ink in ("ink", "soft", "accent", "good", "warn", "bad", "idle"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        for number in range(9):
            assert contrast(theme[f"c{number}"], theme["ground"]) >= 3, number
        assert contrast(theme["strong-line"], theme["ground"]) >= 3
        assert contrast(theme["on-accent"], theme["accent"]) >= 4.5
        for step in range(101):
            for heat in ("heat", "heat-other"):
                share = step / 100
                pairs = zip(theme[heat], theme["ground"], strict=True)
                ground = tuple(share * over + (1 - share) * under for over, under in pairs)
                assert contrast(theme["ink"], ground) >= 4.5, (heat, share)
