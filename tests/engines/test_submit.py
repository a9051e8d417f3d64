"""The job scripts of `uniego submit`, without a Slurm; and how a stage asks Slurm to run its job again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from uniego import cli
from uniego.pipeline import slurm
from uniego.pipeline.rundir import Run
from uniego.stages.submit import Resources, script


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_the_script_of_an_array(run: Path) -> None:
    options = ["--partition", "gpu", "--time", "4:00:00", "--gpus", 1, "--cpus", 8, "--mem", "64G", "--account", "lab"]
    more = ["--sbatch", "--exclusive --nice=100", "--teacher", "ego_dino", "--set", "seed=3"]
    result = call(
        "submit", "extract-teachers", "--run", run, "--array", 8, *options, *more, "--print", "--", "--strict"
    )
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "#!/bin/bash",
        "#SBATCH --job-name=uniego-extract-teachers",
        f"#SBATCH --output={run}/slurm/extract-teachers-%A_%a.out",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@120",
        "#SBATCH --nodes=1 --ntasks=1",
        "#SBATCH --array=0-7",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=4:00:00",
        "#SBATCH --gpus=1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=64G",
        "#SBATCH --account=lab",
        "#SBATCH --exclusive",
        "#SBATCH --nice=100",
        f"exec {sys.executable} -m uniego extract-teachers --run {run} --teacher ego_dino --set seed=3 --strict "
        '--task-index "$SLURM_ARRAY_TASK_ID" --num-tasks 8',
    ]
    assert not (run / "slurm").exists()


def test_proxies_are_an_array_over_teachers(run: Path) -> None:
    lines = script(Run.open(run), "train-proxies", Resources(array=2)).splitlines()
    assert "#SBATCH --array=0-2%2" in lines
    assert lines[-2] == "teachers=(ego_dino exo_rgb exo_skl)"
    assert lines[-1].endswith("train-proxies --run " + str(run) + ' --teacher "${teachers[$SLURM_ARRAY_TASK_ID]}"')
    one = script(Run.open(run), "train-proxies", Resources(), ["--teacher", "ego_dino"])
    assert "--array" not in one
    for stage in ("distill", "evaluate"):
        text = script(Run.open(run), stage, Resources())
        assert text.endswith(f"exec {sys.executable} -m uniego {stage} --run {run}\n")
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_grid_is_an_array_over_its_cells(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text("name: g\nseeds: [0, 1]\narms: {a: {}, b: {distill.top_k: 2}, c: {model: ego-only}}\n")
    monkeypatch.chdir(tmp_path)
    options = ["--set", "merge.epochs=1", "--print"]
    result = call("submit", "ablate", "--run", run, *options, "--", "grid.yaml", "--jobs", 2)
    assert result.exit_code == 0, result.output
    assert "#SBATCH --array=0-2" in result.output
    assert result.output.splitlines()[-1].endswith(
        f'ablate --run {run} {grid} --jobs 2 --set merge.epochs=1 --task-index "$SLURM_ARRAY_TASK_ID" --num-tasks 3'
    )
    assert "#SBATCH --array=0-5" in call("submit", "ablate", "--run", run, "--array", 6, "--print", "--", grid).output
    for more, message in (
        (["--array", 7, "--", grid], "has 6 cells"),
        (["--", grid, "--num-tasks=2"], "leave --num-tasks=2 away"),
        ([], "name the grid first"),
        (["--", "none.yaml"], "no such file"),
    ):
        assert message in " ".join(call("submit", "ablate", "--run", run, *more).output.split())


def test_refusals(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'demo' cannot be submitted" in call("submit", "demo", "--run", run).output
    assert "distill is one job" in call("submit", "distill", "--run", run, "--array", 2).output
    result = call("submit", "distill", "--run", run, "--", "--overwrite")
    assert (result.exit_code, "leave --overwrite away" in result.output) == (2, True)
    monkeypatch.setenv("PATH", "/nowhere")
    result = call("submit", "distill", "--run", run)
    assert (result.exit_code, "there is no sbatch here" in result.output) == (1, True)
    assert len(list((run / "slurm").glob("distill-*.sh"))) == 1


def test_a_task_of_an_array_is_never_named_by_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert slurm.job_name() == "7"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm.job_name() == "7_3"


@pytest.mark.parametrize(
    ("state", "code", "asked"),
    [
        ("JobState=RUNNING Requeue=1 BatchFlag=1", 0, True),
        ("JobState=CANCELLED Requeue=1 BatchFlag=1", 75, False),
        ("JobState=RUNNING Requeue=0 BatchFlag=1", 75, False),
        ("JobState=RUNNING Requeue=1 BatchFlag=0", 75, False),
    ],
)
def test_only_a_running_batch_job_that_may_is_put_back(state: str, code: int, asked: bool, tmp_path: Path) -> None:
    """A stand-in for scontrol: what a Slurm says of jobs that cannot be made here at will."""
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\nif [ "$1" = requeue ]; then touch {tmp_path}/asked; fi\necho "{state}"\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    program = "import sys; from uniego.pipeline.slurm import stopped_exit_code; sys.exit(stopped_exit_code())"
    environment = {"PATH": str(tmp_path) + ":/usr/bin:/bin", "SLURM_JOB_ID": "5", "PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == code
    assert (tmp_path / "asked").exists() == asked
