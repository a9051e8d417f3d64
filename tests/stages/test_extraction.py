"""Inside one extraction process: the same bytes whatever decodes and whoever else extracts; what fails, and how."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import FeatureStore, RowStatus
from uniego.models.teachers import build_teacher, tiny_teachers
from uniego.models.teachers.preprocess import resize, resize_float
from uniego.pipeline import files
from uniego.pipeline.rundir import Run
from uniego.pipeline.signals import StopFlag
from uniego.stages.inputs import prepare_clip
from uniego.stages.precision import settle_precision
from uniego.stages.shard_work import ShardWork
from uniego.stages.targets import open_index, open_teacher, row_keys

OWN = '''
import torch
from torch import nn
from uniego.models.teachers import Teacher


class Colour(Teacher):
    """Mean colours of each frame; memory for `most` clips a pass."""

    reads = "frames"

    def __init__(self, key, view, config):
        self.most, self.offset = config.options.get("most", 99), config.options.get("offset", 0.0)
        super().__init__(key, view, config, nn.Linear(3, 3), dim=3)
        torch.nn.init.eye_(self.module.weight)
        torch.nn.init.constant_(self.module.bias, self.offset)

    def prepare(self, frames=None, pose=None):
        return self._checked_frames(frames).permute(0, 3, 1, 2).contiguous()

    def forward(self, batch):
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.module(batch.float().mean(dim=(3, 4)) / 255) - self.offset

    def preprocessing(self):
        return {}

    def architecture(self):
        return {}
'''


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def extracted(run: Path, *arguments: object) -> str:
    result = call("extract-teachers", "--run", run, *arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def chunks(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run / "cache")): p.read_bytes() for p in sorted((run / "cache").rglob("c.*"))}


def make_run(folder: Path, table: Path, teachers: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Path:
    """A run of the tiny preset, in shards of four; `teachers`: instead of the preset's."""
    assert call("init", folder, "--data", table, "--preset", "tiny").exit_code == 0
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["cache"]["rows_per_shard"] = 4
    raw["teachers"] = teachers or raw["teachers"]
    for name, fields in sections.items():
        raw[name] |= fields
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def own(**options: object) -> dict[str, Any]:
    return {"ego_own": {"network": "colour_teacher:Colour", "frames": 4, "options": options}}


@pytest.fixture
def colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "colour_teacher.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.delitem(sys.modules, "colour_teacher", raising=False)


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """All nine teachers, decoded in the main process. Read only."""
    run = make_run(tmp_path_factory.mktemp("inline") / "run", clip_table)
    extracted(run)
    return run


@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_do_not_depend_on_who_decodes(workers: int, inline: Path, tmp_path: Path, clip_table: Path) -> None:
    run = make_run(tmp_path / "run", clip_table, compute={"workers": workers})
    extracted(run)
    assert chunks(run) == chunks(inline)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_one_teacher_alone_and_all_nine_give_equal_bytes(
    backend: str, inline: Path, tmp_path: Path, clip_table: Path
) -> None:
    together = inline
    if backend != "pyav":
        together = make_run(tmp_path / "together", clip_table, video={"backend": backend}, compute={"workers": 1})
        extracted(together)
    alone = make_run(tmp_path / "alone", clip_table, video={"backend": backend})
    for key in tiny_teachers():
        extracted(alone, "--teacher", key)
    assert len({name.split("/")[0] for name in chunks(together)}) == 9
    assert chunks(alone) == chunks(together)


def test_frames_wait_within_their_bound(inline: Path, tmp_path: Path, clip_table: Path) -> None:
    run = make_run(tmp_path / "run", clip_table, compute={"workers": 2}, extract={"frames_gb": 1e-6})
    extracted(run)
    assert chunks(run) == chunks(inline)


# ---------------------------------------------------------------- memory


@pytest.mark.fault
def test_fault_23_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path, clip_table: Path, colour: None) -> None:
    values = {}
    for most in (99, 3, 1):
        teachers = {**own(most=most), "exo_dino": tiny_teachers()["exo_dino"].model_dump(mode="json")}
        run = make_run(tmp_path / f"run{most}", clip_table, teachers)
        output = extracted(run)
        shrunk = [f"with {n} clips a pass; going on with {n // 2}" for n in (4, 2) if n > most]
        assert output.count("out of memory") == len(shrunk)  # once, not for every shard
        assert all(text in output for text in shrunk)
        opened = Run.open(run)
        values[most], present = open_teacher(opened, open_index(opened), "ego_own").read(np.arange(12), "features")
        assert present.all()
    np.testing.assert_allclose(values[3], values[99], rtol=1e-3)
    np.testing.assert_allclose(values[1], values[99], rtol=1e-3)


