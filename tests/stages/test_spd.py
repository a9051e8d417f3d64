"""Selective Proxy Distillation against the released code's numbers, and its own rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from uniego.errors import UsageError
from uniego.stages.distill import SPDConfig, spd_loss
from uniego.stages.proxy_bank import candidates
from uniego.stages.spd import choose, selected_loss, slots
from uniego.stages.targets import Bank

DATA = Path(__file__).parents[1] / "data"
CASES: dict[str, Any] = json.loads((DATA / "spd_cases.json").read_text())
ARRAYS = np.load(DATA / "spd_cases.npz")


def case(number: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    prefix = f"case{int(number):02d}/"
    tensors = {k.removeprefix(prefix): torch.tensor(ARRAYS[k]) for k in ARRAYS.files if k.startswith(prefix)}
    return CASES[number], tensors


def golden_config(c: dict[str, Any]) -> SPDConfig:
    features = "auto" in c["modality"] or "feats" in c["modality"] or "logits" not in c["modality"]
    logits = "auto" in c["modality"] or "logits" in c["modality"]
    views = ["exo" if name.startswith("exo") else "ego" for name in c["names"]]
    return SPDConfig(
        top_k=c["top_k"],
        threshold=c["threshold"],
        require_correct=c["require_correct"],
        group_by_view=views if c["group"] else None,
        select="random" if "random" in c["modality"] else "confident",
        feature_weight=c["w_feats"] if features else 0.0,
        logit_weight=c["w_logits"] if logits else 0.0,
        feature_distance=c["loss_type"],
        normalise_over="micro_batch",
    )


@pytest.mark.parametrize("number", sorted(CASES, key=int))
def test_equals_the_release(number: str) -> None:
    c, t = case(number)
    config = golden_config(c)
    logits = t["student_logits"].requires_grad_()
    token = t["student_token"].requires_grad_()
    # The release fills zeros where an output is missing and may select them. Here such rows are absent.
    absent = (t["cand_feats"] == 0).all(-1) | (t["cand_logits"] == 0).all(-1)
    chosen = t["selected_valid"] & absent.gather(1, t["selected_idx"])
    selection = (t["selected_idx"], t["selected_valid"]) if config.select == "random" else None
    result = spd_loss(
        logits,
        token,
        t["labels"],
        proxy_logits=t["cand_logits"],
        proxy_tokens=t["cand_feats"],
        present=~absent,
        config=config,
        selection=selection,
    )
    if chosen.any():  # the release taught from a missing output: that is the difference, and the only one
        assert c["has_zero_rows"]
        assert not (result.valid & absent.gather(1, result.selected)).any() or selection is not None
        return
    if selection is None:
        assert torch.equal(result.valid, t["selected_valid"])
        assert torch.equal(result.selected[result.valid], t["selected_idx"][t["selected_valid"]])
        bank = candidates(Bank(t["cand_feats"], t["cand_logits"], ~absent), t["labels"], config)
        entropy = F.cross_entropy(logits.detach(), t["labels"], reduction="none")
        taught = bank.limit < entropy[:, None]
        assert torch.equal(taught, result.valid)
        assert torch.equal(bank.proxy[taught], result.selected[taught])
        clips = torch.arange(len(taught))[:, None].expand_as(taught)
        assert torch.equal(bank.tokens[taught], t["cand_feats"][clips[taught], result.selected[taught]].float())
    for name, ours in (("loss_feat", result.feature_loss), ("loss_logits", result.logit_loss)):
        theirs = torch.nan_to_num(t[name].float(), nan=0.0).squeeze()  # NaN: that branch was off
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-5)
    total = F.cross_entropy(logits, t["labels"]) + result.feature_loss + result.logit_loss
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(total.detach(), t["loss_total"].squeeze(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits.grad, t["grad_logits_total"], rtol=1e-3, atol=1e-6)
    grad = token.grad if token.grad is not None else torch.zeros_like(token)
    scale = t["grad_token_total"].abs().max().clamp(min=1e-6).item()
    torch.testing.assert_close(grad, t["grad_token_total"], rtol=1e-3, atol=1e-3 * scale)


def test_cases_that_differ_are_few() -> None:
    """Guards the early return above: most cases must be compared in full."""
    differing = 0
    for number in CASES:
        _, t = case(number)
        absent = (t["cand_feats"] == 0).all(-1) | (t["cand_logits"] == 0).all(-1)
        differing += bool((t["selected_valid"] & absent.gather(1, t["selected_idx"])).any())
    assert differing <= len(CASES) // 3


def batch(seed: int = 0, clips: int = 6, proxies: int = 5, classes: int = 4, width: int = 8) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "student_logits": torch.randn(clips, classes, generator=g),
        "student_projected": torch.randn(clips, width, generator=g),
        "labels": torch.randint(classes, (clips,), generator=g),
        "proxy_logits": 3 * torch.randn(clips, proxies, classes, generator=g),
        "proxy_tokens": torch.randn(clips, proxies, width, generator=g),
        "present": torch.rand(clips, proxies, generator=g) > 0.2,
    }


MICRO = SPDConfig(normalise_over="micro_batch")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 6))
def test_permuting_proxies_permutes_the_selection(seed: int, top_k: int) -> None:
    b = batch(seed)
    config = MICRO.model_copy(update={"top_k": top_k})
    shuffle = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    moved = {**b, **{k: b[k][:, shuffle] for k in ("proxy_logits", "proxy_tokens", "present")}}
    one, two = spd_loss(**b, config=config), spd_loss(**moved, config=config)
    assert torch.equal(one.valid, two.valid)
    assert torch.equal(one.selected[one.valid], shuffle[two.selected][two.valid])
    torch.testing.assert_close(one.feature_loss, two.feature_loss)
    torch.testing.assert_close(one.logit_loss, two.logit_loss)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_absent_rows_may_hold_anything(seed: int) -> None:
    b = batch(seed)
    poisoned = {k: v.clone() for k, v in b.items()}
    for name in ("proxy_logits", "proxy_tokens"):
        poisoned[name][~b["present"]] = float("nan")
    grads = []
    for inputs in (b, poisoned):
        student = inputs["student_logits"].clone().requires_grad_()
        result = spd_loss(**{**inputs, "student_logits": student}, config=MICRO)
        (result.feature_loss + result.logit_loss + student.sum() * 0).backward()
        assert not (result.valid & ~b["present"].gather(1, result.selected)).any()
        grads.append(student.grad)
    assert torch.equal(grads[0], grads[1])  # type: ignore[arg-type]


def test_a_present_row_with_nan_logits_is_never_selected() -> None:
    b = batch()
    b["present"][:] = True
    b["proxy_logits"][:, 2] = float("nan")
    result = spd_loss(**b, config=MICRO.model_copy(update={"top_k": 5}))
    assert not (result.valid & (result.selected == 2)).any()
    assert result.feature_loss.isfinite()
    assert result.logit_loss.isfinite()


def test_nothing_valid_is_exactly_zero() -> None:
    b = batch()
    result = spd_loss(**b, config=MICRO.model_copy(update={"threshold": -1.0}))
    assert result.feature_loss.item() == 0.0
    assert result.logit_loss.item() == 0.0
    assert not result.valid.any()


def test_switched_off_branches_are_exactly_zero() -> None:
    result = spd_loss(**batch(), config=MICRO.model_copy(update={"feature_weight": 0.0, "logit_weight": 0.0}))
    assert result.feature_loss.item() == 0.0
    assert result.logit_loss.item() == 0.0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_global_count_makes_micro_batches_add_up(seed: int) -> None:
    b = batch(seed, clips=8)
    whole = spd_loss(**b, config=MICRO)
    count = int(whole.valid.any(1).sum())
    config = MICRO.model_copy(update={"normalise_over": "global_batch"})
    parts = [
        spd_loss(**{k: v[rows] for k, v in b.items()}, config=config, clip_count=count)
        for rows in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(sum(p.feature_loss for p in parts), whole.feature_loss)
    torch.testing.assert_close(sum(p.logit_loss for p in parts), whole.logit_loss)


def test_the_global_count_is_required() -> None:
    with pytest.raises(UsageError, match="clip_count"):
        spd_loss(**batch(), config=SPDConfig())


def test_grouped_takes_exo_first_and_one_view_is_ungrouped() -> None:
    b = batch(3)
    b["present"][:] = True
    loose = {"threshold": 1e9, "require_correct": False}
    views = ["ego", "exo", "ego", "exo", "exo"]
    grouped = spd_loss(**b, config=MICRO.model_copy(update={**loose, "group_by_view": views}))
    assert grouped.selected.shape == (6, 2)
    assert all(views[i] == "exo" for i in grouped.selected[:, 0])
    assert all(views[i] == "ego" for i in grouped.selected[:, 1])
    alone = spd_loss(**b, config=MICRO.model_copy(update={**loose, "group_by_view": ["exo"] * 5}))
    assert alone.selected.shape == (6, 1)


def test_random_selection_keeps_only_valid_draws() -> None:
    b = batch(5)
    config = MICRO.model_copy(update={"select": "random", "top_k": 3})
    one = spd_loss(**b, config=config, generator=torch.Generator().manual_seed(1))
    again = spd_loss(**b, config=config, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one.selected, again.selected)
    correct = b["proxy_logits"].argmax(-1) == b["labels"][:, None]
    chosen = correct.gather(1, one.selected) & b["present"].gather(1, one.selected)
    assert not (one.valid & ~chosen).any()


def test_more_draws_than_proxies() -> None:
    """K draws with replacement from all R, whatever R is; one drawn twice counts twice."""
    config = MICRO.model_copy(update={"select": "random", "top_k": 9, "threshold": 1e9, "require_correct": False})
    assert slots(config, 5) == 9
    drawn = choose(torch.zeros(4, 5), config, torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 9)
    assert 0 <= drawn.min() <= drawn.max() < 5
    b = batch(5)
    b["present"][:] = True
    b["student_logits"] = F.one_hot(b["labels"], b["student_logits"].shape[1]) * -30.0
    twice = torch.tensor([[0, 0, 1]]).expand(len(b["labels"]), -1)
    one, two = (spd_loss(**b, config=config, selection=(part, None)) for part in (twice[:, 1:2], twice[:, 2:]))
    found = spd_loss(**b, config=config, selection=(twice, None))
    torch.testing.assert_close(found.feature_loss, (2 * one.feature_loss + two.feature_loss) / 3)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_selected_loss_takes_anything_in_slots_that_do_not_teach(distance: str) -> None:
    """And a class that a teacher or the student excludes (log probability -inf) in those that do."""
    config = SPDConfig(feature_distance=distance)
    generator = torch.Generator().manual_seed(0)
    tokens, log_probs = (torch.randn(3, 2, width, generator=generator) for width in (6, 4))
    log_probs = log_probs.log_softmax(-1)
    valid = torch.tensor([[True, False], [False, False], [True, True]])
    start = torch.randn(3, 4, generator=generator), torch.randn(3, 6, generator=generator)
    found = []
    for filling in (0.0, float("nan"), float("inf"), float("-inf")):
        for part in (tokens, log_probs):
            part[~valid] = filling
        logits, token = (part.clone().requires_grad_() for part in start)
        given = {"tokens": tokens, "log_probs": log_probs, "valid": valid, "clips": torch.tensor(2.0)}
        terms = selected_loss(logits, token, **given, config=config)
        (terms[0] + terms[1]).backward()  # type: ignore[no-untyped-call]
        found.append((*terms, logits.grad, token.grad))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
    log_probs[0, 0] = torch.tensor([0.5, 0.5, 0.0, 0.0]).log()
    logits = start[0].clone()
    logits[1] = logits[0, 3] = float("-inf")  # a clip that nobody teaches, a class that its teacher excludes too
    logits[1, 0] = 0.0
    logits.requires_grad_()
    term = selected_loss(logits, start[1], **given, config=config)[1]
    term.backward()  # type: ignore[no-untyped-call]
    assert term.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["labels", "proxy_tokens", "present", "proxy_logits"])
def test_wrong_shapes_are_refused_by_name(name: str) -> None:
    b = batch()
    b[name] = b[name][:-1]
    with pytest.raises(UsageError, match=name):
        spd_loss(**b, config=MICRO)
