"""The pool through the program: features made elsewhere, teachers of one's own, random ones, `uniego teachers`."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import ClipIndex, FeatureStore
from uniego.models.teachers import TeacherConfig
from uniego.models.teachers.facts import licence_of
from uniego.models.teachers.pool import describe_pool
from uniego.models.teachers.sources import parse_source
from uniego.pipeline.rundir import Run
from uniego.stages.status import status

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo" / "weights"
CLIPS = 12
ID, COMMIT = "uniego-tests/dinov2-tiny", "c" * 40


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def make_run(folder: Path, table: Path, **teachers: dict[str, Any]) -> Path:
    good("init", folder, "--data", table, "--preset", "tiny")
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: dict(fields) for key, fields in teachers.items()}  # YAML: no aliases
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def write_features(folder: Path, table: Path, view: str) -> dict[str, np.ndarray]:
    """The released layout, one file per video; the two clips of a shared video by their ids."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    folder.mkdir(parents=True)
    for row in csv.DictReader(table.open(newline="")):
        if row[f"{view}_path"]:
            stem = Path(row[f"{view}_path"]).stem
            made[row["clip_id"]] = rng.normal(size=(8, 6)).astype(np.float32)
            np.save(folder / f"{row['clip_id'] if stem == 'long' else stem}.npy", made[row["clip_id"]])
    return made


def stored_features(run: Path, key: str) -> dict[str, np.ndarray]:
    opened = Run.open(run)
    index = ClipIndex.open(opened.cache_root)
    from uniego.stages.targets import row_keys

    clips = opened.table().clips
    store = FeatureStore.open(opened.cache_root / key, index)
    values, there = store.load("features", index.rows(row_keys(opened, clips)), np.float32)
    return {clip.clip_id: value for clip, value, present in zip(clips, values, there, strict=True) if present}


def counts(run: Path, key: str) -> tuple[int, int, int]:
    entry = status(Run.open(run))["stages"]["extract-teachers"][key]
    return entry["done"], entry["failed"], entry["absent"]


def test_features_made_elsewhere_teach(tmp_path: Path, clip_table: Path) -> None:
    table = tmp_path / "data" / "clips.csv"
    table.parent.mkdir()
    shutil.copy(clip_table, table)
    shutil.copytree(clip_table.parent / "ego", table.parent / "ego")  # no exo videos: nobody looks at them
    made = write_features(tmp_path / "released" / "exo_dino", table, "exo")
    weights = f"dir:{tmp_path / 'released'}"
    run = make_run(tmp_path / "run", table, exo_dino={"network": "precomputed", "weights": weights})
    text = good("extract-teachers", "--run", run, "--strict")
    assert "do not exist" not in text
    found = stored_features(run, "exo_dino")
    assert set(found) == set(made)
    assert counts(run, "exo_dino") == (11, 0, 1)  # row 3 names no exo video
    for clip_id, value in made.items():
        np.testing.assert_allclose(found[clip_id], value, atol=2e-3)
    assert "nothing to do" in good("extract-teachers", "--run", run)
    good("train-proxies", "--run", run)
    assert json.loads(good("teachers", "-r", run, "--json"))[0] | {"weights": None} == {
        "name": "exo_dino",
        "view": "exo",
        "kind": "precomputed",
        "dim": None,
        "source": "features made elsewhere, read from files",
        "license": "unknown",
        "non_commercial": False,
        "weights": None,
        "ready": True,
        "missing": None,
        "cost_per_clip": 0.0,
        "reconstruction": False,
        "random": False,
    }


def test_stored_features_that_fail_are_named(tmp_path: Path, clip_table: Path) -> None:
    folder = tmp_path / "features"
    write_features(folder, clip_table, "ego")
    (folder / "00.npy").unlink()
    np.save(folder / "01.npy", np.full((8, 6), np.nan, np.float32))
    np.save(folder / "02.npy", np.zeros((8, 6), np.float32))
    run = make_run(tmp_path / "run", clip_table, ego_dino={"network": "precomputed", "weights": f"dir:{folder}"})
    assert call("extract-teachers", "--run", run).exit_code == 3
    assert counts(run, "ego_dino") == (9, 3, 0)
    rows = list(csv.DictReader((run / "extract" / "failures.csv").open(newline="")))
    assert [(row["clip_id"], row["reason"]) for row in rows] == [
        ("clip00", "missing"),
        ("clip01", "unreadable"),
        ("clip02", "missing"),
    ]
    np.save(folder / "00.npy", np.ones((8, 6), np.float32))
    mended = call("extract-teachers", "--run", run)
    assert mended.exit_code == 5  # other content is another teacher
    assert "teacher.weights" in mended.output
    assert call("extract-teachers", "--run", run, "--overwrite").exit_code == 3
    assert counts(run, "ego_dino") == (10, 2, 0)


