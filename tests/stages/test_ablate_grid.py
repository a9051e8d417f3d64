"""Grid files: what they mean, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from uniego.demo.preset import evidence_config
from uniego.errors import ConfigError, MissingInputError
from uniego.pipeline.presets import preset
from uniego.stages.ablate_grid import Grid, read_grid

ROOT = Path(__file__).parents[2]
EXAMPLES, EVIDENCE = ROOT / "examples" / "ablations", ROOT / "benchmarks" / "evidence"


def read(folder: Path, text: str) -> Grid:
    path = folder / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return read_grid(path, preset("tiny"))


def test_arms_and_the_product(tmp_path: Path) -> None:
    grid = read(
        tmp_path,
        """
        name: k-and-tau
        seeds: [0, 5]
        baseline: top_k=1,threshold=0.5
        arms:
          two: {teachers: [exo_skl, ego_dino], merge.level: layer}
          alone: {model: ego-only}
        grid: {distill.top_k: [1, 2], distill.threshold: [0.5, 1e-4]}
        """,
    )
    names = [arm.name for arm in grid.arms]
    assert names == ["two", "alone", *(f"top_k={k},threshold={t}" for k in (1, 2) for t in (0.5, 0.0001))]
    two, alone, *_, last = grid.arms
    config = two.config(preset("tiny"), 5)
    assert (list(config.teachers), config.merge.level, config.seed) == (["exo_skl", "ego_dino"], "layer", 5)
    assert (alone.model, alone.config(preset("tiny"), 0)) == ("ego-only", preset("tiny"))
    distill = last.config(preset("tiny"), 0).distill
    assert (distill.top_k, distill.threshold) == (2, 1e-4)
    assert (grid.seeds, grid.metric) == ((0, 5), "top1")


def test_fields_of_one_last_name_are_called_in_full(tmp_path: Path) -> None:
    grid = read(
        tmp_path,
        "name: g\nseeds: [0]\n"
        "grid: {distill.feature_weight: [1.0], proxies.feature_weight: [2.0], teachers: [[exo_skl]]}",
    )
    (arm,) = grid.arms
    assert arm.name == "distill.feature_weight=1.0,proxies.feature_weight=2.0,teachers=exo_skl"
    assert arm.teachers == ("exo_skl",)


HEAD = "name: g\nseeds: [0]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected the fields name, seeds"),
        ("name: g\nseeds: [0]\narm: {a: {}}", "arm: Extra inputs"),
        ("name: g\nseeds: []\narms: {a: {}}", "seeds"),
        ("name: g\nseeds: [-1]\narms: {a: {}}", r"seeds\.0"),
        ("name: g\nseeds: 3\narms: {a: {}}", "seeds"),
        ("name: g\nseeds: [1, 1]\narms: {a: {}}", "occur twice"),
        ("name: ../g\nseeds: [0]\narms: {a: {}}", "names a folder"),
        ("name: shared\nseeds: [0]\narms: {a: {}}", "names a folder"),
        (HEAD, "no arm"),
        (HEAD + "metric: loss\narms: {a: {}}", "metric"),
        (HEAD + "arms: {a: {distill.top_kk: 1}}", "did you mean 'top_k'"),
        (HEAD + "arms: {a: {distill.top_k: many}}", r"arm 'a'.*distill\.top_k"),
        (HEAD + "arms: {a: {distill.top_k.x: 1}}", "has no fields"),
        (HEAD + "arms: {a/b: {}}", "folder"),
        (HEAD + "arms: {a: {seed: 1}}", "listed under `seeds`"),
        (HEAD + "arms: {a: {teachers.ego_dino.pose_frames: 3}}", "share the run's clips"),
        (HEAD + "arms: {a: {teachers: ego_dino}}", "list of names"),
        (HEAD + "arms: {a: {teachers: [nobody]}}", "unknown teacher nobody"),
        (HEAD + "arms: {a: {model: teacher}}", "unknown model"),
        (HEAD + "arms: {a: {teachers: [exo_skl], model: 'proxy:ego_dino'}}", "unknown model"),
        (HEAD + "arms: {a: {}, b: {distill.top_k: 1}}", "'a' and 'b' are the same settings"),
        (HEAD + "arms: {top_k=2: {}}\ngrid: {distill.top_k: [2]}", "two arms"),
        (HEAD + "grid: {distill.top_k: []}", "has no values"),
        (HEAD + "baseline: b\narms: {a: {}}", "baseline 'b' is no arm; arms: a"),
        (HEAD + "arms: {a: {}, a: {}}", "occurs twice"),
    ],
)
def test_bad_grids_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"docs/ablations\.md"):
        read_grid(tmp_path / "none.yaml", preset("tiny"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_grids_can_be_read(path: Path) -> None:
    assert read_grid(path, preset("egoexo_fitness")).baseline


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("*.yaml")), ids=lambda path: path.stem)
def test_parts_of_the_evidence_can_be_read(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8") + "seeds: [3]\n"  # as benchmarks/evidence.py ends them
    (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
    config = evidence_config(3)
    shuffled = {f"{key}_shuffled": teacher for key, teacher in config.teachers.items()}
    grid = read_grid(tmp_path / "grid.yaml", config.model_copy(update={"teachers": {**config.teachers, **shuffled}}))
    assert (grid.name, grid.seeds) == (path.stem, (3,))
