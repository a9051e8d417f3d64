"""The student's task: the bank gives what the loss as written gives; divisors; what is counted; several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from uniego.models import TimeSformer
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import CheckpointConfig, SPDConfig, TrainConfig
from uniego.pipeline.signals import StopFlag
from uniego.stages.batches import Batch, ClipFailure
from uniego.stages.loop import Loop, Plan
from uniego.stages.proxy_bank import ProxyBank, candidates, chosen
from uniego.stages.spd import choose, selected_loss, slots, spd_loss
from uniego.stages.student import StudentTask
from uniego.stages.supervised import Supervised
from uniego.stages.targets import Bank
from uniego.stages.teaching import read_teaching, teaching_summary

CLIPS, PROXIES, CLASSES, WIDTH = 8, 5, 3, 24
CPU = torch.device("cpu")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, clips: int = CLIPS) -> tuple[Bank, Tensor]:
    """Outputs of which some are absent and hold NaN, one present row of NaN logits, and the labels."""
    labels = torch.arange(clips) % CLASSES
    logits = 2 * drawn(clips, PROXIES, CLASSES, seed=seed)
    logits[range(clips), :, labels] += 1.5  # mostly right
    present = torch.rand(clips, PROXIES, generator=torch.Generator().manual_seed(seed)) > 0.25
    tokens = drawn(clips, PROXIES, WIDTH, seed=seed + 1)
    tokens[~present] = logits[~present] = torch.nan
    logits[0, 0] = torch.nan
    return Bank(tokens, logits, present), labels


options = st.builds(
    SPDConfig,
    top_k=st.integers(1, PROXIES + 2),
    threshold=st.sampled_from([0.1, 0.5, 4.0]),
    require_correct=st.booleans(),
    select=st.sampled_from(["confident", "random", "all"]),
    feature_weight=st.sampled_from([0.0, 5.0]),
    logit_weight=st.sampled_from([0.0, 1.0]),
    feature_distance=st.sampled_from(["cosine", "mse"]),
    normalise_over=st.just("micro_batch"),
    group_by_view=st.sampled_from([None, ["ego", "exo", "exo", "ego", "ego"], ["ego"] * PROXIES]),
)


def by_bank(
    logits: Tensor, token: Tensor, labels: Tensor, bank: ProxyBank, config: SPDConfig, columns: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Feature term, logit term, selected and valid, the way the task computes them."""
    picked = chosen(bank, Batch.of(range(len(labels)), torch.empty(0)), columns)
    student = F.cross_entropy(logits.detach(), labels, reduction="none")
    valid = (picked.limit < student[:, None]) | (picked.limit == -torch.inf)
    clips = valid.any(1).sum().clamp(min=1).float()
    taught = {"tokens": picked.tokens, "log_probs": picked.log_probs, "valid": valid, "clips": clips}
    terms = selected_loss(logits, token, **taught, config=config)
    return *terms, picked.proxy, valid


@given(seed=st.integers(0, 10_000), config=options)
def test_the_bank_gives_the_loss_bit_for_bit(seed: int, config: SPDConfig) -> None:
    """Terms, choice and gradients; absent outputs and NaN are never taught."""
    known, labels = outputs(seed)
    bank = candidates(known, labels, config)
    assert all(part.isfinite().all() for part in (bank.tokens, bank.log_probs))
    columns = choose(torch.zeros(CLIPS, PROXIES), config, torch.Generator().manual_seed(seed))
    drawn_columns = columns if config.select == "random" else None
    found = []
    for way in ("written", "bank"):
        logits, token = drawn(CLIPS, CLASSES, seed=seed + 2), drawn(CLIPS, WIDTH, seed=seed + 3)
        logits.requires_grad_(), token.requires_grad_()
        if way == "bank":
            feature, logit, selected, valid = by_bank(logits, token, labels, bank, config, drawn_columns)
        else:
            inputs = {"proxy_logits": known.logits, "proxy_tokens": known.tokens, "present": known.present}
            selection = None if drawn_columns is None else (drawn_columns, None)
            terms = spd_loss(logits, token, labels, **inputs, config=config, selection=selection)
            feature, logit, selected, valid = terms
        (feature + logit + 0 * (logits.sum() + token.sum())).backward()  # type: ignore[no-untyped-call]
        found.append([feature, logit, valid, torch.where(valid, selected, -1), logits.grad, token.grad])
        assert known.present.gather(1, selected)[valid].all()
    for written, banked in zip(*found, strict=True):
        assert torch.equal(written, banked)


