"""Several processes on this machine: each has its share of the shards from the start, and tells what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection

import torch

from ...errors import EXIT_FAILURE, Stopped, UniegoError
from ...pipeline.config import ComputeConfig
from ...pipeline.progress import Meter
from ...pipeline.signals import StopFlag, ToldFlag, ignore_in_child
from ..extract_plan import Piece
from .crew import Crew, Teller
from .workplace import Job, Workplace


def devices(config: ComputeConfig, here: torch.device, workers: int | None) -> list[str]:
    """The device of each process: one process per GPU when the device is left to us, or `workers` of them."""
    gpus = torch.cuda.device_count() if here.type == "cuda" else 0
    if config.device == "auto" and gpus > 1:
        return [f"cuda:{number % gpus}" for number in range(workers or gpus)]
    return [str(here)] * (workers or 1)


def extract_in_processes(
    job: Job, pieces: Sequence[Piece], places: Sequence[str], flag: StopFlag, meter: Meter
) -> None:
    """One process per entry of `places`, which names its device; `meter` counts the shards of all.

    Raises `Stopped` when asked to stop, after all processes have dropped or finished their shard; `UniegoError` for
    what went wrong in one of them, after the others have stopped.
    """
    dealt = [piece.deal(len(places)) for piece in pieces]
    hands = [[piece[number] for piece in dealt if piece[number].pending] for number in range(len(places))]
    heard = _Heard(meter)
    crew = Crew(heard.hear, heard.bury)
    try:
        for number, (place, hand) in enumerate(zip(places, hands, strict=True)):
            if hand:
                name = f"local-{number}"
                crew.start(name, _work, name, job, place, hand)
        stopped: Stopped | None = None
        while crew.listen():
            try:
                if stopped is None:
                    flag.check()
            except Stopped as error:
                stopped = error
            if stopped is not None or heard.error is not None:
                crew.stop()
    finally:
        crew.close()
    if heard.error is not None:
        raise heard.error
    if stopped is not None:
        raise stopped


class _Heard:
    """What the processes say: the shards they have done, and the first error of all."""

    def __init__(self, meter: Meter) -> None:
        self.error: UniegoError | None = None
        self._meter = meter

    def hear(self, name: str, said: tuple[str, int, str]) -> None:
        """("advance", clips, note) or ("error", exit code, message)."""
        kind, number, text = said
        if kind == "advance":
            self._meter.advance(number, text)
        elif self.error is None:
            self.error = UniegoError(text)
            self.error.exit_code = number

    def bury(self, name: str, how: str | None) -> None:
        """A process has ended."""
        if how is not None and self.error is None:
            self.error = UniegoError(
                f"the extraction process {name} {how}; what it had finished is kept. If it ran out of memory, "
                "take fewer --workers or a smaller extract.batch_clips; the same command continues"
            )


class _Told(Meter):
    """The meter of a worker process: what is done is told to the process that shows it."""

    def __init__(self, teller: Teller) -> None:
        super().__init__("", 0)
        self._teller = teller

    def advance(self, count: int, note: str = "") -> None:
        self._teller(("advance", count, note))


def _work(pipe: Connection, task: str, job: Job, device: str, pieces: Sequence[Piece]) -> None:
    """What a process does."""
    ignore_in_child()
    flag, teller = ToldFlag(pipe.poll), Teller(pipe)
    try:
        place = Workplace.open(job, task, device)
        for piece in pieces:
            flag.check()
            place.extract(piece, flag, _Told(teller))
    except Stopped:
        pass
    except UniegoError as error:
        teller(("error", error.exit_code, f"{task}: {error}"))
    except OSError as error:
        teller(("error", EXIT_FAILURE, f"{task}: {error}"))
