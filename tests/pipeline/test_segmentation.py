"""The segmentation layout: what is written is read back, real files are read, what cannot be used is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.errors import MissingInputError, TableError
from uniego.metrics.segmentation import runs
from uniego.pipeline import segmentation as layouts

REAL = Path(__file__).parents[1] / "data" / "egoexolearn"
PARTS = {"train": ["a", "b"], "test": ["c.d"]}


def write(folder: Path) -> None:
    labels = {"a": [0, 0, 1], "b": [1, 2], "c.d": [2]}
    layouts.write_layout(folder, ["background", "pick_up", "put_down"], PARTS, labels, "split1")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path)
    layout = layouts.read_layout(tmp_path, "split1")
    assert layout.classes == ("background", "pick_up", "put_down")
    assert {part: list(names) for part, names in layout.parts.items()} == PARTS
    assert layout.labels["b"].tolist() == [1, 2]
    assert layout.videos == ("a", "b", "c.d")
    features = np.arange(12, dtype=np.float32).reshape(4, 3)  # [T, D]
    layouts.write_features(tmp_path, "a", features)
    assert np.load(tmp_path / "features" / "a.npy").shape == (3, 4)
    np.testing.assert_array_equal(layouts.read_features(layouts.features_path(tmp_path, "a")), features.T)
    layouts.write_prediction(tmp_path / "p" / "a.txt", ["pick up", "x"])
    assert (tmp_path / "p" / "a.txt").read_text() == "### Frame level recognition: ###\npick_up x\n"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_line_ends_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], end: str, closed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "labels.txt"
    path.write_bytes((end.join(map(str, labels)) + (end if closed else "")).encode())
    assert layouts.read_labels(path).tolist() == labels


def test_real_files_without_a_last_newline_keep_their_last_line() -> None:
    bundle = layouts.read_bundle(REAL / "splits" / "exo_test_annotations.bundle")
    assert (len(bundle), bundle[0][:8], bundle[-1][:8]) == (32, "2d420a94", "2d826c38")
    labels = layouts.read_labels(REAL / "groundTruth" / f"{bundle[0]}.txt")
    assert len(labels) == 600
    wanted = [(27, 0, 146), (0, 146, 150), (10, 150, 458), (0, 458, 460), (27, 460, 493), (0, 493, 506), (20, 506, 600)]
    assert runs(labels.tolist()) == wanted


def test_the_real_sample_is_read_whole() -> None:
    """UNIEGO_TEST_ANNOTATIONS names a folder with egoexolearn_tas/."""
    folder = os.environ.get("UNIEGO_TEST_ANNOTATIONS")
    if not folder:
        pytest.skip("UNIEGO_TEST_ANNOTATIONS does not name a folder of annotation samples")
    real = Path(folder) / "egoexolearn_tas"
    bundles = {path.stem: layouts.read_bundle(path) for path in (real / "splits").glob("*.bundle")}
    assert len(bundles) == 6
    found = sorted((real / "gts_fps25").glob("*.txt"))
    assert len(found) == 24
    for path in found:
        labels = layouts.read_labels(path)
        assert len(labels) == len(path.read_bytes().split(b"\n"))
        assert any(path.stem in names for names in bundles.values())


def test_what_is_refused(tmp_path: Path) -> None:
    assert layouts.missing_part(tmp_path, "split1") == (
        "groundTruth, mapping.txt, splits/train.split1.bundle, splits/test.split1.bundle"
    )
    with pytest.raises(MissingInputError, match=r"mapping\.txt"):
        layouts.read_layout(tmp_path, "split1")
    write(tmp_path)
    (tmp_path / "groundTruth" / "b.txt").write_text("pick_up\nsitting\n")
    with pytest.raises(TableError, match=r"b\.txt: line 2: 'sitting'"):
        layouts.read_layout(tmp_path, "split1")
    (tmp_path / "groundTruth" / "b.txt").unlink()
    with pytest.raises(MissingInputError, match=r"b\.txt: no such file"):
        layouts.read_layout(tmp_path, "split1")
    write(tmp_path)
    (tmp_path / "splits" / "test.split1.bundle").write_text("a.txt\n")
    with pytest.raises(TableError, match=r"in train and in test: a"):
        layouts.read_layout(tmp_path, "split1")
    for text in ("0 a\n2 b\n", "0 a\n0 b\n", "a 0\n", "0 a\n1 a\n", ""):
        (tmp_path / "mapping.txt").write_text(text)
        with pytest.raises(TableError, match=r"mapping\.txt"):
            layouts.read_mapping(tmp_path / "mapping.txt")
