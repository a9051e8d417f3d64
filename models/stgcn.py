"""ST-GCN and ST-GCN++: action recognition on skeleton sequences, with PYSKL's parameter names.

ST-GCN: Yan et al., AAAI 2018, in the form of PYSKL (Duan et al., 2022), whose paper also introduces ST-GCN++.
Shapes below: N clips, M persons, T frames, V joints, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import WeightsError
from .graphs import JointGraph, Mode, adjacency
from .release import load_tensors

Variant = Literal["stgcn", "stgcn++"]
STANDARD_WIDTHS = (64,) * 4 + (128,) * 3 + (256,) * 3
_DILATIONS = (1, 2, 3, 4)
MODES: dict[str, Mode] = {"stgcn": "stgcn_spatial", "stgcn++": "spatial"}


class STGCNOutput(NamedTuple):
    """`feature` [N, width]: mean over frames and joints, then over persons. `logits` [N, classes].

    `map` [N, M, width, T', V] is the last block's output, T' = T halved (rounded up) by every stride of 2.
    """

    feature: Tensor
    logits: Tensor
    map: Tensor


class STGCN(nn.Module):
    """Skeleton classifier over a joint graph.

    Args:
        graph: a layout of `models.graphs`, by name or as a `JointGraph`, or an adjacency stack [3, V, V].
        channels: C of the input, 3 for (x, y, score) and (x, y, z).
        widths: output channels of each block; by default, the time stride is 2 where the width changes.
        classes: size of the classifier.
        variant: `stgcn` or `stgcn++`.
        strides: time stride of each block, where the default is not wanted.
        norm_persons: 1: input statistics are shared by all persons; M: each of exactly M persons has its own.
        seed: of the initial weights. PyTorch's global random state is neither read nor changed.
    """

    def __init__(
        self,
        graph: str | JointGraph | npt.NDArray[Any] = "coco",
        *,
        channels: int = 3,
        widths: Sequence[int] = STANDARD_WIDTHS,
        classes: int = 60,
        variant: Variant = "stgcn",
        strides: Sequence[int] | None = None,
        norm_persons: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        stack = adjacency(graph, MODES[variant]) if isinstance(graph, str | JointGraph) else np.asarray(graph)
        self.variant = variant
        self.widths = tuple(widths)
        self.strides = tuple(strides or default_strides(widths))
        self.channels, self.joints, self.classes = channels, int(stack.shape[-1]), classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = _Backbone(stack, channels, self.widths, self.strides, variant, norm_persons)
            self.cls_head = _Head(self.widths[-1], classes)
            self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_head.fc_cls.weight, std=0.01)
        nn.init.zeros_(self.cls_head.fc_cls.bias)

    def forward(self, poses: Tensor) -> STGCNOutput:
        """Classify poses [N, M, T, V, C]; an absent person is all zeros and counts in the mean over M."""
        last = self.backbone(poses)  # [N, M, width, T', V]
        feature = last.mean(dim=(3, 4)).mean(dim=1)  # [N, width]
        return STGCNOutput(feature, self.cls_head.fc_cls(feature), last)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> STGCN:
        """Build and load the network that a PYSKL state dict belongs to; all is read off its shapes.

        A stride of 2 is assumed where a block after the first projects its residual, as in all PYSKL
        configurations. Raises `WeightsError` when keys are missing, left over or of the wrong shape.
        """
        state = {key.removeprefix("module."): value for key, value in state.items()}
        try:
            shape = shape_from_state(state)
            del shape["joints"]
            model = cls(state["backbone.gcn.0.gcn.A"].cpu().numpy(), **shape)
            model.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"not the state dict of an ST-GCN or ST-GCN++ in PYSKL's layout: {error}") from error
        return model


def default_strides(widths: Sequence[int]) -> tuple[int, ...]:
    """Time strides of blocks of these widths: 2 where the width changes."""
    return (1, *(1 + (a != b) for a, b in pairwise(widths)))


def shape_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """`joints`, and the keywords of the `STGCN` that a PYSKL state dict belongs to; shapes alone are looked at.

    Raises `KeyError` naming an entry that is missing.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    count = len([key for key in state if re.fullmatch(r"backbone\.gcn\.\d+\.tcn\.bn\.weight", key)])
    widths = [state[f"backbone.gcn.{index}.tcn.bn.weight"].shape[0] for index in range(max(1, count))]
    joints, channels = state["backbone.gcn.0.gcn.A"].shape[-1], state["backbone.gcn.0.gcn.conv.weight"].shape[1]
    projected = [f"backbone.gcn.{index}.residual.conv.weight" in state for index in range(len(widths))]
    return {
        "joints": joints,
        "channels": channels,
        "widths": widths,
        "classes": state["cls_head.fc_cls.weight"].shape[0],
        "variant": "stgcn++" if "backbone.gcn.0.tcn.branches.5.weight" in state else "stgcn",
        "strides": [2 if index and flag else 1 for index, flag in enumerate(projected)],
        "norm_persons": max(1, state["backbone.data_bn.weight"].shape[0] // (channels * joints)),
    }


def read_pyskl_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a PYSKL `.pth`: bare, or inside mmcv's `{"state_dict": …}`.

    Loads with `weights_only=True`: a file that wants to run code is refused. Raises `WeightsError` when the
    file is missing, unreadable or holds something else.
    """
    content = load_tensors(Path(path))
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict of tensors")
    return dict(state)


class _Backbone(nn.Module):
    def __init__(
        self,
        stack: npt.NDArray[Any],
        channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        variant: Variant,
        norm_persons: int,
    ) -> None:
        super().__init__()
        self.data_bn = nn.BatchNorm1d(norm_persons * channels * stack.shape[-1])
        self.gcn = nn.ModuleList()
        for index, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            before = channels if index == 0 else widths[index - 1]
            self.gcn.append(_Block(before, width, stack, stride, variant, with_residual=index > 0))

    def forward(self, poses: Tensor) -> Tensor:
        n, m, t, v, c = poses.shape
        x = poses.permute(0, 1, 3, 4, 2).reshape(-1, self.data_bn.num_features, t)  # [N·M or N, (M·)V·C, T]
        x = self.data_bn(x).reshape(n * m, v, c, t).permute(0, 2, 3, 1).contiguous()  # [N·M, C, T, V]
        for block in self.gcn:
            x = block(x)
        last: Tensor = x.reshape(n, m, *x.shape[1:])
        return last


class _Head(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(width, classes)


class _Block(nn.Module):
    def __init__(
        self,
        before: int,
        width: int,
        stack: npt.NDArray[Any],
        stride: int,
        variant: Variant,
        *,
        with_residual: bool,
    ) -> None:
        super().__init__()
        plus = variant == "stgcn++"
        self.gcn: nn.Module = (_LearnedGraphConv if plus else _GraphConv)(before, width, stack)
        self.tcn: nn.Module = (_MultiScaleTime if plus else _TimeConv)(width, width, stride=stride)
        self.residual: nn.Module | None = None
        if with_residual:
            same = before == width and stride == 1
            self.residual = nn.Identity() if same else _TimeConv(before, width, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tcn(self.gcn(x))
        return torch.relu(y if self.residual is None else y + self.residual(x))


class _GraphConv(nn.Module):
    """ST-GCN: the fixed graph, its edges weighted by a learned mask."""

    A: Tensor

    def __init__(self, before: int, width: int, stack: npt.NDArray[Any]) -> None:
        super().__init__()
        self.register_buffer("A", torch.tensor(stack, dtype=torch.float32))
        self.PA = nn.Parameter(torch.ones(stack.shape))
        self.conv = nn.Conv2d(before, width * len(stack), 1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(_spread(self.conv(x), self.A * self.PA)))


class _LearnedGraphConv(nn.Module):
    """ST-GCN++: the graph itself is learned, with a residual inside."""

    def __init__(self, before: int, width: int, stack: npt.NDArray[Any]) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.tensor(stack, dtype=torch.float32))
        self.conv = nn.Conv2d(before, width * len(stack), 1)
        self.bn = nn.BatchNorm2d(width)
        self.down: nn.Module = nn.Identity()
        if before != width:
            self.down = nn.Sequential(nn.Conv2d(before, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(_spread(self.conv(x), self.A)) + self.down(x))


def _spread(x: Tensor, graph: Tensor) -> Tensor:
    """Send messages along the edges: x [N, K·C, T, V], graph [K, V, V] -> [N, C, T, V]."""
    n, _, t, v = x.shape
    return torch.einsum("nkctv,kvw->nctw", x.view(n, len(graph), -1, t, v), graph)


class _TimeConv(nn.Module):
    def __init__(
        self,
        before: int,
        width: int,
        *,
        kernel: int = 9,
        stride: int = 1,
        dilation: int = 1,
        norm: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) * dilation // 2
        self.conv = nn.Conv2d(
            before, width, (kernel, 1), stride=(stride, 1), padding=(padding, 0), dilation=(dilation, 1)
        )
        self.bn = nn.BatchNorm2d(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))  # type: ignore[no-any-return]


class _MultiScaleTime(nn.Module):
    """ST-GCN++: dilated convolutions, a maximum and a plain path side by side."""

    def __init__(self, before: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        mid = width // (len(_DILATIONS) + 2)
        first = width - mid * (len(_DILATIONS) + 1)
        self.branches = nn.ModuleList()
        for index, dilation in enumerate(_DILATIONS):
            part = mid if index else first
            conv = _TimeConv(part, part, kernel=3, stride=stride, dilation=dilation, norm=False)
            self.branches.append(nn.Sequential(*_pointwise(before, part), conv))
        pool = nn.MaxPool2d((3, 1), stride=(stride, 1), padding=(1, 0))
        self.branches.append(nn.Sequential(*_pointwise(before, mid), pool))
        self.branches.append(nn.Conv2d(before, mid, 1, stride=(stride, 1)))
        self.transform = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1))
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.cat([branch(x) for branch in self.branches], dim=1)
        return self.bn(self.transform(parts))  # type: ignore[no-any-return]


def _pointwise(before: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, width, 1), nn.BatchNorm2d(width), nn.ReLU()
