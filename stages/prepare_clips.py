"""The clip store is made: every ego clip that training reads is decoded once, and kept as single images.

A shard of clips is the unit of work: it is written whole or not at all, and what it holds does not depend on the
number of processes, on their order, or on where an earlier attempt ended.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..cache import ClipStore, Failure, RowStatus
from ..cache.clip_store import Record
from ..errors import UniegoError, UsageError
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.jpeg import codec_identity
from ..pipeline.progress import Meter, count, duration, say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from ..pipeline.video import backend_identity
from .clip_decoding import ClipEncoder, Cost, decoded, probe
from .clip_source import clip_keys, look_at_videos, record_videos, store_root, store_settings, stored_clips

_MOST_ROWS = 256
_SHARD_BYTES = 128e6
_SHOWN = 5  # failures that are printed


@dataclass
class Prepared:
    """What the store holds of the run's clips, and what this call did. `bytes` counts all that it holds."""

    store: str
    clips: int = 0
    stored: int = 0
    failed: int = 0
    written: int = 0
    bytes: int = 0
    seconds: float = 0.0
    redone: dict[int, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "failures": [failure._asdict() for failure in self.failures]}


def prepare_clips(run: Run, *, verify: bool = False) -> Prepared:
    """Decode what is not in the clip store yet; finished shards are not touched.

    With `verify` every stored byte is compared first, and damaged shards are made again. A clip that cannot be decoded
    whole is recorded as failed, with the reason, and the work goes on. Raises `FingerprintMismatch` for a store made
    under other settings, `Stopped` when asked to stop, `UniegoError` where another process prepares or the disk is too
    small.
    """
    started = time.monotonic()
    clips, root = stored_clips(run), store_root(run)
    if not clips:
        raise UsageError(f"{run.table().path} has no train or val clips: training would read nothing from a clip store")
    encoder = ClipEncoder.from_config(run.config)
    with StopFlag() as flag, alone(root):
        seen = look_at_videos(run, clips)
        record_videos(run, seen)
        keys = clip_keys(clips, seen)
        made = {
            "decoder": backend_identity(run.config.video.backend, (clip.ego_path for clip in clips)),
            "resize": f"torch {torch.__version__}",
            "codec": codec_identity(),
        }
        cost = None if ClipStore.exists(root) else probe(encoder, clips, flag)
        rows_per_shard = None if cost is None else _rows_per_shard(clips, cost)
        settings = {"settings": store_settings(run.config), "made_with": made}
        store = ClipStore.create(root, keys, settings, rows_per_shard)
        report = Prepared(str(root), clips=len(clips))
        if verify:
            report.redone = store.redo_damaged()
            for shard, problem in report.redone.items():
                say(f"prepare-clips: shard {shard} {problem}: it is made again")
        rows = store.index.rows(keys)
        _Work(run, store, dict(zip(rows.tolist(), clips, strict=True)), encoder, cost).carry_out(rows, report, flag)
    _finish(run, store, rows, report)
    report.seconds = round(time.monotonic() - started, 3)
    return report


def _rows_per_shard(clips: Sequence[Clip], cost: Cost) -> int:
    """A power of two: as many clips as make about 128 MB, and no more than a sixteenth of them; at least one."""
    per_clip = cost.bytes(clips) / len(clips)
    wanted = int(max(1, min(_MOST_ROWS, len(clips) / 16, _SHARD_BYTES / max(per_clip, 1.0))))
    return 1 << (wanted.bit_length() - 1)


@dataclass(frozen=True)
class _Work:
    run: Run
    store: ClipStore
    clips: dict[int, Clip]
    encoder: ClipEncoder
    cost: Cost | None  # of the clips, where it has just been measured

    def carry_out(self, rows: npt.NDArray[np.int64], report: Prepared, flag: StopFlag) -> None:
        """Decode the clips of all pending shards, and write each shard when its clips are there."""
        pending = self.store.pending(rows)
        if not pending:
            say(f"prepare-clips: all {len(rows)} clips are in {self.store.root}, nothing to do")
            return
        todo = {shard: self._rows(shard) for shard in pending}
        wanted = [row for rows in todo.values() for row in rows]
        workers = self.run.config.compute.workers
        self._announce(len(pending), [self.clips[row] for row in wanted], workers, flag)
        done = len(self.clips) - len(wanted)
        failed = 0
        with Meter("prepare-clips", len(self.clips), resumed=done) as meter:
            records = decoded(self.encoder, [self.clips[row] for row in wanted], workers, flag)
            for shard, rows_of in todo.items():
                made: dict[int, Record] = {}
                for row in rows_of:
                    made[row] = next(records)
                    failed += made[row].failure is not None
                    meter.advance(1, f"{count(failed, 'clip')} failed" if failed else "")
                self.store.write_shard(shard, made)
                report.written += 1
                flag.check()

    def _rows(self, shard: int) -> list[int]:
        """This run's clips of a shard that are still to be decoded."""
        mine = np.array([row for row in self.store.index.shard_rows(shard) if row in self.clips], np.int64)
        left: list[int] = mine[self.store.status(mine) == RowStatus.PENDING].tolist()
        return left

    def _announce(self, shards: int, clips: list[Clip], workers: int, flag: StopFlag) -> None:
        """Say what it will take; refuse what does not fit the disk."""
        cost = self.cost or probe(self.encoder, clips, flag)
        size, seconds = cost.bytes(clips), cost.seconds(clips) / max(1, workers)
        free = shutil.disk_usage(self.store.root).free
        say(
            f"prepare-clips: {len(clips)} of {len(self.clips)} clips of train and val, in {count(shards, 'shard')}: "
            f"about {size / 1e9:.2f} GB and {duration(seconds)} with compute.workers {workers}, by "
            f"{count(cost.probes, 'clip')} tried; into {self.store.root} ({free / 1e9:.0f} GB free)"
        )
        if size > free:
            raise UniegoError(
                f"the clip store needs about {size / 1e9:.1f} GB and {self.store.root} has {free / 1e9:.1f} GB free: "
                "name another folder (clips.root), or keep fewer frames (clips.fps) or smaller ones (clips.quality)"
            )


def _finish(run: Run, store: ClipStore, rows: npt.NDArray[np.int64], report: Prepared) -> None:
    status = store.status(rows)
    report.stored, report.failed = (int((status == code).sum()) for code in (RowStatus.DONE, RowStatus.FAILED))
    report.failures, report.bytes = store.failures(rows), store.size()
    say(f"  {report.stored} stored, {report.failed} failed; the store holds {report.bytes / 1e6:.1f} MB")
    for failure in report.failures[:_SHOWN]:
        say(f"    {failure.clip_id}: {failure.message} ({failure.reason})")
    if len(report.failures) > _SHOWN:
        say(f"    and {len(report.failures) - _SHOWN} more; --json lists all")
    if not report.stored:
        raise UniegoError("no clip could be decoded: see the reasons above")
    if run.config.clips.source == "videos":
        say("training reads it with clips.source: store in run.yaml (or --set clips.source=store)")


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """One process at a time makes a store, or cleans it. Raises `UniegoError` while another does."""
    files.make_dir(root)
    with (root / ".prepare.lock").open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UniegoError(f"another process is preparing {root}; wait for it or stop it") from None
        except OSError:
            pass  # a file system without locks
        yield
