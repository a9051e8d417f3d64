"""Segmentation metrics: reference values, where references crash, and what must always hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.errors import UsageError
from uniego.metrics import SegmentationScores
from uniego.metrics.segmentation import Label, edit_score, f1_score, match, runs

GOLDEN = [  # truth | prediction -> accuracy, edit, (tp, fp, fn) at 10, 25 and 50 alike; by the MS-TCN evaluation
    ("5*background 10*a 10*b 5*c", "5*background 10*a 10*b 5*c", 100.0, 100.0, (3, 0, 0)),
    ("10*a 10*b 10*c", "13*a 9*b 8*c", 83.3333, 100.0, (3, 0, 0)),
    ("20*a 10*b", "5*a 2*b 13*a 10*b", 93.3333, 50.0, (2, 2, 0)),
    ("10*a 10*b 10*a", "10*b 10*a 10*b", 0.0, 33.3333, (0, 3, 3)),
    ("10*a 10*b 10*c", "15*a 15*c", 66.6667, 66.6667, (2, 0, 1)),
    ("5*background 10*a 5*background", "20*a", 50.0, 100.0, (1, 0, 0)),
    ("10*a", "10*background", 0.0, 0.0, (0, 0, 1)),
    ("10*a 1*b", "10*a 1*b", 100.0, 100.0, (2, 0, 0)),
]


def frames(text: str) -> list[Label]:
    """ "2*a 1*b" as a, a, b."""
    parts = [part.split("*") for part in text.split()]
    return [name for count, name in parts for _ in range(int(count))]


@pytest.mark.parametrize(("truth", "predicted", "accuracy", "edit", "counts"), GOLDEN)
def test_reference_values(
    truth: str, predicted: str, accuracy: float, edit: float, counts: tuple[int, int, int]
) -> None:
    scores = SegmentationScores(frozenset({"background"}))
    scores.add(frames(predicted), frames(truth))
    found = scores.metrics()
    assert found["mof"] == pytest.approx(accuracy, abs=1e-4)
    assert found["edit"] == pytest.approx(edit, abs=1e-4)
    assert {tuple(n) for n in scores.counts.values()} == {counts}
    assert found["f1@50"] == pytest.approx(f1_score(*counts))


def test_sums_over_videos_and_means_of_edits() -> None:
    scores = SegmentationScores(frozenset({"background"}))
    for truth, predicted, *_ in GOLDEN:
        scores.add(frames(predicted), frames(truth))
    found = scores.metrics()
    assert found["f1@25"] == pytest.approx(200 * 13 / (26 + 5 + 5))
    assert found["edit"] == pytest.approx((100 + 100 + 50 + 100 / 3 + 200 / 3 + 100 + 0 + 100) / 8)
    assert found["mof"] == pytest.approx(100 * (30 + 25 + 28 + 0 + 20 + 10 + 0 + 11) / 191)


def test_where_references_crash() -> None:
    """No segments on either side, a prediction where the truth has none, an overlap of exactly the threshold."""
    scores = SegmentationScores(frozenset({"background"}))
    assert scores.metrics()["f1@10"] is None
    scores.add(["background"] * 3, ["background"] * 3)
    assert (scores.metrics()["edit"], scores.metrics()["f1@10"]) == (100.0, 0.0)
    scores.add(["a"] * 3, ["background"] * 3)
    assert scores.counts[0.1] == [0, 1, 0]
    assert match(runs(frames("5*a 5*b")), runs(frames("10*a")), 0.5) == (1, 1, 0)
    with pytest.raises(UsageError, match="2 predicted frames for 3"):
        scores.add(["a"] * 2, ["a"] * 3)


sequences = st.lists(st.sampled_from("abz"), min_size=1, max_size=30)


@given(sequences, sequences, st.sampled_from([0.1, 0.25, 0.5]))
def test_properties(first: list[str], second: list[str], overlap: float) -> None:
    a, b = runs(first, "z"), runs(second, "z")
    assert [label for run in runs(first) for label in [run.label] * (run.end - run.start)] == first
    right, wrong, missed = match(a, b, overlap)
    assert (right + wrong, right + missed) == (len(a), len(b))
    assert match(a, a, overlap) == (len(a), 0, 0)
    assert edit_score(a, b) == pytest.approx(edit_score(b, a))
    assert edit_score(a, a) == 100.0
    assert 0 <= edit_score(a, b) <= 100
    doubled = [label for label in first for _ in range(2)], [label for label in second for _ in range(2)]
    assert match(*(runs(labels, "z") for labels in doubled), overlap) == (right, wrong, missed)  # frame rate
