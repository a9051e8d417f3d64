"""Weights of several networks as the merge reads them: all on the device, or tensor by tensor out of their files."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import MissingInputError, UniegoError, WeightsError
from ..pipeline.config import ComputeConfig, MergeMemory
from ..pipeline.progress import count, say, size_text
from . import ranks
from .compute import resolve_device
from .encoder import CONFIG, WEIGHTS
from .view import choose_place

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SMALL = 1 << 14  # bytes of a tensor that is not worth reading again and again
_ALONE = 1 << 15  # values up to which torch leaves an operation on a CPU to one thread: more threads only wait here
_READS = 16  # blocks that are read at a time
_GPU_READ = 1 << 18  # values of each network that are read at a time, for a GPU
_AGAIN = "`uniego train-proxies --teacher KEY --overwrite`"
_OWN = "proj_layer"  # a projection belongs to one network alone


class Spec(NamedTuple):
    """What a file says about a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What they take."""
        return self.values * self.dtype.itemsize

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
        try:
            self._file = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise MissingInputError(f"weights are gone: no {path}; make them again: {_AGAIN}") from error
        weakref.finalize(self, os.close, self._file)
        size = os.fstat(self._file).st_size
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        text = os.pread(self._file, length, 8) if length <= size else b""
        try:
            header: dict[str, Any] = json.loads(text)
            header.pop("__metadata__", None)
            self.specs = {name: Spec(tuple(t["shape"]), _DTYPES[t["dtype"]]) for name, t in header.items()}
            self._spans = {name: (8 + length + a, b - a) for name, (a, b) in _offsets(header).items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{path} is no safetensors file of floating-point weights: {error!r}") from error
        if any(at + long > size or long != self.specs[name].bytes for name, (at, long) in self._spans.items()):
            raise WeightsError(f"{path} is damaged: it has {size} bytes, its header names more; make it again")

    def read(self, name: str, out: Tensor, first: int = 0) -> None:
        """Fill `out`, contiguous, on the CPU, of the tensor's dtype, with values in their order from the `first` on."""
        at = self._spans[name][0] + first * out.itemsize
        view = out.view(-1).view(torch.uint8).numpy().data
        done = 0
        while done < len(view):
            got = os.preadv(self._file, [view[done:]], at + done)
            if got == 0:
                raise WeightsError(f"{self.path} became shorter while it was read; make it again")
            done += got


def _offsets(header: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (int(tensor["data_offsets"][0]), int(tensor["data_offsets"][1])) for name, tensor in header.items()}


