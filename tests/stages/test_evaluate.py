"""`uniego evaluate` on a small run: what each task gives, where it lies, what is left out; continuing after stops."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import Stopped, UsageError
from uniego.metrics import rank
from uniego.pipeline import files
from uniego.pipeline.rundir import Run
from uniego.pipeline.segmentation import read_layout, write_layout
from uniego.pipeline.signals import StopFlag
from uniego.pipeline.sliding import Sliding
from uniego.stages import evaluate as stage
from uniego.stages import recognition
from uniego.stages.batches import Protocol
from uniego.stages.encoder import WEIGHTS, load
from uniego.stages.evaluate import evaluate
from uniego.stages.evaluation import embeddings, retrieval, segmentation
from uniego.stages.evaluation.segmentation import ego_videos, video_files
from uniego.stages.evaluation.subjects import NetworkSubject
from uniego.stages.recognition import recognise
from uniego.stages.status import status
from uniego.stages.training import fresh_model, write_trained

COLOURS = {"background": (90, 90, 90), "red": (220, 30, 30), "green": (30, 220, 30)}
FPS, LENGTH = 10, 12  # frames of a clip; 6 of background on either side
HEAD = {"layers": 4, "refinements": 1, "refinement_layers": 3, "width": 16, "epochs": 30, "lr": 0.01, "dropout": 0.1}


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def write_video(path: Path, names: list[str], size: tuple[int, int], seed: int) -> None:
    """Frames of one colour each, with a little noise."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = size
        stream.codec_context.thread_count = 1
        for name in names:
            noise = rng.integers(-15, 15, (size[1], size[0], 3))
            picture = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_data(folder: Path) -> Path:
    """Four takes of four actions each, the last two for test; frame labels beside the table."""
    rows, labels = [], {}
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for take in range(4):
        name, split = f"take{take}_ego", "train" if take < 2 else "test"
        frames: list[str] = []
        for place in range(4):
            action = ["red", "green"][(place + take) % 2 if place < 2 else place % 2]
            start = len(frames) + 6
            frames += ["background"] * 6 + [action] * LENGTH + ["background"] * 6
            ego, exo = f"videos/{name}.mp4", f"videos/take{take}_exo.mp4"
            rows.append([f"{take}/{place}", split, action, ego, exo, start / FPS, (start + LENGTH) / FPS])
        write_video(folder / "videos" / f"{name}.mp4", frames, (64, 48), take)
        write_video(folder / "videos" / f"take{take}_exo.mp4", frames, (80, 48), take + 9)
        labels[name] = [list(COLOURS).index(frame) for frame in frames]
        parts[split].append(name)
    write_layout(folder, list(COLOURS), parts, labels, "split1")
    with (folder / "clips.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["clip_id", "split", "label", "ego_path", "exo_path", "start_s", "end_s"])
        writer.writerows(rows)
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the features of two teachers, and a student and a proxy with random weights. Read only."""
    folder = tmp_path_factory.mktemp("evaluate")
    table = write_data(folder / "data")
    good("init", folder / "run", "--data", table, "--preset", "tiny")
    path = folder / "run" / "run.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("ego_dino", "exo_dino")}
    raw["compute"]["workers"] = 0
    raw["evaluate"]["resamples"] = 50
    raw["evaluate"]["segmentation"] |= {"stride": 3, "head": HEAD}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    good("extract-teachers", "--run", folder / "run")
    run = Run.open(folder / "run")
    width = 2 * run.config.student.width
    for task, projections in (
        (run.student_folder, {"student": width}),
        (run.proxy_folder("exo_dino"), {"exo_dino": 32}),
    ):
        with task.work({}):
            model = fresh_model(run, projections)
            write_trained(run, task.path / "model", model, model.state_dict())
            task.finish({"weights": files.hash_file(task.path / "model" / WEIGHTS)})
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "data").symlink_to(made / "data")
    return Run.open(tmp_path / "run")


@pytest.fixture(scope="module")
def finished(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The student's evaluation, all tasks. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(made / "run", folder / "run")
    (folder / "data").symlink_to(made / "data")
    run = Run.open(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        evaluate(run)
    return run


def small_parts(patch: pytest.MonkeyPatch) -> None:
    """Several parts and batches of eight clips."""
    patch.setattr(recognition, "LOOKS", 4)
    patch.setattr(embeddings, "PART", 4)


def outcome(run: Run, model: str = "student") -> dict[str, str]:
    """Hashes of what an evaluation makes; logs with times in them left aside."""
    folder = run.evaluation_folder(model).path
    paths = (
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("lock", "metrics.jsonl")
    )
    return {
        str(p.relative_to(folder)): hashlib.blake2b(p.read_bytes()).hexdigest()
        for p in paths
        if "checkpoints" not in p.parts
    }


def test_all_tasks_with_their_protocols(finished: Run) -> None:
    folder = finished.evaluation_folder("student")
    results = folder.results
    assert results == json.loads((folder.path / "results.json").read_text())
    assert list(results["tasks"]) == ["probe", "recognition", "retrieval", "segmentation"]
    assert results["left_out"] == {}
    tasks = results["tasks"]
    for entry in (
        tasks["recognition"],
        *tasks["probe"].values(),
        tasks["retrieval"]["ego_to_ego"],
        tasks["segmentation"],
    ):
        assert entry["protocol"]
    assert results["top1"] == tasks["recognition"]["top1"]
    assert tasks["recognition"]["top5"] == 100.0
    assert "2 classes" in tasks["recognition"]["protocol"]["top5"]
    low, high = tasks["recognition"]["interval"]["mean_class_accuracy"]
    assert 0 <= low <= tasks["recognition"]["mean_class_accuracy"] <= high <= 100
    assert tasks["probe"]["linear"]["top1"] == 100.0  # red and green are easily told apart, even by a random network
    assert tasks["probe"]["knn"]["protocol"]["k"] == 8
    assert tasks["segmentation"]["mof"] > 85
    assert tasks["segmentation"]["f1@10"] > 60
    entry = status(finished)["stages"]["evaluate"]["student"]
    assert (entry["state"], entry["clips"]) == ("done", 8)


def test_recognition_is_what_it_was(finished: Run) -> None:
    """The same summed logits as one plain pass; the tables agree with the predictions."""
    run, folder = finished, finished.evaluation_folder("student").path
    encoder = load(run.root)
    with StopFlag() as flag:
        clips = run.table().split("test")
        plain = recognise(run, encoder.model, clips, Protocol(1, 3), flag, reader=encoder.reader)
    rows = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
    assert [row["clip_id"] for row in rows] == [clip.clip_id for clip in plain.clips]
    names = run.table().classes
    assert [row["predicted"] for row in rows] == [names[i] for i in plain.logits.argmax(1)]
    assert run.evaluation_folder("student").results["top1"] == plain.metrics()["top1"]
    matrix = list(csv.reader((folder / "recognition" / "confusion.csv").open(newline="")))
    assert matrix[0] == ["truth", *names]
    for name, *counts in matrix[1:]:
        assert counts == [str(sum(r["label"] == name and r["predicted"] == other for r in rows)) for other in names]
    table = {row["class"]: row for row in csv.DictReader((folder / "recognition" / "per_class.csv").open(newline=""))}
    assert {name: int(row["clips"]) for name, row in table.items()} == {"green": 4, "red": 4}


def test_retrieval_is_over_the_encoders_own_embeddings(finished: Run) -> None:
    run, encoder = finished, load(finished.root)
    clips = run.table().split("test")
    tokens = torch.stack([encoder.encode(c.ego_path, c.start_s, c.end_s) for c in clips])
    labels, own = torch.tensor([clip.label for clip in clips]), torch.arange(len(clips))
    wanted = rank(tokens, tokens, (labels, labels), (own, own)).metrics()
    found = run.evaluation_folder("student").results["tasks"]["retrieval"]
    assert found["ego_to_ego"]["map"] == pytest.approx(wanted["map"], abs=0.5)
    across = found["ego_to_exo"]["exo_dino"]
    assert "ridge" in across["protocol"]["map"]
    assert across["protocol"]["random"] is True
    assert (across["class"]["queries"], across["partner"]["queries"]) == (8, 8)
    lines = (run.evaluation_folder("student").path / "retrieval" / "nearest.jsonl").read_text().splitlines()
    entry = json.loads(lines[0])
    assert (entry["clip_id"], len(entry["nearest"])) == ("2/0", 7)


def test_the_same_videos_clips_can_be_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    skipped, once = [], retrieval.rank

    def noted(*arguments: Any, **options: Any) -> Any:
        skipped.append(arguments[3] if len(arguments) > 3 else None)
        return once(*arguments, **options)

    monkeypatch.setattr(retrieval, "rank", noted)
    narrow = Run.open(run.root, ["evaluate.retrieval.leave_out=video"])
    evaluate(narrow, tasks=["retrieval"])
    folder = run.evaluation_folder("student")
    near = [json.loads(line) for line in (folder.path / "retrieval" / "nearest.jsonl").read_text().splitlines()]
    assert all(other.split("/")[0] != entry["clip_id"].split("/")[0] for entry in near for other, _ in entry["nearest"])
    found = folder.results["tasks"]["retrieval"]
    assert "video" in found["ego_to_ego"]["protocol"]["left_out"]
    assert "the exo clips of its ego video left out" in found["ego_to_exo"]["exo_dino"]["class"]["relevant"]
    within, across, partner = skipped
    for queries, gallery in (within, across):  # four clips of either take
        assert queries.tolist() == gallery.tolist() == [0] * 4 + [1] * 4
    assert partner is None


def test_segmentation_writes_the_fields_layout(finished: Run) -> None:
    dense = finished.evaluation_folder("student").path / "dense"
    for video in ("take0_ego", "take3_ego"):
        features = np.load(dense / "features" / f"{video}.npy")
        labels = (dense / "groundTruth" / f"{video}.txt").read_text().split()
        assert features.shape == (finished.config.student.width, 32)
        assert len(labels) == 32
    assert (dense / "splits" / "test.split1.bundle").read_text() == "take2_ego.txt\ntake3_ego.txt\n"
    title, labels_line = (dense.parent / "segmentation" / "predictions" / "take2_ego.txt").read_text().splitlines()
    assert title == "### Frame level recognition: ###"
    assert len(labels_line.split()) == 96


def test_a_proxy_maps_by_its_own_projection_and_a_teacher_has_no_classifier(run: Run) -> None:
    across = evaluate(run, model="proxy:exo_dino", tasks=["retrieval"])["tasks"]["retrieval"]["ego_to_exo"]["exo_dino"]
    assert across["protocol"]["map"] == "the proxy's own projection"
    results = evaluate(run, model="teacher:exo_dino")
    assert sorted(results["tasks"]) == ["probe", "retrieval"]
    assert sorted(results["left_out"]) == ["recognition", "segmentation"]
    assert sorted(results["tasks"]["retrieval"]) == ["exo_to_exo"]
    with pytest.raises(UsageError, match="segmentation of teacher:exo_dino is not possible"):
        evaluate(run, model="teacher:exo_dino", tasks=["segmentation"])
    assert status(run)["stages"]["evaluate"]["teacher:exo_dino"]["state"] == "done"


def test_a_layout_that_cannot_be_used_is_left_out_and_refused_where_named(run: Run, tmp_path: Path) -> None:
    write_layout(tmp_path / "other", ["a", "b"], {"train": ["x"], "test": ["y"]}, {"x": [0], "y": [1]}, "split1")
    other = Run.open(run.root, [f"evaluate.segmentation.layout={tmp_path / 'other'}"])
    results = evaluate(other, tasks=["recognition"])
    assert results["left_out"] == {}
    assert "no video file for 2 of 2 videos" in evaluate(other)["left_out"]["segmentation"]
    with pytest.raises(UsageError, match="segmentation of student is not possible: no video file"):
        evaluate(other, tasks=["segmentation"])


def test_another_video_of_the_same_name_is_measured_anew(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copytree(made / "data", tmp_path / "data")
    run = Run.open(tmp_path / "run", [f"data.table={tmp_path / 'data' / 'clips.csv'}"])
    subject = NetworkSubject(run, "student", run.student_folder.path / "model", torch.device("cpu"))
    before = segmentation.settings(subject)
    assert segmentation.settings(subject) == before
    shutil.copy(tmp_path / "data/videos/take1_ego.mp4", tmp_path / "data/videos/take0_ego.mp4")
    assert segmentation.settings(subject)["videos"] != before["videos"]
    videos = {"take0_ego": tmp_path / "data/videos/take0_ego.mp4"}
    with StopFlag() as flag:
        segmentation._dense(subject, videos, Sliding(1.0, 1.0), flag)
        features = subject.run.evaluation_folder("student").path / "dense" / "features" / "take0_ego.npy"
        first = np.load(features)
        shutil.copy(tmp_path / "data/videos/take2_ego.mp4", tmp_path / "data/videos/take0_ego.mp4")
        segmentation._dense(subject, videos, Sliding(1.0, 1.0), flag)
    assert not np.array_equal(np.load(features), first)


def test_two_videos_of_one_name_are_not_guessed_between(run: Run, tmp_path: Path, made: Path) -> None:
    layout = read_layout(made / "data", "split1")
    found = video_files(run, layout)
    assert [found[name].name for name in layout.videos] == [f"take{n}_ego.mp4" for n in range(4)]
    for name in (*layout.videos, "other.take0_ego"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"{name}.mp4").touch()
        (tmp_path / "videos" / f"{name}.json").touch()  # no video, whatever it is called
    (tmp_path / "videos" / "take0_ego.late.mp4").touch()
    beside = replace(layout, folder=tmp_path, parts={"train": ("take0_ego.late",), "test": ("other.take0_ego",)})
    assert {n: p.name for n, p in video_files(run, beside).items()} == {
        "take0_ego.late": "take0_ego.late.mp4",
        "other.take0_ego": "other.take0_ego.mp4",
    }
    (tmp_path / "videos" / "new.mp4").touch()
    (tmp_path / "videos" / "new.mkv").touch()
    (tmp_path / "videos" / "new.0.mp4").touch()  # another name
    with pytest.raises(UsageError, match=r"new\.mkv.*new\.mp4"):
        video_files(run, replace(layout, folder=tmp_path, parts={"train": ("new",), "test": ("new",)}))
    clips = [replace(c, ego_path=tmp_path / "elsewhere" / c.ego_path.name) for c in run.table().clips[:1]]
    with pytest.raises(UsageError, match="elsewhere"):
        ego_videos((*run.table().clips, *clips), layout.videos)


def test_an_encoder_from_elsewhere_and_json(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.student_folder.path / "model", tmp_path / "elsewhere")
    arguments = ("evaluate", "--run", run.root, "--model", f"{tmp_path}/elsewhere", "--task", "recognition", "--json")
    output = good(*arguments)
    report = json.loads(output[output.index("{") :])
    assert report["model"].startswith("encoder-elsewhere-")
    assert report["tasks"]["recognition"]["clips"] == 8
    assert status(run)["stages"]["evaluate"][report["model"]]["state"] == "done"
    assert call("evaluate", "--run", run.root, "--model", f"{tmp_path}/nowhere").exit_code == 1
    assert call("evaluate", "--run", run.root, "--task", "sleep").exit_code == 2


def test_what_is_done_is_left_alone_and_new_tasks_are_added(run: Run) -> None:
    evaluate(run, tasks=["recognition"])
    first = outcome(run)
    assert "nothing to do" in good("evaluate", "--run", run.root, "--task", "recognition")
    assert outcome(run) == first
    evaluate(run, tasks=["probe"])
    results = run.evaluation_folder("student").results
    assert sorted(results["tasks"]) == ["probe", "recognition"]
    assert results["top1"] is not None
    same = {name: value for name, value in outcome(run).items() if name in first and "record" not in name}
    assert {**first, **same} == {**first, **{k: v for k, v in same.items() if k == "results.json"}}
    other = Run.open(run.root, ["evaluate.crops=1"])
    evaluate(other, tasks=["recognition"])
    assert sorted(other.evaluation_folder("student").results["tasks"]) == ["recognition"]  # those of 3 crops are gone


class _After(StopFlag):
    """Asks to stop at the n-th look."""

    left = 0

    def check(self) -> None:
        type(self).left -= 1
        if type(self).left == 0:
            self.requested = "SIGTERM"
        super().check()


def test_stopped_anywhere_it_ends_with_the_same_bytes(
    run: Run, finished: Run, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    small_parts(monkeypatch)
    monkeypatch.setattr(stage, "StopFlag", _After)
    stops = 0
    for looks in range(3, 200, 5 if full else 23):
        _After.left = looks
        try:
            evaluate(run)
            break
        except Stopped:
            stops += 1
    assert stops >= 2
    _After.left = 0
    evaluate(run)
    names = {name: value for name, value in outcome(run).items() if not name.startswith("embeddings/")}
    assert names == {name: value for name, value in outcome(finished).items() if not name.startswith("embeddings/")}
