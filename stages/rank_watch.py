"""Which process of a training is gone, when a meeting of them all fails.

The processes share a small store (that of torchrun). In it each says, twice a second, that it lives and how many
meetings it has been to; one that leaves by an error says which. What the first process tells all goes through it too:
who waits there sees the first one leave.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

from torch.distributed.distributed_c10d import Store

from ..errors import EXIT_FAILURE, EXIT_STOPPED, RankLost, Stopped, UniegoError

BEAT = 0.5  # seconds between signs of life
SILENCE = 4.0  # seconds without one, after which a process counts as dead
PATIENCE = 20.0  # seconds that the first process waits at most for others to learn what ended it


class Watch:
    """The signs of life of all processes, for process `rank` of `world`.

    `store` is asked by the training's thread, `beats` (another connection) written by a thread of its own.
    """

    def __init__(self, store: Store, beats: Store, rank: int, world: int) -> None:
        self.rank, self.others = rank, [other for other in range(world) if other != rank]
        self.meetings = 0
        self._told = 0  # how often the first has told something to all
        self._dead: set[int] = set()
        self._store, self._ended = store, threading.Event()
        store.set(f"where/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self._thread = threading.Thread(target=self._beat, args=(beats,), name="signs-of-life", daemon=True)
        self._thread.start()

    def _beat(self, beats: Store) -> None:
        number = 0
        while not self._ended.wait(BEAT if number else 0.0):
            number += 1
            try:
                beats.set(f"beat/{self.rank}", f"{number} {self.meetings}")
            except RuntimeError:  # the store is gone, and with it whoever asks
                return

    def end(self, error: BaseException | None) -> None:
        """Say no more; of an error, say which it was."""
        self._ended.set()
        self._thread.join()
        if error is not None:
            lost = isinstance(error, RankLost)
            word = {"code": getattr(error, "exit_code", EXIT_FAILURE), "message": f"{error}", "lost": lost}
            try:
                self._store.set(f"left/{self.rank}", json.dumps(word))
            except RuntimeError:
                return

    def linger(self) -> None:
        """Of the first process, which may hold the store: give the others the time to find out in it who is gone.

        Some notice only now that anybody is, and then need `SILENCE` for it: those that show signs of life are waited
        for, at most `PATIENCE` seconds.
        """
        if self.rank > 0:
            return
        started = time.monotonic()
        beats, heard = self._beats(), dict.fromkeys(self.others, started)
        while (now := time.monotonic()) - started < PATIENCE:
            for other, beat in self._beats().items():
                if beat != beats[other]:
                    beats[other], heard[other] = beat, now
            living = [other for other in self.others if other not in self._dead and now - heard[other] < SILENCE]
            if all(self._store.check([f"left/{other}"]) for other in living):
                return
            time.sleep(0.05)

    def tell(self, value: Any) -> None:
        """Of the first process: `value` for all others. It does not wait for them."""
        self._told += 1
        self._store.set(f"told/{self._told}", json.dumps(value))

    def hear(self) -> Any:
        """Of another process: what the first tells next, however long that takes. RuntimeError when it has left."""
        self._told += 1
        key, pause = f"told/{self._told}", 0.001
        while not self._store.check([key]):
            if self._store.check(["left/0"]):
                raise RuntimeError("the first process has left")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        value = json.loads(self._store.get(key))
        if self._store.add(f"{key}/heard", 1) == len(self.others):  # by all but the first
            self._store.delete_key(key)
            self._store.delete_key(f"{key}/heard")
        return value

    def explain(self, error: BaseException) -> UniegoError:
        """What to raise after a failed meeting: it names who is gone, and why where that is known."""
        try:
            return self._explain(error)
        except RuntimeError:
            return RankLost("rank 0 or torchrun itself is gone; the same command continues")

    def _explain(self, error: BaseException) -> UniegoError:
        first, started = self._beats(), time.monotonic()
        while time.monotonic() - started < SILENCE:
            said = {rank: word for rank in self.others if (word := self._word(rank)) is not None}
            own = {rank: word for rank, word in said.items() if not word["lost"]}
            if own:
                return _told(own)
            time.sleep(0.1)
        now = self._beats()
        dead = [rank for rank in self.others if now[rank] == first[rank] and rank not in said]
        if dead:
            self._dead.update(dead)
            names = ", ".join(f"rank {rank} ({self._store.get(f'where/{rank}').decode()})" for rank in dead)
            return RankLost(
                f"{names} died without a word: killed, or out of memory (see the kernel's log); the training ends "
                "here, and the same command continues at the last checkpoint"
            )
        late = [rank for rank in self.others if int(now[rank].split()[1]) < self.meetings] or self.others
        return RankLost(
            f"the ranks do not come together ({str(error).splitlines()[0]}); those that others wait for: "
            f"{', '.join(f'rank {rank}' for rank in late)}. See what they do, raise compute.rank_timeout_s if they are "
            "only slow; the same command continues"
        )

    def _beats(self) -> dict[int, str]:
        known = {rank: f"beat/{rank}" for rank in self.others}
        return {r: self._store.get(key).decode() if self._store.check([key]) else "0 0" for r, key in known.items()}

    def _word(self, rank: int) -> dict[str, Any] | None:
        key = f"left/{rank}"
        word: dict[str, Any] | None = json.loads(self._store.get(key)) if self._store.check([key]) else None
        return word


def _told(words: dict[int, dict[str, Any]]) -> UniegoError:
    rank, word = min(words.items())
    if word["code"] == EXIT_STOPPED:
        return Stopped(word["message"])
    lost = RankLost(f"rank {rank} has failed and told why; this rank ends with it")
    lost.exit_code = word["code"]
    return lost