def test_one_stored_feature_does_not_stand_for_two_clips(tmp_path: Path, clip_table: Path) -> None:
    folder = tmp_path / "features"
    write_features(folder, clip_table, "ego")
    for half in ("clip10", "clip11"):
        (folder / f"{half}.npy").rename(folder / "long.npy")  # both halves of one video
    run = make_run(tmp_path / "run", clip_table, ego_dino={"network": "precomputed", "weights": f"dir:{folder}"})
    result = call("extract-teachers", "--run", run)
    assert result.exit_code == 2
    assert "'long' would stand for clip 'clip10'" in result.output
    assert "and for clip 'clip11'" in result.output


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from, with a copy of the example."""
    folder = tmp_path / "modules"
    folder.mkdir()
    shutil.copy(ROOT / "examples" / "own_teacher.py", folder / "own_teacher.py")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("own_teacher", "broken_teacher"):
        sys.modules.pop(name, None)


COLOUR: dict[str, Any] = {"network": "own_teacher:ColourTeacher", "options": {"grid": 2}}


def test_the_examples_teacher(tmp_path: Path, clip_table: Path, own: Path) -> None:
    run = make_run(tmp_path / "run", clip_table, ego_colour=COLOUR)
    good("extract-teachers", "--run", run)
    found = stored_features(run, "ego_colour")
    assert len(found) == CLIPS
    assert found["clip00"].shape == (8, 12)
    assert 0 < found["clip00"].min() < found["clip00"].max() <= 1
    assert not np.allclose(found["clip00"], found["clip01"], atol=0.02)  # clips of two colours
    good("train-proxies", "--run", run)
    (entry,) = json.loads(good("teachers", "-r", run, "--json"))
    assert (entry["ready"], entry["kind"]) == (True, "own_teacher:ColourTeacher")
    other = call("extract-teachers", "--run", run, "--set", "teachers.ego_colour.options={grid: 3}")
    assert other.exit_code == 5
    (own / "own_teacher.py").write_text((own / "own_teacher.py").read_text() + "\n# another version\n")
    sys.modules.pop("own_teacher")
    other = call("extract-teachers", "--run", run)
    assert other.exit_code == 5
    assert "teacher.code" in other.output


BROKEN = """
import torch
from torch import nn
from own_teacher import ColourTeacher
from uniego.models.teachers import Teacher

NOT_A_CLASS = 3

class Plain: ...

class Incomplete(Teacher):
    reads = "frames"

class Wide(ColourTeacher):
    def forward(self, batch):
        return super().forward(batch)[..., 1:]

class Partly(ColourTeacher):
    def forward(self, batch):
        red = batch[:, :, 0].flatten(1).float().median(dim=1).values > 75
        return super().forward(batch).masked_fill(red[:, None, None], torch.nan)

class Nothing(ColourTeacher):
    def forward(self, batch):
        return super().forward(batch) * torch.nan

class Text(ColourTeacher):
    def forward(self, batch):
        return "features"

class Untrained(ColourTeacher):
    def __init__(self, key, view, config):
        super().__init__(key, view, config)
        self.is_random = True
