"""What extraction says before and after, and the table of failures."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..cache import Failure, FeatureStore, RowStatus
from ..errors import CoverageError
from ..pipeline import files
from ..pipeline.objects import is_url
from ..pipeline.progress import count, duration, say, warn
from ..pipeline.rundir import Run
from .extract_outlook import Outlook
from .extract_plan import Plan

_SHOWN = 5  # failures of a teacher that are printed


def announce(run: Run, outlook: Outlook, teachers: list[str], rows_per_shard: int, seconds: float | None) -> None:
    """Say what is about to be done. `seconds`: what all of it will take, None where nobody has measured."""
    clips = len(run.table().clips)
    say(
        f"extract-teachers: {outlook.clips} of {clips} clips in {count(outlook.shards, 'shard')} of at most "
        f"{rows_per_shard}, {count(len(teachers), 'teacher')} ({', '.join(teachers)})"
    )
    seconds_watched = outlook.seconds()
    if seconds_watched is not None:
        views = "ego and exo counted apart" if len({view for _, some in outlook.watched for view in some}) > 1 else ""
        say(f"  about {duration(seconds_watched)} (h:mm:ss) of video{f' ({views})' if views else ''}")
    if is_url(run.config.cache.root):
        say(f"  at most {_size(outlook.bytes)} in {count(outlook.files, 'object')} into {run.config.cache.root}")
    else:
        free = shutil.disk_usage(_existing(run.cache_root)).free
        say(
            f"  at most {_size(outlook.bytes)} in {count(outlook.files, 'file')} into {run.cache_root} "
            f"({_size(free)} free)"
        )
        if outlook.bytes > free:
            warn(
                "this may not fit: a full disk stops the extraction, and it continues when there is room; "
                "cache.root names another place"
            )
    if seconds is not None:
        say(f"  about {duration(seconds)} on this machine, by a short measurement")


def report(
    run: Run,
    plan: Plan,
    stores: Mapping[str, FeatureStore],
    min_coverage: float | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> None:
    """One line per teacher, failures.csv, and the next command.

    Raises `CoverageError` when fewer of this share's clips have features than the minimum.
    """
    least = run.config.extract.min_coverage if min_coverage is None else min_coverage
    with run.alone(waiting):  # whoever ends last writes what all have found
        short = _tell(run, plan, stores, least)
    if short:
        raise CoverageError(
            f"coverage below extract.min_coverage ({100 * least:.1f} %): {', '.join(short)}; "
            "mend the files named above and run the same command again (clips whose files changed are tried again, "
            "others with --retry-failed), or lower the minimum (--min-coverage)"
        )
    left = {shard for store in stores.values() for shard in store.pending(plan.rows)}
    if left:
        say(f"this task's share is done, {count(len(left), 'shard')} of others are left: {run.command('status')}")
    else:
        say(f"next: {run.command('train-proxies')}")


def _tell(run: Run, plan: Plan, stores: Mapping[str, FeatureStore], least: float) -> list[str]:
    """Print the teachers' lines and write the failures; returned are teachers below the minimum in this share."""
    short = []
    failures: dict[str, list[Failure]] = {}
    say(f"at least {100 * least:.1f} % of the clips that name a teacher's input must have its features:")
    for key, store in stores.items():
        status = store.status(plan.rows)
        done, failed, absent, pending = (int((status == code).sum()) for code in _ORDER)
        share = _share(status)
        text = f"{100 * share:.1f} %" if share is not None else "no clip names its input"
        left = f", {pending} pending" if pending else ""
        say(f"  {key}: {done} done, {failed} failed, {absent} without its input{left} ({text})")
        now = {clip.clip_id for clip, s in zip(run.table().clips, status, strict=True) if s == RowStatus.FAILED}
        mine = list({failure.clip_id: failure for failure in store.failures() if failure.clip_id in now}.values())
        for failure in mine[:_SHOWN]:
            say(f"    {failure.clip_id}: {failure.message}")
        if len(mine) > _SHOWN:
            say(f"    and {len(mine) - _SHOWN} more, all in {_failures_path(run)}")
        failures[key] = mine
        own = _share(store.status(plan.share_rows))
        if own is not None and own < least:
            short.append(f"{key} {100 * own:.1f} %")
    _write_failures(_failures_path(run), failures)
    return short


_ORDER = (RowStatus.DONE, RowStatus.FAILED, RowStatus.ABSENT, RowStatus.PENDING)


def _share(status: npt.NDArray[np.uint8]) -> float | None:
    """Done among done and failed; None where there is neither."""
    done, failed = int((status == RowStatus.DONE).sum()), int((status == RowStatus.FAILED).sum())
    return done / (done + failed) if done + failed else None


def _failures_path(run: Run) -> Path:
    return run.base / "extract" / "failures.csv"


def _write_failures(path: Path, failures: Mapping[str, list[Failure]]) -> None:
    """teacher, clip_id, reason, message; teachers that were not looked at keep their rows."""
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as handle:
            rows = [row for row in list(csv.reader(handle))[1:] if row[0] not in failures]
    rows += [[key, *failure] for key, found in failures.items() for failure in found]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([["teacher", "clip_id", "reason", "message"], *sorted(rows)])
    data = out.getvalue().encode()
    if not path.exists() or path.read_bytes() != data:
        files.write_bytes(path, data)


_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


def _existing(path: Path) -> Path:
    """The folder itself or the nearest one above it that is there."""
    return next(folder for folder in (path, *path.resolve().parents) if folder.exists())


def _size(count: float) -> str:
    unit = next((unit for unit, size in _UNITS.items() if count >= size), "kB")
    return f"{count / _UNITS[unit]:.1f} {unit}"
