"""One proxy: trained, and its outputs over the train split exported. `train_proxies` decides who does it, and when."""

from __future__ import annotations

from ..cache import ClipIndex, FeatureStore
from ..errors import MissingInputError
from ..pipeline import files
from ..pipeline.progress import say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from . import ranks
from .compute import resolve_device
from .encoder import WEIGHTS, read_model
from .export import export_outputs, outputs_complete, outputs_name
from .fingerprints import training_fingerprint
from .imported import accept, fingerprint_now, imported
from .proxy_task import ProxyTask
from .rows import RunRows, run_rows
from .supervised import Supervised
from .targets import by_id, open_index, open_teacher, row_keys, targets_hash, training_targets
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


def train_one(run: Run, key: str, flag: StopFlag, overwrite: bool = False) -> None:
    """Train one proxy and export its outputs, from where it stopped; the same whichever process does it.

    Raises what a training raises, `Stopped` after saving when asked to stop.
    """
    folder = run.proxy_folder(key)
    index = open_index(run)
    rows = run_rows(run, index)
    taken_in = None if overwrite else accept(run, folder, rows)
    if taken_in is not None:
        say(taken_in)
    incomplete = folder.done and not has_outputs(run, index, key, rows)
    fingerprint = wanted_fingerprint(run, index, key, rows, overwrite=overwrite)
    with ranks.working(folder, fingerprint, overwrite=overwrite, incomplete=incomplete) as needed:
        if not needed:
            say(f"proxy {key}: finished before, nothing to do")
            return
        if not ranks.from_first(lambda: trained(folder.path)):
            if taken_in is not None:
                raise MissingInputError(
                    f"outputs of proxy {key} are not in the cache, and it was imported without a network that could "
                    f"give them: import them again, or train it with --overwrite"
                )
            _train(run, key, open_teacher(run, index, key), flag)
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


def begin_anew(run: Run, key: str) -> None:
    """Remove what there is of a proxy, and leave it begun: whoever trains it next goes on from nothing."""
    index = open_index(run)
    fingerprint = proxy_fingerprint(run, key, open_teacher(run, index, key), run_rows(run, index))
    with run.proxy_folder(key).work(fingerprint, overwrite=True):
        pass


def proxy_fingerprint(run: Run, key: str, store: FeatureStore, rows: RunRows) -> dict[str, object]:
    """What the proxy of a teacher depends on."""
    inputs = {"teacher": key, "features": store.fingerprint, "targets": targets_hash(rows, store)}
    return training_fingerprint(run, run.config.proxies, inputs, rows)


def wanted_fingerprint(
    run: Run, index: ClipIndex, key: str, rows: RunRows, *, overwrite: bool = False
) -> dict[str, object]:
    """What the proxy of a teacher depends on, as its record should say: `proxy_fingerprint`, which needs the teacher's
    features, or where it was imported (and is not begun anew) what can be said of that."""
    taken_in = None if overwrite else fingerprint_now(run, run.proxy_folder(key), rows)
    return taken_in or proxy_fingerprint(run, key, open_teacher(run, index, key), rows)


def has_outputs(run: Run, index: ClipIndex, key: str, rows: RunRows) -> bool:
    """Whether the outputs of a finished proxy are those that the present settings ask for, and all in the cache.

    Imported ones are what they are: no setting of the run asks for others.
    """
    folder = run.proxy_folder(key)
    results = folder.results
    name = results["outputs"]
    if not (imported(folder) and results.get("outputs_imported")) and name != outputs_name(
        run, key, results["weights"]
    ):
        return False
    return outputs_complete(run, index, name, rows.train)


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