@given(seed=st.integers(0, 10_000), top_k=st.integers(1, PROXIES))
def test_permuting_proxies_permutes_the_candidates(seed: int, top_k: int) -> None:
    known, labels = outputs(seed)
    shuffle = torch.randperm(PROXIES, generator=torch.Generator().manual_seed(seed))
    config = SPDConfig(top_k=top_k)
    one, two = (candidates(part, labels, config) for part in (known, Bank(*(part[:, shuffle] for part in known))))
    able = one.limit < torch.inf
    assert torch.equal(one.limit, two.limit)
    assert torch.equal(one.proxy[able], shuffle[two.proxy][able])
    assert torch.equal(one.tokens, two.tokens)


@pytest.mark.parametrize("threshold", [1e-9, 0.0, -1.0])
def test_a_threshold_of_zero_and_below_leaves_the_cross_entropy_alone(threshold: float) -> None:
    task, videos = student(seed=1, spd=SPDConfig(threshold=threshold))
    terms = task.loss(Batch.of(range(CLIPS), videos), 0)
    assert terms["loss"].item() == terms["ce"].item()
    assert terms["feature"].item() == terms["logit"].item() == 0.0


def test_as_many_as_there_are_and_all_valid_is_the_average_of_all() -> None:
    known, labels = outputs(3)
    known = Bank(known.tokens.nan_to_num(0.5), known.logits.nan_to_num(0.0), torch.ones_like(known.present))
    logits, token = torch.full((CLIPS, CLASSES), 0.0), drawn(CLIPS, WIDTH, seed=9)
    logits[range(CLIPS), labels] = -30.0  # less sure than any proxy
    config = SPDConfig(top_k=PROXIES + 1, threshold=1e9, require_correct=False, normalise_over="micro_batch")
    feature, logit, _, valid = by_bank(logits, token, labels, candidates(known, labels, config), config, None)
    assert valid.all()
    distances = 1 - F.cosine_similarity(token[:, None], known.tokens, dim=-1)
    torch.testing.assert_close(feature, 5.0 * distances.mean())
    wanted = F.kl_div(
        logits.log_softmax(-1)[:, None].expand_as(known.logits), known.logits.softmax(-1), reduction="sum"
    )
    torch.testing.assert_close(logit, wanted / (CLIPS * PROXIES))
    everyone = config.model_copy(update={"select": "all"})
    others = by_bank(logits, token, labels, candidates(known, labels, everyone), everyone, None)
    torch.testing.assert_close(others[0], feature)


def test_the_bank_holds_no_more_than_can_teach() -> None:
    known, labels = outputs(4)
    for config in (SPDConfig(), SPDConfig(top_k=2), SPDConfig(group_by_view=["ego", "exo", "exo", "ego", "ego"])):
        bank = candidates(known, labels, config)
        assert bank.tokens.shape == (CLIPS, slots(config, PROXIES), WIDTH)
        assert torch.equal(bank.limit.sort(dim=1).values, bank.limit) or config.group_by_view


def student(
    seed: int, spd: SPDConfig, micro: int = CLIPS, *, exact: bool = False, clips: int = CLIPS
) -> tuple[StudentTask, Tensor]:
    """A task with drop-path whose student is unsure, and the videos of its clips."""
    model = TimeSformer(16, 8, 2, WIDTH, 2, 2, CLASSES, {"student": WIDTH}, drop_path=0.3, seed=seed)
    path = Path("none.mp4")
    known, labels = outputs(seed, clips)
    table = [Clip(f"c{i}", "train", int(y), path, None, None, None, None, {}, {}) for i, y in enumerate(labels)]
    config = TrainConfig(epochs=2, global_batch=clips, micro_batch=micro)
    bank = candidates(known, labels, spd)
    task = StudentTask(config, spd, Supervised(model, table, seed, CPU), bank, exact_normaliser=exact)
    return task, drawn(clips, 3, 2, 16, 16, seed=seed)


