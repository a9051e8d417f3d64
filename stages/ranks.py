"""The processes of one training (torchrun): who this one is, what they agree on, and sums over all of them.

Without an initialised process group there is one process: a sum is the value itself, and what the first process does
is simply done. Every function here but `world` and `rank` is a meeting: all processes must come to it, in the same
order. One that does not come ends the others by `RankLost`, which names it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ..errors import RankLost, UniegoError
from ..pipeline import progress
from ..pipeline.config import ComputeConfig
from ..pipeline.launch import place
from ..pipeline.progress import say
from ..pipeline.rundir import TaskFolder
from .compute import resolve_device
from .rank_watch import Watch

T = TypeVar("T")


@dataclass
class _Company:
    """What `joined` sets up: a group for numbers on the host, and the signs of life."""

    host: dist.ProcessGroup | None = None
    watch: Watch | None = None


_company = _Company()
_joined = 0  # how often: one process may carry out several stages


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this one, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def joined(config: ComputeConfig) -> Iterator[None]:
    """Inside, the processes that torchrun started train together; without torchrun nothing changes.

    They meet by NCCL where the device is a GPU, by gloo on CPUs. From here on only the first says things. Raises
    `UniegoError` when they do not all come within `compute.rank_timeout_s`.
    """
    here = place()
    if here.world == 1 or world() > 1:
        yield
        return
    device = resolve_device(config)
    _begin(device, here.rank, here.world, timedelta(seconds=config.rank_timeout_s))
    progress.hush(here.rank > 0)
    say(f"{here.world} processes train together, each on its {device.type}")
    error: BaseException | None = None
    try:
        yield
        from_first(lambda: None)  # nobody leaves before the first is done,
        with _meeting():
            dist.barrier(_company.host)  # nor that one, with whom the store goes, before all have heard
    except BaseException as caught:
        error = caught
        raise
    finally:
        _end(device, error)


def _begin(device: torch.device, rank: int, world: int, timeout: timedelta) -> None:
    global _company, _joined
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(rendezvous("env://", rank, world, timeout=timeout))
        beats, _, _ = next(rendezvous("env://", rank, world, timeout=timeout))
        _joined += 1
        words, signs = (PrefixStore(f"uniego/{_joined}", part) for part in (store, beats))
        group = PrefixStore(f"group/{_joined}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=group, rank=rank, world_size=world, timeout=timeout)
        _company = _Company(
            dist.new_group(backend="gloo", timeout=timeout),
            Watch(words, signs, rank, world),
        )
        dist.barrier(_company.host)  # from here on all have shown signs of life
    except RuntimeError as error:
        raise UniegoError(
            f"not all of {world} processes came together in {timeout.total_seconds():.0f} s ({error}); see "
            "what the others say, or raise compute.rank_timeout_s"
        ) from error


def _end(device: torch.device, error: BaseException | None) -> None:
    global _company
    watch = _company.watch
    if watch is not None:
        watch.end(error)
    _company = _Company()
    failed = error
    while failed is not None:  # its frames would keep the connections open, at which others wait for this process
        traceback.clear_frames(failed.__traceback__)
        failed = failed.__cause__ or failed.__context__
    if error is None or device.type == "cpu":  # NCCL would wait for sums that never come
        dist.destroy_process_group()
    if watch is not None and error is not None:
        watch.linger()


@contextmanager
def _meeting() -> Iterator[None]:
    """Turns the failure of a meeting into an error that names who did not come."""
    watch = _company.watch
    if watch is not None:
        watch.meetings += 1
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, UniegoError):
            raise
        raise (watch.explain(error) if watch else RankLost(f"another process is gone: {error}")) from error


def all_sum(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, in place."""
    if world() > 1:
        with _meeting():
            dist.all_reduce(value)
    return value


def sums(numbers: Sequence[int]) -> list[int]:
    """Sums of whole numbers over all processes. No device is waited for."""
    if world() == 1:
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.int64)
    with _meeting():
        dist.all_reduce(total, group=_company.host)
    return [int(number) for number in total.tolist()]


def gathered(value: T) -> list[T]:
    """Every process's value (plain numbers, texts, tuples and lists of them), in the order of ranks."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with _meeting():
        dist.all_gather_object(values, value, group=_company.host)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, for all: the others wait, however long that takes.

    For what is written, and for decisions. The value goes through JSON: plain numbers, texts, lists and dictionaries.
    """
    if world() == 1:
        return make()
    made = make() if rank() == 0 else None
    with _meeting():
        value: T = _told(made)
    return value


def _told(value: Any) -> Any:
    """The first process's `value`, in all."""
    watch = _company.watch
    if watch is None:  # not by `joined`: whoever made the group watches over it
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]
    if rank() > 0:
        return watch.hear()
    watch.tell(value)
    return value


def first_then_others(make: Callable[[], T]) -> T:
    """`make` in every process, in the first before the others: it leaves files that they find."""
    if world() == 1:
        return make()
    value = make() if rank() == 0 else None
    from_first(lambda: None)
    return make() if value is None else value


@contextmanager
def working(
    folder: TaskFolder, fingerprint: Mapping[str, Any], *, overwrite: bool = False, incomplete: bool = False
) -> Iterator[bool]:
    """`TaskFolder.work`: the first process holds the folder for all, and all learn whether there is work."""
    if rank() > 0:
        yield from_first(bool)
        return
    with folder.work(fingerprint, overwrite=overwrite, incomplete=incomplete) as needed:
        yield from_first(lambda: needed)
