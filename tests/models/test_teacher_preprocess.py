"""Preprocessing against the Pillow-based processors of transformers (Apache-2.0)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from uniego.errors import UsageError
from uniego.models.teachers.preprocess import aspect_size, crop_squares, for_network

DATA = Path(__file__).parents[1] / "data" / "teachers" / "preprocess.npz"
PROCESSORS = {
    "siglip384": ("siglip", 384, 14),
    "siglip224": ("siglip", 224, 16),
    "dinov2_256_224": ("dinov2", 224, 14),
    "depth_anything_518": ("depth_anything", 518, 14),
    "clip224": ("clip", 224, 16),
    "timesformer_224": ("timesformer", 224, 16),
}
GOLDEN = np.load(DATA)
CASES = sorted(key.removesuffix("/size") for key in GOLDEN.files if key.endswith("/size"))


@pytest.mark.parametrize("case", CASES)
def test_resized_images_equal_pillows(case: str) -> None:
    """The file keeps every 16th row from the 4th and every third column from the second of the reference."""
    image, processor = case.split("/")
    preprocess = for_network(*PROCESSORS[processor])
    frames = torch.from_numpy(GOLDEN[f"{image}/image_uint8"])[None]
    out = preprocess.frames(frames)
    assert out.dtype == torch.uint8
    assert out.shape == (1, 3, *GOLDEN[f"{case}/size"])
    kept = out[0].permute(1, 2, 0)[3::16, 1::3].numpy().astype(int)
    off = np.abs(kept - GOLDEN[f"{case}/resized_uint8"])
    assert off.max() <= 2
    assert (off > 1).mean() < 3e-4
    assert off.mean() < 0.01


@pytest.mark.parametrize("case", CASES)
def test_normalised_images_equal_the_reference(case: str) -> None:
    """The file keeps every third pixel of the central 24 x 24 of the reference."""
    image, processor = case.split("/")
    preprocess = for_network(*PROCESSORS[processor])
    out = preprocess.normalise(preprocess.frames(torch.from_numpy(GOLDEN[f"{image}/image_uint8"])[None]))[0]
    top, left = ((side - 24) // 2 for side in out.shape[1:])
    centre = out[:, top : top + 24, left : left + 24][:, ::3, ::3].numpy()
    grey_level = 1 / 255 / min(preprocess.std)
    assert np.abs(centre - GOLDEN[f"{case}/float32_centre"]).max() <= 1.01 * grey_level


@pytest.mark.parametrize("processor", list(PROCESSORS))
def test_settings_are_those_of_the_processors(processor: str) -> None:
    """Against the settings that the reference processors were run with."""
    settings = json.loads((DATA.parent / "preprocess.json").read_text())["processors"][processor]
    preprocess = for_network(*PROCESSORS[processor])
    assert list(preprocess.mean) == settings["image_mean"]
    assert list(preprocess.std) == settings["image_std"]
    assert preprocess.mode == {2: "bilinear", 3: "bicubic"}[settings["resample"]]
    side = settings["size"].get("shortest_edge", settings["size"].get("height"))
    assert (preprocess.resize, preprocess.size) == (side, settings.get("crop_size", settings["size"]).get("height"))
    assert preprocess.multiple == settings.get("ensure_multiple_of", 1)
    fit = "keep_aspect" if settings.get("keep_aspect_ratio") else "crop" if "crop_size" in settings else "stretch"
    assert preprocess.fit == fit


def test_depth_anything_sizes() -> None:
    for height, width, *expected in GOLDEN["depth_anything_sizes"].tolist():
        assert list(aspect_size(height, width, 518, 14)) == expected


def test_sizes_that_fit_are_left_alone() -> None:
    frames = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for network in ("siglip", "clip", "timesformer"):
        assert torch.equal(for_network(network, 32, 16).frames(frames), frames.permute(0, 3, 1, 2))


def test_frames_of_a_clip_are_treated_alike() -> None:
    frames = torch.randint(0, 256, (3, 40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for network in ("siglip", "clip", "dinov2", "depth_anything", "timesformer"):
        preprocess = for_network(network, 28, 14)
        together = preprocess.frames(frames)
        assert torch.equal(together, torch.cat([preprocess.frames(frame[None]) for frame in frames]))


def test_squares_are_cut_where_they_say() -> None:
    frames = torch.arange(2 * 6 * 8 * 3, dtype=torch.uint8).view(2, 6, 8, 3)
    first, second = crop_squares(frames, [(0, 1, 2), (3, 5, 3)])
    assert torch.equal(first, frames[:1, 0:2, 1:3])
    assert torch.equal(second, frames[1:, 3:6, 5:8])


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8, 8, 3), (0, 8, 8, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"uint8 \[T, H, W, 3\]"):
        for_network("clip", 32, 16).frames(torch.zeros(shape, dtype=torch.uint8))
