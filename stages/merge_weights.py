"""The learned weights of the merge as a picture: over the steps, and what they are in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..pipeline import charts, files

PICTURE = "weights.svg"


def draw_weights(folder: Path, proxies: Sequence[str], alphas: Mapping[str, Sequence[float]]) -> None:
    """Write `folder`/weights.svg out of its metrics.jsonl and the final alphas, per group those of each proxy.

    The curves are each proxy's share of all parameters; without a history (level average) there are only bars.
    """
    path = folder / "metrics.jsonl"
    records = [r for r in files.read_json_lines(path)[0] if "step" in r] if path.exists() else []
    parts = []
    if records:
        curves = {
            key: [
                (float(number), record[f"alpha.{key}"])
                for number, record in enumerate(records)
                if f"alpha.{key}" in record
            ]
            for key in proxies
        }
        highest = max((y for curve in curves.values() for _, y in curve), default=1.0)
        title, label = "Weights of the merge over its training", "share of the parameters"
        parts.append(charts.lines(title, curves, "step", label, top=min(1.0, 1.25 * highest)))
    groups = {group: dict(zip(proxies, shares, strict=True)) for group, shares in alphas.items()}
    parts.append(charts.bars("Weights in the end", groups))
    files.write_bytes(folder / PICTURE, charts.page(parts).encode())