"""


@pytest.mark.parametrize(
    ("network", "code", "message"),
    [
        ("no_such_module:Teacher", 2, "module no_such_module cannot be imported (ModuleNotFoundError"),
        ("broken_teacher:Absent", 2, "has no class Absent"),
        ("broken_teacher:NOT_A_CLASS", 2, "has no class NOT_A_CLASS"),
        ("broken_teacher:Plain", 2, "Plain is not a subclass of uniego.models.teachers.Teacher"),
        ("broken_teacher:Incomplete", 2, "does not define architecture, forward, prepare, preprocessing"),
        ("broken_teacher:Wide", 2, "features of shape [4, 8, 48] expected, got [4, 8, 47]"),
        ("broken_teacher:Text", 2, "forward must return a tensor"),
        ("broken_teacher:Nothing", 3, "the network's output is not finite"),
        ("broken_teacher:Untrained", 2, "teachers.ego_mine.allow_random: true"),
    ],
)
def test_own_classes_that_do_not_work(
    tmp_path: Path, clip_table: Path, own: Path, network: str, code: int, message: str
) -> None:
    (own / "broken_teacher.py").write_text(BROKEN)
    run = make_run(tmp_path / "run", clip_table, ego_mine={"network": network})
    result = call("extract-teachers", "--run", run)
    assert (result.exit_code, message in result.output) == (code, True), result.output


def test_a_feature_that_is_not_finite_fails_its_clip_alone(tmp_path: Path, clip_table: Path, own: Path) -> None:
    (own / "broken_teacher.py").write_text(BROKEN)
    mine = {"network": "broken_teacher:Partly", "options": {"grid": 2}}
    run = make_run(tmp_path / "run", clip_table, ego_colour=COLOUR, ego_mine=mine)
    result = call("extract-teachers", "--run", run)
    assert result.exit_code == 3, result.output
    red = [f"clip{number:02d}" for number in (1, 3, 5, 7, 9)]
    rows = list(csv.DictReader((run / "extract" / "failures.csv").open(newline="")))
    assert [(row["teacher"], row["clip_id"], row["reason"]) for row in rows] == [
        ("ego_mine", clip_id, "non_finite") for clip_id in red
    ]
    assert counts(run, "ego_colour") == (CLIPS, 0, 0)
    assert counts(run, "ego_mine") == (CLIPS - len(red), len(red), 0)
    found, whole = stored_features(run, "ego_mine"), stored_features(run, "ego_colour")
    assert found.keys() == whole.keys() - set(red)
    for clip_id, value in found.items():
        np.testing.assert_allclose(value, whole[clip_id], atol=1e-3)


def test_a_feature_of_another_width_stops_at_the_first_batch(tmp_path: Path, clip_table: Path, own: Path) -> None:
    (own / "broken_teacher.py").write_text(BROKEN)
    wide = {"network": "broken_teacher:Wide"}
    run = make_run(tmp_path / "run", clip_table, ego_colour=COLOUR, ego_mine=wide)
    assert call("extract-teachers", "--run", run).exit_code == 2
    assert counts(run, "ego_mine") == (0, 0, 0)
    assert counts(run, "ego_colour") == (0, 0, 0)  # its shard is not written either
    good("extract-teachers", "--run", run, "--teacher", "ego_colour")
    assert counts(run, "ego_colour") == (CLIPS, 0, 0)


def test_the_runs_folder_is_not_searched(tmp_path: Path, clip_table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", clip_table, ego_mine={"network": "hidden_teacher:ColourTeacher"})
    shutil.copy(ROOT / "examples" / "own_teacher.py", run / "hidden_teacher.py")
    result = call("extract-teachers", "--run", run)
    assert result.exit_code == 2
    assert "PYTHONPATH (the run's folder is not searched)" in result.output


def test_the_stamp_of_random_features_stops_training(tmp_path: Path, clip_table: Path, own: Path) -> None:
    (own / "broken_teacher.py").write_text(BROKEN)
    run = make_run(tmp_path / "run", clip_table, ego_mine={"network": "broken_teacher:Untrained"})
    allowed = ["--set", "teachers.ego_mine.allow_random=true"]
    assert "RANDOM teachers" in good("extract-teachers", "--run", run, *allowed)
    result = call("train-proxies", "--run", run)
    assert result.exit_code == 2
    assert "features of ego_mine in" in result.output
    assert "are of random weights" in result.output
    assert "RANDOM teachers" in good("train-proxies", "--run", run, *allowed)
    assert call("distill", "--run", run).exit_code == 2


def test_the_papers_nine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entries = {entry["name"]: entry for entry in json.loads(good("teachers", "--json"))}
    assert len(entries) == 9
    assert entries["exo_skego"]["reconstruction"]
    assert "not the authors' model" in entries["exo_skego"]["source"]
    assert [name for name, entry in entries.items() if entry["reconstruction"]] == ["exo_skego"]
    assert entries["exo_rgb"] | {"source": ""} == {
        "name": "exo_rgb",
        "view": "exo",
        "kind": "timesformer",
        "dim": 768,
        "source": "",
        "license": "that of your checkpoint",
        "non_commercial": False,
        "weights": None,
        "ready": False,
        "missing": "no weights are set (teachers.exo_rgb.weights)",
        "cost_per_clip": pytest.approx(391.7, abs=0.1),
        "reconstruction": False,
        "random": False,
    }


def test_the_pool_of_a_run(tmp_path: Path, clip_table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good("init", tmp_path / "run", "--data", clip_table, "--preset", "tiny")
    entries = json.loads(good("teachers", "-r", tmp_path / "run", "--json"))
    assert all(entry["random"] and entry["ready"] and entry["cost_per_clip"] for entry in entries)
    monkeypatch.chdir(tmp_path / "run")
    assert json.loads(good("teachers", "--json")) == entries
    assert good("teachers", "fetch", "--teacher", "ego_dino").endswith("ready, nothing to fetch\n")
    assert call("teachers", "fetch", "--teacher", "ego_dono").exit_code == 2
    assert call("teachers", "--json", "fetch").exit_code == 2
    assert call("teachers", "-r", tmp_path / "nowhere").exit_code == 1


def test_the_reconstruction_is_named_in_the_manifest(tmp_path: Path, clip_table: Path) -> None:
    run = make_run(tmp_path / "run", clip_table, exo_skego={"network": "clip", "weights": "demo:clip", "crop": "hands"})
    good("extract-teachers", "--run", run)
    attributes = json.loads((run / "cache" / "exo_skego" / "manifest.json").read_text())["attributes"]
    assert attributes["reconstruction"] is True
    assert "not the authors' model" in attributes["note"]


@pytest.mark.parametrize(
    ("weights", "licence", "non_commercial"),
    [
        ("hub:facebook/dinov2-large", "Apache-2.0", False),
        ("hub:depth-anything/Depth-Anything-V2-Large-hf", "CC-BY-NC-4.0", True),
        ("hub:depth-anything/Depth-Anything-V2-Small-hf", "Apache-2.0", False),
        ("hub:LiheYoung/depth-anything-large-hf", "Apache-2.0", False),
        ("hub:facebook/timesformer-base-finetuned-k400", "CC-BY-NC-4.0", True),
        ("hub:somebody/dinov2-large", "unknown", False),
        ("dir:/data/Depth-Anything-V2-Large-hf", "CC-BY-NC-4.0", True),
        ("file:/data/depth_anything_v2_vitl.pth", "CC-BY-NC-4.0", True),
        ("file:/data/depth_anything_vitl14.pth", "Apache-2.0", False),
        ("file:/data/TimeSformer_divST_8x32_224_K400.pyth", "CC-BY-NC-4.0", True),
        ("file:/data/stgcn_pyskl_ntu60_xsub_hrnet/j.pth", "Apache-2.0", False),
        ("file:/data/timesformer/mine.pth", "unknown", False),
        ("file:/data/dinov2_trials/j.pth", "unknown", False),
        ("random:1", "unknown", False),
    ],
)
def test_licences(weights: str, licence: str, non_commercial: bool) -> None:
    assert licence_of(parse_source(weights)) == (licence, non_commercial)


def test_non_commercial_weights_are_marked(tmp_path: Path, clip_table: Path) -> None:
    weights = "file:/data/TimeSformer_divST_8x32_224_K400.pyth"
    run = make_run(tmp_path / "run", clip_table, exo_rgb={"network": "timesformer", "weights": weights})
    listed = good("teachers", "-r", run)
    assert "(CC-BY-NC-4.0, NON-COMMERCIAL)" in listed
    assert "not ready: /data/TimeSformer_divST_8x32_224_K400.pyth: no such file" in listed


def lay_out_cache(home: Path, model: Path = DEMO / "dinov2") -> Path:
    """The hub's local cache with the model of a folder in it; the weights' blob."""
    repo = home / "hub" / f"models--{ID.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    blob = repo / "blobs"
    for name in ("config.json", "model.safetensors"):
        data = (model / name).read_bytes()
        blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return blob


def uniego(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, since the hub's client reads the environment when it is imported."""
    command = [sys.executable, "-m", "uniego", *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env={**env, **environment})