def gradients(task: StudentTask, batches: list[Batch]) -> dict[str, Tensor]:
    """Of one step, weighed as the loop does."""
    if task.needs_whole_step:
        task.open_step(batches, 0)
    for batch in batches:
        share = len(batch.rows) / (len(batch.rows) + len(batch.failures)) / len(batches)
        (task.loss(batch, 0)["loss"] * share).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("seed", range(3))
def test_with_the_exact_normaliser_the_gradient_is_that_of_the_whole_batch(seed: int) -> None:
    spd = SPDConfig(top_k=2)
    task, videos = student(seed, spd)
    assert "global batch" in task.describe()
    wanted = gradients(task, [Batch.of(range(CLIPS), videos)])
    differs = False
    for micro in (1, 2, 4):
        parts = [Batch.of(range(at, at + micro), videos[at : at + micro]) for at in range(0, CLIPS, micro)]
        exact, _ = student(seed, spd, micro, exact=True)
        for name, gradient in gradients(exact, parts).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
        loose, _ = student(seed, spd, micro)
        assert not loose.needs_whole_step
        found = gradients(loose, parts)
        differs |= any(not torch.allclose(found[name], wanted[name], rtol=1e-3) for name in found)
    task.after_step()
    untaught = task.checkpoint()["teaching.counts"][:, -1].sum()
    assert differs == (untaught > 0)


def test_a_clip_that_failed_does_not_weaken_the_others() -> None:
    """The loop weighs a micro-batch by the clips it has; the terms are sums over taught clips all the same."""
    task, videos = student(5, SPDConfig(top_k=2))
    terms = task.loss(Batch.of(range(4), videos[:4]), 0)
    short = task.loss(Batch.of(range(4), videos[:4], [ClipFailure("x", "truncated", "cut")] * 4), 0)
    torch.testing.assert_close(short["feature"] * 0.5, terms["feature"])
    torch.testing.assert_close(short["ce"], terms["ce"])


def stream(videos: Tensor, micro: int) -> Any:
    def batches(epoch: int, step: int) -> Any:
        for _ in range(epoch, 2):
            for at in range(0, CLIPS, micro):
                yield Batch.of(range(at, at + micro), videos[at : at + micro])

    return batches


@pytest.mark.parametrize("exact", [False, True])
def test_an_epoch_says_who_taught_whom(tmp_path: Path, exact: bool, capsys: pytest.CaptureFixture[str]) -> None:
    task, videos = student(6, SPDConfig(top_k=2), 2, exact=exact)
    plan = Plan(2, 1, 4, CLIPS, CheckpointConfig(), CPU)
    counted: list[tuple[Tensor, Tensor, Tensor]] = []
    add = task._tally.add
    task._tally.add = lambda *given: (counted.append(given), add(*given))[1]  # type: ignore[method-assign, func-returns-value]
    Loop(task, plan, tmp_path, StopFlag()).run(stream(videos, 2))
    epochs = read_teaching(tmp_path)
    assert [epoch.epoch for epoch in epochs] == [0, 1]
    for number, epoch in enumerate(epochs):
        taught = torch.zeros(CLASSES, PROXIES, dtype=torch.int64)
        for labels, proxy, valid in counted[4 * number : 4 * number + 4]:
            for label, row, ok in zip(labels.tolist(), proxy.tolist(), valid.tolist(), strict=True):
                for r in (r for r, there in zip(row, ok, strict=True) if there):
                    taught[label, r] += 1
        assert epoch.taught.tolist() == taught.tolist()
        assert epoch.clips.tolist() == torch.bincount(torch.arange(CLIPS) % CLASSES).tolist()
        seen = torch.cat([valid.any(1) for _, _, valid in counted[4 * number : 4 * number + 4]])
        assert epoch.untaught_share == pytest.approx((~seen).float().mean().item())
    lines = teaching_summary(epochs, ["a", "b", "c"])
    assert len(lines) == PROXIES + 1
    assert "nobody taught" in lines[-1]
    assert ("counting before each step took" in capsys.readouterr().err) == exact
    if exact:  # continued at the end of an epoch, nothing was timed: that is not a share of zero
        assert task.end_epoch()["pre_pass_share"] is None
        assert "counting" not in capsys.readouterr().err


