"""The training loop: the released code's run reproduced, and continuing bit for bit after any stop."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from uniego.errors import IntegrityError, Stopped, UniegoError
from uniego.models import TimeSformer
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import CheckpointConfig, OptimizerConfig, ProxiesConfig, ScheduleConfig, TrainConfig
from uniego.pipeline.signals import StopFlag
from uniego.stages import checkpoints
from uniego.stages.batches import Batch, ClipFailure
from uniego.stages.loop import Loop, Plan
from uniego.stages.proxy_task import ProxyTask
from uniego.stages.supervised import Supervised
from uniego.stages.targets import Targets

DATA = Path(__file__).parents[1] / "data"
GOLDEN = load_file(DATA / "train_run_stage1.safetensors")
META = json.loads((DATA / "train_run_stage1.json").read_text())
TINY = load_file(DATA / "model_tiny.safetensors")


def clips(count: int) -> list[Clip]:
    path = Path("none.mp4")
    labels = torch.cat([GOLDEN[f"in/{i}/y"] for i in range(5)]).tolist()
    return [Clip(f"c{i}", "train", labels[i], path, None, None, None, None, {}, {}) for i in range(count)]


def golden_config(drop_path: float = 0.0) -> tuple[ProxiesConfig, TimeSformer]:
    config = META["config"]
    train = TrainConfig(
        epochs=3,
        global_batch=8,
        micro_batch=4,
        optimizer=OptimizerConfig(lr=config["BASE_LR"]),
        schedule=ScheduleConfig(steps=[0, 1, 2], factors=[1, 0.1, 0.01]),
    )
    model = TimeSformer(
        image_size=32,
        patch_size=8,
        num_frames=4,
        width=48,
        depth=3,
        heads=4,
        num_classes=7,
        projections={"exo_skl": 256},
        drop_path=drop_path,
    )
    state = {k.removeprefix("state_stage1/"): v for k, v in TINY.items() if k.startswith("state_stage1/")}
    state["head.weight"] = state["head.weight"] * 0.5
    model.load_state_dict(state)
    return ProxiesConfig(train=train), model


def stream(epoch: int, step: int) -> Iterator[Batch]:
    """The golden's micro-batches: the same five each epoch, of which the fifth is an incomplete step."""
    for _ in range(epoch, 3):
        for i in range(2 * step, 4):
            yield Batch.of(range(4 * i, 4 * i + 4), GOLDEN[f"in/{i}/x"])
        step = 0


def make_task(drop_path: float = 0.0) -> ProxyTask:
    config, model = golden_config(drop_path)
    values = torch.cat([GOLDEN[f"in/{i}/exo_skl"] for i in range(5)])
    targets = Targets(values, values.abs().amax(1) > 1e-6)
    base = Supervised(model, clips(20), seed=0, device=torch.device("cpu"))
    return ProxyTask("golden", "exo_skl", config, base, targets)


def make_loop(folder: Path, task: ProxyTask, flag: StopFlag | None = None, every_steps: int | None = None) -> Loop:
    checkpoint = CheckpointConfig(every_steps=every_steps)
    plan = Plan(3, 2, 2, 8, checkpoint, torch.device("cpu"), log_every=1)
    return Loop(task, plan, folder, flag or StopFlag())


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_reproduces_the_released_run(tmp_path: Path) -> None:
    task = make_task()
    make_loop(tmp_path, task).run(stream)
    wanted = {k.removeprefix("state_after_epoch2/"): v for k, v in GOLDEN.items() if "epoch2" in k}
    for name, tensor in task.tensors().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
    logged = lines(tmp_path)
    rows = META["rows"]
    for i, line in enumerate(logged):
        epoch, step = divmod(i, 2)
        pair = [rows[5 * epoch + 2 * step], rows[5 * epoch + 2 * step + 1]]
        assert line["lr"] == pytest.approx(pair[0]["lr"])
        assert line["loss"] == pytest.approx(sum(r["loss"] for r in pair) / 2, rel=1e-4)
        assert line["ce"] == pytest.approx(sum(r["loss_cls"] for r in pair) / 2, rel=1e-4)
        assert line["feature"] == pytest.approx(sum(r["loss_dist_feat"] for r in pair) / 2, rel=1e-4)


def test_the_state_after_the_first_epoch_too(tmp_path: Path) -> None:
    task = make_task()
    loop = make_loop(tmp_path, task)
    loop.plan = Plan(1, 2, 2, 8, CheckpointConfig(), torch.device("cpu"))
    loop.run(stream)
    for key, wanted in GOLDEN.items():
        if "epoch0" in key:
            torch.testing.assert_close(task.tensors()[key.split("/")[1]], wanted, rtol=1e-4, atol=1e-5)


