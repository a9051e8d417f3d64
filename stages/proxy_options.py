"""How the proxies are trained: in this process, in several, or by Dask workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from .extract_options import ExtractOptions


@dataclass(frozen=True)
class ProxyOptions:
    """Who trains the proxies, each of which is trained by one process.

    `jobs`: processes on this machine (with the dask engine: its workers here), None for what `places_for` finds.
    `scheduler`: address of a Dask scheduler that runs already. On a CPU the bytes depend on the number of threads of
    each process: `compute.threads`, or else all cores divided by the jobs. Raises `UsageError` for what does not go
    together.
    """

    jobs: int | None = None
    engine: Literal["local", "dask"] = "local"
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.engine == "local" and self.scheduler:
            raise UsageError("--scheduler belongs to --engine dask")
        if self.jobs is not None and self.scheduler:
            raise UsageError("--jobs (on this machine) and --scheduler exclude each other")

    @property
    def cluster(self) -> ExtractOptions:
        """The cluster of the dask engine."""
        return ExtractOptions(engine="dask", workers=self.jobs, scheduler=self.scheduler)
