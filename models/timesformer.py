"""The video network of student and proxies: TimeSformer with divided space-time attention (arXiv 2102.05095).

Shape legend: B clips, T frames, h x w patches per frame, N = h*w, D width, H heads, C classes.

Patch tokens are kept as [B, T, N, D] with the one CLS token of a clip apart as [B, D], and no block permutes them:
spatial attention reads frames as they lie, and for temporal attention the H heads of N tubes count as N*H heads of
one sequence of T tokens, which is a view. Queries, keys and values are made by three products, each as contiguous
as the tokens; the one copy of a block puts the CLS in front of every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError
from .droppath import BlockMasks, DropMasks, check_drop_masks, draw_drop_masks, drop_rates

MLP_RATIO = 4
NORM_EPS = 1e-6
MAX_ATTENTION_BATCH = 65535  # CUDA grid limit of the fused attention kernels


class TimeSformerOutput(NamedTuple):
    """What one forward pass gives for B clips, in the network's dtype."""

    logits: Tensor  # [B, C], raw
    token: Tensor  # [B, D], the CLS token after the final LayerNorm
    projected: dict[str, Tensor]  # name -> [B, width of that projection], a Linear on the token


class TimeSformer(nn.Module):
    """Divided space-time TimeSformer with a classifier and named linear projections of its CLS token.

    Defaults are ViT-B/16 on 8 frames of 224 x 224 as UNIEGO uses it (arXiv 2606.20559): a proxy projects to
    its teacher's width (`{"exo_skl": 256}`), the student to its own (`{"student": 768}`). One projection is
    stored as `proj_layer`, several as `proj_layers.<name>`, none with `projections=None`.

    A fresh network has truncated-normal weights (std 0.02) drawn from `seed`; biases, time embeddings and
    every `temporal_fc` are zero, so that it starts as an image ViT averaged over frames. The global random
    state is neither read nor changed. `seed` also starts the generator of drop-path masks in training mode.

    With `recompute` set, the inside of every block is computed again for the backward pass instead of being kept.

    Raises UsageError for sizes that do not fit together.
    """

    recompute = False

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        num_frames: int = 8,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        num_classes: int = 12,
        projections: Mapping[str, int] | None = None,
        drop_path: float = 0.1,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._geometry: dict[str, Any] = {
            "image_size": image_size,
            "patch_size": patch_size,
            "num_frames": num_frames,
            "width": width,
            "depth": depth,
            "heads": heads,
            "num_classes": num_classes,
            "projections": dict(projections or {}),
            "drop_path": float(drop_path),
        }
        _check_geometry(self._geometry)
        self._drop_rates = drop_rates(drop_path, depth)
        self._mask_rng = np.random.default_rng(seed)
        side = image_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        self.time_embed = nn.Parameter(torch.zeros(1, num_frames, width))
        self.patch_embed = PatchEmbed(patch_size, width)
        self.blocks = nn.ModuleList(Block(width, heads, rate) for rate in self._drop_rates)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = _linear(width, num_classes)
        layers = {name: _linear(width, size) for name, size in (projections or {}).items()}
        if len(layers) == 1:
            (self.proj_layer,) = layers.values()
        elif layers:
            self.proj_layers = nn.ModuleDict(layers)
        _initialise(self, seed)

    @property
    def geometry(self) -> dict[str, Any]:
        """The constructor's sizes, JSON-able: `TimeSformer(**model.geometry)` has the same parameters."""
        return {**self._geometry, "projections": dict(self._geometry["projections"])}

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Drop-path probability of each block."""
        return self._drop_rates

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across of a frame in pixels; a border that does not fill a patch is dropped."""
        patch = self._geometry["patch_size"]
        return height // patch, width // patch

    def forward(self, video: Tensor, drop_masks: DropMasks | None = None) -> TimeSformerOutput:
        """Logits, token and projections of a batch of clips.

        video: [B, 3, T, H, W] floating point, normalised; any T, H and W of at least one patch: position and
        time embeddings are resized to the nearest entry. drop_masks: as `draw_drop_masks` gives them, used in
        any mode; None draws them from the module's own generator in training mode and drops nothing in eval
        mode. UsageError (a ValueError) when a shape or dtype is not as described.
        """
        cls, _ = self.encode(video, drop_masks)
        token: Tensor = self.norm(cls)  # [B, D]
        return TimeSformerOutput(self.head(token), token, self._project(token))

    def compile_blocks(self, backend: str | Callable[..., Any] | None) -> None:
        """Compile what a block does, once for all blocks, for passes with gradients; None: no more.

        backend: as `torch.compile` takes it. Parameters and their names stay as they are.
        """
        for block in (module for module in self.blocks if isinstance(module, Block)):
            block.compiled = None if backend is None else torch.compile(block.mix, backend=backend)

    def encode(self, video: Tensor, drop_masks: DropMasks | None = None) -> tuple[Tensor, Tensor]:
        """CLS [B, D] and patch tokens [B, h*w, T, D] after the last block, before the final norm."""
        height, width = self._check_video(video)
        batch, frames = video.shape[0], video.shape[2]
        rates = self._drop_rates
        if drop_masks is not None:
            check_drop_masks(drop_masks, rates, batch, height * width, frames)
        elif self.training and any(rates):
            rngs = [self._mask_rng] * batch
            drop_masks = draw_drop_masks(rates, height * width, frames, rngs, video.device)
        else:
            drop_masks = [None] * len(rates)
        positions = resize_positions(self.pos_embed, (height, width))  # [1, 1 + N, D]
        times = resize_times(self.time_embed, frames)  # [1, T, D]
        patches = self.patch_embed(video) + (positions[:, None, 1:] + times[:, :, None])  # [B, T, N, D]
        cls = (self.cls_token + positions[:, :1])[:, 0].expand(batch, -1)  # [B, D]
        for block, masks in zip(self.blocks, drop_masks, strict=True):
            if self.recompute and torch.is_grad_enabled():
                # nothing in a block draws, so there is no random state to keep
                cls, patches = checkpoint(block, cls, patches, masks, use_reentrant=False, preserve_rng_state=False)
            else:
                cls, patches = block(cls, patches, masks)
        return cls, patches.transpose(1, 2)

    def _project(self, token: Tensor) -> dict[str, Tensor]:
        names = self._geometry["projections"]
        return {n: (self.proj_layer if len(names) == 1 else self.proj_layers[n])(token) for n in names}

    def _check_video(self, video: Tensor) -> tuple[int, int]:
        """The patch grid of a valid input."""
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            got = f"{video.dtype} {list(video.shape)}"
            raise UsageError(f"video must be floating point [B, 3, T, H, W], got {got}")
        height, width = self.grid(video.shape[3], video.shape[4])
        if min(video.shape[0], video.shape[2], height, width) < 1:
            raise UsageError(
                f"video {list(video.shape)} is empty: at least one clip, one frame and one patch of "
                f"{self._geometry['patch_size']} x {self._geometry['patch_size']} pixels are needed"
            )
        return height, width


