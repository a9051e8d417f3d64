"""Accuracies, confusion matrix and bootstrap intervals: by hand, against torchmetrics, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional import classification as functional
from uniego.errors import UsageError
from uniego.metrics import accuracies, bootstrap, class_table, confusion, label_ranks


def scores(seed: int, clips: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coarse scores, so that there are ties, and labels."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (clips, classes), generator=g).float(), torch.randint(classes, (clips,), generator=g)


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 9))
def test_ranks_are_places_in_the_stable_order(seed: int, clips: int, classes: int) -> None:
    logits, labels = scores(seed, clips, classes)
    order = logits.argsort(dim=1, descending=True, stable=True)
    wanted = [row.index(label) + 1 for row, label in zip(order.tolist(), labels.tolist(), strict=True)]
    assert label_ranks(logits, labels).tolist() == wanted


@pytest.mark.parametrize("classes", [3, 7])
def test_torchmetrics_agrees(classes: int) -> None:
    g = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(200, classes, generator=g), torch.randint(classes, (200,), generator=g)
    found = accuracies(label_ranks(logits, labels), labels.numpy())
    for value, average, k in ((found.top1, "micro", 1), (found.top5, "micro", min(5, classes)), (found[2], "macro", 1)):
        wanted = functional.multiclass_accuracy(logits, labels, classes, average=average, top_k=k)
        assert value == pytest.approx(100 * float(wanted), abs=1e-4)
    matrix = confusion(labels.numpy(), logits.argmax(1).numpy(), classes)
    np.testing.assert_array_equal(matrix, functional.multiclass_confusion_matrix(logits, labels, classes).numpy())
    recall = functional.multiclass_recall(logits, labels, classes, average=None)
    precision = functional.multiclass_precision(logits, labels, classes, average=None)
    rows = class_table(matrix)
    assert [row.recall for row in rows] == pytest.approx((100 * recall).tolist(), abs=1e-4)
    assert [row.precision for row in rows] == pytest.approx((100 * precision).tolist(), abs=1e-4)


def test_fewer_than_five_classes_and_absent_ones() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [0.0, 5.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    found = accuracies(label_ranks(logits, labels), labels.numpy())
    assert found == pytest.approx((200 / 3, 100.0, 75.0))
    rows = class_table(confusion(labels.numpy(), logits.argmax(1).numpy(), 3))
    assert rows == [(2, 1, 50.0, 100.0), (1, 1, 100.0, 100.0), (0, 1, None, 0.0)]


def test_counts_stand_for_repeated_clips() -> None:
    logits, labels = scores(3, 12, 6)
    counts = np.array([0, 3, 1, 0, 2, 1, 1, 0, 0, 2, 1, 1])
    again = np.repeat(np.arange(12), counts)
    ranks = label_ranks(logits, labels)
    assert accuracies(ranks, labels.numpy(), counts) == pytest.approx(accuracies(ranks[again], labels.numpy()[again]))


def test_the_interval_of_a_share_is_the_binomial_one_and_repeats() -> None:
    hits = np.arange(400) < 300
    (low, high), everything = bootstrap(lambda n: [n @ hits / 400, n.sum() / 400], 400, seed=5)
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.006)
    assert everything.tolist() == [1.0, 1.0]
    again, other = (bootstrap(lambda n: [n @ hits / 400], 400, seed=s)[0].tolist() for s in (5, 6))
    assert again == [low, high]
    assert other != again
    with pytest.raises(UsageError, match="0 items"):
        bootstrap(lambda n: n, 0)
