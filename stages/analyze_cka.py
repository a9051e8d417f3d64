"""Do proxies close the gap between teachers and student? CKA of every teacher, every proxy and the student."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table

from ..cache import FeatureStore
from ..errors import MissingInputError
from ..pipeline import charts, files
from ..pipeline.progress import results_console, say, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .cka import Features, Product, Similarity, compare_all, hsic
from .compute import prepare
from .encoder import WEIGHTS
from .extract_options import ExtractOptions
from .targets import open_index, open_teacher, row_keys, training_targets
from .tokens import outputs_store, train_tokens
from .training import trained

STUDENT = "student"


def analyze_cka(run: Run, options: ExtractOptions | None = None) -> dict[str, Any]:
    """Debiased linear CKA between all representations of the train clips, each pair over the clips that have both.

    `options`: on which Dask cluster, None for this process, whose device it then takes.

    A teacher's is its target (the mean of its rows), a proxy's its stored token, the student's its token (one view,
    centre crop). Writes cka.json, cka.csv and cka.svg to RUN/analyze/cka/, and returns what the first one holds. Raises
    `MissingInputError` naming the command that makes what is not there.
    """
    folder = run.student_folder
    if not folder.done or not trained(folder.path):
        raise MissingInputError(f"there is no student yet: run `{run.command('distill')}` first")
    device = prepare(run.config.compute)
    index, keys = open_index(run), list(folder.results["proxies"])
    teachers = {key: open_teacher(run, index, key) for key in keys}
    outputs = {key: outputs_store(run, key) for key in keys}
    inputs = {
        "student": files.hash_file(folder.path / "model" / WEIGHTS),
        "outputs": {key: store.path.name for key, store in outputs.items()},
        "teachers": {key: store.fingerprint for key, store in teachers.items()},
    }
    with StopFlag() as flag:
        analysis = run.analysis_folder("cka")
        with analysis.work(inputs, overwrite=True):  # cheap beside what it reads
            tokens = train_tokens(run, STUDENT, folder.path / "model", flag)
            features = _cached_features(run, teachers, outputs) | {STUDENT: tokens}
            place = "a Dask cluster" if options else str(device)
            say(f"CKA of {len(features)} representations of {len(tokens.present)} train clips, on {place}")
            report = _report(keys, features, _compare(run, features, device, options, flag))
            files.write_json(analysis.path / "cka.json", report)
            files.write_bytes(analysis.path / "cka.csv", _as_csv(report))
            picture = charts.heat_map("Debiased linear CKA, train split", report["names"], report["matrix"])
            files.write_bytes(analysis.path / "cka.svg", charts.page([picture]).encode())
            shutil.rmtree(analysis.path / "views", ignore_errors=True)
            analysis.finish({"pairs": report["pairs"]})
    return report


def _compare(
    run: Run, features: Mapping[str, Features], device: torch.device, options: ExtractOptions | None, flag: StopFlag
) -> dict[tuple[str, str], Similarity]:
    def compute(products: Sequence[Product]) -> dict[Product, float]:
        if options is None:
            return {product: hsic(product, features, device, check=flag.check) for product in products}
        from .engines.cka_cluster import hsic_on_cluster

        folder = run.analysis_folder("cka").path / "views" / "dask"
        return hsic_on_cluster(folder, features, products, run.config, options, flag)

    return compare_all({name: part.present for name, part in features.items()}, compute)


def _cached_features(
    run: Run, teachers: Mapping[str, FeatureStore], outputs: Mapping[str, FeatureStore]
) -> dict[str, Features]:
    """By "teacher KEY" (where there is room for them) and "proxy KEY" (in memory)."""
    clips = run.table().split("train")
    place, found = run.analysis_folder("cka").path / "views", {}
    for key, store in teachers.items():
        rows = store.index.rows(row_keys(run, clips))
        targets = training_targets(run, place / f"teacher-{key}", store, rows, run.config.student.num_frames)
        found[f"teacher {key}"] = Features(targets.values, targets.present)
    for key, store in outputs.items():
        values, there = store.load("tokens", store.index.rows(row_keys(run, clips)), np.float32)
        found[f"proxy {key}"] = Features(torch.from_numpy(values), torch.from_numpy(there))
    return found


def _report(
    keys: list[str], features: Mapping[str, Features], found: Mapping[tuple[str, str], Similarity]
) -> dict[str, Any]:
    """JSON-able; what is not defined (constant, or of fewer than four clips) is null."""
    names = list(features)
    left_out = {name: int((~part.present).sum()) for name, part in features.items()}
    if any(left_out.values()):
        warn("clips left out: " + ", ".join(f"{count} without {name}" for name, count in left_out.items() if count))

    def value(one: str, other: str) -> float | None:
        return None if math.isnan(found[one, other].cka) else found[one, other].cka

    pairs = {
        key: {
            "teacher_student": value(f"teacher {key}", STUDENT),
            "teacher_student_clips": found[f"teacher {key}", STUDENT].clips,
            "proxy_student": value(f"proxy {key}", STUDENT),
            "proxy_student_clips": found[f"proxy {key}", STUDENT].clips,
            "teacher_proxy": value(f"teacher {key}", f"proxy {key}"),
        }
        for key in keys
    }
    return {
        "measure": "debiased linear CKA, train split",
        "clips": len(features[STUDENT].present),
        "left_out": left_out,
        "pairs": pairs,
        "names": names,
        "matrix": [[value(one, other) for other in names] for one in names],
        "counts": [[found[one, other].clips for other in names] for one in names],
    }


def _as_csv(report: Mapping[str, Any]) -> bytes:
    """A row per pair; an empty field where CKA is not defined."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["one", "other", "cka", "clips"])
    for one, values, counts in zip(report["names"], report["matrix"], report["counts"], strict=True):
        for other, value, count in zip(report["names"], values, counts, strict=True):
            writer.writerow([one, other, "" if value is None else repr(value), count])
    return out.getvalue().encode()


def print_cka(run: Run, report: Mapping[str, Any]) -> None:
    """A row per teacher, and where the rest lies."""
    table = Table("teacher", "teacher-student", "proxy-student", "teacher-proxy", title="CKA")
    for key, pair in report["pairs"].items():
        table.add_row(key, *(_shown(pair[name]) for name in ("teacher_student", "proxy_student", "teacher_proxy")))
    means = [_mean([pair[name] for pair in report["pairs"].values()]) for name in ("teacher_student", "proxy_student")]
    table.add_row("mean", *(_shown(mean) for mean in means), "", style="bold")
    results_console().print(table)
    say(f"all pairs: {run.analysis_folder('cka').path}/cka.json, cka.csv, cka.svg")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(torch.tensor(known).mean()) if known else None


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