class PatchEmbed(nn.Module):
    """Frames to patch tokens; the weight has a convolution's shape, the work is one matrix product."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, patch_size, patch_size, device="meta").to_empty(device="cpu")

    def forward(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, T, h*w, D], positions row by row."""
        batch, _, frames, *pixels = video.shape
        p = self.patch_size
        h, w = pixels[0] // p, pixels[1] // p
        cut = video[..., : h * p, : w * p].reshape(batch, 3, frames, h, p, w, p)
        cut = cut.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames, h * w, 3 * p * p)
        return F.linear(cut, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention along one axis of [B, T, L, D]; along the others each sequence is on its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.proj = _linear(width, width)

    def forward(self, x: Tensor, *, over_time: bool = False) -> Tensor:
        """[B, T, L, D] -> the same shape: attention over the L tokens of a frame, or over the T of a tube."""
        batch, frames, length, width = x.shape
        size = width // self.heads
        shape = (batch, frames, length * self.heads, size) if over_time else (-1, length, self.heads, size)
        mixed = _attend(*(part.view(shape) for part in self._parts(x)))
        out: Tensor = self.proj(mixed.reshape(x.shape))
        return out

    def _parts(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, each [B, T, L, D] and contiguous."""
        weights = self.qkv.weight.view(3, -1, x.shape[-1]).unbind(0)
        biases = self.qkv.bias.view(3, -1).unbind(0)
        return [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Three of [n, L, H, D/H] -> [n, L, H, D/H]; n and H may each be as large as the kernels allow."""
    if torch.compiler.is_exporting():  # how many portions there are would fix the size of the batch
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    parts = zip(*(_cut(tensor.transpose(1, 2)) for tensor in (query, key, value)), strict=True)
    mixed = [[F.scaled_dot_product_attention(*heads) for heads in zip(*part, strict=True)] for part in parts]
    rows = [row[0] if len(row) == 1 else torch.cat(row, dim=1) for row in mixed]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)).transpose(1, 2)


def _cut(tensor: Tensor) -> list[tuple[Tensor, ...]]:
    """[n, H, L, D/H] in portions of n, and of H within them."""
    return [rows.split(MAX_ATTENTION_BATCH, dim=1) for rows in tensor.split(MAX_ATTENTION_BATCH)]  # type: ignore[no-untyped-call]