def test_counts_of_a_step_that_is_stopped_are_not_kept() -> None:
    task, videos = student(6, SPDConfig(top_k=2), 4)
    before = {name: tensor.clone() for name, tensor in task.checkpoint().items()}
    task.loss(Batch.of(range(4), videos[:4]), 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.checkpoint().items())
    task.after_step()
    after = task.checkpoint()
    assert after["teaching.counts"][:, PROXIES].sum() == 4
    other, _ = student(6, SPDConfig(top_k=2), 4)
    other.restore(after)
    assert torch.equal(other.checkpoint()["teaching.counts"], after["teaching.counts"])
    assert "teaching.counts" not in other.tensors()


TWO = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_student as t
from pathlib import Path
from safetensors.torch import save_file
from uniego.stages.networks import open_networks
import torch, torch.distributed as dist
from uniego.pipeline.config import ComputeConfig
from uniego.stages.batches import Batch, ClipFailure

def step(rank, exact, micro, empty):
    spd = t.SPDConfig(top_k=2)
    alone, videos = t.student(2, spd)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}-{exact}-{empty}", rank=rank, world_size=2)
    task, _ = t.student(2, spd, micro, exact=exact)
    assert task.needs_whole_step
    gone = [ClipFailure("x", "truncated", "cut")] * 4
    def of(rows):
        if empty and rows[0] == 4:
            return Batch.of((), torch.empty(0), gone)
        return Batch.of(rows, videos[rows[0]:rows[-1] + 1])
    own = [of(range(at, at + micro)) for at in range(4 * rank, 4 * rank + 4, micro)]
    task.open_step(own, 0)
    for batch in own:
        if batch.rows:
            (task.loss(batch, 0)["loss"] * (1 / (2 * len(own)))).backward()
    task.after_step()
    parameters = dict(task.model.named_parameters())
    grads = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in parameters.items()}
    for gradient in grads.values():
        dist.all_reduce(gradient)
    counts = task.checkpoint()["teaching.counts"]
    if not exact and not empty:
        memory = ComputeConfig(device="cpu", memory_gb=(1.0, 1e-9)[rank])
        found = open_networks(folders, "auto", memory)
        assert found.stacked, "the first has room"
    dist.destroy_process_group()
    whole = Batch.of(range(4), videos[:4], gone) if empty else Batch.of(range(8), videos)
    wanted = t.gradients(alone, [whole])
    alone.after_step()
    for name, gradient in wanted.items():
        torch.testing.assert_close(grads[name], gradient, rtol=1e-4, atol=1e-6)
    assert torch.equal(counts, alone.checkpoint()["teaching.counts"])

folders = {}
for key in ("a", "b"):
    folders[key] = Path(sys.argv[2] + key)
    folders[key].mkdir()
    save_file({"norm.weight": torch.ones(1 << 15)}, folders[key] / "model.safetensors")
    (folders[key] / "config.json").write_text('{"geometry": {}, "classes": ["a"]}')
child = os.fork()
for arguments in ((False, 4, False), (True, 2, False), (False, 4, True)):
    step(0 if child else 1, *arguments)
if child == 0:
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0
"""


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    """Gradients and counts; without accumulation, with the pre-pass, and when one of them has no clip."""
    command = [sys.executable, "-c", TWO, str(Path(__file__).parent), str(tmp_path / "meeting")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
