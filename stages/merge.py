"""Level II, first part: the student starts as a learned convex combination of the proxies (arXiv 2606.20559).

    alpha = softmax(w),   theta = sum over r of alpha_r theta_r

over every parameter the proxies share (head included, projections excluded). w starts at 0 and is fitted with
Adam on the labels, the network in eval mode, the proxies frozen. Since dL/d alpha_r = <dL/d theta, theta_r>, one
network sees the video and the proxies' parameters are only combined and multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import WeightsError
from ..models import TimeSformer
from .batches import Batch
from .compiling import compile_blocks
from .loop import Task


class Soup:
    """R networks of one shape and the weights that combine them.

    Levels: "model" has one weight per network, "layer" one per network and block, embedding, norm or head,
    "parameter" one per network and tensor, "average" none (1/R each).
    """

    def __init__(
        self,
        states: Sequence[Mapping[str, Tensor]],
        level: str,
        device: torch.device | str = "cpu",
        order: Sequence[str] = (),
    ) -> None:
        """`order` names parameters in the order that groups are to have; files do not keep the network's own."""
        _check_alike(states)
        place = {name: i for i, name in enumerate(order)}
        shared = [name for name in states[0] if not name.startswith("proj_layer")]
        self.names = sorted(shared, key=lambda name: place.get(name, len(place)))
        self.groups, self.group_names = merge_groups(self.names, level)
        self.stacked = {n: torch.stack([state[n].to(device) for state in states]) for n in self.names}  # [R,...]
        self.weights = torch.zeros(len(self.group_names), len(states), device=device)  # [G,R], w

    def alphas(self) -> Tensor:
        """softmax(w) per group, float32 [G, R]; each row sums to 1."""
        return self.weights.softmax(dim=1)

    @torch.no_grad()
    def combined(self) -> dict[str, Tensor]:
        """The merged parameters."""
        alphas = self.alphas()
        return {
            name: torch.tensordot(alphas[self.groups[name]].to(stacked.dtype), stacked, dims=1)
            for name, stacked in self.stacked.items()
        }

    @torch.no_grad()
    def weight_gradient(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """dL/dw [G, R] from dL/d theta: inner products with each network, then through the softmax."""
        inner = torch.zeros_like(self.weights)  # dL/d alpha
        for name, stacked in self.stacked.items():
            if name in gradients:
                inner[self.groups[name]] += stacked.flatten(1) @ gradients[name].to(stacked.dtype).flatten()
        alphas = self.alphas()
        return alphas * (inner - (alphas * inner).sum(dim=1, keepdim=True))


def merge_groups(names: Sequence[str], level: str) -> tuple[dict[str, int], list[str]]:
    """Group of every parameter, and the groups' names in order."""
    keys = {name: _group_name(name, level) for name in names}
    order = list(dict.fromkeys(keys.values()))
    return {name: order.index(key) for name, key in keys.items()}, order


def _group_name(name: str, level: str) -> str:
    if level in ("model", "average"):
        return "model"
    if level == "parameter":
        return name
    parts = name.split(".")
    if parts[0] == "blocks":
        return ".".join(parts[:2])
    return ".".join(parts[:-1]) if len(parts) > 1 else name


def _check_alike(states: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise `WeightsError` naming the first parameters in which the networks differ."""
    first = {name: (tuple(t.shape), t.dtype) for name, t in states[0].items() if not name.startswith("proj_layer")}
    for number, state in enumerate(states[1:], start=1):
        other = {name: (tuple(t.shape), t.dtype) for name, t in state.items() if not name.startswith("proj_layer")}
        different = [name for name in sorted({*first, *other}) if first.get(name) != other.get(name)]
        if different:
            shown = "; ".join(f"{n}: {first.get(n)} against {other.get(n)}" for n in different[:5])
            raise WeightsError(
                f"network {number} cannot be merged with network 0, {len(different)} parameters differ: {shown}"
            )


class MergeTask(Task):
    """Fitting the combination's weights on the labels."""

    def __init__(self, soup: Soup, model: TimeSformer, labels: Tensor, lr: float) -> None:
        self.title = "merge"
        self.soup, self.labels, self._lr = soup, labels, lr
        self.model = model.eval()
        _check_alike([dict(model.state_dict()), {name: s[0] for name, s in soup.stacked.items()}])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in soup.stacked)
        self.optimizer = torch.optim.Adam([soup.weights], lr=lr)
        self._fill()

    def _fill(self) -> None:
        self.model.load_state_dict(self.soup.combined(), strict=False)

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the merged network."""
        return {"loss": F.cross_entropy(self.model(batch.videos).logits.float(), self.labels[batch.indices])}

    def compile(self, batch: int, precision: str) -> None:
        """Compile the network's blocks."""
        compile_blocks(self.model, batch, precision)

    def trained(self) -> list[Tensor]:
        """The network's shared parameters: `before_step` needs their whole gradient."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def before_step(self) -> None:
        """Carry the network's gradient over to the weights."""
        parameters = self.model.named_parameters()
        gradients = {name: p.grad for name, p in parameters if p.grad is not None}
        self.soup.weights.grad = self.soup.weight_gradient(gradients)

    def after_step(self) -> None:
        """Combine anew."""
        self._fill()

    def zero_grad(self) -> None:
        """Forget the network's gradient and the weights'."""
        super().zero_grad()
        self.model.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The weights, float32 [G, R]."""
        return {"weights": self.soup.weights}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back the weights."""
        self.soup.weights.copy_(tensors["weights"])
        self._fill()

    def rate(self, epoch: float) -> float:
        """Adam's rate, constant."""
        return self._lr