class Mlp(nn.Module):
    """Two linear layers, four times as wide between them, erf-GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = _linear(width, MLP_RATIO * width)
        self.fc2 = _linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Temporal attention over each tube, spatial attention over each frame with the CLS, then the MLP."""

    def __init__(self, width: int, heads: int, drop_rate: float) -> None:
        super().__init__()
        self.keep = 1.0 - drop_rate
        self.compiled: Callable[..., tuple[Tensor, Tensor]] | None = None  # `mix`, by TimeSformer.compile_blocks
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.temporal_norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.temporal_attn = Attention(width, heads)
        self.temporal_fc = _linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, cls: Tensor, patches: Tensor, masks: BlockMasks | None) -> tuple[Tensor, Tensor]:
        """cls [B, D], patches [B, T, N, D] -> the same shapes."""
        factors = (None, None, None) if masks is None else (self._factor(m, patches) for m in masks)
        mix = self.compiled if self.compiled is not None and torch.is_grad_enabled() else self.mix
        return mix(cls, patches, *factors)

    def mix(
        self, cls: Tensor, patches: Tensor, tubes: Tensor | None, frames: Tensor | None, clips: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The block with drop-path as factors of its branches: tubes [B, N], frames [B, T], clips [B]; None: 1."""
        mixed = self.temporal_attn(self.temporal_norm1(patches), over_time=True)  # [B, T, N, D]
        if tubes is not None:
            mixed = mixed * tubes[:, None, :, None]
        patches = patches + self.temporal_fc(mixed)  # a dropped tube still gets temporal_fc's bias

        leading = self.norm1(cls)[:, None, None].expand(-1, patches.shape[1], -1, -1)  # [B, T, 1, D]
        mixed = self.attn(torch.cat((leading, self.norm1(patches)), dim=2))  # [B, T, 1 + N, D]
        of_cls, of_patches = mixed.split_with_sizes((1, patches.shape[2]), dim=2)
        of_cls = of_cls[:, :, 0]  # [B, T, D]
        cls = cls + (of_cls if frames is None else of_cls * frames[..., None]).mean(1)
        patches = _add(patches, of_patches, None if frames is None else frames[..., None, None])

        cls = _add(cls, self.mlp(self.norm2(cls)), None if clips is None else clips[:, None])
        patches = _add(patches, self.mlp(self.norm2(patches)), None if clips is None else clips[:, None, None, None])
        return cls, patches

    def _factor(self, kept: Tensor, like: Tensor) -> Tensor:
        """0 where a branch is dropped; where it is kept, what makes up for the others."""
        return kept.to(device=like.device, dtype=like.dtype, non_blocking=True) / self.keep


def _add(x: Tensor, residual: Tensor, factor: Tensor | None) -> Tensor:
    """x + factor * residual in one pass."""
    return x + residual if factor is None else torch.addcmul(x, residual, factor)


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position table [1, 1 + side^2, D] -> [1, 1 + h*w, D], nearest in two dimensions; CLS stays."""
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    square = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, side, side]
    resized = F.interpolate(square, size=grid, mode="nearest")
    return torch.cat((table[:, :1], resized.flatten(2).transpose(1, 2)), dim=1)


def resize_times(table: Tensor, frames: int) -> Tensor:
    """Time table [1, F, D] -> [1, frames, D], nearest."""
    if table.shape[1] == frames:
        return table
    return F.interpolate(table.transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A Linear with unset values, so that the global random state is left alone."""
    return nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")


def _initialise(model: TimeSformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name == "time_embed" or ".temporal_fc." in name:
            nn.init.zeros_(parameter)
        elif "norm" not in name:  # a LayerNorm's weight is 1 already
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)


def _check_geometry(geometry: Mapping[str, Any]) -> None:
    sizes = {name: geometry[name] for name in geometry if name not in ("projections", "drop_path")}
    sizes |= {f"projections[{name!r}]": size for name, size in geometry["projections"].items()}
    bad = {name: size for name, size in sizes.items() if type(size) is not int or size < 1}
    if bad:
        raise UsageError(f"TimeSformer sizes must be whole numbers of at least 1, got {bad}")
    if geometry["image_size"] < geometry["patch_size"] or geometry["width"] % geometry["heads"]:
        raise UsageError(f"image_size must hold a patch, and width be a multiple of heads; got {geometry}")
    if not 0.0 <= geometry["drop_path"] < 1.0:
        raise UsageError(f"drop_path must lie in [0, 1), got {geometry['drop_path']}")
    names = [name for name in geometry["projections"] if not name.isidentifier() or hasattr(nn.ModuleDict, name)]
    if names:
        raise UsageError(f"projection names must be identifiers such as 'exo_rgb', got {names}")
