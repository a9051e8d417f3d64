"""Proxies by Dask workers: a task is a proxy. Only receipts travel; checkpoints lie in the run's folder, from which the
next worker goes on where one was killed."""

from __future__ import annotations

import multiprocessing
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from dask.distributed import get_worker

from ...errors import EXIT_FAILURE, Stopped, UniegoError
from ...pipeline.config import RunConfig
from ...pipeline.progress import Message, Meter, Standing, relay, say, warn
from ...pipeline.rundir import Run
from ...pipeline.signals import StopFlag, ToldFlag
from ..compute import prepare
from ..proxy_options import ProxyOptions
from ..proxy_training import begin_anew, train_one
from .cluster import keep_connected
from .places import threads_each
from .round import Round
from .worker import device_of, one_at_a_time, told


@dataclass(frozen=True)
class ProxyTasks:
    """What workers are told of a run's proxies; `threads` of the arithmetic, the same on all of them."""

    root: str
    config: RunConfig
    threads: int
    number: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


class ProxyReceipt(NamedTuple):
    """What comes back: by whom, and exit code and message where the proxy could not be trained."""

    worker: str
    error: tuple[int, str] | None = None


def train_on_cluster(
    run: Run, keys: Sequence[str], options: ProxyOptions, flag: StopFlag, overwrite: bool
) -> dict[str, UniegoError | OSError]:
    """Have the proxies trained by Dask workers, which may come, go and be killed; {key: error} of those that failed.

    A proxy whose worker is killed is continued by another from its last checkpoint, as often as there is a newer one.
    Raises `UniegoError` where no scheduler answers for two minutes, `Stopped` when asked to stop.
    """
    root = run.root.resolve()
    if overwrite:  # once, and here: a task may run again
        for key in keys:
            begin_anew(run, key)
    here = options.jobs or 1  # workers on this machine share its cores; all others have a machine's
    threads = threads_each(run.config.compute.threads, torch.get_num_threads(), here)
    torch.set_num_threads(threads)  # what `keep_connected` compares with the cores
    tasks = ProxyTasks(str(root), run.config, threads)
    left, failures = list(keys), dict[str, UniegoError | OSError]()
    with Meter("train-proxies", len(keys), unit="proxies") as meter:

        def go(client: Any) -> bool:
            nonlocal left
            left = _Round(client, run, tasks, flag, failures, meter).run(left)
            return not left

        keep_connected(options.cluster, root, flag, go)
    return failures


class _Round(Round[str, ProxyReceipt]):
    """Proxies by key."""

    def __init__(
        self,
        client: Any,
        run: Run,
        tasks: ProxyTasks,
        flag: StopFlag,
        failures: dict[str, UniegoError | OSError],
        meter: Meter,
    ) -> None:
        super().__init__(client, tasks.number, flag)
        self._run, self._tasks, self._failures, self._meter = run, tasks, failures, meter
        self._steps: dict[str, str] = {}  # newest checkpoint when a proxy was handed out

    def submit(self, key: str) -> Any:
        self._steps[key] = _newest(self._run, key)
        name = f"proxy-{key}-{time.monotonic_ns():x}"
        return self._client.submit(train, self._tasks, key, key=name, pure=False)

    def enter(self, key: str, receipt: ProxyReceipt) -> None:
        if receipt.error is None:
            say(f"proxy {key}: done by worker {receipt.worker}")
            self._meter.advance(1)
            return
        error = UniegoError(f"worker {receipt.worker}: {receipt.error[1]}")
        error.exit_code = receipt.error[0]
        self._fail(key, error)

    def raised(self, key: str, error: Exception) -> None:
        self._fail(key, UniegoError(f"{type(error).__name__}: {error}"))

    def killed(self, key: str) -> None:
        if _newest(self._run, key) != self._steps[key]:
            warn(f"proxy {key}: its workers were killed again and again, but it comes forward: going on")
            self.hand_out(key)
        else:
            self._fail(
                key,
                UniegoError(
                    f"proxy {key} killed every worker that took it, without a new checkpoint; give the workers "
                    "more memory or take a smaller proxies.train.micro_batch; the same command continues"
                ),
            )

    def _fail(self, key: str, error: UniegoError) -> None:
        self._failures[key] = error
        warn(f"proxy {key} failed: {error}")


def _newest(run: Run, key: str) -> str:
    """Name of a proxy's newest checkpoint, or of what it made after its last."""
    folder = run.proxy_folder(key).path
    return max((path.name for path in folder.glob("checkpoints/step-*")), default="") + str((folder / "model").exists())


def train(tasks: ProxyTasks, key: str) -> ProxyReceipt:
    """Train a proxy, on a worker. Raises `Stopped` after `worker.stop`."""
    worker = get_worker()
    where = f"{worker.name} ({worker.address})"
    own: dict[str, Any] = {"threads": tasks.threads, "device": device_of(tasks.config, worker)}
    if multiprocessing.current_process().daemon:  # as Dask has it, a worker may have no children
        own["workers"] = 0
    compute = tasks.config.compute.model_copy(update={name: value for name, value in own.items() if value is not None})
    run = Run(Path(tasks.root), tasks.config.model_copy(update={"compute": compute}))
    flag = ToldFlag(lambda: told(tasks.number))
    relay(_log)
    with one_at_a_time:
        flag.check()
        try:
            prepare(compute)
            _wait_for_others(run, key, flag)
            train_one(run, key, flag)
        except Stopped:
            raise
        except UniegoError as error:
            return ProxyReceipt(where, (error.exit_code, str(error)))
        except OSError as error:
            return ProxyReceipt(where, (EXIT_FAILURE, str(error)))
    return ProxyReceipt(where)


def _log(said: Message | Standing) -> None:
    """Messages go to the worker's log; how far a proxy is lies in its metrics.jsonl."""
    if isinstance(said, Message):
        print(f"{'warning: ' if said.warning else ''}{said.text}", file=sys.stderr, flush=True)


def _wait_for_others(run: Run, key: str, flag: StopFlag) -> None:
    """A worker that lost its scheduler may still be at this proxy: it is waited for, as long as it lives."""
    folder, told_so = run.proxy_folder(key), False
    while folder.running():
        if not told_so:
            warn(f"proxy {key}: another process is at it; waiting for it")
            told_so = True
        flag.check()
        time.sleep(1.0)
