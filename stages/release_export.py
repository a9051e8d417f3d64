"""A run's work in the layout of the released code's folders; what `release_import` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..cache import FeatureStore, RowStatus
from ..errors import MissingInputError, UsageError
from ..pipeline import files
from ..pipeline.progress import say
from ..pipeline.rundir import Run, TaskFolder
from .checkpoint_files import pyth_bytes
from .encoder import CONFIG, WEIGHTS, read_model
from .exchange import file_names
from .imported import imported
from .model_export import NewFolder, refuse_filled
from .release_import import MERGED
from .released_outputs import write_outputs
from .targets import open_index, row_keys
from .training import fresh_model


def export_proxies(
    run: Run, out: Path, teachers: Sequence[str] | None = None, *, by_id: bool = False
) -> dict[str, int]:
    """Write finished proxies (None: all there are) with their outputs to the folder `out`, whole or not at all.

    `out`/<teacher>/checkpoints/checkpoint_epoch_<n>.pyth and tokens_training/{tokens,scores_pred}/<ego clip>.npy;
    returns {teacher: clips with outputs}. Files are called like the ego video (`by_id`: like the clip). Raises
    `MissingInputError` for a proxy that is not finished, `UsageError` when two clips would have one name.
    """
    refuse_filled(out)
    keys = [key for key in run.choose(teachers) if teachers or run.proxy_folder(key).done]
    if not keys:
        raise MissingInputError(f"no proxy is finished: run `{run.command('train-proxies')}` first")
    clips, index = run.table().split("train"), open_index(run)
    rows = index.rows(row_keys(run, clips))
    done = {}
    with NewFolder(out) as folder:
        for key in keys:
            proxy = run.proxy_folder(key)
            store = FeatureStore.open(run.cache_root / proxy.results["outputs"], index)
            there = store.status(rows) == RowStatus.DONE
            names = file_names(f"proxy {key}", "ego", rows, there, clips, by_id)
            done[key] = write_outputs(store, rows, names, folder / key)
            if proxy.results["weights"] is not None:
                epoch = _epoch(proxy, run.config.proxies.train.epochs)
                path = folder / key / "checkpoints" / f"checkpoint_epoch_{epoch + 1:05d}.pyth"
                _write_network(proxy.path / "model", path, epoch)
            say(f"proxy {key}: outputs of {done[key]} of {len(clips)} train clips")
    say(f"wrote {', '.join(keys)} to {out}")
    return done


def export_merged(run: Run, out: Path) -> None:
    """Write the merged network, which has no projection, to a file. Raises `MissingInputError`, `UsageError`."""
    _refuse_existing(out)
    if not run.merge_folder.done:
        raise MissingInputError(f"no merge is finished: run `{run.command('distill')}` first")
    state = load_file(run.merge_folder.path / MERGED)
    _write(out, state, fresh_model(run, {}).geometry, 0)


def export_student(run: Run, out: Path) -> None:
    """Write the student to the file `out`. Raises `MissingInputError`, `UsageError`."""
    _refuse_existing(out)
    student = run.student_folder
    if not student.done:
        raise MissingInputError(f"no student is trained: run `{run.command('distill')}` first")
    _write_network(student.path / "model", out, _epoch(student, run.config.distill.train.epochs))


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UsageError(f"{out} exists: name a new file")


def _epoch(folder: TaskFolder, epochs: int) -> int:
    """The last epoch's number, counted from 0; of imported work what its file said, or 0."""
    taken_in = imported(folder)
    return epochs - 1 if taken_in is None else taken_in["epoch"] or 0


def _write_network(model: Path, out: Path, epoch: int) -> None:
    if not (model / CONFIG).exists():
        read_model(model)  # says what is missing
    geometry = json.loads((model / CONFIG).read_text(encoding="utf-8"))["geometry"]
    _write(out, load_file(model / WEIGHTS), geometry, epoch)


def _write(out: Path, state: Mapping[str, Tensor], geometry: Mapping[str, object], epoch: int) -> None:
    files.make_dir(out.parent)
    files.write_bytes(out, pyth_bytes(state, geometry, epoch))
    say(f"wrote {out.name}: {len(state)} tensors, {geometry['heads']} heads (the file does not say)")
