from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.errors import EXIT_USAGE, ConfigError, MissingInputError
from uniego.models.teachers import TeacherConfig
from uniego.pipeline import yamltext
from uniego.pipeline.config import RunConfig
from uniego.pipeline.configfile import dump_config, load_config, with_overrides, write_config
from uniego.pipeline.presets import PRESETS, preset


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_config(tmp_path / "run.yaml", preset("tiny"))
    return tmp_path / "run.yaml"


def refused(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


def refused_text(folder: Path, text: str | bytes) -> str:
    path = folder / "bad.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return refused(path)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
PLAIN = st.one_of(
    st.integers(-(10**6), 10**6),
    st.booleans(),
    st.floats(allow_nan=False),
    TEXT,
    st.sampled_from(["1e-4", "null"]),
)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    config = PRESETS[draw(st.sampled_from(sorted(PRESETS)))]()
    rate = st.floats(1e-12, 1e12)
    raw: dict[str, Any] = config.model_dump()
    raw["seed"] = draw(st.integers(0, 2**63 - 1))
    raw["preset"], raw["data"]["table"], raw["data"]["root"] = draw(TEXT), draw(TEXT), draw(TEXT | st.none())
    raw["data"]["holdout"] = draw(st.floats(0, 0.99))
    raw["distill"]["threshold"] = draw(st.floats(allow_nan=False))
    raw["distill"]["train"]["optimizer"]["lr"] = draw(rate)
    raw["distill"]["by_view"] = draw(st.booleans())
    raw["proxies"]["train"]["schedule"]["factors"] = draw(
        st.lists(rate, min_size=len(raw["proxies"]["train"]["schedule"]["steps"]), max_size=3).filter(
            lambda f: len(f) == len(raw["proxies"]["train"]["schedule"]["steps"])
        )
    )
    raw["compute"]["threads"] = draw(st.none() | st.integers(1, 64))
    architecture = draw(st.dictionaries(TEXT, PLAIN | st.lists(PLAIN, max_size=3), max_size=3))
    key = draw(st.from_regex(r"t_[A-Za-z0-9_]{0,9}", fullmatch=True))
    raw["teachers"][key] = TeacherConfig(
        network="stgcn", weights="random:1", allow_random=True, architecture=architecture, view="exo"
    ).model_dump()
    return RunConfig.model_validate(raw)


@given(config=configs())
def test_what_is_dumped_loads_as_it_was(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> None:
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    write_config(path, config)
    read = load_config(path)
    assert read == config
    assert dump_config(read) == path.read_text(encoding="utf-8") == dump_config(config)


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_stands_below_its_comment(name: str) -> None:
    text = dump_config(preset(name))
    lines = text.splitlines()
    inside_pool = False
    for number, line in enumerate(lines):
        if line.startswith("teachers:"):
            inside_pool = True
        elif inside_pool and not line:
            inside_pool = False
        if line and not line.lstrip().startswith("#") and not inside_pool:
            assert lines[number - 1].lstrip().startswith("#"), line
    for field in TeacherConfig.model_fields:
        assert f"#   {field}: " in text
    assert max(map(len, lines)) < 200


def test_overrides(file: Path) -> None:
    config = load_config(
        file,
        [
            "proxies.train.optimizer.lr=1e-4",
            "augment.short_side=[40, 50]",
            "data.root=",
            "data.table=a=b.csv",
            "teachers.ego_dino.frames=3",
            "distill={top_k: 2}",
            "preset=yes",
        ],
    )
    assert config.proxies.train.optimizer.lr == 1e-4
    assert config.augment.short_side == [40, 50]
    assert (config.data.root, config.data.table, config.preset) == (None, "a=b.csv", "yes")
    assert config.teachers["ego_dino"].frames == 3
    assert (config.distill.top_k, config.distill.train.epochs) == (2, 15)
    assert with_overrides(preset("tiny"), ["seed=7"]) == load_config(file, ["seed=7"])
    assert load_config(file, ["seed=1", "seed=2"]).seed == 2


def test_a_new_teacher_may_be_added_whole(file: Path) -> None:
    config = load_config(file, ["teachers.ego_clip={network: clip, weights: 'dir:/weights'}"])
    assert config.teachers["ego_clip"].weights == "dir:/weights"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("proxies.train.epoch=3", "proxies.train.epoch: unknown field; did you mean 'epochs'?"),
        ("proxy.train.epochs=3", "proxy: unknown field; did you mean 'proxies'?"),
        (
            "extract.zzz=3",
            "extract.zzz: unknown field; here are batch_clips, precision, decode_timeout_s, frames_gb, min_coverage",
        ),
        ("teachers.ego_dino.fames=3", "teachers.ego_dino.fames: unknown field; did you mean 'frames'?"),
        ("teachers.ego_dno.frames=3", "no teacher 'ego_dno'; did you mean 'ego_dino'?"),
        ("teachers.ego_dino.network=vit", "teachers.ego_dino.network: 'vit': expected dinov2"),
        ("teachers.ego_dino.weights=vit", "expected hub:<id>"),
        ("teachers.new={frames: 3}", "teachers.new.network: missing"),
        ("seed=abc", "seed: 'abc' should be a valid integer"),
        ("seed=1.5", "seed: 1.5 should be a valid integer"),
        ("seed.x=1", "seed has no fields of its own"),
        ("merge=3", "merge: 3 should be a section"),
        ("evaluate.crops=2", "evaluate.crops: 2 should be 1 or 3"),
        ("data.holdout=1", "data.holdout: 1 should be less than 1"),
        ("augment.short_side=[1]", "augment.short_side: [1] list should have at least 2 items"),
        ("distill.train.micro_batch=7", "distill.train: micro_batch (7) must divide global_batch (8)"),
        ("student.image_size=64", "must be at least student.image_size (64)"),
        ("seed", "expected a field and a value"),
        ("a..b=1", "expected a field and a value"),
        ("seed=[1", "--set seed=[1"),
        ("seed=!!python/object/apply:os.getcwd []", "--set seed="),
    ],
)
def test_refused_overrides(file: Path, override: str, message: str) -> None:
    assert message in refused(file, override)


