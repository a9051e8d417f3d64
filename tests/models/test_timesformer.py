"""TimeSformer against stored outputs of the reference implementation, and its behaviour at the edges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from uniego.errors import UniegoError
from uniego.models import TimeSformer, timesformer

DATA = Path(__file__).parents[1] / "data"
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "width": 48,
    "depth": 3,
    "heads": 4,
    "num_classes": 7,
}
PROJECTIONS = {
    "stage1": {"exo_skl": 256},
    "gen2": {"student": 48},
    "multi": {"exo_skl": 256, "exo_skego": 512},
    "basic": {},
}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(DATA / "model_tiny.safetensors")


def golden_model(golden: dict[str, Tensor], kind: str) -> TimeSformer:
    state = {name.removeprefix("state_stage1/"): t for name, t in golden.items() if "state_stage1/" in name}
    if kind != "stage1":
        state = {name: t for name, t in state.items() if not name.startswith("proj_layer")}
        prefix = f"state_{kind}/"
        state |= {name.removeprefix(prefix): t for name, t in golden.items() if name.startswith(prefix)}
    model = TimeSformer(**TINY, projections=PROJECTIONS[kind])
    model.load_state_dict(state)
    return model.eval()


def lively(model: TimeSformer, seed: int = 5) -> TimeSformer:
    """Every parameter random, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def video(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize(("dtype", "name", "tolerance"), [(torch.float32, "f32", 1e-4), (torch.float64, "f64", 1e-8)])
def test_outputs_equal_the_reference(
    golden: dict[str, Tensor], kind: str, dtype: torch.dtype, name: str, tolerance: float
) -> None:
    model = golden_model(golden, kind).to(dtype)
    frames = golden["input"].to(dtype)
    with torch.no_grad():
        out = model(frames)
        cls, patches = model.encode(frames)
    wanted = {key.removeprefix(f"{kind}/{name}/"): t for key, t in golden.items() if key.startswith(f"{kind}/{name}/")}
    tokens = model.norm(torch.cat((cls[:, None], patches.flatten(1, 2)), dim=1))
    got = {"logits": out.logits, "cls": out.token, "all_tokens": tokens}
    if kind == "multi":
        got |= {f"proj.{teacher}": value for teacher, value in out.projected.items()}
    elif kind == "basic":
        got["token"] = out.token
        assert out.projected == {}
    else:
        got["token"] = out.projected[next(iter(PROJECTIONS[kind]))]
    assert got.keys() == wanted.keys() - {"objective"}
    for key, value in got.items():
        torch.testing.assert_close(value, wanted[key], atol=tolerance, rtol=tolerance, check_dtype=False)


@pytest.mark.parametrize("kind", ["stage1", "gen2"])
def test_gradients_equal_the_reference(golden: dict[str, Tensor], kind: str) -> None:
    model = golden_model(golden, kind)
    out = model(golden["input"])
    (projected,) = out.projected.values()
    objective = out.logits.square().sum() + projected.square().sum()
    objective.backward()
    torch.testing.assert_close(objective.detach(), golden[f"{kind}/f32/objective"][0], rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        wanted = golden[f"{kind}/grad_f32/{name}"]
        assert parameter.grad is not None
        assert (parameter.grad - wanted).abs().max() <= 1e-3 * wanted.abs().max(), name


def test_construction_leaves_global_randomness_alone_and_follows_the_seed() -> None:
    state = torch.get_rng_state()
    first, same, other = (TimeSformer(**TINY, projections={"a": 5}, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert not torch.equal(first.head.weight, other.head.weight)
    assert torch.equal(first.head.weight, TimeSformer(**TINY, projections={"b": 9}, seed=1).head.weight)


def test_a_fresh_network_averages_frames() -> None:
    model = TimeSformer(**TINY).eval()
    for name, tensor in model.state_dict().items():
        if "temporal_fc" in name or name.endswith("bias") or name == "time_embed":
            assert not tensor.any(), name
        elif "norm" in name:
            assert bool((tensor == 1).all()), name
        else:
            assert 0.01 < tensor.std() < 0.03, name
    frame = video(2, 3, 1, 32, 32).float()
    with torch.no_grad():
        torch.testing.assert_close(model(frame.expand(-1, -1, 5, -1, -1)).token, model(frame).token)


def test_full_size_names() -> None:
    with_projection = TimeSformer(projections={"exo_skl": 256}).state_dict()
    assert len(with_projection) == 251
    assert with_projection["proj_layer.weight"].shape == (256, 768)
    assert with_projection["pos_embed"].shape == (1, 197, 768)
    assert sum(tensor.numel() for tensor in with_projection.values()) == 121_464_844


def test_geometry_survives_json_and_rebuilds(tmp_path: Path) -> None:
    model = lively(TimeSformer(**TINY, projections=PROJECTIONS["multi"], drop_path=0.3)).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    rebuilt = TimeSformer(**json.loads(json.dumps(model.geometry))).eval()
    rebuilt.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = video(1, 3, 4, 32, 32).float()
    assert torch.equal(model(x).projected["exo_skego"], rebuilt(x).projected["exo_skego"])
    assert rebuilt.drop_rates == pytest.approx((0.0, 0.15, 0.3))
    model.geometry["projections"].clear()
    assert set(model.geometry["projections"]) == {"exo_skl", "exo_skego"}


def test_very_many_tubes_are_attended_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TimeSformer(**TINY)).double().eval()
    x = video(2, 3, 4, 32, 32)
    whole = model(x).logits
    monkeypatch.setattr(timesformer, "MAX_ATTENTION_BATCH", 5)
    torch.testing.assert_close(model(x).logits, whole, atol=1e-12, rtol=1e-12)


def test_recomputing_changes_no_bit() -> None:
    found = []
    for recompute in (False, True):
        model = lively(TimeSformer(**TINY, drop_path=0.5, seed=3)).train()
        model.recompute = recompute
        model(video(2, 3, 4, 32, 32).float()).logits.square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None
        assert torch.equal(gradient, found[1][name]), name


def test_autocast_and_functional_call() -> None:
    model = lively(TimeSformer(**TINY, drop_path=0.5)).train()
    x = video(2, 3, 4, 32, 32).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    out.logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    doubled = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    called = torch.func.functional_call(model.eval(), doubled, (x,))
    model.load_state_dict(doubled)
    assert torch.equal(called.logits, model(x).logits)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.zeros(3, 4, 32, 32), r"\[B, 3, T, H, W\]"),
        (torch.zeros(1, 4, 3, 32, 32), r"\[1, 4, 3, 32, 32\]"),
        (torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8), "floating point"),
        (torch.zeros(1, 3, 0, 32, 32), "at least one"),
        (torch.zeros(0, 3, 4, 32, 32), "at least one"),
        (torch.zeros(1, 3, 4, 7, 32), "patch of 8 x 8"),
    ],
)
def test_refuses_bad_video(bad: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        TimeSformer(**TINY)(bad)
    assert isinstance(caught.value, UniegoError)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 5}, "multiple of heads"),
        ({"depth": 0}, "depth"),
        ({"num_frames": 4.0}, "num_frames"),
        ({"image_size": 4}, "hold a patch"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"projections": {"exo_skl": 0}}, "exo_skl"),
        ({"projections": {"a.b": 4}}, "a.b"),
        ({"projections": {"keys": 4, "b": 4}}, "keys"),
    ],
)
def test_refuses_bad_geometry(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TimeSformer(**{**TINY, **change})
