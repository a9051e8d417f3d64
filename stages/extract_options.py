"""How an extraction is carried out. Nothing in here changes what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError


@dataclass(frozen=True)
class Share:
    """The shards whose number modulo `count` is `index`: the same ones whenever and wherever a task starts."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UsageError(
                f"task {self.index} of {self.count} does not exist: --num-tasks is at least 1, and --task-index counts "
                f"from 0 to {max(self.count, 1) - 1}"
            )

    def has(self, shard: int) -> bool:
        """Whether a shard is this task's."""
        return shard % self.count == self.index

    @property
    def task(self) -> str:
        """Name of the task's ledger file; "local" for a task that has everything."""
        return "local" if self.count == 1 else f"task-{self.index}-of-{self.count}"

    @classmethod
    def of_array(cls, environment: Mapping[str, str]) -> Share:
        """The share of a Slurm array task. Raises `UsageError` outside an array, and in one with gaps."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
        try:
            task, least, most, count = (int(environment[name]) for name in names)
        except KeyError as error:
            raise UsageError(
                f"--array: {error.args[0]} is not set, this is no task of a Slurm job array; use --task-index and "
                "--num-tasks"
            ) from None
        if most - least + 1 != count:
            raise UsageError(
                f"--array: the array has {count} tasks from {least} to {most}, with gaps: nobody would compute the "
                "missing ones' shards; submit it without gaps, or use --task-index and --num-tasks"
            )
        return cls(task - least, count)


@dataclass(frozen=True)
class ExtractOptions:
    """Who computes, and what else is wanted.

    `share`: only this part of the shards, None for all. `workers`: processes on this machine, None for one per GPU,
    or one. `scheduler`: address of a Dask scheduler that runs already; `slurm_workers`: Dask workers as Slurm jobs,
    with `sbatch` as further arguments of theirs. `dry_run`: say what would be done, and stop. `retry_failed`: try
    failed clips again. `min_coverage`: instead of `extract.min_coverage`. Raises `UsageError` for what does not go
    together.
    """

    share: Share | None = None
    engine: Literal["local", "dask"] = "local"
    workers: int | None = None
    scheduler: str | None = None
    slurm_workers: int | None = None
    sbatch: tuple[str, ...] = ()
    dry_run: bool = False
    retry_failed: bool = False
    min_coverage: float | None = None

    def __post_init__(self) -> None:
        if self.engine == "local" and (self.scheduler or self.slurm_workers):
            raise UsageError("--scheduler and --slurm-workers belong to --engine dask")
        if self.engine == "dask" and self.share is not None:
            raise UsageError(
                "--task-index, --num-tasks and --array divide the work without a scheduler: leave --engine dask away"
            )
        if sum(given is not None for given in (self.workers, self.scheduler, self.slurm_workers)) > 1:
            raise UsageError("--workers (on this machine), --scheduler and --slurm-workers exclude each other")
        if self.sbatch and not self.slurm_workers:
            raise UsageError("--sbatch belongs to --slurm-workers")
