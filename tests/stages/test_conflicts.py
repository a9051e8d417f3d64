"""Conflicts between the gradients of teachers' losses, on networks small enough to check by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from uniego.errors import UniegoError
from uniego.models import TimeSformer, TimeSformerOutput
from uniego.pipeline.config import SPDConfig
from uniego.stages.batches import Batch
from uniego.stages.conflicts import Conflicts, measure, naive_losses, shared_parameters, spd_losses
from uniego.stages.spd import spd_loss
from uniego.stages.targets import Bank, Targets

CLASSES, CLIPS, WIDTH = 3, 8, 16
KEYS = ("exo_rgb", "exo_skl", "ego_dino")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(projections: dict[str, int]) -> TimeSformer:
    model = TimeSformer(8, 4, 2, WIDTH, 2, 2, CLASSES, projections, drop_path=0.5, seed=1).eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * drawn(*parameter.shape, seed=number)
    return model


def batches(*portions: range) -> list[Batch]:
    videos = drawn(CLIPS, 3, 2, 8, 8, seed=9)
    return [Batch.of(portion, videos[list(portion)]) for portion in portions]


def flat_gradient(loss: Tensor, model: TimeSformer) -> Tensor:
    parts = torch.autograd.grad(loss, shared_parameters(model), retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts]).double()


def test_shared_is_the_backbone() -> None:
    model = network({"a": 4, "b": 5})
    left_out = {id(p) for p in model.parameters()} - {id(p) for p in shared_parameters(model)}
    names = {name for name, p in model.named_parameters() if id(p) in left_out}
    assert names == {f"{n}.{part}" for n in ("head", "proj_layers.a", "proj_layers.b") for part in ("weight", "bias")}


def test_equal_opposite_and_absent_losses() -> None:
    model = network({"x": 4})

    def losses(out: TimeSformerOutput, batch: Batch) -> dict[str, Tensor]:
        one = out.projected["x"].square().sum()
        found = {"one": one, "same": 3 * one, "opposite": -one, "constant": torch.tensor(1.0), "none": 0.0 * one}
        return found | ({"late": one} if 4 in batch.rows else {})

    keys = ("one", "same", "opposite", "late", "constant", "none", "never")
    found = measure(model, keys, losses, [batches(range(3)), batches(range(3, 6))])
    first, second = found.cosines
    torch.testing.assert_close(first[:3, :3], torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]]).double())
    assert first[3:].isnan().all()
    torch.testing.assert_close(second[3, :4], torch.tensor([1.0, 1, -1, 1]).double())
    assert second[4:].isnan().all()
    assert found.total() == (5, 9), "one pair of late's three is negative"
    assert found.without_gradient == 2 * 21 - 9, "neither conflict nor agreement, and counted"
    assert found.counts[0].tolist() == [2, 2, 2, 1, 0, 0, 0]
    assert found.mean[0, 2].item() == pytest.approx(-1.0)
    assert all(p.grad is None for p in model.parameters())


def test_naive_losses_are_cosine_distances_of_clips_with_a_target() -> None:
    widths = dict(zip(KEYS, (5, 6, 7), strict=True))
    model = network(widths)
    targets = {
        k: Targets(drawn(CLIPS, w, seed=w), torch.arange(CLIPS) % 3 != i) for i, (k, w) in enumerate(widths.items())
    }
    targets["exo_skl"].values[~targets["exo_skl"].present] = torch.nan
    targets["ego_dino"] = targets["ego_dino"]._replace(present=torch.zeros(CLIPS, dtype=torch.bool))
    (batch,) = batches(range(CLIPS))
    out = model(batch.videos)
    gradients = []
    for key in KEYS[:2]:
        values, present = targets[key]
        cosine = torch.nn.functional.cosine_similarity(out.projected[key][present], values[present])
        gradients.append(flat_gradient((1 - cosine).sum(), model))
    wanted = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    found = measure(model, KEYS, naive_losses(targets), [[batch]])
    torch.testing.assert_close(found.cosines[0, 0, 1], wanted, rtol=1e-5, atol=1e-7)
    assert found.counts[2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": 3, "require_correct": False, "logit_weight": 0.0}])
def test_parts_of_spd_add_up_to_its_terms(options: dict[str, object]) -> None:
    model = network({"student": WIDTH})
    labels = torch.arange(CLIPS) % CLASSES
    logits = drawn(CLIPS, 3, CLASSES, seed=3)
    logits[range(CLIPS), :, labels] += 2.0
    present = torch.rand(CLIPS, 3, generator=torch.Generator().manual_seed(4)) > 0.2
    bank = Bank(drawn(CLIPS, 3, WIDTH, seed=5), logits, present)
    bank.tokens[~present] = torch.nan
    config = SPDConfig.model_validate({"normalise_over": "micro_batch", **options})
    (batch,) = batches(range(CLIPS))
    out = model(batch.videos)
    whole = spd_loss(
        out.logits,
        out.projected["student"],
        labels,
        proxy_logits=logits,
        proxy_tokens=bank.tokens,
        present=present,
        config=config,
    )
    clips = whole.valid.any(1).sum()
    assert clips > 3
    parts = spd_losses(KEYS, bank, labels, config, "student")(out, batch)
    torch.testing.assert_close(sum(parts.values()), clips * (whole.feature_loss + whole.logit_loss))
    chosen = {KEYS[r] for r in whole.selected[whole.valid].tolist()}
    assert set(parts) == chosen


def test_micro_batches_do_not_matter() -> None:
    model = network({"student": WIDTH})
    labels = torch.arange(CLIPS) % CLASSES
    logits = drawn(CLIPS, 3, CLASSES, seed=3)
    logits[range(CLIPS), :, labels] += 2.0
    bank = Bank(drawn(CLIPS, 3, WIDTH, seed=5), logits, torch.ones(CLIPS, 3, dtype=torch.bool))
    losses = spd_losses(KEYS, bank, labels, SPDConfig(), "student")
    whole = measure(model, KEYS, losses, [batches(range(CLIPS))])
    parts = measure(model, KEYS, losses, [batches(range(2), range(2, 3), range(3, CLIPS))])
    torch.testing.assert_close(whole.cosines, parts.cosines, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_nothing_measured_is_no_conflict() -> None:
    found = Conflicts(KEYS, torch.empty(0, 3, 3, dtype=torch.float64))
    assert found.total() == (0, 0)
    assert found.without_gradient == 0
    assert found.mean.isnan().all()


def test_a_gradient_that_is_not_finite_is_told() -> None:
    model = network({"x": 4})

    def losses(out: TimeSformerOutput, batch: Batch) -> dict[str, Tensor]:
        one = out.projected["x"].square().sum()
        return {"one": one, "broken": torch.inf * one}

    with pytest.raises(UniegoError, match="gradient of broken is not finite"):
        measure(model, ("one", "broken"), losses, [batches(range(3))])