@pytest.mark.fault
def test_fault_23_a_clip_that_does_not_fit_stops_and_blames_nobody(
    tmp_path: Path, clip_table: Path, colour: None
) -> None:
    run = make_run(tmp_path / "run", clip_table, own(most=0))
    result = call("extract-teachers", "--run", run)
    assert result.exit_code == 1
    assert "teacher 'ego_own' runs out of memory on cpu with a single clip" in result.output
    opened = Run.open(run)
    assert set(open_teacher(opened, open_index(opened), "ego_own").status()) == {RowStatus.PENDING}


# ---------------------------------------------------------------- decoders and the machine


@pytest.mark.fault
def test_fault_22_a_crashing_clip_is_quarantined_and_the_run_goes_on(
    tmp_path: Path, clip_table: Path, make_video: Callable[..., Path]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clip_table.parent, data)
    poison = make_video(data / "ego" / "04.mp4", frames=300, size=(960, 540), gop=300)
    only = {"ego_dino": tiny_teachers()["ego_dino"].model_dump(mode="json") | {"frames": 64}}
    run = make_run(tmp_path / "run", data / "clips.csv", only, compute={"workers": 2}, extract={"min_coverage": 0.5})
    killed: set[int] = set()
    ended = threading.Event()

    def kill() -> None:
        while len(killed) < 2 and not ended.wait(0.002):
            for process in psutil.Process().children():
                with suppress(psutil.Error):
                    if process.pid not in killed and any(f.path == str(poison) for f in process.open_files()):
                        process.send_signal(signal.SIGSEGV)
                        killed.add(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        extracted(run)
    finally:
        ended.set()
        thread.join()
    opened = Run.open(run)
    store = open_teacher(opened, open_index(opened), "ego_dino")
    assert [(f.clip_id, f.reason) for f in store.failures()] == [("clip04", "decoder_crash")]
    assert store.coverage()["done"] == 11
    assert "SIGSEGV" in (run / "extract" / "failures.csv").read_text()


@pytest.mark.fault
@pytest.mark.parametrize("workers", [0, 1])
def test_fault_07_a_failing_disk_stops_the_work_and_blames_no_clip(
    workers: int, inline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading one's own memory at address 0 is a real EIO."""
    monkeypatch.setattr(files, "PAUSES", (0.01, 0.01))
    run = Run.open(inline, [f"compute.workers={workers}"])
    clips = dict(enumerate(run.table().clips))
    clips[5] = replace(clips[5], ego_path=Path("/proc/self/mem"))
    teacher = build_teacher("ego_dino", run.config.teachers["ego_dino"])
    with ShardWork(run.config, clips) as work, StopFlag() as flag:
        work.plan([(range(4), [teacher]), (range(4, 8), [teacher])])
        _, status, failures = work.run(range(4), [teacher], flag)["ego_dino"]
        assert (status == RowStatus.DONE).all()
        assert not failures
        with pytest.raises(OSError, match="Input/output error"):
            work.run(range(4, 8), [teacher], flag)


class Full(files.Operations):
    """A disk that is full from the `n`th shard file on."""

    def __init__(self, n: int) -> None:
        self.left = n

    def write(self, fd: int, data: bytes | memoryview) -> int:
        if "features.zarr" in os.readlink(f"/proc/self/fd/{fd}"):  # noqa: PTH115
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, data)


@pytest.mark.fault
def test_fault_06_a_full_disk_stops_the_writer_and_the_run(
    inline: Path, tmp_path: Path, clip_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", clip_table)
    plain = files.operations
    assert call("extract-teachers", "--run", run, "--teacher", "exo_skl").exit_code == 0
    for written in (0, 5, 20):
        monkeypatch.setattr(files, "operations", Full(written))
        result = call("extract-teachers", "--run", run)
        assert result.exit_code == 1
        assert "bytes needed" in result.output
        monkeypatch.setattr(files, "operations", plain)
    extracted(run)
    assert chunks(run) == chunks(inline)


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)])
def test_fault_02_a_signal_to_the_whole_group_saves_and_leaves_nobody(
    number: int, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    make_video(tmp_path / "slow.mp4", frames=300, size=(960, 540), gop=300)
    rows = [f"clip{n:02d},{'test' if n % 4 else 'train'},move,slow.mp4,{n / 2},{n / 2 + 3}" for n in range(24)]
    (tmp_path / "clips.csv").write_text("\n".join(["clip_id,split,label,ego_path,start_s,end_s", *rows]) + "\n")
    only = {"ego_dino": tiny_teachers()["ego_dino"].model_dump(mode="json")}
    calm, run = (
        make_run(tmp_path / name, tmp_path / "clips.csv", only, compute={"workers": workers})
        for name, workers in (("calm", 0), ("run", 2))
    )
    extracted(calm)
    command = [sys.executable, "-m", "uniego", "extract-teachers", "--run", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        decoders: set[psutil.Process] = set()
        while time.monotonic() < deadline and not list((run / "cache").glob("*/ledger/*.jsonl")):
            decoders.update(psutil.Process(process.pid).children(recursive=True))
            time.sleep(0.002)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 75, err
    assert len(decoders) >= 2
    assert not any(decoder.is_running() for decoder in decoders)
    assert len(chunks(run)) < len(chunks(calm))
    extracted(run)
    assert chunks(run) == chunks(calm)


# ---------------------------------------------------------------- precision


def test_reduced_precision_is_compared_recorded_and_kept(inline: Path, tmp_path: Path, clip_table: Path) -> None:
    run = make_run(tmp_path / "run", clip_table, extract={"precision": "bf16"})
    chosen = ("--teacher", "ego_dino", "--teacher", "exo_rgb")
    assert "in bf16; cosine to fp32: " in extracted(run, *chosen)
    opened = Run.open(run)
    store = open_teacher(opened, open_index(opened), "ego_dino")
    assert store.fingerprint["precision"] == "bf16"
    assert store.attributes["made_with"]["precision"]["dtype"] == "bf16"
    assert 0.999 <= store.attributes["made_with"]["precision"]["cosine_to_fp32"] < 1.0
    assert all(chunks(run)[name] != data for name, data in chunks(inline).items() if "ego_dino/features.zarr/f" in name)
    again = call("extract-teachers", "--run", run, "--set", "extract.precision=fp32", *chosen)
    assert again.exit_code == 5
    assert "precision: stored 'bf16', wanted None" in again.output
    shutil.rmtree(run / "cache" / "exo_rgb")
    before = chunks(run)
    assert "nothing to do" in extracted(run, "--set", "extract.precision=auto", "--teacher", "ego_dino")
    assert chunks(run) == before
    assert call("verify", "--run", run, "--recompute", "3", "--json").exit_code == 0


def test_precision_that_differs_too_much_is_refused_or_left(
    inline: Path, tmp_path: Path, clip_table: Path, colour: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that takes the small difference of large numbers."""
    run = make_run(tmp_path / "run", clip_table, own(offset=100.0))
    result = call("extract-teachers", "--run", run, "--set", "extract.precision=bf16")
    assert result.exit_code == 2
    assert "extract.precision bf16 is too far from fp32" in result.output
    assert "ego_own 0." in result.output or "ego_own -0." in result.output
    assert not (run / "cache" / "ego_own").exists()
    extracted(run)
    opened = Run.open(run)
    assert "precision" not in open_teacher(opened, open_index(opened), "ego_own").fingerprint


def test_auto_takes_fp32_for_a_teacher_that_needs_it(
    tmp_path: Path, clip_table: Path, colour: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU: `auto` means bf16 there; the networks are on the CPU for want of one."""
    teachers = {**own(offset=100.0), "exo_rgb": tiny_teachers()["exo_rgb"].model_dump(mode="json")}
    run = Run.open(make_run(tmp_path / "run", clip_table, teachers))
    built = [build_teacher(key, config) for key, config in run.config.teachers.items()]
    flag = StopFlag()

    class OnCPU:
        type = "cuda"

    for teacher in built:
        object.__setattr__(teacher, "to", lambda _, teacher=teacher: teacher)
    cosines = settle_precision(run, built, OnCPU(), flag)  # type: ignore[arg-type]
    assert {teacher.key: teacher.precision for teacher in built} == {"ego_own": "fp32", "exo_rgb": "bf16"}
    assert cosines.keys() == {"exo_rgb"}
    assert "these teachers are run in fp32" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(48, 64), (224, 224), (90, 33)])
def test_resizing_as_on_a_gpu_differs_by_rounding(mode: str, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, 120, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    there, here = resize_float(images, size, mode), resize(images, size, mode)
    assert there.dtype == here.dtype
    apart = (there.int() - here.int()).abs().float()
    assert apart.mean() < 0.5  # of noise, which overshoots; of pictures:
    smooth = resize(images, (12, 16), "bilinear").repeat_interleave(8, 2).repeat_interleave(8, 3)
    apart = (resize_float(smooth, size, mode).int() - resize(smooth, size, mode).int()).abs()
    assert apart.max() <= 2


def test_every_row_is_where_it_belongs(inline: Path) -> None:
    """Row by row against the teacher itself, run alone on its clip."""
    run = Run.open(inline)
    index = open_index(run)
    for key in ("ego_depth", "exo_rgb", "exo_skego"):
        store: FeatureStore = open_teacher(run, index, key)
        teacher = build_teacher(key, run.config.teachers[key])
        for clip, row in zip(run.table().clips, index.rows(row_keys(run, run.table().clips)), strict=True):
            values, present = store.read([row], "features")
            item = prepare_clip(clip, [teacher], "pyav")[key]
            assert present[0] == isinstance(item, torch.Tensor)
            if isinstance(item, torch.Tensor):
                np.testing.assert_allclose(values[0], teacher.features([item])[0].numpy(), rtol=2e-2, atol=2e-3)
