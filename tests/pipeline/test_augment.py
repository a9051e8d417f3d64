"""Views of a clip: equal to the released code's on recorded frames, and to a full resize followed by a crop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from uniego.errors import UsageError
from uniego.pipeline import augment
from uniego.pipeline.augment import TrainDraw, draw_train, train_clip

DATA = Path(__file__).parents[1] / "data"
CASES = [
    case
    for case in json.loads((DATA / "spatial.json").read_text())
    if "draws" in case or case["scale"] == case["crop"] or case["spatial_idx"] == 1
]
"""Without the left and right crops of a short side larger than the crop, which no protocol of this project uses."""
ARRAYS = np.load(DATA / "spatial.npz")
HALF = TrainDraw(0.5, 0.5, 0.5, False)


def _noise(*shape: int) -> augment.Frames:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _draw(case: dict[str, Any]) -> TrainDraw:
    """The fractions that stand for the recorded draws of the released code."""
    (limits, short), (_, flip) = case["draws"]["uniform"]
    (y_range, y), (x_range, x) = case["draws"]["randint"]
    scale = (short - limits[0]) / (limits[1] - limits[0])
    return TrainDraw(scale, (y + 0.5) / y_range[1], (x + 0.5) / x_range[1], flip < 0.5)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_equals_the_released_code(case: dict[str, Any]) -> None:
    frames = ARRAYS[case["name"].split("/")[0] + "/frames_uint8"]
    if "draws" in case:
        sides = (case["min_scale"], case["max_scale"])
        view = train_clip(frames, _draw(case), short_side=sides, size=case["crop"])
    elif case["scale"] == case["crop"]:
        view = augment.test_clip(frames, crop=case["spatial_idx"], crops=3, size=case["crop"])
    else:
        view = augment.test_clip(frames, crop=None, size=case["crop"], single_short_side=case["scale"])
    torch.testing.assert_close(view, torch.from_numpy(ARRAYS[case["name"]]), atol=1e-5, rtol=0)


def _whole(frames: augment.Frames, short: int) -> torch.Tensor:
    """Normalised and resized in full, float32 [3, T, h, w]."""
    height, width = frames.shape[1:3]
    size = (int(height / width * short), short) if width < height else (short, int(width / height * short))
    pixels = (torch.from_numpy(frames).float() / 255 - 0.45) / 0.225
    return F.interpolate(pixels.permute(3, 0, 1, 2), size=size, mode="bilinear")


FRACTION = st.floats(0, 1, exclude_max=True)
DRAWS = st.builds(TrainDraw, scale=FRACTION, y=FRACTION, x=FRACTION, flip=st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), DRAWS)
def test_equals_full_resize_and_crop(height: int, width: int, draw: TrainDraw) -> None:
    frames = _noise(2, height, width)
    view = train_clip(frames, draw, short_side=(32, 48), size=32)
    whole = _whole(frames, round(32 + draw.scale * 16))
    top, left = int(draw.y * (whole.shape[2] - 32)), int(draw.x * (whole.shape[3] - 32))
    crop = whole[:, :, top : top + 32, left : left + 32]
    assert view.dtype == torch.float32
    torch.testing.assert_close(view, crop.flip(3) if draw.flip else crop, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(720, 1280), (1280, 720), (1080, 1920), (37, 1000), (256, 256)])
def test_equals_full_resize_and_crop_at_full_size(shape: tuple[int, int]) -> None:
    frames = _noise(1, *shape)
    view = augment.test_clip(frames, crop=0)
    whole = _whole(frames, 256)
    top, left = -(-(whole.shape[2] - 224) // 2), -(-(whole.shape[3] - 224) // 2)
    torch.testing.assert_close(view, whole[:, :, top : top + 224, left : left + 224], atol=1e-5, rtol=0)


@pytest.mark.parametrize("portrait", [False, True])
def test_three_crops_lie_along_the_long_side(portrait: bool) -> None:
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[None, None, :, None], (2, 32, 96, 3))
    frames = ramp.transpose(0, 2, 1, 3) if portrait else ramp
    views = [augment.test_clip(frames, crop=crop, crops=3, size=32) for crop in range(3)]
    along = [view[0, 0, :, 5] if portrait else view[0, 0, 5] for view in views]
    first = [round(float(line[0]) * 0.225 * 255 + 0.45 * 255) for line in along]
    assert first == [0, 32, 64]


def test_draws_come_from_the_stream_and_nothing_else() -> None:
    state = torch.random.get_rng_state()
    one, two = (draw_train(np.random.default_rng(7), 0.5) for _ in range(2))
    assert one == two
    flips = [draw_train(np.random.default_rng(seed), 0.25).flip for seed in range(400)]
    assert 60 < sum(flips) < 140
    assert not draw_train(np.random.default_rng(1), 0.0).flip
    assert draw_train(np.random.default_rng(1), 1.0).flip
    assert torch.equal(state, torch.random.get_rng_state())


def test_frames_are_left_as_they_are_and_treated_alike() -> None:
    frames = np.repeat(_noise(1, 40, 60), 3, axis=0)
    before = frames.copy()
    view = train_clip(frames[:, ::-1], HALF, short_side=(32, 40), size=32)
    assert np.array_equal(frames, before)
    assert view.is_contiguous()
    assert torch.equal(view[:, 0], view[:, 2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: train_clip(_noise(2, 30, 30).astype(np.float32), HALF),  # type: ignore[arg-type]
        lambda: train_clip(_noise(2, 30, 30)[0], HALF),
        lambda: train_clip(_noise(0, 30, 30), HALF),
        lambda: train_clip(_noise(2, 30, 30), HALF, short_side=(100, 100)),
        lambda: augment.test_clip(_noise(2, 30, 30), crop=None, crops=3),
        lambda: augment.test_clip(_noise(2, 30, 30), crop=3, crops=3),
        lambda: augment.test_clip(_noise(2, 30, 30), crop=1),
        lambda: augment.test_clip(_noise(2, 30, 30), crop=0, crops=2),
        lambda: augment.test_clip(_noise(2, 30, 30), single_short_side=100),
        lambda: augment.test_clip(_noise(2, 30, 30), std=0.0),
        lambda: TrainDraw(1.0, 0.0, 0.0, False),
    ],
)
def test_arguments_out_of_range_are_refused(call: Any) -> None:
    with pytest.raises(UsageError):
        call()
