"""Micro-batches: the same clips, frames and crops whatever the workers, the portions and the point of resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from uniego.pipeline import sampling
from uniego.pipeline.augment import test_clip as augmented_test_clip
from uniego.pipeline.clips import Clip, read_clip_table
from uniego.pipeline.presets import preset
from uniego.pipeline.video import open_video
from uniego.stages.batches import Batch, ClipReader, Protocol, load, protocol_order, training_order


def reader(policy: str = "fit", seed: int = 0) -> ClipReader:
    config = preset("tiny")
    sample = config.sampling.model_copy(update={"policy": policy, "rate": 4})
    return ClipReader.from_config(config.model_copy(update={"sampling": sample, "seed": seed}))


@pytest.fixture(scope="module")
def clips(clip_table: Path) -> list[Clip]:
    return list(read_clip_table(clip_table).clips)


def everything(clips: list[Clip], micro: int, workers: int = 0, start: tuple[int, int] = (0, 0)) -> list[Batch]:
    order = training_order(clips, seed=3, epochs=2, global_batch=8, micro_batch=micro, start=start)
    return list(load(reader(), clips, order, workers=workers))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_each_step_in_the_same_order(clips: list[Clip], world: int) -> None:
    def order(rank: int, world: int, step: int) -> list[list[tuple[int, int]]]:
        portions = {"seed": 3, "epochs": 2, "global_batch": 4, "micro_batch": 1}
        return list(training_order(clips, **portions, start=(0, step), share=(rank, world)))

    for step in (0, 1):
        whole = order(0, 1, step)
        shares = [iter(order(rank, world, step)) for rank in range(world)]
        assert [next(shares[number % 4 % world]) for number in range(len(whole))] == whole
        assert not [left for share in shares for left in share]


def test_workers_and_portions_change_nothing(clips: list[Clip]) -> None:
    whole = everything(clips, 8)
    for batches in (everything(clips, 2), everything(clips, 4, workers=2)):
        assert torch.equal(torch.cat([b.indices for b in batches]), torch.cat([b.indices for b in whole]))
        assert torch.equal(torch.cat([b.videos for b in batches]), torch.cat([b.videos for b in whole]))


def test_starting_later_gives_the_rest(clips: list[Clip]) -> None:
    whole, rest = everything(clips, 4), everything(clips, 4, start=(1, 0))
    assert len(whole) == 4  # 12 clips: one step of 8 per epoch, the rest is dropped
    assert all(torch.equal(a.videos, b.videos) for a, b in zip(whole[2:], rest, strict=True))


def test_epochs_differ_and_the_order_does_not_depend_on_the_table(clips: list[Clip]) -> None:
    def ids(table: list[Clip]) -> list[str]:
        order = training_order(table, seed=3, epochs=2, global_batch=12, micro_batch=12)
        return [table[i].clip_id for batch in order for _, i in batch]

    assert ids(clips) == ids(clips[::-1])
    assert ids(clips)[:12] != ids(clips)[12:]
    assert sorted(ids(clips)[:12]) == sorted(ids(clips)[12:])


def test_draws_are_functions_of_seed_epoch_and_clip(clips: list[Clip]) -> None:
    one = reader().train(clips[0], epoch=1)
    assert torch.equal(one, reader().train(clips[0], epoch=1))
    assert not torch.equal(one, reader().train(clips[0], epoch=2))
    assert not torch.equal(one, reader(seed=1).train(clips[0], epoch=1))
    assert one.shape == (3, 4, 32, 32)
    assert one.dtype == torch.float32


@pytest.mark.parametrize("policy", ["fit", "window"])
def test_the_protocol_looks_where_the_policy_says(clips: list[Clip], policy: str) -> None:
    clip = clips[11]  # the second half of a long video
    looks = reader(policy).test(clip, Protocol(views=2, crops=3))
    assert looks.shape == (6, 3, 4, 32, 32)
    with open_video(clip.ego_path) as video:
        for view in range(2):
            if policy == "window":
                begin = sampling.window_start(20, 10.0, view / 2, 4, 4)
                picks = 20 + sampling.window_indices(20, 10.0, begin, 4, 4)
            else:
                picks = 20 + sampling.fit_indices(20, 10.0, count=4, rate=4, start=float(view))
            frames = video.frames(picks.tolist())
            for crop in range(3):
                wanted = augmented_test_clip(frames, crop=crop, crops=3, size=32, single_short_side=36)
                assert torch.equal(looks[3 * view + crop], wanted)


def test_a_segment_shows_its_own_frames_only(clips: list[Clip], frame_number) -> None:  # type: ignore[no-untyped-def]
    first, second = (reader().frames(clip, [(0.5, 0.5)])[0] for clip in clips[10:12])
    assert {frame_number(frame) < 20 for frame in first} == {True}
    assert {frame_number(frame) >= 20 for frame in second} == {True}


def test_what_cannot_be_decoded_is_reported_and_not_replaced(clips: list[Clip], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    mixed = [clips[0], Clip("bad", "train", 0, bad, None, None, None, None, {}, {}), clips[1]]
    (batch,) = load(reader(), mixed, [[(0, 0), (0, 1), (0, 2)]])
    assert batch.indices.tolist() == [0, 2]
    assert batch.videos.shape[0] == 2
    assert [failure.clip_id for failure in batch.failures] == ["bad"]
    (empty,) = load(reader(), mixed, [[(0, 1)]])
    assert len(empty.indices) == 0


def test_loading_leaves_the_global_random_state_alone(clips: list[Clip]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    everything(clips, 4, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_protocol_order_covers_every_clip_once() -> None:
    assert [i for batch in protocol_order(7, 3) for _, i in batch] == list(range(7))
    assert np.array_equal([len(batch) for batch in protocol_order(7, 3)], [3, 3, 1])