class Networks:
    """R networks that share tensors of the same names, shapes and dtypes (`specs`); `keys` are what they are called.

    They lie stacked on the device ([R, …] per tensor), or in their files: then only small tensors are stacked, and of
    the others a block is read when it is needed. Sums over networks go block by block, so that a processor's cache
    holds what they need; on a CPU they are equal bit for bit wherever the networks lie, on a GPU to rounding.
    """

    def __init__(
        self,
        keys: Sequence[str],
        stacks: Mapping[str, Tensor],
        device: torch.device,
        sources: Sequence[WeightsFile] = (),
    ) -> None:
        """`sources`: the files of what is not in `stacks`."""
        self.keys, self.device = tuple(keys), device
        self._stacks, self._sources = dict(stacks), tuple(sources)
        self._buffers = _Buffers(device)
        stacked = {name: Spec(tuple(s.shape[1:]), s.dtype) for name, s in stacks.items()}
        self.specs = {**(_shared(sources[0].specs) if sources else {}), **stacked}

    @property
    def stacked(self) -> bool:
        """Whether all of them lie on the device."""
        return not self._sources

    @classmethod
    def of_states(
        cls, states: Sequence[Mapping[str, Tensor]], device: torch.device, keys: Sequence[str] = ()
    ) -> Networks:
        """Stacked networks out of memory. Raises `WeightsError` for unlike ones."""
        keys = keys or [f"network {r}" for r in range(len(states))]
        specs = [specs_of(state) for state in states]
        check_alike(keys, specs)
        return cls(keys, {n: torch.stack([s[n].to(device) for s in states]) for n in specs[0]}, device)

    @classmethod
    def of_files(
        cls, keys: Sequence[str], sources: Sequence[WeightsFile], device: torch.device, *, stacked: bool
    ) -> Networks:
        """Networks out of files, whose headers agree: `stacked` on the device, or left there."""
        specs = _shared(sources[0].specs)
        wanted = [name for name, spec in specs.items() if stacked or spec.bytes <= _SMALL]
        return cls(keys, {name: _stack(sources, name, device) for name in wanted}, device, () if stacked else sources)

    def blend(self, name: str, shares: Tensor, out: Tensor) -> None:
        """out = sum over r of shares[r] times the r-th network's tensor; shares [R] on the device, out contiguous."""
        flat, shares = out.view(-1), shares.to(out.dtype).unsqueeze(1)
        for first, block in self._blocks(name):
            part = flat[first : first + block.shape[1]]
            if len(self.keys) == 1:
                part.copy_(block[0])  # a sum would lose the sign of a zero
            else:
                torch.sum(block * shares, 0, out=part)

    def inner(self, name: str, gradient: Tensor) -> Tensor:
        """Inner products of each network's tensor with a gradient of its shape and dtype, [R]."""
        flat = gradient.reshape(-1)
        parts = [(block * flat[first : first + block.shape[1]]).sum(1) for first, block in self._blocks(name)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The networks' tensor in blocks [R, n] of its values row by row, each with the place of its first value; a
        block holds until the next one is asked for."""
        on_cpu, values = self.device.type == "cpu", self.specs[name].values
        long = max(1, _ALONE // len(self.keys)) if on_cpu else values
        for start, read in self._reads(name, _READS * long if on_cpu else _GPU_READ):
            for first in range(0, read.shape[1], long):
                yield start + first, read[:, first : first + long]

    def _reads(self, name: str, long: int) -> Iterator[tuple[int, Tensor]]:
        """As `_blocks`: the stack as it lies, or `long` values of each file at a time."""
        if name in self._stacks:
            yield 0, self._stacks[name].flatten(1)
            return
        spec = self.specs[name]
        for first in range(0, spec.values, long):
            part = self._buffers.take(len(self.keys), min(long, spec.values - first), spec.dtype)
            for source, row in zip(self._sources, part.unbind(0), strict=True):
                source.read(name, row, first)
            yield first, self._buffers.send(part)


class _Buffers:
    """Memory that blocks are read into. For a GPU two pinned ones in turn: while one travels, the other is filled.

    So the host is never more than two blocks ahead of the device, and waits for it only there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._turn = device, 0
        self._memory = [torch.empty(0, dtype=torch.uint8)] * (2 if device.type == "cuda" else 1)
        self._arrivals: list[torch.cuda.Event | None] = [None, None]  # of what was last sent from each

    def take(self, rows: int, values: int, dtype: torch.dtype) -> Tensor:
        """Memory [rows, values] to be filled and sent before the next is taken; rows are contiguous."""
        self._turn = (self._turn + 1) % len(self._memory)
        arrival, size = self._arrivals[self._turn], rows * values * dtype.itemsize
        if arrival is not None:
            arrival.synchronize()
        if len(self._memory[self._turn]) < size:
            self._memory[self._turn] = torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        return self._memory[self._turn][:size].view(dtype).view(rows, values)

    def send(self, part: Tensor) -> Tensor:
        """What was taken and filled, on the device; the same memory on a CPU."""
        sent = part.to(self._device, non_blocking=True)
        if self._device.type == "cuda":
            arrival = self._arrivals[self._turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record()
        return sent


def open_networks(folders: Mapping[str, Path], memory: MergeMemory, compute: ComputeConfig) -> Networks:
    """Trained networks, by key the folder of each, where `memory` (see `MergeConfig`) puts them; says where.

    They are compared by their headers before any weight is read. Raises `WeightsError` naming the first differences,
    `UniegoError` when a GPU has no room for what it is to hold.
    """
    keys, device = list(folders), resolve_device(compute)
    sources = [WeightsFile(folder / WEIGHTS) for folder in folders.values()]
    natures = [_nature(folder) for folder in folders.values()]
    advice = f"train them under the same settings and classes, {_AGAIN}"
    check_alike(keys, [_shared(source.specs) for source in sources], natures, advice)
    size = sum(spec.bytes for spec in _shared(sources[0].specs).values())
    fits = choose_place(len(keys) * size, compute)[0] == ("device" if device.type == "cuda" else "memory")
    # sums differ by rounding with the place, and all processes must hold the same weights: the first one decides
    stacked = ranks.from_first(lambda: memory == "device" or (memory == "auto" and fits))
    try:
        found = Networks.of_files(keys, sources, device, stacked=stacked)
    except torch.OutOfMemoryError as error:
        total = size_text(len(keys) * size)
        raise UniegoError(f"{total} of proxies do not fit on {device}: set merge.memory: host") from error
    where = f"stacked on {device}" if stacked else "read from their files as they are needed"
    say(f"merge: {count(len(keys), 'network')} of {size_text(size)}, {where}")
    return found


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
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"what describes weights is gone: no {path}; make them again: {_AGAIN}") from error
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