def test_all_problems_are_told_at_once(file: Path) -> None:
    message = refused(file, "seed=x", "data.tabel=x", "student.depth=0")
    assert "3 fields cannot be used" in message
    assert all(name in message for name in ("seed:", "data.tabel:", "student.depth:"))
    assert str(file) in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n", "holds a list"),
        ("seed: 1\nseed: 2\n", "line 2: key 'seed' occurs twice, in lines 1 and 2"),
        ("data:\n  table: a\n  root: b\n  table: c\n", "line 4: key 'table' occurs twice, in lines 2 and 4"),
        ("seed: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
        ("!!python/object:os.PathLike {}\n", "could not determine a constructor"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases"),
        ("a: &x [*x]\n", "aliases"),
        ("seed: !!int abc\n", "cannot be read"),
        ("seed: " + "9" * 5000, "cannot be read"),
        ("1: a\n", "key '1' is not a name"),
        ("? [a]\n: b\n", "is not a name"),
        ("a: [1\n", "line 2"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: \x07\n", "special characters are not allowed"),
        ("[" * 5000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        ("seed: 1\n", "teachers: missing"),
        ("teachers: {1: 2}\n", "key '1' is not a name"),
        ("teachers: {a: 2}\n", "teachers.a: 2 should be a section"),
        ("teachers: []\n", "teachers: [] should be a section"),
    ],
)
def test_refused_files(tmp_path: Path, text: str | bytes, message: str) -> None:
    told = refused_text(tmp_path, text)
    assert message in told
    assert told.startswith(str(tmp_path / "bad.yaml"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="uniego init"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1E6", -1e6),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2026-01-31", "2026-01-31"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("[1, {a: null}]", [1, {"a": None}]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = yamltext.parse(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "c\u2029", "é\x85"])
def test_unicode_line_breaks_survive(text: str) -> None:
    assert yamltext.parse(yamltext.scalar({text: text}), "here") == {text: text}


@given(
    value=st.recursive(PLAIN | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)
)
def test_scalar_and_parse_are_inverse(value: object) -> None:
    assert yamltext.parse(yamltext.scalar(value), "here") == value
