"""Actions as motion: order in time tells opposites apart, and the pictures show what moves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from uniego.demo.actions import (
    ACTIONS,
    ALL_ACTIONS,
    PAIRS,
    SYMMETRIC,
    VERBS,
    family,
    motion,
    opposite,
    sample_variation,
)
from uniego.demo.world import PARTS, VIEWS, Scene, View, render, sample_scene, sample_subject

PHASES = np.linspace(0, 1, 33, dtype=np.float32)
STATES = ("shift", "tilt", "turn", "rise", "grip", "orbit", "release")


def scene(seed: int, action: str | None) -> Scene:
    rng = np.random.default_rng(seed)
    return sample_scene(rng, action, sample_subject(rng))


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_an_action_is_its_opposite_backwards_and_not_forwards(pair: tuple[str, str]) -> None:
    for seed in range(8):
        variation = sample_variation(np.random.default_rng(seed))
        one, other = (motion(action, PHASES, variation) for action in pair)
        for name in STATES:
            assert np.allclose(getattr(one, name), getattr(other, name)[::-1], atol=2e-3), name
        moved = [name for name in STATES if not np.allclose(getattr(one, name), getattr(other, name), atol=1e-2)]
        assert set(moved) & {"shift", "tilt", "turn"}, moved


def test_opposites_and_labels() -> None:
    assert len(set(ALL_ACTIONS)) == 12
    assert ALL_ACTIONS[:8] == ACTIONS
    assert set(VERBS) == set(ALL_ACTIONS)
    for action in ACTIONS:
        assert opposite(opposite(action)) == action != opposite(action)
    for action in SYMMETRIC:
        assert opposite(action) == family(action) == action


@pytest.mark.parametrize("action", SYMMETRIC)
def test_a_symmetric_action_is_itself_backwards(action: str) -> None:
    """Up to the direction round of a circle, which is as random as the other; coming and going change places."""
    for seed in range(8):
        variation = sample_variation(np.random.default_rng(seed))
        swapped = dataclasses.replace(variation, reach=variation.leave, leave=variation.reach)
        if action == "stir":
            swapped = dataclasses.replace(swapped, azimuth=-variation.azimuth)
        one, back = motion(action, PHASES, variation), motion(action, 1 - PHASES, swapped)
        for name in STATES:
            assert np.allclose(getattr(one, name), getattr(back, name), atol=2e-3), name


def test_what_the_symmetric_actions_move() -> None:
    """Wiping goes sideways and stirring round on the table, shaking up and down above it; tapping moves the hand."""
    for seed in range(6):
        turns = {}
        for action in SYMMETRIC:
            made = scene(seed, action)
            frames = render(made, np.linspace(0, made.duration, 41), "exo", 32)
            way = frames.object_3d - frames.object_3d[0]
            height = frames.joints_3d[:, 9 + made.hand, 2]
            assert np.abs(way[-1]).max() < 0.02
            wide, deep, high = np.ptp(way, axis=0)
            turns[action] = np.count_nonzero(np.diff(np.sign(np.diff(height[12:29]))))
            assert (wide > 0.12) == (action == "wipe") or action == "stir"
            assert (high > 0.12) == (action == "shake")
            assert (deep > 0.05) == (action in {"stir", "shake"}) or action == "wipe"
            assert (max(wide, deep, high) < 0.01) == (action == "tap")
        assert min(turns["tap"], turns["shake"]) >= 3


def test_things_rest_on_the_table_unless_lifted() -> None:
    """Pushing, pulling and turning lids keep the base where the table is; picking up leaves it at the end alone."""
    for seed, action in enumerate(ACTIONS):
        made = scene(seed, action)
        times = np.array([0.0, made.duration], np.float32)
        base = render(made, times, "exo", 32).object_3d[:, 2] - made.place[2] - made.thing.height / 2
        lifted = {"pick up": [False, True], "put down": [True, False]}.get(action, [False, False])
        if action not in {"tilt up", "tilt down"}:
            assert (base > 0.08).tolist() == lifted
            assert np.abs(base[~np.array(lifted)]).max() < 1e-3


@pytest.mark.parametrize("action", ACTIONS)
def test_the_acting_palm_is_at_the_thing_in_the_middle_of_the_action(action: str) -> None:
    for seed in range(6):
        made = scene(seed, action)
        frames = render(made, [made.duration / 2], "exo", 96)
        wrist, thing = frames.joints_3d[0, 9 + made.hand], frames.object_3d[0]
        reach = 0.075 + made.thing.top / 2 + made.thing.radius + 0.15  # palm, thing, lid and slack
        assert np.linalg.norm(wrist - thing) < reach
        other = frames.joints_3d[0, 10 - made.hand]
        assert np.linalg.norm(wrist - thing) < np.linalg.norm(other - thing) + 0.1


@pytest.mark.parametrize("view", VIEWS)
def test_the_object_shows_its_own_colours(view: View) -> None:
    """Hue of the object's pixels is the mix of its two tones; the acting hand's is the skin's."""
    checked = 0
    for seed in range(12):
        made = dataclasses.replace(
            scene(seed, ACTIONS[seed % 8]),
            gain=np.ones((2, 3), np.float32),
            bias=np.zeros((2, 3), np.float32),
            noise=0.0,
        )
        frames = render(made, [made.duration / 2], view, 96)
        for part, tones in (
            ("object", (made.thing.colour, made.thing.second)),
            ("acting hand", (made.subject.figure.skin,)),
        ):
            pixels = frames.rgb[0][frames.parts[0] == PARTS.index(part)].astype(float)
            if len(pixels) < 20:
                continue
            # Light scales a tone: a pixel is nearly parallel to one of them.
            cosines = [pixels @ t / np.linalg.norm(t) / np.maximum(np.linalg.norm(pixels, axis=1), 1) for t in tones]
            assert np.median(np.max(cosines, axis=0)) > 0.995
            checked += 1
    assert checked > 12


