"""Stage 2: one proxy per teacher, an ego-video network that learns the teacher's features and the labels.

The stage ends with the proxy's outputs over the train split (token and logits, one view, centre crop) in the
cache: stage 3 reads those and never runs a proxy again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cache import ClipIndex, FeatureStore
from ..errors import EXIT_FAILURE, Stopped, UniegoError
from ..pipeline import files
from ..pipeline.progress import say, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from . import ranks
from .clip_gain import offer_clip_store
from .compute import prepare, resolve_device
from .encoder import WEIGHTS, read_model
from .export import export_outputs, outputs_complete, outputs_name
from .fingerprints import training_fingerprint
from .proxy_task import ProxyTask, feature_loss
from .rows import RunRows, run_rows
from .supervised import Supervised
from .targets import by_id, open_index, open_teacher, pool, row_keys, targets_hash, training_targets, warn_of_random
from .training import (
    initial_proxy,
    make_batches,
    make_plan,
    make_validator,
    remove_scaffold,
    train_to_folder,
    trained,
)
from .view import content_hash

__all__ = ["feature_loss", "train_proxies"]


def train_proxies(
    run: Run, teachers: Sequence[str] | None = None, *, overwrite: bool = False, strict: bool = False
) -> None:
    """Train the proxies of the named teachers (None: all that have features) and export their outputs.

    Continues where it stopped; a finished proxy is left as it is, and one that fails does not stop the others.
    Raises `MissingInputError` without features, `FingerprintMismatch` for a proxy begun under other settings,
    `Stopped` after saving when asked to stop.
    """
    named = run.choose(teachers) if teachers else None
    prepare(run.config.compute)
    with ranks.joined(run.config.compute):
        chosen = ranks.first_then_others(lambda: pool(run, strict=strict, only=named))
        _train_pool(run, chosen, overwrite)
    left = [key for key in run.config.teachers if key not in chosen and not run.proxy_folder(key).done]
    if left and named:
        say(f"next: {run.command('train-proxies')} (left: {', '.join(left)})")
    else:
        say(f"next: {run.command('distill')}")


def _train_pool(run: Run, chosen: Sequence[str], overwrite: bool) -> None:
    warn_of_random(run, chosen)
    if run.config.student.init is None:
        warn("student.init is null: proxies start from random weights, which is for trying things out only")
    with StopFlag() as flag:
        if overwrite or any(not trained(run.proxy_folder(key).path) for key in chosen):
            if ranks.rank() == 0:
                offer_clip_store(run, run.table().split("train"))
            flag.check()
        _train_all(run, chosen, flag, overwrite)


def _train_all(run: Run, keys: Sequence[str], flag: StopFlag, overwrite: bool) -> None:
    """One after the other; one that fails does not keep the others from their turn, and is told at the end.

    A single failure is raised as it is, several as one `UniegoError` with the exit code that they have in common.
    Where several processes train together the first failure ends it: the others cannot know of it otherwise.
    """
    failures: dict[str, UniegoError | OSError] = {}
    for key in keys:
        flag.check()
        try:
            _train_one(run, key, flag, overwrite)
        except Stopped:
            raise
        except (UniegoError, OSError) as error:
            if ranks.world() > 1:
                raise
            failures[key] = error
            warn(f"proxy {key} failed: {error}")
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        told = "\n".join(f"  {key}: {error}" for key, error in failures.items())
        together = UniegoError(f"{len(failures)} of {len(keys)} proxies failed, the others are done:\n{told}")
        codes = {getattr(error, "exit_code", EXIT_FAILURE) for error in failures.values()}
        together.exit_code = codes.pop() if len(codes) == 1 else EXIT_FAILURE
        raise together


def _train_one(run: Run, key: str, flag: StopFlag, overwrite: bool) -> None:
    folder = run.proxy_folder(key)
    index = open_index(run)
    store, rows = open_teacher(run, index, key), run_rows(run, index)
    incomplete = folder.done and not has_outputs(run, index, key, rows)
    fingerprint = proxy_fingerprint(run, key, store, rows)
    with ranks.working(folder, fingerprint, overwrite=overwrite, incomplete=incomplete) as needed:
        if not needed:
            say(f"proxy {key}: finished before, nothing to do")
            return
        if not ranks.from_first(lambda: trained(folder.path)):
            _train(run, key, store, flag)
        ranks.from_first(lambda: _export(run, key, index, flag))
    say(f"proxy {key}: done")


def _export(run: Run, key: str, index: ClipIndex, flag: StopFlag) -> None:
    """What follows the training: the outputs of its network, and the record that all is done."""
    folder = run.proxy_folder(key)
    remove_scaffold(folder.path)
    model, _ = read_model(folder.path / "model")
    weights = files.hash_file(folder.path / "model" / WEIGHTS)
    device = resolve_device(run.config.compute)
    outputs = export_outputs(run, key, index, model.to(device), weights, flag)
    folder.finish({"weights": weights, "outputs": outputs.path.name})


def proxy_fingerprint(run: Run, key: str, store: FeatureStore, rows: RunRows) -> dict[str, object]:
    """What the proxy of a teacher depends on."""
    inputs = {"teacher": key, "features": store.fingerprint, "targets": targets_hash(rows, store)}
    return training_fingerprint(run, run.config.proxies, inputs, rows)


def has_outputs(run: Run, index: ClipIndex, key: str, rows: RunRows) -> bool:
    """Whether the outputs of a finished proxy are those that the present settings ask for, and all in the cache."""
    results = run.proxy_folder(key).results
    name = outputs_name(run, key, results["weights"])
    return bool(results["outputs"] == name) and outputs_complete(run, index, name, rows.train)


def _train(run: Run, key: str, store: FeatureStore, flag: StopFlag) -> None:
    config, clips = run.config, run.table().split("train")
    rows = store.index.rows(row_keys(run, clips))
    folder = run.proxy_folder(key)
    frames = config.student.num_frames
    targets = ranks.first_then_others(lambda: training_targets(run, folder.path, store, rows, frames))
    ranks.from_first(lambda: folder.bind(f"features of {key}", content_hash(targets._asdict(), by_id(clips))))
    say(f"proxy {key}: {int(targets.present.sum())} of {len(clips)} train clips have a target")
    model = ranks.first_then_others(lambda: initial_proxy(run, {key: targets.values.shape[1]}))
    base = Supervised(model, clips, config.seed, resolve_device(config.compute), make_validator(run, flag))
    task = ProxyTask(f"proxy {key}", key, config.proxies, base, targets)
    plan = make_plan(run, config.proxies.train, clips)
    stream = make_batches(run, config.proxies.train, clips)
    train_to_folder(run, folder.path, task, model, plan, stream, flag)
