"""What the released code left in its folders, taken into a run: proxies with their outputs, merge, student.

proxies    DIR/<teacher>/checkpoints/*.pyth, and tokens_training/{tokens,scores_pred}/<ego clip>.npy beside it
merged     a file of weights, with or without a projection
student    a checkpoint

Later stages take these as their own and say that they were imported (see `imported`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..cache import ClipIndex, suggested_rows
from ..errors import MissingInputError, UsageError
from ..pipeline import files
from ..pipeline.progress import say, warn
from ..pipeline.rundir import Run, TaskFolder
from ..pipeline.signals import StopFlag
from .checkpoints import replace_tensors
from .compute import prepare, resolve_device
from .encoder import WEIGHTS, read_model
from .export import export_outputs
from .imported import import_fingerprint, write_origin
from .released_features import folders_of
from .released_networks import Network, fitting_network, last_checkpoint, without_projection
from .released_outputs import Imported, ReleasedOutputs, import_outputs
from .rows import RunRows, record_rows, run_rows
from .student import PROJECTION
from .targets import find_index, row_keys
from .training import write_trained

MERGED = "merged.safetensors"
_UNVERIFIED = {
    "proxies": "how it was trained, on which clips, by which teacher's features; which class each score means; that "
    "the outputs are this network's",
    "merged": "which proxies it is made from, and with which weights; which class each score means",
    "student": "how it was trained, and on which clips; which class each score means",
}


def import_proxies(
    run: Run,
    path: Path,
    teachers: Sequence[str] | None = None,
    *,
    heads: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Take trained proxies and their outputs over the train split; returns the teachers of those taken.

    A proxy without a checkpoint has outputs alone: it can teach, but no student can start from it. One without outputs
    has them computed here, of its network. Continues after a kill. Raises `UsageError` where a folder has neither,
    `WeightsError` for a network of other names, sizes or classes than the run's student, `FingerprintMismatch` for
    proxies that are there already, unless `overwrite`.
    """
    prepare(run.config.compute)
    keys = folders_of(run, path, teachers)
    found = {key: _Proxy.find(path / key) for key in keys}
    index = _plan(run)
    rows = run_rows(run, index)
    with StopFlag() as flag:
        for key, proxy in found.items():  # one network in memory at a time
            state = fitting_network(run, proxy.checkpoint, heads, key) if proxy.checkpoint else None
            _import_proxy(run, key, proxy, state, index, rows, flag, overwrite)
    say(f"next: {run.command('distill')}")
    return keys


class _Proxy(NamedTuple):
    """The pieces of one proxy."""

    checkpoint: Path | None
    outputs: ReleasedOutputs | None
    folder: Path

    @classmethod
    def find(cls, folder: Path) -> _Proxy:
        proxy = cls(last_checkpoint(folder), ReleasedOutputs.find(folder), folder)
        if proxy.checkpoint is None and proxy.outputs is None:
            raise UsageError(
                f"{folder} has neither checkpoints/*.pyth nor tokens_training/{{tokens,scores_pred}}/*.npy"
            )
        return proxy


def _plan(run: Run) -> ClipIndex:
    """The cache's rows for the run's clips."""
    with run.alone(lambda: None):
        run.record_sources()
        keys = row_keys(run, run.table().clips)
        known = find_index(run)
        per_shard = None if known else run.config.cache.rows_per_shard or suggested_rows(len(keys))
        index = ClipIndex.plan(run.cache_root, keys, per_shard)
        record_rows(run, index)
    return index


