"""CKA by Dask workers: a task is one product of two representations, which lie as files where all workers see them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dask.distributed import get_worker

from ...errors import EXIT_FAILURE, Stopped, UniegoError
from ...pipeline.config import RunConfig
from ...pipeline.progress import Meter
from ...pipeline.signals import StopFlag, ToldFlag
from ..cka import Features, Product, hsic
from ..compute import resolve_device
from ..extract_options import ExtractOptions
from .cluster import keep_connected
from .round import Round
from .worker import device_of, one_at_a_time, told


@dataclass(frozen=True)
class CkaTasks:
    """What workers are told: the folder of the representations' files, their numbers in it by name, the settings."""

    folder: str
    places: Mapping[str, int]
    config: RunConfig
    number: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


class CkaReceipt(NamedTuple):
    """What comes back: the value, and exit code and message where there is none."""

    value: float
    error: tuple[int, str] | None = None


def hsic_on_cluster(
    folder: Path,
    features: Mapping[str, Features],
    products: Sequence[Product],
    config: RunConfig,
    options: ExtractOptions,
    flag: StopFlag,
) -> dict[Product, float]:
    """The products' values by Dask workers, which may come, go and be killed.

    Writes the representations to files in `folder`, which must be under the same path on all workers. Raises
    `UniegoError` for what workers report, for a product that kills them, and where no scheduler answers for two
    minutes; `Stopped` when asked to stop.
    """
    folder = folder.resolve()
    places = {name: number for number, name in enumerate(features)}
    for name, part in features.items():
        flag.check()
        _store(folder, places[name], part)
    tasks, found, left = CkaTasks(str(folder), places, config), dict[Product, float](), list(products)
    with Meter("CKA", len(left), unit="products") as meter:

        def go(client: Any) -> bool:
            nonlocal left
            left = _Round(client, tasks, flag, found, meter).run(left)
            return not left

        keep_connected(options, folder, flag, go)
    return found


class _Round(Round[Product, CkaReceipt]):
    """Products of representations."""

    def __init__(self, client: Any, tasks: CkaTasks, flag: StopFlag, found: dict[Product, float], meter: Meter) -> None:
        super().__init__(client, tasks.number, flag)
        self._tasks, self._found, self._meter = tasks, found, meter

    def submit(self, product: Product) -> Any:
        key = f"hsic-{self._tasks.places[product.one]}-{self._tasks.places[product.other]}-{time.monotonic_ns():x}"
        return self._client.submit(measure, self._tasks, product, key=key, pure=False)

    def enter(self, product: Product, receipt: CkaReceipt) -> None:
        if receipt.error is not None:
            error = UniegoError(receipt.error[1])
            error.exit_code = receipt.error[0]
            raise error
        self._found[product] = receipt.value
        self._meter.advance(1)

    def raised(self, product: Product, error: Exception) -> None:
        raise UniegoError(f"CKA of {product.one} and {product.other}: {type(error).__name__}: {error}") from error

    def killed(self, product: Product) -> None:
        raise UniegoError(
            f"the product of {product.one} and {product.other} killed every worker that took it; give the workers more "
            "memory, or run without --engine dask"
        )


def measure(tasks: CkaTasks, product: Product) -> CkaReceipt:
    """Compute a product, on a worker. Raises `Stopped` after `worker.stop`."""
    worker = get_worker()
    where = f"worker {worker.name} ({worker.address})"
    own = device_of(tasks.config, worker)
    compute = tasks.config.compute if own is None else tasks.config.compute.model_copy(update={"device": own})
    flag = ToldFlag(lambda: told(tasks.number))
    folder = Path(tasks.folder)
    with one_at_a_time:
        flag.check()
        try:
            names = {product.one, product.other, *product.among}
            features = {name: _load(folder, tasks.places[name]) for name in names}
            return CkaReceipt(hsic(product, features, resolve_device(compute), check=flag.check))
        except Stopped:
            raise
        except UniegoError as problem:
            return CkaReceipt(0.0, (problem.exit_code, f"{where}: {problem}"))
        except OSError as problem:
            return CkaReceipt(0.0, (EXIT_FAILURE, f"{where}: {problem}"))


def _store(folder: Path, place: int, part: Features) -> None:
    """Write a representation so that workers can map it into memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in part._asdict().items():
        np.save(folder / f"{place}-{name}.npy", tensor.cpu().numpy())


def _load(folder: Path, place: int) -> Features:
    values = np.load(folder / f"{place}-values.npy", mmap_mode="c")  # what PyTorch takes must be writable
    return Features(torch.from_numpy(values), torch.from_numpy(np.load(folder / f"{place}-present.npy")))
