"""`uniego submit`: a stage as a Slurm job that survives preemption and time limits.

The script runs the program in the place of its shell, so that stop signals reach it; two minutes before the end the
stage saves and puts its job back in the queue (see `pipeline.slurm`).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UniegoError, UsageError
from ..pipeline import files
from ..pipeline.rundir import Run
from .ablate_grid import read_grid
from .status import status

STAGES = ("extract-teachers", "train-proxies", "ablate", "distill", "evaluate")
ARRAYS = STAGES[:3]
GRACE = 120
"""Seconds before the time limit, or before preemption takes the node, at which a stage is asked to stop."""


@dataclass(frozen=True)
class Resources:
    """What a job asks Slurm for; None is left to the cluster's defaults. `array`: see `script`."""

    partition: str | None = None
    time: str | None = None
    gpus: str | None = None
    cpus: int | None = None
    mem: str | None = None
    account: str | None = None
    array: int | None = None
    further: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """`#SBATCH` lines."""
        named = {
            "partition": self.partition,
            "time": self.time,
            "gpus": self.gpus,
            "cpus-per-task": self.cpus,
            "mem": self.mem,
            "account": self.account,
        }
        asked = [f"--{name}={value}" for name, value in named.items() if value is not None]
        return [f"#SBATCH {line}" for line in [*asked, *self.further]]


def script(run: Run, stage: str, resources: Resources, arguments: Sequence[str] = ()) -> str:
    """The job script. `arguments` are the stage's own.

    extract-teachers with `array` N becomes N tasks that share the shards; train-proxies becomes a task for each
    teacher, at most `array` of them at a time; ablate becomes `array` tasks (null: one for each arm) that share the
    cells of the grid, which is the first of its arguments. Raises `UsageError` for what cannot be submitted.
    """
    if stage not in STAGES:
        raise UsageError(f"{stage!r} cannot be submitted; these can: {', '.join(STAGES)}")
    if "--overwrite" in arguments:
        raise UsageError("a job that is put back in the queue would begin anew every time: leave --overwrite away")
    if resources.array is not None and stage not in ARRAYS:
        raise UsageError(f"{stage} is one job: --array is for {', '.join(ARRAYS)}")
    array, before, more = _array(run, stage, resources.array, arguments)
    if stage == "ablate":  # jobs start in the run's folder
        arguments = [str(Path(arguments[0]).resolve()), *arguments[1:]]
    logs = run.root.resolve() / "slurm"
    name = "%A_%a" if array else "%j"
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=uniego-{stage}",
        f"#SBATCH --output={_quoted(logs)}/{stage}-{name}.out",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:TERM@{GRACE}",
        "#SBATCH --nodes=1 --ntasks=1",
        *([f"#SBATCH --array={array}"] if array else []),
        *resources.lines(),
        *before,
    ]
    command = [sys.executable, "-m", "uniego", stage, "--run", str(run.root.resolve()), *arguments]
    return "\n".join([*lines, f"exec {shlex.join(command)}{more}", ""])


def submit(run: Run, stage: str, resources: Resources, arguments: Sequence[str] = ()) -> tuple[str, Path]:
    """Keep the script under RUN/slurm and hand it to `sbatch`. Returns the job's number and the script.

    Raises `UniegoError` with what `sbatch` says, or where there is none.
    """
    text = script(run, stage, resources, arguments)
    folder = run.root / "slurm"
    path = folder / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}.sh"
    files.write_bytes(path, text.encode())
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(path.resolve())], capture_output=True, text=True, cwd=run.root, check=False
        )
    except FileNotFoundError as error:
        raise UniegoError(
            f"there is no sbatch here: run this on a machine of the cluster; the script is kept in {path}"
        ) from error
    if done.returncode:
        raise UniegoError(f"sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0], path


def _array(run: Run, stage: str, array: int | None, arguments: Sequence[str]) -> tuple[str, list[str], str]:
    """(Slurm's array, shell lines before the command, what follows it)."""
    if stage == "extract-teachers" and array is not None:
        if array < 1:
            raise UsageError("--array: at least 1 task")
        return _shares(array)
    if stage == "ablate":
        return _shares(_tasks_of_grid(run, array, arguments))
    if stage != "train-proxies" or "--teacher" in arguments:
        return "", [], ""
    entries = status(run)["stages"]["extract-teachers"]
    keys = [key for key in run.config.teachers if entries[key]["state"] != "no input"]
    if not keys:
        raise UniegoError("no teacher has a feature: run `uniego extract-teachers` first")
    at_once = "" if array is None else f"%{array}"
    words = " ".join(shlex.quote(key) for key in keys)
    return f"0-{len(keys) - 1}{at_once}", [f"teachers=({words})"], ' --teacher "${teachers[$SLURM_ARRAY_TASK_ID]}"'


def _shares(tasks: int) -> tuple[str, list[str], str]:
    return f"0-{tasks - 1}", [], f' --task-index "$SLURM_ARRAY_TASK_ID" --num-tasks {tasks}'


def _tasks_of_grid(run: Run, array: int | None, arguments: Sequence[str]) -> int:
    """A task for each arm, or as many as asked for: a cell (an arm with a seed) is the smallest share."""
    mine = [word for word in arguments if word.partition("=")[0] in ("--dry-run", "--task-index", "--num-tasks")]
    if mine:
        raise UsageError(f"uniego submit ablate gives every task its share: leave {mine[0]} away")
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("name the grid first: uniego submit ablate --array 4 -- GRID.yaml")
    grid = read_grid(Path(arguments[0]), run.config)
    cells = len(grid.arms) * len(grid.seeds)
    if array is not None and not 1 <= array <= cells:
        raise UsageError(f"--array {array}: {grid.name} has {cells} cells (arms x seeds), a task needs one at least")
    return len(grid.arms) if array is None else array


def _quoted(path: Path) -> str:
    """A path in an `#SBATCH` line. Raises `UsageError` for one that Slurm would take apart."""
    if re.search(r"[\s%\\\"']", str(path)):
        raise UsageError(f"{path}: Slurm's log files cannot have blanks, quotes or % in their path; move the run")
    return str(path)