def _import_proxy(
    run: Run,
    key: str,
    proxy: _Proxy,
    state: Network | None,
    index: ClipIndex,
    rows: RunRows,
    flag: StopFlag,
    overwrite: bool,
) -> None:
    folder = run.proxy_folder(key)
    outputs = proxy.outputs.content() if proxy.outputs else None
    content = {"weights": None, "epoch": None, **(state.content if state else {}), "outputs": outputs}
    wanted = import_fingerprint(run, content, rows, clips=True)
    with folder.work(wanted, overwrite=overwrite) as needed:
        if not needed:
            say(f"proxy {key}: imported before, nothing to do")
            return
        weights = None
        if state is not None:
            write_trained(run, folder.path / "model", state.model, state.tensors)
            weights = files.hash_file(folder.path / "model" / WEIGHTS)
        if proxy.outputs is not None:
            done = import_outputs(run, key, index, proxy.outputs, outputs or {}, flag)
            _tell_outputs(key, proxy.folder, done)
            store = done.store
        else:
            say(f"proxy {key}: no tokens and scores beside it: they are computed here")
            network, _ = read_model(folder.path / "model")
            device = resolve_device(run.config.compute)
            store = export_outputs(run, key, index, network.to(device), str(weights), flag)
        sources = [path for path in (proxy.checkpoint, proxy.folder if proxy.outputs else None) if path]
        write_origin(folder, sources, content, _UNVERIFIED["proxies"])
        folder.finish({"weights": weights, "outputs": store.path.name, "outputs_imported": proxy.outputs is not None})
    say(f"proxy {key}: imported from {proxy.folder}")


def _tell_outputs(key: str, folder: Path, done: Imported) -> None:
    c = done.coverage
    say(
        f"proxy {key}: outputs of {c.done} of {c.clips} train clips from {folder}; {done.unused} files are no train "
        f"clip's; it is right about {100 * done.agreement:.1f} %"
    )
    if c.failed:
        shown = "".join(f"\n  {failure.clip_id} ({failure.reason}): {failure.message}" for failure in done.failed)
        more = "" if c.failed == len(done.failed) else f"\n  and {c.failed - len(done.failed)} more"
        warn(f"proxy {key}: {c.failed} train clips have no outputs, it will not teach them:{shown}{more}")
    if not c.done:
        raise MissingInputError(f"{folder}: not one train clip has tokens and scores that can be read")
    if done.zeros:
        warn(f"proxy {key}: tokens of {done.zeros} clips are all zeros; they are taken as values")


def import_merged(run: Run, file: Path, *, heads: int | None = None, overwrite: bool = False) -> None:
    """Take a merged network as what the student starts from (`distill --init merged`); a projection is left out.

    Raises `WeightsError` as `import_proxies`, `FingerprintMismatch` for a merge that is there, unless `overwrite`.
    """
    found = fitting_network(run, file, heads, None, read=without_projection)
    folder = run.merge_folder

    def write() -> None:
        replace_tensors(folder.path / MERGED, found.tensors)
        folder.finish({"proxies": None, "alpha": None})

    _import(run, folder, file, found, "merged", write, overwrite)
    say(f"next: {run.command('distill')}")


def import_student(run: Run, file: Path, *, heads: int | None = None, overwrite: bool = False) -> None:
    """Take a trained student, for evaluate, encode and export. Raises as `import_merged`."""
    found = fitting_network(run, file, heads, PROJECTION, run.config.student.width)
    folder = run.student_folder

    def write() -> None:
        write_trained(run, folder.path / "model", found.model, found.tensors)
        folder.finish({"weights": files.hash_file(folder.path / "model" / WEIGHTS), "proxies": []})

    _import(run, folder, file, found, "student", write, overwrite)
    say(f"next: {run.command('evaluate')}")


def _import(
    run: Run, folder: TaskFolder, file: Path, found: Network, what: str, write: Callable[[], None], overwrite: bool
) -> None:
    rows = run_rows(run, find_index(run))
    with folder.work(import_fingerprint(run, found.content, rows, clips=False), overwrite=overwrite) as needed:
        if not needed:
            say(f"{folder.title}: imported before, nothing to do")
            return
        write_origin(folder, [file], found.content, _UNVERIFIED[what])
        write()
    say(f"{folder.title}: imported from {file}")
