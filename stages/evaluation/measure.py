"""The interface of one task of `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ...pipeline.config import RunConfig
from ...pipeline.signals import StopFlag
from .subjects import Subject

INTERVAL = "95 % percentile bootstrap"


@dataclass(frozen=True)
class Measure:
    """A task: whether it can be done, what its numbers depend on besides the subject, and how they come about."""

    why_not: Callable[[Subject], str | None]
    """Why the data or the subject do not allow it; None: they do."""
    settings: Callable[[Subject], dict[str, Any]]
    """JSON-able; other settings give other results."""
    compute: Callable[[Subject, Path, StopFlag], dict[str, Any]]
    """Results with their "protocol"; files go into the folder given."""
    tables: Callable[[str, dict[str, Any]], list[Table]]
    """Results of the model of that name, for people."""


def percent(value: float | None) -> str:
    """One digit after the point; a dash where there is nothing to measure."""
    return "-" if value is None else f"{value:.1f}"


def with_interval(results: dict[str, Any], name: str) -> str:
    """ "43.8 (33.0 to 54.4)", the interval where there is one."""
    interval = results.get("interval", {}).get(name)
    low_high = f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else ""
    return percent(results[name]) + low_high


def bootstrap_words(config: RunConfig, unit: str) -> dict[str, str]:
    """What the intervals are, for a protocol; nothing where there are none."""
    resamples = config.evaluate.resamples
    return {"interval": f"{INTERVAL} over {unit}, {resamples} resamples, seed {config.seed}"} if resamples else {}