class _StopAt(StopFlag):
    """Asks to stop after a number of looks, as a signal would: a step looks before its micro-batches and at its end."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    @property  # type: ignore[override]
    def requested(self) -> str | None:
        self.left -= 1
        return "SIGTERM" if self.left < 0 else None

    @requested.setter
    def requested(self, value: str | None) -> None:
        pass


def undisturbed(folder: Path, drop_path: float) -> dict[str, Tensor]:
    task = make_task(drop_path)
    make_loop(folder, task).run(stream)
    return task.tensors()


@pytest.mark.parametrize("stop", range(3 * 6))
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path, stop: int, drop_path: float) -> None:
    wanted = undisturbed(tmp_path / "whole", drop_path)
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped, match="run the same command again"):
        make_loop(folder, make_task(drop_path), _StopAt(stop)).run(stream)
    task = make_task(drop_path)
    make_loop(folder, task).run(stream)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in task.tensors().items())
    strip = [{k: v for k, v in line.items() if k not in ("clips_per_s", "data_wait")} for line in lines(folder)]
    whole = [
        {k: v for k, v in line.items() if k not in ("clips_per_s", "data_wait")} for line in lines(tmp_path / "whole")
    ]
    assert strip == whole


def test_a_crash_between_checkpoints_repeats_the_lost_steps(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "whole", 0.5)
    folder = tmp_path / "crashed"

    def broken(epoch: int, step: int) -> Iterator[Batch]:
        for i, batch in enumerate(stream(epoch, step)):
            if i == 7:
                raise OSError("the disk is gone")
            yield batch

    with pytest.raises(OSError, match="disk"):
        make_loop(folder, make_task(0.5), every_steps=2).run(broken)
    task = make_task(0.5)
    make_loop(folder, task).run(stream)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in task.tensors().items())
    assert len(lines(folder)) == 6


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = undisturbed(tmp_path / "whole", 0.0)
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        make_loop(folder, make_task(), _StopAt(3 * 4 + 2), every_steps=1).run(stream)
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1] / "task.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    task = make_task()
    make_loop(folder, task).run(stream)
    assert "damaged" in capsys.readouterr().err
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in task.tensors().items())


def test_only_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        make_loop(tmp_path, make_task(), _StopAt(2)).run(stream)
    for path in (tmp_path / "checkpoints").glob("step-*/state.json"):
        path.write_text("{")
    with pytest.raises(IntegrityError, match="--overwrite"):
        make_loop(tmp_path, make_task()).run(stream)


def test_two_checkpoints_are_kept_and_partial_ones_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / ".step-000000001.partial").mkdir(parents=True)
    make_loop(tmp_path, make_task(), every_steps=1).run(stream)
    assert [p.name for p in sorted(folder.iterdir())] == ["step-000000005", "step-000000006"]
    assert checkpoints.load_newest(folder) is not None


def test_clips_that_fail_are_left_out_and_reported_once(tmp_path: Path) -> None:
    def holes(epoch: int, step: int) -> Iterator[Batch]:
        for batch in stream(epoch, step):
            if 0 in batch.rows:
                failure = ClipFailure("c0", "truncated", "half a file")
                yield Batch.of(batch.rows[1:], batch.videos[1:], [failure])
            else:
                yield batch

    make_loop(tmp_path, make_task()).run(holes)
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert failures == [{"clip_id": "c0", "reason": "truncated", "message": "half a file"}]
    assert [line["clips"] for line in lines(tmp_path)] == [7, 8, 7, 8, 7, 8]


def test_no_clip_at_all_is_an_error(tmp_path: Path) -> None:
    def nothing(epoch: int, step: int) -> Iterator[Batch]:
        for _ in stream(epoch, step):
            yield Batch.of([], torch.empty(0), [ClipFailure("c", "missing", "gone")])

    with pytest.raises(UniegoError, match="no clip of epoch 0"):
        make_loop(tmp_path, make_task()).run(nothing)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def poisoned(epoch: int, step: int) -> Iterator[Batch]:
        for batch in stream(epoch, step):
            yield batch._replace(videos=batch.videos * float("nan"))

    with pytest.raises(UniegoError, match="epoch 0, step 0"):
        make_loop(tmp_path, make_task()).run(poisoned)


def test_fewer_clips_than_a_global_batch_are_refused() -> None:
    with pytest.raises(UniegoError, match="lower global_batch"):
        Plan(1, 0, 1, 8, CheckpointConfig(), torch.device("cpu"))


def test_a_task_that_needs_the_whole_step_sees_it_first(tmp_path: Path) -> None:
    seen: list[object] = []

    class Whole(ProxyTask):
        needs_whole_step = True

        def open_step(self, batches: Sequence[Batch], epoch: int) -> None:
            seen.append((epoch, [batch.rows for batch in batches]))

        def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
            seen.append(batch.rows)
            return super().loss(batch, epoch)

    task = make_task()
    task.__class__ = Whole
    make_loop(tmp_path / "whole", task).run(stream)
    rows = [tuple(range(4 * i, 4 * i + 4)) for i in range(4)]
    assert seen[:3] == [(0, rows[:2]), *rows[:2]]
    assert seen[3:6] == [(0, rows[2:]), *rows[2:]]
    wanted = undisturbed(tmp_path / "plain", 0.0)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in task.tensors().items())
