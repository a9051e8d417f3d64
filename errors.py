"""Errors and exit codes. Every refusal says what, where, and what to do next.

Each error inherits `UniegoError` and the built-in it resembles, so that callers may catch either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_COVERAGE = 3
EXIT_INTEGRITY = 4
EXIT_FINGERPRINT = 5
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130


class UniegoError(Exception):
    """Base of all errors that uniego raises on purpose; `exit_code` is what the command ends with."""

    exit_code = EXIT_FAILURE


class UsageError(UniegoError, ValueError):
    """A command, configuration or table that cannot be carried out as written."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A configuration field that is unknown, of the wrong type or out of range."""


class TableError(UsageError):
    """A clip table with rows that cannot be used; the message names the rows."""


class MissingInputError(UniegoError, FileNotFoundError):
    """A stage's input is not there; the message names the command that makes it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WeightsError(UniegoError, ValueError):
    """Weights that cannot be found, or do not fit the network they are meant for."""


class CoverageError(UniegoError):
    """Fewer clips have features than the run demands."""

    exit_code = EXIT_COVERAGE


class IntegrityError(UniegoError):
    """Stored bytes differ from what was written."""

    exit_code = EXIT_INTEGRITY


class FingerprintMismatch(UniegoError):
    """Stored results were made under other settings, or as `how` says; `fields` maps a field to (stored, wanted)."""

    exit_code = EXIT_FINGERPRINT

    def __init__(
        self, what: str, fields: Mapping[str, tuple[Any, Any]], advice: str, how: str = "was made under other settings"
    ) -> None:
        self.fields = dict(fields)
        lines = [f"  {name}: stored {old!r}, wanted {new!r}" for name, (old, new) in self.fields.items()]
        super().__init__("\n".join([f"{what} {how}:", *lines, advice]))


class BusyError(UniegoError):
    """Another process is at the same piece of work."""


class Stopped(UniegoError):
    """Stopped on request after saving; the same command continues."""

    exit_code = EXIT_STOPPED


class RankLost(UniegoError):
    """Another process of the same training is gone or does not answer; the message names it."""


def fingerprint_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields in which two fingerprints differ, nested mappings as dotted names: {field: (stored, wanted)}."""
    different: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*stored, *wanted}):
        old, new = stored.get(name), wanted.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = fingerprint_difference(old, new)
            different.update({f"{name}.{field}": pair for field, pair in inner.items()})
        elif old != new:
            different[name] = (old, new)
    return different