def test_nothing_moves_much_while_idling() -> None:
    """Without an action the object stays, the person fidgets, and the ends of an action hold while idling goes on."""
    idle = render(scene(4, None), np.linspace(0, 3, 8), "exo", 32)
    assert np.ptp(idle.object_3d, axis=0).max() < 1e-5
    assert 1e-3 < np.ptp(idle.joints_3d[:, 9:11], axis=0).max() < 0.4
    made = scene(4, "push")
    before = render(made, [-0.6, -0.1, 0.0], "exo", 32).object_3d
    after = render(made, made.duration + np.array([0.0, 0.1, 0.6]), "exo", 32).object_3d
    assert np.abs(before - before[0]).max() < 1e-5
    assert np.abs(after - after[0]).max() < 1e-5
    assert np.linalg.norm(before[0] - after[0]) > 0.05


def test_a_camera_on_a_shaking_head_moves_and_the_other_does_not() -> None:
    made = scene(5, "tilt up")
    ego, exo = (render(made, np.linspace(0, 1, 5), view, 32) for view in ("ego", "exo"))
    assert np.abs(np.diff(ego.extrinsics, axis=0)).max() > 1e-3
    assert np.array_equal(exo.extrinsics, np.broadcast_to(exo.extrinsics[:1], exo.extrinsics.shape))
    for frames in (ego, exo):
        turn = frames.extrinsics[:, :, :3]
        assert np.allclose(turn @ turn.transpose(0, 2, 1), np.eye(3), atol=1e-5)


def test_captions_name_the_action_the_thing_and_the_hand() -> None:
    made = scene(6, "screw")
    assert made.caption.startswith("a person screws on the lid of the ")
    assert f"{made.thing.name} {made.thing.make} with the {('left', 'right')[made.hand]} hand" in made.caption


def test_the_ego_camera_often_misses_what_the_outer_one_sees() -> None:
    unseen: dict[View, list[bool]] = {"ego": [], "exo": []}
    for number in range(96):
        rng = np.random.default_rng((7, number))
        scene = sample_scene(rng, ACTIONS[number % len(ACTIONS)], sample_subject(rng))
        for view in unseen:
            pixels = render(scene, np.linspace(0, scene.duration, 8), view, 32).object_2d[:, :2]
            unseen[view].append(bool((((pixels < 0) | (pixels > 31)).any(1)).mean() >= 0.5))
    assert 0.12 < np.mean(unseen["ego"]) < 0.45
    assert np.mean(unseen["exo"]) < 0.03
