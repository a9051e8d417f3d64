"""Frame numbers: equal to the released code's on 97 recorded videos, and well-behaved on all others."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.errors import UsageError
from uniego.pipeline import sampling, video

ROWS = json.loads((Path(__file__).parents[1] / "data" / "temporal_indices.json").read_text())
FRACTIONS = st.floats(0, 1)
CLIPS = st.tuples(st.integers(1, 5000), st.floats(1, 240))
SHAPES = st.tuples(st.integers(1, 32), st.integers(1, 64))


def _recorded(row: dict[str, Any]) -> list[tuple[float, list[int]]]:
    """(fraction of the room, frames) of every recorded draw and view."""
    train = [(draw["u"], draw["frames"]) for draw in row["train"]]
    one = [(sampling.test_fraction(0, 1), row["test_1view"]["frames"])]
    ten = [(sampling.test_fraction(view["view"], 10), view["frames"]) for view in row["test_10views"]]
    return train + one + ten


@pytest.mark.parametrize("row", ROWS, ids=[f"{r['video']}-{r['num_frames']}x{r['sampling_rate']}" for r in ROWS])
def test_window_equals_the_released_code(row: dict[str, Any]) -> None:
    frames, fps = row["n_frames"], float(Fraction(row["average_rate"]))
    count, rate = row["num_frames"], row["sampling_rate"]
    for fraction, expected in _recorded(row):
        start = sampling.window_start(frames, fps, fraction, count, rate)
        picks = sampling.window_indices(frames, fps, start, count, rate, row["stream_duration"] is not None)
        assert picks.tolist() == expected


def test_recorded_rows_include_streams_without_a_duration() -> None:
    assert len(ROWS) == 97
    assert sum(row["stream_duration"] is None for row in ROWS) == 2
    assert video.window_indices is sampling.window_indices


def _is_sound(picks: sampling.Indices, frames: int, count: int) -> bool:
    inside = bool((picks >= 0).all() and (picks < frames).all())
    return picks.dtype == np.int64 and picks.shape == (count,) and inside and bool((np.diff(picks) >= 0).all())


@given(CLIPS, SHAPES, FRACTIONS, st.booleans())
def test_window_stays_inside(clip: tuple[int, float], shape: tuple[int, int], at: float, duration: bool) -> None:
    start = sampling.window_start(*clip, at, *shape)
    assert _is_sound(sampling.window_indices(*clip, start, *shape, duration), clip[0], shape[0])


@given(CLIPS, SHAPES, FRACTIONS, FRACTIONS)
def test_fit_stays_inside_and_evenly_spread(
    clip: tuple[int, float], shape: tuple[int, int], start: float, phase: float
) -> None:
    count, rate = shape
    picks = sampling.fit_indices(*clip, count=count, rate=rate, start=start, phase=phase)
    assert _is_sound(picks, clip[0], count)
    step = min(clip[0], sampling.window_length(clip[1], count, rate)) / count
    assert (np.abs(np.diff(picks) - step) < 1 + 1e-6).all()


@given(st.integers(1, 5000), st.integers(1, 64))
def test_spread_takes_the_centres(frames: int, count: int) -> None:
    picks = sampling.spread_indices(frames, count)
    assert _is_sound(picks, frames, count)
    assert picks.tolist() == [int(Fraction(2 * i + 1, 2) * frames / count) for i in range(count)]
    assert np.abs(picks + picks[::-1] - (frames - 1)).max() <= 1


@given(st.integers(8, 256), st.floats(0, 0.999), FRACTIONS)
def test_fit_shows_eight_different_frames_where_there_are_eight(frames: int, phase: float, start: float) -> None:
    assert len(set(sampling.fit_indices(frames, 30.0, start=start, phase=phase).tolist())) == 8


def test_fit_in_numbers() -> None:
    assert sampling.fit_indices(8, 30.0).tolist() == list(range(8))
    assert sampling.fit_indices(28, 30.0).tolist() == [1, 5, 8, 12, 15, 19, 22, 26]
    assert sampling.fit_indices(3, 30.0).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert sampling.fit_indices(356, 30.0).tolist() == [66, 98, 130, 162, 194, 226, 258, 290]
    assert sampling.fit_indices(356, 30.0, start=1.0, phase=0.0)[0] == 100
    assert sampling.window_indices(28, 30.0, 0.0).tolist() == [0, *[27] * 7]


@pytest.mark.parametrize("views", [1, 2, 3, 10])
def test_fit_views_cover_a_clip_of_as_many_windows(views: int) -> None:
    frames = views * 256
    seen = set()
    for view in range(views):
        start = sampling.fit_fraction(view, views)
        seen.update((sampling.fit_indices(frames, 30.0, start=start) // 32).tolist())
    assert seen == set(range(8 * views))


@pytest.mark.parametrize("views", [1, 4, 10])
def test_fractions_of_views_are_in_order(views: int) -> None:
    for fraction in (sampling.test_fraction, sampling.fit_fraction):
        values = [fraction(view, views) for view in range(views)]
        assert values == sorted(values)
        assert 0 <= values[0] <= values[-1] <= 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: sampling.window_indices(0, 30.0, 0.0),
        lambda: sampling.window_indices(5, 0.0, 0.0),
        lambda: sampling.window_indices(5, 30.0, -1.0),
        lambda: sampling.window_indices(5, float("nan"), 0.0),
        lambda: sampling.window_start(5, 30.0, 1.1),
        lambda: sampling.fit_indices(5, 30.0, start=-0.1),
        lambda: sampling.fit_indices(5, 30.0, phase=1.5),
        lambda: sampling.fit_indices(5, 30.0, count=0),
        lambda: sampling.spread_indices(0, 8),
        lambda: sampling.test_fraction(3, 3),
        lambda: sampling.fit_fraction(-1, 3),
    ],
)
def test_arguments_out_of_range_are_refused(call: Any) -> None:
    with pytest.raises(UsageError):
        call()