@pytest.fixture
def hub_run(tmp_path: Path, clip_table: Path) -> Path:
    config = {"network": "dinov2", "weights": f"hub:{ID}"}
    return make_run(tmp_path / "run", clip_table, ego_dino=config, exo_dino=config)


def test_weights_in_the_hubs_cache_are_found_and_verified(tmp_path: Path, hub_run: Path) -> None:
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    bare = uniego("teachers", "-r", hub_run, **offline)
    assert "not ready: not in the local hub cache: config.json is missing" in bare.stdout
    blob = lay_out_cache(tmp_path / "hf")
    entries = json.loads(uniego("teachers", "-r", hub_run, "--json", **offline).stdout)
    shipped = describe_pool({"ego_x": TeacherConfig(network="dinov2", weights="demo:dinov2")})[0]
    assert all(entry["ready"] and entry["dim"] == shipped["dim"] for entry in entries)
    fetched = uniego("teachers", "fetch", "-r", hub_run, **offline)
    assert fetched.returncode == 0
    assert f"ego_dino, exo_dino: hub:{ID}: there and verified" in fetched.stdout
    assert COMMIT in fetched.stdout
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    damaged = uniego("teachers", "fetch", "-r", hub_run, **offline)
    assert damaged.returncode == 1
    assert "damaged, its content is not what the hub gave" in damaged.stdout


