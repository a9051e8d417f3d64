from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner
from uniego import __version__, cli, errors
from uniego.pipeline.configfile import load_config
from uniego.stages.extract_options import ExtractOptions, Share
from uniego.stages.proxy_options import ProxyOptions

STAGES = ["extract-teachers", "train-proxies", "distill", "evaluate"]


def uniego(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "uniego", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=120,
    )


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


@pytest.fixture
def run(tmp_path: Path, clip_table: Path) -> Path:
    result = call("init", tmp_path / "run", "--data", clip_table, "--preset", "tiny")
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """`stage("distill", error=None)` puts a recorder in a stage's place and returns the list of its calls."""

    def replace(name: str, error: BaseException | None = None, value: Any = None) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []

        def recorder(*positional: Any, **named: Any) -> Any:
            calls.append((*positional, named))
            if error is not None:
                raise error
            return value

        module = SimpleNamespace(**{name: recorder, "print_status": lambda report: print("status:", report)})
        monkeypatch.setitem(sys.modules, f"uniego.stages.{name}", module)  # type: ignore[arg-type]
        return calls

    return replace


def test_help_needs_no_torch() -> None:
    result = uniego("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in [*STAGES, "init", "status", "teachers", "config", "data"])
    heavy = {"torch", "numpy", "av", "pydantic", "transformers"}
    code = f"import sys, uniego.cli; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_version() -> None:
    result = uniego("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"uniego {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["distil"], ["distill", "--overwrit"], ["init"], ["status", "x"], []])
def test_usage_errors(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == errors.EXIT_USAGE
    assert "Traceback" not in result.output


def test_run_option_is_accepted_after_every_command() -> None:
    for command in [["config", "show"], ["status"], *([name] for name in STAGES)]:
        text = call(*command, "--help").output
        assert "-r, --run DIR" in text, command
        assert "--set FIELD=VALUE" in text, command


@pytest.mark.parametrize("columns", ["40", "200"])
def test_plain_help_without_terminal(columns: str) -> None:
    result = uniego("extract-teachers", "--help", COLUMNS=columns, NO_COLOR="1", FORCE_COLOR="1")
    assert result.returncode == 0
    assert "\x1b" not in result.stdout + result.stderr
    assert "--teacher" in result.stdout


def test_reader_that_goes_away() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "uniego", "teachers", "--json"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert result.returncode == errors.EXIT_FAILURE
    assert result.stderr == ""


def test_closed_stdout() -> None:
    result = subprocess.run(
        f"{sys.executable} -m uniego --version >&-", shell=True, capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""


def test_init_writes_a_run(tmp_path: Path, clip_table: Path) -> None:
    result = call("init", tmp_path / "r", "--data", clip_table, "--preset", "tiny", "--set", "seed=5")
    assert result.exit_code == 0
    config = load_config(tmp_path / "r/run.yaml")
    assert (config.preset, config.seed, config.data.num_classes) == ("tiny", 5, 2)
    assert config.data.table == str(clip_table)
    assert "clips: 12 (train 8, val 0, test 4); classes: 2; with exo video: 11; with poses: 9" in result.output
    assert f"next: uniego extract-teachers -r {tmp_path / 'r'}" in result.output
    assert "warning" not in result.output


def test_init_refuses_a_run_that_exists(run: Path, clip_table: Path) -> None:
    before = (run / "run.yaml").read_bytes()
    result = call("init", run, "--data", clip_table, "--preset", "tiny")
    assert result.exit_code == errors.EXIT_USAGE
    assert "run.yaml exists" in result.output
    assert (run / "run.yaml").read_bytes() == before


def test_init_warns_of_a_train_split_that_makes_no_step(tmp_path: Path, clip_table: Path) -> None:
    result = call(
        "init", tmp_path / "r", "--data", clip_table, "--preset", "tiny", "--set", "distill.train.global_batch=4096"
    )
    assert result.exit_code == 0
    assert "lower distill.train.global_batch (4096) and distill.train.micro_batch" in result.output
    assert "proxies.train" not in result.output


def test_init_from_any_folder(tmp_path: Path, clip_table: Path) -> None:
    """The table is found again wherever the next command runs; a run with its table inside may move."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "my clips.csv").write_bytes(clip_table.read_bytes())
    arguments = ["init", ".", "--data", "my clips.csv", "--root", clip_table.parent, "--preset", "tiny"]
    result = uniego(*arguments, cwd=inside)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("next: uniego extract-teachers\n")
    assert load_config(inside / "run.yaml").data.table == "my clips.csv"
    assert load_config(inside / "run.yaml").data.root == str(clip_table.parent)
    outside = uniego("init", "inside/deep", "--data", "inside/my clips.csv", "--preset", "tiny", cwd=tmp_path)
    assert outside.returncode == 0
    assert load_config(inside / "deep/run.yaml").data.table == str(inside / "my clips.csv")


def test_init_names_missing_files(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"c{i},train,0,gone{i}.mp4" for i in range(9)]
    table.write_text("\n".join(["clip_id,split,label,ego_path", *rows]))
    result = call("init", tmp_path / "r", "--data", table, "--preset", "tiny")
    assert result.exit_code == 0
    assert "warning: 9 of 9 clips name files that do not exist" in result.stderr
    assert f"c0: ego_path {tmp_path}/gone0.mp4" in result.stderr
    assert "and 4 more" in result.stderr


@pytest.mark.parametrize(("preset", "names", "expected"), [("egoexo_fitness", 13, 13), ("egoexo_fitness", 3, 12)])
def test_init_fits_the_number_of_classes(tmp_path: Path, preset: str, names: int, expected: int) -> None:
    table = tmp_path / "t.csv"
    rows = [f"c{i},train,class{i},v.mp4" for i in range(names)]
    table.write_text("\n".join(["clip_id,split,label,ego_path", *rows]))
    result = call("init", tmp_path / "r", "--data", table, "--preset", preset)
    assert f"note: data.num_classes is {expected}" in result.output
    assert load_config(tmp_path / "r/run.yaml").data.num_classes == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--preset", "tinny"], 2, "did you mean 'tiny'?"),
        (["--preset", "tiny", "--set", "sed=1"], 2, "sed: unknown field; did you mean 'seed'?"),
        (["--preset", "tiny", "--root", "nowhere"], 2, "--root nowhere: no such folder"),
        (["--preset", "tiny", "--data", "nowhere.csv"], 1, "no such clip table"),
        (["--preset", "tiny", "--set", "data.holdout=0.5", "--data", "VAL"], 2, "val split already"),
    ],
)
def test_init_refuses(tmp_path: Path, clip_table: Path, arguments: list[str], code: int, message: str) -> None:
    val = tmp_path / "val.csv"
    val.write_text("clip_id,split,label,ego_path\na,train,0,v\nb,val,0,v\n")
    arguments = [str(val) if argument == "VAL" else argument for argument in arguments]
    result = call("init", tmp_path / "r", "--data", clip_table, *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not (tmp_path / "r").exists()


def test_config_show_prints_what_is_in_force(run: Path, tmp_path: Path) -> None:
    result = call("config", "show", "-r", run, "--set", "distill.top_k=3")
    assert result.exit_code == 0
    (tmp_path / "shown.yaml").write_text(result.stdout)
    assert load_config(tmp_path / "shown.yaml") == load_config(run / "run.yaml", ["distill.top_k=3"])


def test_data_check(tmp_path: Path, clip_table: Path) -> None:
    good = call("data", "check", clip_table, "--quick")
    assert (good.exit_code, good.output.count("\n")) == (0, 1)
    table = tmp_path / "moved.csv"
    table.write_bytes(clip_table.read_bytes())
    assert call("data", "check", table, "--root", clip_table.parent).exit_code == 0
    bad = call("data", "check", table)
    assert bad.exit_code == errors.EXIT_FAILURE
    assert "12 of 12 clips name files that do not exist" in bad.output
    assert f"clip00: pose_path {tmp_path}/pose/00.npy" in bad.output
    report = json.loads(call("data", "check", table, "--json").stdout)
    assert report["splits"] == {"train": 8, "val": 0, "test": 4}
    assert report["classes"] == ["lift", "turn"]
    assert len(report["missing"]) == 12 + 11 + 9
    table.write_text("clip_id,split,label,ego_path\na,dev,0,x\n")
    refused = call("data", "check", table)
    assert refused.exit_code == errors.EXIT_USAGE
    assert "row 2: unknown split" in refused.stderr


def test_data_check_prints_odd_names_anywhere(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("clip_id,split,label,ego_path\nクリップ,train,0,ü.mp4\n", encoding="utf-8")
    result = uniego("data", "check", table, PYTHONIOENCODING="latin-1")
    assert result.returncode == 1
    assert "1 of 1 clips" in result.stdout
    assert result.stderr == ""


def test_teachers() -> None:
    listed = call("teachers").stdout
    entries = json.loads(call("teachers", "--json").stdout)
    assert len(entries) == 9
    assert all(entry["name"] in listed and f" {entry['dim']} " in listed for entry in entries)


def test_status(run: Path, stage: Callable[..., list[Any]]) -> None:
    stage("status", value={"stages": {"naïve": 1}})
    assert json.loads(call("status", "-r", run, "--json").stdout) == {"stages": {"naïve": 1}}
    assert call("status", "-r", run).stdout.startswith("status: ")


def test_stages_get_what_was_asked(run: Path, stage: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["extract_teachers", "train_proxies", "distill", "evaluate"]
    calls = {name: stage(name) for name in names}
    pick = ["--teacher", "ego_dino", "--teacher", "exo_skl"]
    call("extract-teachers", "-r", run, *pick, "--set", "seed=3", "--overwrite")
    call("train-proxies", "--strict", "--run", run)
    monkeypatch.chdir(run)
    call("distill")
    call("evaluate", "--model", "proxy:ego_dino")
    ((opened, teachers, options),) = calls["extract_teachers"]
    assert (opened.root, opened.config.seed) == (run, 3)
    assert (list(teachers), options) == (
        ["ego_dino", "exo_skl"],
        {"overwrite": True, "strict": False, "options": ExtractOptions()},
    )
    tasks = ["--task-index", 1, "--num-tasks", 4, "--retry-failed", "--min-coverage", 0.5]
    call("extract-teachers", "-r", run, *tasks)
    wanted = ExtractOptions(Share(1, 4), retry_failed=True, min_coverage=0.5)
    assert calls["extract_teachers"][1][2]["options"] == wanted
    call("extract-teachers", "-r", run, "--engine", "dask", "--slurm-workers", 3, "--sbatch", "--mem=1G", "--dry-run")
    wanted = ExtractOptions(engine="dask", slurm_workers=3, sbatch=("--mem=1G",), dry_run=True)
    assert calls["extract_teachers"][2][2]["options"] == wanted
    ((_, nobody, options),) = calls["train_proxies"]
    assert (nobody, options) == (None, {"overwrite": False, "strict": True, "options": ProxyOptions()})
    ((opened, options),) = calls["distill"]
    assert (opened.root.resolve(), options) == (run.resolve(), {"overwrite": False, "strict": False})
    ((_, options),) = calls["evaluate"]
    assert options == {"model": "proxy:ego_dino", "tasks": (), "overwrite": False, "quiet": False}


def test_unknown_teacher(run: Path, stage: Callable[..., list[Any]]) -> None:
    calls = stage("train_proxies")
    result = call("train-proxies", "-r", run, "--teacher", "ego_dyno")
    assert result.exit_code == errors.EXIT_USAGE
    assert "no teacher 'ego_dyno'; did you mean 'ego_dino'?" in result.stderr
    assert not calls


def test_no_run_says_how_to_make_one(tmp_path: Path) -> None:
    for command in [*STAGES, "status"]:
        result = call(command, "-r", tmp_path)
        assert result.exit_code == errors.EXIT_FAILURE
        assert result.stderr.startswith("error: ")
        assert "uniego init" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (errors.UniegoError("broken"), 1, "error: broken\n"),
        (errors.MissingInputError("no features; run extract-teachers"), 1, "error: no features; run"),
        (errors.ConfigError("wrong"), 2, "error: wrong\n"),
        (errors.CoverageError("few"), 3, "error: few\n"),
        (errors.IntegrityError("flipped"), 4, "error: flipped\n"),
        (errors.FingerprintMismatch("cache", {"seed": (1, 2)}, "do this"), 5, "error: cache was made"),
        (errors.Stopped("saved"), 75, "stopped: saved\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/x"), 1, "error: [Errno 28] No space left on device: '/x'"),
    ],
)
def test_errors_become_exit_codes(
    run: Path, stage: Callable[..., list[Any]], error: BaseException, code: int, told: str
) -> None:
    stage("distill", error=error)
    result = call("distill", "-r", run)
    assert result.exit_code == code
    assert result.stderr.startswith(told)
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_debugging_shows_tracebacks(
    run: Path, stage: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIEGO_DEBUG", "1")
    stage("distill", error=errors.CoverageError("few"))
    result = call("distill", "-r", run)
    assert result.exit_code == errors.EXIT_COVERAGE
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: few\n")


def test_a_programming_error_keeps_its_traceback(run: Path, tmp_path: Path) -> None:
    script = tmp_path / "boom.py"
    script.write_text(
        "import sys, types\n"
        "import uniego.cli\n"
        "def distill(*a, **k): raise KeyError('boom')\n"
        "sys.modules['uniego.stages.distill'] = types.SimpleNamespace(distill=distill)\n"
        "uniego.cli.main()\n"
    )
    command = [sys.executable, str(script), "distill", "-r", str(run)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == errors.EXIT_FAILURE
    assert "Traceback" in result.stderr
    assert "KeyError: 'boom'" in result.stderr


def test_ctrl_c(run: Path, tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import signal, sys, time, types\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job begins deaf to it
        "import uniego.cli\n"
        "def distill(*a, **k):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.modules['uniego.stages.distill'] = types.SimpleNamespace(distill=distill)\n"
        "uniego.cli.main()\n"
    )
    command = [sys.executable, str(script), "distill", "-r", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == errors.EXIT_INTERRUPTED
    assert told == "interrupted; the same command continues\n"
