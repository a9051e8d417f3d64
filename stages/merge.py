"""Level II, first part: the student starts as a learned convex combination of the proxies (arXiv 2606.20559).

    alpha = softmax(w),   theta = sum over r of alpha_r theta_r

over every parameter the proxies share (head included, projections excluded). w starts at 0 and is fitted with
Adam on the labels, the network in eval mode, the proxies frozen. Since dL/d alpha_r = <dL/d theta, theta_r>, one
network sees the video and the proxies' parameters are only combined and multiplied, wherever they lie (`networks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import TimeSformer
from .batches import Batch
from .compiling import compile_blocks
from .loop import Task
from .networks import Networks, check_alike, specs_of


class Soup:
    """R networks of one shape and the weights that combine them.

    Levels: "model" has one weight per network, "layer" one per network and block, embedding, norm or head,
    "parameter" one per network and tensor, "average" none (1/R each).
    """

    def __init__(self, networks: Networks, level: str, order: Sequence[str] = ()) -> None:
        """`order` names parameters in the order that groups are to have; files do not keep the network's own."""
        place = {name: i for i, name in enumerate(order)}
        self.networks = networks
        self.names = sorted(networks.specs, key=lambda name: place.get(name, len(place)))
        self.groups, self.group_names = merge_groups(self.names, level)
        self.weights = torch.zeros(len(self.group_names), len(networks.keys), device=networks.device)  # [G,R], w
        sizes = torch.zeros(len(self.group_names))
        for name in self.names:
            sizes[self.groups[name]] += networks.specs[name].values
        self._sizes = (sizes / sizes.sum()).to(networks.device)  # [G], share of the parameters

    def alphas(self) -> Tensor:
        """softmax(w) per group, float32 [G, R]; each row sums to 1."""
        return self.weights.softmax(dim=1)

    def shares(self) -> Tensor:
        """How much of all parameters comes from each network, float32 [R]: alphas, groups by their size."""
        return self._sizes @ self.alphas()

    @torch.no_grad()
    def combine(self, out: Mapping[str, Tensor]) -> None:
        """Write the merged parameters into tensors of their names; others are left as they are."""
        alphas = self.alphas()
        for name in self.names:
            self.networks.blend(name, alphas[self.groups[name]], out[name])

    @torch.no_grad()
    def weight_gradient(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """dL/dw [G, R] from dL/d theta: inner products with each network, then through the softmax."""
        inner = torch.zeros_like(self.weights)  # dL/d alpha
        for name in self.names:
            if name in gradients:
                inner[self.groups[name]] += self.networks.inner(
                    name, gradients[name].to(self.networks.specs[name].dtype)
                )
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


class MergeTask(Task):
    """Fitting the combination's weights on the labels."""

    def __init__(self, soup: Soup, model: TimeSformer, labels: Tensor, lr: float) -> None:
        self.title = "merge"
        self.soup, self.labels, self._lr = soup, labels, lr
        self.model = model.eval()
        self._parameters = dict(model.named_parameters())
        check_alike(["the student's network", "the proxies"], [specs_of(self._parameters), soup.networks.specs])
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in soup.networks.specs)
        self.optimizer = torch.optim.Adam([soup.weights], lr=lr)
        self._fill()

    def _fill(self) -> None:
        self.soup.combine(self._parameters)
        self._shares = {
            f"alpha.{k}": a for k, a in zip(self.soup.networks.keys, self.soup.shares().unbind(), strict=True)
        }

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the merged network; logged beside it how much of it comes from each proxy."""
        loss = F.cross_entropy(self.model(batch.videos).logits.float(), self.labels[batch.indices])
        return {"loss": loss, **self._shares}

    def compile(self, batch: int, precision: str) -> None:
        """Compile the network's blocks."""
        compile_blocks(self.model, batch, precision)

    def trained(self) -> list[Tensor]:
        """The network's shared parameters: `before_step` needs their whole gradient."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def before_step(self) -> None:
        """Carry the network's gradient over to the weights."""
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
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
