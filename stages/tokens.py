"""What networks of a run say about its train clips: a proxy's stored outputs, a student's tokens.

Both look at one view of a clip, centre crop, no flip.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from ..cache import FeatureStore
from ..errors import MissingInputError, UniegoError
from ..pipeline import files
from ..pipeline.progress import Meter, say, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .batches import SINGLE, load, protocol_order
from .checkpoints import replace_tensors
from .cka import Features
from .clip_source import training_reader
from .compute import resolve_device
from .encoder import WEIGHTS, read_model
from .export import outputs_fingerprint
from .fingerprints import clips_hash
from .loop import autocast
from .targets import by_id, find_store, open_index

_BATCH = 8  # clips


def outputs_store(run: Run, key: str) -> FeatureStore:
    """The outputs that the student has learnt from, by its own record; else those of the proxy as it is now."""
    taught = (run.student_folder.record or {}).get("fingerprint", {}).get("inputs", {}).get("outputs", {})
    name = taught.get(key) or run.proxy_folder(key).results["outputs"]
    store = find_store(run, open_index(run), name)
    if store is None:
        command = run.command(f"train-proxies --teacher {key}")
        raise MissingInputError(f"outputs of proxy {key} ({name}) are not in the cache: run `{command}` first")
    return store


def train_tokens(run: Run, name: str, network: Path, flag: StopFlag) -> Features:
    """Tokens float32 [N, D] of the train clips, in the table's order, by the network in a folder.

    They are kept in RUN/analyze/tokens-<name>/ and computed again when the network, the clips or the way they are
    looked at have changed. A clip that cannot be decoded is reported and absent. Raises `Stopped` when asked to stop,
    and begins anew then.
    """
    clips = run.table().split("train")
    fingerprint = {
        **outputs_fingerprint(run, files.hash_file(network / WEIGHTS)),
        "clips": clips_hash(clips),
        "identities": files.hash_bytes("".join(run.identity(clips[i]) for i in by_id(clips)).encode()),
    }
    folder = run.analysis_folder(f"tokens-{name}")
    path = folder.path / "tokens.safetensors"
    with folder.work(fingerprint, overwrite=bool(folder.differences(fingerprint))) as needed:
        if needed:
            found = _compute(run, name, network, flag)
            replace_tensors(path, {part: tensor[by_id(clips)] for part, tensor in found._asdict().items()})
            folder.finish({"clips": int(found.present.sum()), "of": len(clips)})
        else:
            say(f"tokens of {name}: computed before")
    stored = load_file(path)
    place = torch.empty(len(clips), dtype=torch.int64)
    place[by_id(clips)] = torch.arange(len(clips))  # rows of the file are in the order of the clips' ids
    return Features(stored["values"][place], stored["present"][place])


@torch.inference_mode()
def _compute(run: Run, name: str, network: Path, flag: StopFlag) -> Features:
    clips, compute = run.table().split("train"), run.config.compute
    device = resolve_device(compute)
    model = read_model(network)[0].to(device)
    values = torch.zeros(len(clips), model.geometry["width"])
    present = torch.zeros(len(clips), dtype=torch.bool)
    order = protocol_order(len(clips), _BATCH)
    pin = device.type == "cuda"
    stream = load(training_reader(run), clips, order, protocol=SINGLE, workers=compute.workers, pin_memory=pin)
    with Meter(f"tokens of {name}", len(clips)) as meter:
        for batch in stream:
            flag.check()
            for failure in batch.failures:
                warn(f"clip {failure.clip_id} left out: {failure.message}")
            if batch.rows:
                with autocast(device, compute.precision):
                    token = model(batch.videos.to(device, non_blocking=True)[:, 0]).token
                values[list(batch.rows)] = token.float().cpu()
                present[list(batch.rows)] = True
            meter.advance(len(batch.rows) + len(batch.failures))
    if not values.isfinite().all():
        raise UniegoError(f"tokens of {name} are not finite numbers: its training has failed")
    return Features(values, present)