def test_the_manifest_names_the_commit_of_a_video_network(tmp_path: Path, clip_table: Path) -> None:
    small = {"image_size": 32, "patch_size": 16, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = transformers.TimesformerConfig(**small, intermediate_size=96, num_frames=4)
    transformers.TimesformerModel(settings).save_pretrained(tmp_path / "folder")
    lay_out_cache(tmp_path / "hf", tmp_path / "folder")
    run = make_run(tmp_path / "run", clip_table, exo_rgb={"network": "timesformer", "weights": f"hub:{ID}"})
    result = uniego("extract-teachers", "-r", run, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    manifest = json.loads((run / "cache" / "exo_rgb" / "manifest.json").read_text())
    assert manifest["attributes"]["commit"] == COMMIT


def test_a_machine_without_the_hub_is_told_what_to_bring(tmp_path: Path, hub_run: Path) -> None:
    result = uniego("teachers", "fetch", "-r", hub_run, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    assert "cannot be fetched here (HF_HUB_OFFLINE is set)" in result.stdout
    assert f"hf download {ID} --local-dir dinov2-tiny" in result.stdout
    assert "set teachers.ego_dino.weights and teachers.exo_dino.weights to dir:<path>/dinov2-tiny" in result.stdout
    assert "weights are missing for ego_dino, exo_dino" in result.stderr


class _Hub(BaseHTTPRequestHandler):
    """What the hub answers about one model with the demo's DINOv2 in it, and a README nobody needs."""

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        files = {name: (DEMO / "dinov2" / name).read_bytes() for name in ("config.json", "model.safetensors")}
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[-1]
        headers = {}
        if path.startswith(f"/api/models/{ID}"):
            listed = [{"rfilename": "README.md", "size": 9}]
            listed += [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            body = json.dumps({"id": ID, "sha": COMMIT, "siblings": listed}).encode()
        elif path.startswith(f"/{ID}/resolve/") and name in files:
            body = files[name]
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetching_from_a_hub(tmp_path: Path, hub_run: Path, hub: str) -> None:
    online = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    result = uniego("teachers", "fetch", "-r", hub_run, **online)
    assert result.returncode == 0, result.stderr + result.stdout
    assert f"hub:{ID}: fetched and verified" in result.stdout
    again = uniego("teachers", "fetch", "-r", hub_run, HF_HOME=online["HF_HOME"], HF_HUB_OFFLINE="1")
    assert f"there and verified, 0.00 GB, commit {COMMIT}" in again.stdout
    assert not list((tmp_path / "hf").rglob("README.md"))
    other = ["--set", "teachers.ego_dino.weights=hub:uniego-tests/absent", "--teacher", "ego_dino"]
    absent = uniego("teachers", "fetch", "-r", hub_run, *other, **online)
    assert absent.returncode == 1
    assert "hub:uniego-tests/absent: missing, and cannot be fetched here" in absent.stdout
    extracted = uniego("extract-teachers", "-r", hub_run, HF_HOME=online["HF_HOME"], HF_HUB_OFFLINE="1")
    assert extracted.returncode == 0, extracted.stderr
    attributes = json.loads((hub_run / "cache" / "ego_dino" / "manifest.json").read_text())["attributes"]
    assert attributes["commit"] == COMMIT
