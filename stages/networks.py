"""Weights of several networks as the merge reads them: all on the device, or tensor by tensor out of their files."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UniegoError, WeightsError
from ..pipeline.config import ComputeConfig, MergeMemory
from ..pipeline.progress import say, size_text
from .compute import resolve_device
from .encoder import CONFIG, WEIGHTS
from .view import choose_place

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OWN = "proj_layer"  # a projection belongs to one network alone


class Spec(NamedTuple):
    """What a file says about a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.shape} {str(self.dtype).removeprefix('torch.')}"


Specs = Mapping[str, Spec]


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Specs of the tensors that networks may share: all but their projections."""
    return {name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items() if not name.startswith(_OWN)}


class WeightsFile:
    """A safetensors file whose tensors are read one at a time into the caller's memory, not mapped.

    A mapping would count as memory of the process as far as it was ever touched. Raises `WeightsError` for a file that
    is cut short, is none of this kind, or holds tensors that are not floating-point numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length) if length <= size else b""
        try:
            header: dict[str, Any] = json.loads(text)
            header.pop("__metadata__", None)
            self.specs = {name: Spec(tuple(t["shape"]), _DTYPES[t["dtype"]]) for name, t in header.items()}
            self._spans = {name: (8 + length + a, b - a) for name, (a, b) in _offsets(header).items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{path} is no safetensors file of floating-point weights: {error!r}") from error
        if any(at + long > size or long != self.specs[name].bytes for name, (at, long) in self._spans.items()):
            raise WeightsError(f"{path} is damaged: it has {size} bytes, its header names more; make it again")

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out`, contiguous, on the CPU, of the tensor's shape and dtype."""
        at, size = self._spans[name]
        view = memoryview(out.view(-1).view(torch.uint8).numpy())
        with self.path.open("rb", buffering=0) as stream:
            done = 0
            while done < size:
                got = os.preadv(stream.fileno(), [view[done:]], at + done)
                if got == 0:
                    raise WeightsError(f"{self.path} became shorter while it was read; make it again")
                done += got


def _offsets(header: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (int(tensor["data_offsets"][0]), int(tensor["data_offsets"][1])) for name, tensor in header.items()}


class Networks(ABC):
    """R networks that share tensors of the same names, shapes and dtypes (`specs`); `keys` are what they are called.

    On a CPU sums over the networks are made in the same order wherever they lie: the results are equal bit for bit.
    """

    def __init__(self, keys: Sequence[str], specs: Specs, device: torch.device) -> None:
        self.keys, self.specs, self.device = tuple(keys), dict(specs), device

    @abstractmethod
    def of(self, name: str) -> Iterator[Tensor]:
        """The tensor of each network in turn, on the device; it holds until the next one is asked for."""

    def blend(self, name: str, shares: Tensor, out: Tensor) -> None:
        """out = sum over r of shares[r] times the r-th network's tensor; shares [R] on the device."""
        shares = shares.to(out.dtype)
        for r, tensor in enumerate(self.of(name)):
            if r == 0:
                torch.mul(tensor, shares[r], out=out)
            else:
                out.addcmul_(tensor, shares[r])

    def inner(self, name: str, gradient: Tensor) -> Tensor:
        """Inner products of each network's tensor with a gradient of its shape, [R]."""
        return torch.stack([(tensor * gradient).sum() for tensor in self.of(name)])


class Resident(Networks):
    """All networks on the device, tensor by tensor stacked to [R, …]. On a GPU one product takes all R at once."""

    def __init__(self, keys: Sequence[str], stacks: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__(keys, {name: Spec(tuple(s.shape[1:]), s.dtype) for name, s in stacks.items()}, device)
        self._stacks = dict(stacks)
        self.at_once = device.type == "cuda"

    @classmethod
    def of_states(
        cls, states: Sequence[Mapping[str, Tensor]], device: torch.device, keys: Sequence[str] = ()
    ) -> Resident:
        """Networks in memory. Raises `WeightsError` for unlike ones."""
        keys = keys or [f"network {r}" for r in range(len(states))]
        specs = [specs_of(state) for state in states]
        check_alike(keys, specs)
        return cls(keys, {n: torch.stack([s[n].to(device) for s in states]) for n in specs[0]}, device)

    def of(self, name: str) -> Iterator[Tensor]:
        """Views of the stack."""
        return iter(self._stacks[name].unbind(0))

    def blend(self, name: str, shares: Tensor, out: Tensor) -> None:
        """See `Networks.blend`."""
        if self.at_once:
            torch.mv(self._stacks[name].flatten(1).t(), shares.to(out.dtype), out=out.view(-1))
        else:
            super().blend(name, shares, out)

    def inner(self, name: str, gradient: Tensor) -> Tensor:
        """See `Networks.inner`."""
        if self.at_once:
            return torch.mv(self._stacks[name].flatten(1), gradient.flatten())
        return super().inner(name, gradient)


class Streamed(Networks):
    """Networks that stay in their files: one tensor of one of them is in memory (and on the device) at a time."""

    def __init__(self, keys: Sequence[str], sources: Sequence[WeightsFile], device: torch.device) -> None:
        super().__init__(keys, _shared(sources[0].specs), device)
        self._sources = sources
        size = max(spec.bytes for spec in self.specs.values())
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")

    def of(self, name: str) -> Iterator[Tensor]:
        """The one buffer, filled anew for each network."""
        spec = self.specs[name]
        tensor = self._buffer[: spec.bytes].view(spec.dtype).view(spec.shape)
        for source in self._sources:
            source.read(name, tensor)
            yield tensor.to(self.device)


def open_networks(folders: Mapping[str, Path], memory: MergeMemory, compute: ComputeConfig) -> Networks:
    """Trained networks, by key the folder of each, where `memory` (see `MergeConfig`) puts them; says where.

    They are compared by their headers before any weight is read. Raises `WeightsError` naming the first differences.
    """
    keys, device = list(folders), resolve_device(compute)
    sources = [WeightsFile(folder / WEIGHTS) for folder in folders.values()]
    natures = [_nature(folder) for folder in folders.values()]
    advice = "train them under the same settings and classes, `uniego train-proxies --teacher KEY --overwrite`"
    check_alike(keys, [_shared(source.specs) for source in sources], natures, advice)
    size = len(keys) * sum(spec.bytes for spec in _shared(sources[0].specs).values())
    fits = choose_place(size, compute)[0] == ("device" if device.type == "cuda" else "memory")
    if memory == "host" or (memory == "auto" and not fits):
        streamed = Streamed(keys, sources, device)
        largest = max(spec.bytes for spec in streamed.specs.values())
        say(
            f"merge: {len(keys)} x {size_text(size / len(keys))}, read from their files, {size_text(largest)} at a time"
        )
        return streamed
    say(f"merge: {len(keys)} x {size_text(size / len(keys))}, stacked on {device}")
    try:
        return Resident(keys, {name: _stack(sources, name, device) for name in _shared(sources[0].specs)}, device)
    except torch.OutOfMemoryError as error:
        raise UniegoError(
            f"the {len(keys)} proxies ({size_text(size)}) do not fit on {device}: set merge.memory: host"
        ) from error


def _shared(specs: Specs) -> dict[str, Spec]:
    return {name: spec for name, spec in specs.items() if not name.startswith(_OWN)}


def _stack(sources: Sequence[WeightsFile], name: str, device: torch.device) -> Tensor:
    spec = sources[0].specs[name]
    stack = torch.empty((len(sources), *spec.shape), dtype=spec.dtype)
    for source, out in zip(sources, stack.unbind(0), strict=True):
        source.read(name, out)
    return stack.to(device)


def _nature(folder: Path) -> dict[str, Any]:
    """What a network is besides its tensors: sizes that no shape tells, and what its classes mean."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    sizes = {name: size for name, size in config["geometry"].items() if name not in ("projections", "drop_path")}
    return {**sizes, **{f"class {number}": name for number, name in enumerate(config["classes"])}}


def check_alike(
    keys: Sequence[str],
    specs: Sequence[Mapping[str, Any]],
    natures: Sequence[Mapping[str, Any]] = (),
    advice: str = "make them alike first",
) -> None:
    """Raise `WeightsError` naming the first tensors, sizes or classes in which a network differs from the first."""
    described = [{**nature, **spec} for nature, spec in zip(natures or [{}] * len(specs), specs, strict=True)]
    first = described[0]
    for key, other in zip(keys[1:], described[1:], strict=True):
        names = [name for name in dict.fromkeys([*first, *other]) if first.get(name) != other.get(name)]
        if names:
            shown = "; ".join(f"{n}: {first.get(n, 'absent')} against {other.get(n, 'absent')}" for n in names[:5])
            more = ", …" if len(names) > 5 else ""
            raise WeightsError(
                f"{keys[0]} and {key} cannot be merged, they differ in {len(names)} places: {shown}{more}. What to do: "
                f"{advice}"
            )
