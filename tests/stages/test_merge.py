"""The learned merge against the released code's soups, their gradients and their Adam steps."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from uniego.errors import MissingInputError, WeightsError
from uniego.models import TimeSformer
from uniego.pipeline.config import ComputeConfig, MergeMemory
from uniego.stages.batches import Batch
from uniego.stages.merge import MergeTask, Soup
from uniego.stages.merge_weights import draw_weights
from uniego.stages.networks import Networks, WeightsFile, open_networks

DATA = Path(__file__).parents[1] / "data"
GOLDEN = load_file(DATA / "merge.safetensors")
META = json.loads((DATA / "merge.json").read_text())
CPU = torch.device("cpu")
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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The three networks as safetensors files. Read only."""
    paths = [tmp_path_factory.mktemp("states") / "model.safetensors" for _ in range(3)]
    for path, state in zip(paths, states(), strict=True):
        save_file(state, path)
    return paths


@pytest.fixture(params=["device", "host"])
def soup(request: pytest.FixtureRequest, files: list[Path]) -> Callable[..., Soup]:
    """`soup(level, weights=None)` of the golden networks, stacked or in their files."""

    def make(level: str, weights: Tensor | None = None) -> Soup:
        order = [key.removeprefix("model.") for key in META["levels"][level]["merge_keys"]]
        made = Soup(networks(files, stacked=request.param == "device"), level, order=order)
        if weights is not None:
            made.weights.copy_(weights.view_as(made.weights))
        return made

    return make


def networks(files: list[Path], *, stacked: bool) -> Networks:
    return Networks.of_files(("a", "b", "c"), [WeightsFile(path) for path in files], CPU, stacked=stacked)


def combined(soup: Soup) -> dict[str, Tensor]:
    out = {name: torch.full(soup.networks.specs[name].shape, torch.nan) for name in soup.names}
    soup.combine(out)
    return out


