"""Loading weights without surprises, and naming them by their content."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import WeightsError
from ..release import listed
from .config import TeacherConfig
from .sources import WeightsSource

T = TypeVar("T")
_EXAMPLES = {
    "timesformer": "file:/path/to/TimeSformer_divST_8x32_224_K400.pyth or a checkpoint of your own",
    "stgcn": "file:/path/to/stgcn_pyskl_ntu60_xsub_hrnet/j.pth or a checkpoint of your own",
    "dinov2": "hub:facebook/dinov2-large, dir:/path/to/dinov2-large or file:/path/to/dinov2_vitl14_pretrain.pth",
    "siglip": "hub:google/siglip-so400m-patch14-384 or dir:/path/to/siglip",
    "depth_anything": "hub:LiheYoung/depth-anything-large-hf, dir:/path/to/depth-anything or "
    "file:/path/to/depth_anything_vitl14.pth",
    "clip": "hub:openai/clip-vit-base-patch16 or dir:/path/to/clip",
}


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict: blake2b-128 (hex) over sorted names, each with dtype, shape and bytes.

    The file the weights came in, its format and the order of its entries do not matter; one changed bit does.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().to("cpu").contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # reshape first: a scalar cannot be viewed as bytes
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checked_hash(key: str, source: object, state: Mapping[str, Tensor]) -> str:
    """The `state_hash` of loaded weights; `WeightsError` names those that hold NaN or infinity."""
    bad = sorted(name for name, value in state.items() if not bool(value.isfinite().all()))
    if bad:
        raise WeightsError(
            f"teacher {key!r}: {source} holds NaN or infinity in {listed(bad)}; fetch it again, or train it anew"
        )
    return state_hash(state)


def check_dim(key: str, config: TeacherConfig, dim: int) -> None:
    """Raise `WeightsError` when the configuration names a width and the network's feature has another."""
    if config.dim is not None and config.dim != dim:
        raise WeightsError(
            f"teacher {key!r}: {config.weights} gives features of width {dim}, dim says {config.dim}; name other "
            "weights or change dim"
        )


def required_source(key: str, config: TeacherConfig) -> WeightsSource:
    """The configured source; `WeightsError` says which field to set where there is none."""
    source = config.source
    if source is None:
        raise WeightsError(
            f"teacher {key!r} has no weights: set teachers.{key}.weights, for example "
            f"{_EXAMPLES.get(config.network, 'dir:/path/to/weights')}; or leave the teacher out"
        )
    return source


def seeded(seed: int, build: Callable[[], T]) -> T:
    """What `build()` makes from PyTorch's CPU random numbers of `seed`; the global state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


_NO_NETWORK: list[str] = []
"""Why the hub could not be reached in this process, once it has been tried."""


def import_transformers() -> Any:
    """The transformers package. It takes seconds to import, so only teachers that need it do."""
    try:
        library = importlib.import_module("transformers")
        importlib.import_module("transformers.modeling_utils")  # where a broken torchvision shows
    except (ImportError, RuntimeError, AttributeError) as error:
        advice = "reinstall transformers"
        if importlib.util.find_spec("torchvision") is not None:
            advice = "torchvision is not needed and breaks it when it does not match torch: uninstall torchvision"
        raise WeightsError(f"transformers cannot be imported ({error}); {advice}") from error
    return library


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Silence transformers' progress bars and reports; what they would say is checked here and raised."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def fetch(key: str, source: WeightsSource, load: Callable[..., T]) -> T:
    """Call `load(location, **options)` of transformers for a `dir:` or `hub:` source.

    A hub id is looked for in the local cache first, so that a run needs no network once its weights are
    there. Raises `WeightsError` for a missing folder, an id that cannot be fetched, or files that cannot be
    read.
    """
    if source.kind == "dir":
        folder = Path(source.location).expanduser()
        if not (folder / "config.json").is_file():
            raise WeightsError(f"teacher {key!r}: {folder} has no config.json; dir: expects a saved model")
        return _call(key, source, load, str(folder), local_files_only=True)
    options = {} if source.revision is None else {"revision": source.revision}
    try:
        return _call(key, source, load, source.location, local_files_only=True, **options)
    except WeightsError as error:
        if not isinstance(error.__cause__, OSError):  # in the cache, but damaged
            raise
        if _NO_NETWORK:
            raise _unreachable(key, source, _NO_NETWORK[0]) from error
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"}:
            raise _unreachable(key, source, "HF_HUB_OFFLINE is set") from error
    try:
        return _call(key, source, load, source.location, local_files_only=False, **options)
    except WeightsError as error:
        cause = (str(error.__cause__).splitlines() or ["no reason given"])[0]
        if isinstance(error.__cause__, OSError):  # the next id would wait as long for the same answer
            _NO_NETWORK.append(cause)
        raise _unreachable(key, source, cause) from error


def _call(key: str, source: WeightsSource, load: Callable[..., T], location: str, **options: Any) -> T:
    try:
        return load(location, **options)
    except Exception as error:  # whatever the file formats underneath raise
        raise WeightsError(f"teacher {key!r}: {source} cannot be read: {error}") from error


def _unreachable(key: str, source: WeightsSource, cause: str) -> WeightsError:
    revision = f" --revision {source.revision}" if source.revision else ""
    name = source.location.rsplit("/", 1)[-1]
    return WeightsError(
        f"teacher {key!r}: {source} cannot be fetched here ({cause}); download it where there is a network "
        f"with `hf download {source.location}{revision} --local-dir {name}` and set "
        f"weights: dir:<path>/{name}"
    )


def check_loaded(key: str, source: object, info: Mapping[str, Any], used: Callable[[str], bool]) -> None:
    """Refuse weights that leave part of the network untouched.

    `info` is transformers' loading report. Names for which `used(name)` is false do not matter, nor do
    surplus entries outside the layers. Raises `WeightsError` with the names.
    """
    missing = sorted(filter(used, info["missing_keys"]))
    wrong = sorted(f"{name} {_shapes(shapes)}" for name, *shapes in info["mismatched_keys"] if used(name))
    surplus = sorted(name for name in info["unexpected_keys"] if _in_a_layer(name) and used(name))
    faults = [
        f"{what}: {listed(names)}"
        for what, names in (("missing", missing), ("wrong shape", wrong), ("beyond its depth", surplus))
        if names
    ]
    if faults:
        raise WeightsError(f"teacher {key!r}: {source} does not fit its config.json; {'; '.join(faults)}")


def _in_a_layer(name: str) -> bool:
    parts = name.split(".")
    return not name.startswith("text_model.") and ("layer" in parts or "layers" in parts)


def _shapes(shapes: Iterable[Iterable[int]]) -> str:
    stored, wanted = (tuple(shape) for shape in shapes)
    return f"{stored} for {wanted}"
