"""The learned merge against the released code's soups, their gradients and their Adam steps."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from uniego.errors import WeightsError
from uniego.models import TimeSformer
from uniego.stages.batches import Batch
from uniego.stages.merge import MergeTask, Soup

DATA = Path(__file__).parents[1] / "data"
GOLDEN = load_file(DATA / "merge.safetensors")
META = json.loads((DATA / "merge.json").read_text())
LEARNED = ("model", "layer", "parameter")


def states() -> list[dict[str, Tensor]]:
    def one(i: int) -> dict[str, Tensor]:
        prefix = f"state{i}/model."
        return {k.removeprefix(prefix): v for k, v in GOLDEN.items() if k.startswith(prefix)}

    return [one(i) for i in range(3)]


def network() -> TimeSformer:
    model = TimeSformer(
        image_size=32, patch_size=8, num_frames=4, width=48, depth=3, heads=4, num_classes=7, drop_path=0.0
    )
    return model.eval()


def soup(level: str, weights: Tensor | None = None) -> Soup:
    order = [key.removeprefix("model.") for key in META["levels"][level]["merge_keys"]]
    made = Soup(states(), level, order=order)
    if weights is not None:
        made.weights.copy_(weights.view_as(made.weights))
    return made


@pytest.mark.parametrize("level", [*LEARNED, "average"])
def test_equals_the_released_soup(level: str) -> None:
    made = soup(level, GOLDEN.get(f"{level}/w"))
    if level != "average":
        torch.testing.assert_close(made.alphas().flatten(), GOLDEN[f"{level}/softmax_w"].flatten())
    combined = made.combined()
    assert list(combined) == [key.removeprefix("model.") for key in META["levels"][level]["merge_keys"]]
    for key, value in GOLDEN.items():
        if key.startswith(f"{level}/export/model."):
            torch.testing.assert_close(
                combined[key.removeprefix(f"{level}/export/model.")], value, rtol=1e-5, atol=1e-6
            )
    model = network()
    model.load_state_dict(combined)
    out = model(GOLDEN["input"])
    torch.testing.assert_close(out.logits, GOLDEN[f"{level}/logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.token, GOLDEN[f"{level}/cls"], rtol=1e-4, atol=1e-4)
    loss = F.cross_entropy(out.logits, GOLDEN["labels"])
    torch.testing.assert_close(loss, GOLDEN[f"{level}/loss"].squeeze(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", LEARNED)
def test_weights_start_at_the_average(level: str) -> None:
    model = network()
    model.load_state_dict(soup(level).combined())
    torch.testing.assert_close(model(GOLDEN["input"]).logits, GOLDEN[f"{level}/w_zero_logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", LEARNED)
def test_gradient_by_inner_products(level: str) -> None:
    made = soup(level, GOLDEN[f"{level}/w"])
    task = MergeTask(made, network(), GOLDEN["labels"], lr=0.01)
    batch = Batch.of(range(3), GOLDEN["input"])
    task.loss(batch, 0)["loss"].backward()  # type: ignore[no-untyped-call]
    task.before_step()
    assert made.weights.grad is not None
    wanted = GOLDEN[f"{level}/grad_w"].view_as(made.weights)
    torch.testing.assert_close(made.weights.grad, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


@pytest.mark.parametrize("level", ["model", "layer"])
def test_six_adam_steps(level: str) -> None:
    made = soup(level)
    labels = torch.cat((GOLDEN["labels"], torch.tensor([2, 5, 6])))
    task = MergeTask(made, network(), labels, lr=0.01)
    batches = [Batch.of(range(3), GOLDEN["input"]), Batch.of(range(3, 6), GOLDEN["input"].flip(0))]
    losses = []
    for step in range(6):
        loss = task.loss(batches[step % 2], 0)["loss"]
        losses.append(loss.item())
        loss.backward()  # type: ignore[no-untyped-call]
        task.before_step()
        task.optimizer.step()
        task.after_step()
        task.zero_grad()
    assert losses == pytest.approx(META["levels"][level]["adam6_losses"], rel=1e-4)
    torch.testing.assert_close(made.weights, GOLDEN[f"{level}/adam6_w"].view_as(made.weights), rtol=1e-3, atol=1e-4)


def test_one_network_is_the_identity() -> None:
    state = states()[0]
    combined = Soup([state], "model").combined()
    assert all(torch.equal(combined[name], state[name]) for name in combined)


def test_weights_sum_to_one_at_every_level() -> None:
    for level in LEARNED:
        made = soup(level, GOLDEN[f"{level}/w"])
        torch.testing.assert_close(made.alphas().sum(1), torch.ones(len(made.group_names)))


def test_unlike_networks_are_refused_with_the_first_differences() -> None:
    one, two, _ = states()
    two["head.weight"] = torch.zeros(9, 48)
    with pytest.raises(WeightsError, match=r"head\.weight.*\(7, 48\).*\(9, 48\)"):
        Soup([one, two], "model")
    del two["head.weight"]
    with pytest.raises(WeightsError, match=r"head\.weight.*None"):
        Soup([one, two], "model")
    bigger = TimeSformer(image_size=32, patch_size=8, num_frames=4, width=48, depth=4, heads=4, num_classes=7)
    with pytest.raises(WeightsError, match=r"blocks\.3"):
        MergeTask(soup("model"), bigger, GOLDEN["labels"], lr=0.01)