@pytest.mark.parametrize("level", [*LEARNED, "average"])
def test_equals_the_released_soup(level: str, soup: Callable[..., Soup]) -> None:
    made = soup(level, GOLDEN.get(f"{level}/w"))
    if level != "average":
        torch.testing.assert_close(made.alphas().flatten(), GOLDEN[f"{level}/softmax_w"].flatten())
    merged = combined(made)
    assert list(merged) == [key.removeprefix("model.") for key in META["levels"][level]["merge_keys"]]
    for key, value in GOLDEN.items():
        if key.startswith(f"{level}/export/model."):
            torch.testing.assert_close(merged[key.removeprefix(f"{level}/export/model.")], value, rtol=1e-5, atol=1e-6)
    model = network()
    model.load_state_dict(merged)
    out = model(GOLDEN["input"])
    torch.testing.assert_close(out.logits, GOLDEN[f"{level}/logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.token, GOLDEN[f"{level}/cls"], rtol=1e-4, atol=1e-4)
    loss = F.cross_entropy(out.logits, GOLDEN["labels"])
    torch.testing.assert_close(loss, GOLDEN[f"{level}/loss"].squeeze(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", LEARNED)
def test_weights_start_at_the_average(level: str, soup: Callable[..., Soup]) -> None:
    model = network()
    model.load_state_dict(combined(soup(level)))
    torch.testing.assert_close(model(GOLDEN["input"]).logits, GOLDEN[f"{level}/w_zero_logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", LEARNED)
def test_gradient_by_inner_products(level: str, soup: Callable[..., Soup]) -> None:
    made = soup(level, GOLDEN[f"{level}/w"])
    task = MergeTask(made, network(), GOLDEN["labels"], lr=0.01)
    batch = Batch.of(range(3), GOLDEN["input"])
    task.loss(batch, 0)["loss"].backward()  # type: ignore[no-untyped-call]
    task.before_step()
    assert made.weights.grad is not None
    wanted = GOLDEN[f"{level}/grad_w"].view_as(made.weights)
    torch.testing.assert_close(made.weights.grad, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


@pytest.mark.parametrize("level", ["model", "layer"])
def test_six_adam_steps(level: str, soup: Callable[..., Soup]) -> None:
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


@pytest.mark.parametrize("level", [*LEARNED, "average"])
def test_both_places_give_the_same_bits(level: str, files: list[Path]) -> None:
    """Merged parameters and gradients of the weights, tensors of odd sizes included."""
    stacked, streamed = (Soup(networks(files, stacked=stacked), level) for stacked in (True, False))
    assert sorted(stacked.names) == sorted(streamed.names)
    assert (stacked.networks.stacked, streamed.networks.stacked) == (True, False)
    weights = torch.randn(stacked.weights.shape, generator=torch.Generator().manual_seed(1))
    for made in (stacked, streamed):
        made.weights.copy_(weights)
    one, other = combined(stacked), combined(streamed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(stacked.weight_gradient(one), streamed.weight_gradient(one))


@pytest.mark.parametrize("block", [1000, 1 << 14, 1 << 20])
def test_blocks_change_no_result(block: int, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged parameters to the bit, inner products to rounding, wherever the networks lie."""
    name, shares = "blocks.1.mlp.fc1.weight", torch.tensor([0.2, 0.5, 0.3])
    whole = torch.stack([state[name].double() for state in states()])
    wanted = networks(files, stacked=True)
    one, other = torch.empty(192, 48), torch.empty(192, 48)
    wanted.blend(name, shares, one)
    torch.testing.assert_close(one.double(), torch.tensordot(shares.double(), whole, 1))
    monkeypatch.setattr("uniego.stages.networks._ALONE", block)
    for stacked in (True, False):
        found = networks(files, stacked=stacked)
        found.blend(name, shares, other)
        assert torch.equal(one, other)
        inner = (whole * one.double()).sum((1, 2))
        torch.testing.assert_close(found.inner(name, one).double(), inner, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("memory", ["auto", "device", "host"])
def test_one_network_is_the_identity(memory: MergeMemory, tmp_path: Path) -> None:
    found, state = folders(tmp_path, 1), states()[0]
    state["norm.bias"][0] = state["head.weight"][0, 0] = -0.0
    save_file(state, found["proxy0"] / "model.safetensors")
    made = Soup(open_networks(found, memory, ComputeConfig(device="cpu")), "model")
    made.weights.fill_(3.7)
    assert all(merged.numpy().tobytes() == state[name].numpy().tobytes() for name, merged in combined(made).items())


def folders(path: Path, count: int, **changes: object) -> dict[str, Path]:
    """Trained networks as the merge finds them; `changes` are of the last one's config."""
    found = {}
    for number, state in enumerate(states()[:count]):
        folder = path / f"proxy{number}"
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        config = {"geometry": {"heads": 4, "projections": {"x": number}}, "classes": ["open", "close", "pour"]}
        (folder / "config.json").write_text(json.dumps(config | (changes if number == count - 1 else {})))
        found[f"proxy{number}"] = folder
    return found


def test_where_the_proxies_lie_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = folders(tmp_path, 3)
    small = ComputeConfig(device="cpu", memory_gb=1e-6)
    choices: list[tuple[MergeMemory, ComputeConfig, bool]] = [
        ("auto", ComputeConfig(device="cpu"), True),
        ("auto", small, False),
        ("device", small, True),
        ("host", ComputeConfig(device="cpu"), False),
    ]
    for memory, compute, stacked in choices:
        assert open_networks(found, memory, compute).stacked == stacked
        where = "stacked on cpu" if stacked else "read from their files as they are needed"
        assert f"merge: 3 networks of 524.6 kB, {where}" in capsys.readouterr().err


def test_proxies_of_other_classes_or_sizes_are_refused_by_their_headers(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    unlike = folders(tmp_path / "a", 3, classes=["open", "shut", "pour", "stir"])
    with pytest.raises(
        WeightsError, match=r"proxy0 and proxy2 .* 2 places: class 1: close against shut; class 3: absent"
    ):
        open_networks(unlike, "auto", ComputeConfig(device="cpu"))
    (tmp_path / "b").mkdir()
    unlike = folders(tmp_path / "b", 2, geometry={"heads": 8, "projections": {}})
    with pytest.raises(WeightsError, match=r"heads: 4 against 8.*train-proxies --teacher KEY --overwrite"):
        open_networks(unlike, "host", ComputeConfig(device="cpu"))
    half = {name: tensor.half() for name, tensor in states()[1].items()}
    (tmp_path / "c").mkdir()
    unlike = folders(tmp_path / "c", 2)
    save_file(half, unlike["proxy1"] / "model.safetensors")
    with pytest.raises(WeightsError, match=r"proj.bias: \(48,\) float32 against \(48,\) float16.*, …"):
        open_networks(unlike, "device", ComputeConfig(device="cpu"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file"),
        (b"\x08" + bytes(7) + b"[1, 2]  ", "no safetensors file"),
        (b"\xff" * 64, "no safe"),
    ],
)
def test_files_that_are_none_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        WeightsFile(path)


def test_a_file_cut_short_is_refused(tmp_path: Path, files: list[Path]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(files[0].read_bytes()[:-1])
    with pytest.raises(WeightsError, match="its header names more"):
        WeightsFile(path)
    path.write_bytes(files[0].read_bytes())
    whole = WeightsFile(path)
    path.write_bytes(files[0].read_bytes()[:4000])
    with pytest.raises(WeightsError, match="became shorter"):
        whole.read("head.weight", torch.empty(7, 48))


def test_files_that_are_gone_are_told(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).mkdir()
        found = folders(tmp_path / name, 2)
        (found["proxy1"] / name).unlink()
        with pytest.raises(MissingInputError, match=rf"proxy1/{name}.*train-proxies"):
            open_networks(found, "auto", ComputeConfig(device="cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("block", [100, 1 << 18])
def test_a_gpu_reads_from_files_what_it_would_hold(
    block: int, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small blocks travel from two buffers in turn: none is overwritten before it has arrived."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    monkeypatch.setattr("uniego.stages.networks._GPU_READ", block)
    gpu, keys = torch.device("cuda"), ("a", "b", "c")
    places = (Networks.of_files(keys, [WeightsFile(f) for f in files], gpu, stacked=s) for s in (True, False))
    one, other = (Soup(part, "layer") for part in places)
    outs = [{n: torch.empty(one.networks.specs[n].shape, device=gpu) for n in one.names} for _ in range(2)]
    for made, out in zip((one, other), outs, strict=True):
        torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]  # the host runs ahead
        made.combine(out)
    for name in one.names:
        torch.testing.assert_close(outs[0][name], outs[1][name])
    torch.testing.assert_close(one.weight_gradient(outs[0]), other.weight_gradient(outs[0]))


def test_weights_sum_to_one_at_every_level(soup: Callable[..., Soup]) -> None:
    for level in LEARNED:
        made = soup(level, GOLDEN[f"{level}/w"])
        torch.testing.assert_close(made.alphas().sum(1), torch.ones(len(made.group_names)))
        torch.testing.assert_close(made.shares().sum(), torch.tensor(1.0))


def test_shares_count_groups_by_their_size() -> None:
    states = [{"a.weight": torch.zeros(3), "b.weight": torch.zeros(1)} for _ in range(2)]
    made = Soup(Networks.of_states(states, CPU), "layer")
    made.weights.copy_(torch.tensor([[0.0, 100.0], [100.0, 0.0]]))
    torch.testing.assert_close(made.shares(), torch.tensor([0.25, 0.75]))


def test_unlike_networks_are_refused_with_the_first_differences(soup: Callable[..., Soup]) -> None:
    one, two, _ = states()
    two["head.weight"] = torch.zeros(9, 48)
    with pytest.raises(WeightsError, match=r"head\.weight.*\(7, 48\).*\(9, 48\)"):
        Networks.of_states([one, two], CPU)
    del two["head.weight"]
    with pytest.raises(WeightsError, match=r"head\.weight.*absent"):
        Networks.of_states([one, two], CPU)
    bigger = TimeSformer(image_size=32, patch_size=8, num_frames=4, width=48, depth=4, heads=4, num_classes=7)
    with pytest.raises(WeightsError, match=r"blocks\.3"):
        MergeTask(soup("model"), bigger, GOLDEN["labels"], lr=0.01)


def test_the_picture_holds_history_and_end(tmp_path: Path) -> None:
    lines = [{"epoch": 0, "step": s, "loss": 1.0, "alpha.a": 0.5 + s / 10, "alpha.b": 0.5 - s / 10} for s in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_weights(tmp_path, ["a", "b"], {"blocks.0": [0.7, 0.3], "head <&>": [0.6, 0.4]})
    picture = ElementTree.parse(tmp_path / "weights.svg")
    name = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f".//{name}polyline")) == 2
    assert [t.text for t in picture.findall(f".//{name}title")] == ["a 0.7000", "b 0.3000", "a 0.6000", "b 0.4000"]
    (tmp_path / "metrics.jsonl").unlink()
    draw_weights(tmp_path, ["a", "b"], {"model": [0.5, 0.5]})
    assert "polyline" not in (tmp_path / "weights.svg").read_text()
