from __future__ import annotations

import random
from pathlib import Path

import pytest
from uniego.errors import EXIT_USAGE, MissingInputError, TableError, UsageError
from uniego.pipeline.clips import ClipTable, hold_out, missing_files, read_clip_table

HEADER = "clip_id,split,label,ego_path,exo_path,start_s,end_s,pose_path"


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "clips.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def refused(folder: Path, *rows: str, header: str = HEADER, num_classes: int | None = None) -> str:
    with pytest.raises(TableError) as caught:
        read_clip_table(write(folder, *rows, header=header), num_classes=num_classes)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


def test_paths_labels_and_times(tmp_path: Path) -> None:
    absolute = tmp_path / "elsewhere" / "c.mp4"
    path = write(
        tmp_path,
        "a,train,2,ego/a.mp4,exo/a.mp4,0.5,2,pose/a.npy",
        f"b,test,0,{absolute},,,,",
        "c,val,0,ego/a.mp4,,1e1,,",
    )
    table = read_clip_table(path)
    a, b, c = table.clips
    assert (a.clip_id, a.split, a.label, a.start_s, a.end_s) == ("a", "train", 2, 0.5, 2.0)
    assert a.ego_path == tmp_path / "ego/a.mp4"
    assert a.exo_path == a.video("exo") == tmp_path / "exo/a.mp4"
    assert a.pose_path == tmp_path / "pose/a.npy"
    assert a.sources == {"ego": "ego/a.mp4", "exo": "exo/a.mp4", "pose": "pose/a.npy"}
    assert (b.ego_path, b.exo_path, b.pose_path, b.start_s, b.end_s) == (absolute, None, None, None, None)
    assert (c.start_s, c.end_s) == (10.0, None)
    assert (table.classes, table.num_classes) == (("0", "1", "2"), 3)
    assert table.splits == {"train": 1, "val": 1, "test": 1}
    assert table.split("val") == [c]
    with pytest.raises(UsageError, match="unknown split 'dev'"):
        table.split("dev")  # type: ignore[arg-type]


def test_root_and_optional_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "a,train,0,v/a.mp4", header="clip_id,split,label,ego_path")
    (clip,) = read_clip_table(path, root=tmp_path / "data").clips
    assert clip.ego_path == tmp_path / "data/v/a.mp4"
    assert (clip.exo_path, clip.start_s, clip.pose_path, clip.extra) == (None, None, None, {})
    assert clip.sources == {"ego": "v/a.mp4"}


def test_names_become_sorted_classes(tmp_path: Path) -> None:
    table = read_clip_table(write(tmp_path, "a,train,wave,a,,,,", "b,train,jump,a,,,,"), num_classes=5)
    assert table.classes == ("jump", "wave")
    assert table.num_classes == 5
    assert [clip.label for clip in table.clips] == [1, 0]


def test_integer_labels_may_have_gaps(tmp_path: Path) -> None:
    path = write(tmp_path, "a,train,0,a,,,,", "b,train,007,a,,,,")
    assert read_clip_table(path).num_classes == 8
    assert read_clip_table(path, num_classes=12).classes == tuple(map(str, range(12)))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_exotic_but_good(tmp_path: Path, newline: str, bom: bytes) -> None:
    lines = [
        "subject, clip_id,label,split,ego_path,note",
        '"Müller, Jörg",クリップ 1,"cut, then peel", train ,"my videos/a b.mp4",  as is',
        "",
        '"O""Neil","two words",wash,test,"ego_ego/x..y.mp4",',
    ]
    path = tmp_path / "my clips ü.csv"
    path.write_bytes(bom + newline.join(lines).encode())  # no final newline
    table = read_clip_table(path)
    first, second = table.clips
    assert table.classes == ("cut, then peel", "wash")
    assert (first.clip_id, first.split) == ("クリップ 1", "train")
    assert first.ego_path == tmp_path / "my videos/a b.mp4"
    assert first.extra == {"subject": "Müller, Jörg", "note": "as is"}
    assert second.extra == {"subject": 'O"Neil', "note": ""}
    assert second.ego_path.name == "x..y.mp4"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,train,0,x,,,,", "b,train,0,x,,,,", "a,test,1,y,,,,"], "row 4: clip_id 'a' is also in row 2"),
        (["a,dev,0,x,,,,"], "row 2: unknown split 'dev'; expected train, val, test"),
        (["a,train,-1,x,,,,"], "row 2: label -1 is out of range"),
        (["a,train,0,x,,,,", "b,train,4,x,,,,"], "row 3: label 4 is out of range 0..3"),
        (["a,train,,x,,,,"], "row 2: label is empty"),
        (["a,train,1,x,,,,", "b,train,wave,x,,,,", "c,train,2,x,,,,"], "row 3: label 'wave' is a name"),
        (["a,train,0,x,,5,5,"], "row 2: end_s 5 is not after start_s 5"),
        (["a,train,0,x,,,0,"], "row 2: end_s 0 is not after start_s 0"),
        (["a,train,0,x,,-1,5,"], "row 2: start_s -1 is negative"),
        (["a,train,0,x,,soon,,"], "row 2: start_s 'soon' is not a number"),
        (["a,train,0,x,,,nan,"], "row 2: end_s 'nan' is not a number"),
        (["a,train,0,x,,,inf,"], "row 2: end_s 'inf' is not a number"),
        (["a,train,0,../x,,,,"], "row 2: ego_path '../x' contains '..'"),
        (["a,train,0,x,v/../x,,,"], "row 2: exo_path 'v/../x' contains '..'"),
        (["a,train,0,x,,,,.."], "row 2: pose_path '..' contains '..'"),
        ([",train,0,x,,,,"], "row 2: clip_id is empty"),
        (["a,train,0,,,,,"], "row 2: ego_path is empty"),
        (["a\tb,train,0,x,,,,"], "row 2: clip_id 'a\\tb' has control characters"),
        (["a\u2028b,train,0,x,,,,"], "control characters"),
        (["a,train,0,x,,,"], "row 2: 7 cells, but the header names 8 columns"),
        (["a,train,0,x, y,,,,"], "row 2: 9 cells"),
        ([], "empty"),
    ],
)
def test_refused_rows(tmp_path: Path, rows: list[str], message: str) -> None:
    assert message in refused(tmp_path, *rows, num_classes=4)


def test_all_problems_are_told_up_to_ten(tmp_path: Path) -> None:
    message = refused(tmp_path, *[f"c{i},dev,{-1 if i == 3 else 0},x,,,," for i in range(15)])
    assert "15 rows cannot be used" in message
    assert message.index("row 5: unknown split") < message.index("row 5: label -1")
    assert message.endswith("and 6 more")


def test_more_names_than_classes(tmp_path: Path) -> None:
    message = refused(tmp_path, "a,train,x,v,,,,", "b,train,y,v,,,,", num_classes=1)
    assert "row 3: label 'y' is out of range" in message


def test_a_huge_label_does_not_fill_the_memory(tmp_path: Path) -> None:
    assert "out of range" in refused(tmp_path, "a,train,99999999999,x,,,,")


def test_missing_columns(tmp_path: Path) -> None:
    message = refused(tmp_path, "a,train,0,x", header="clip_id,splits,label,video")
    assert "missing columns split, ego_path" in message
    assert "'splits' for 'split'" in message
    assert "separated by commas" in refused(tmp_path, "a;b", header="clip_id;split;label;ego_path")
    assert "named twice: 'label'" in refused(tmp_path, "a,b,c,d", header="clip_id,label,label,split")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf\r\n\r\n", "empty"),
        ("clip_id,split\n".encode("utf-16"), "not UTF-8"),
        (HEADER.encode() + b'\n"a,train,0,x,,,,\n', "not a readable CSV"),
        (HEADER.encode() + b"\n\xff,train,0,x,,,,\n", "not UTF-8"),
    ],
)
def test_unreadable(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_clip_table(path)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such clip table"):
        read_clip_table(tmp_path / "no.csv")


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "clip_id": ["a", "b"],
        "split": ["train", "test"],
        "label": [1.0, 0.0],
        "ego_path": ["e/a.mp4", "e/b.mp4"],
        "exo_path": ["x/a.mp4", None],
        "start_s": [0.5, None],
        "end_s": [2.0, None],
        "take": [17, 18],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    csv = write(
        tmp_path,
        "a,train,1,e/a.mp4,x/a.mp4,0.5,2,17",
        "b,test,0,e/b.mp4,,,,18",
        header="clip_id,split,label,ego_path,exo_path,start_s,end_s,take",
    )
    assert read_clip_table(tmp_path / "t.parquet").clips == read_clip_table(csv).clips
    columns["end_s"] = [0.25, float("nan")]
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(TableError, match=r"row 1: end_s 0.25 is not after(.|\n)*row 2: end_s 'nan'"):
        read_clip_table(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"not parquet")
    with pytest.raises(TableError, match="not a readable Parquet file"):
        read_clip_table(tmp_path / "t.parquet")


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "here.mp4").touch()
    rows = ["a,train,0,here.mp4,gone.mp4,,,p.npy", "b,train,0,gone.mp4,here.mp4,,,", "c,train,0,here.mp4,,,,"]
    missing = missing_files(read_clip_table(write(tmp_path, *rows)))
    assert [(clip.clip_id, column, path.name) for clip, column, path in missing] == [
        ("a", "exo_path", "gone.mp4"),
        ("a", "pose_path", "p.npy"),
        ("b", "ego_path", "gone.mp4"),
    ]


def big(folder: Path, count: int = 2000, shuffled: bool = False) -> ClipTable:
    rows = [f"c{i},{'test' if i % 10 == 0 else 'train'},{i % 3},v.mp4,,,," for i in range(count)]
    if shuffled:
        random.Random(1).shuffle(rows)
    return read_clip_table(write(folder, *rows))


def test_hold_out_is_a_function_of_seed_and_clip(tmp_path: Path) -> None:
    held = hold_out(big(tmp_path), 0.2, seed=3)
    ids = {clip.clip_id for clip in held.split("val")}
    assert held.splits["test"] == 200
    assert 0.15 < len(ids) / 1800 < 0.25
    per_class = [sum(clip.label == label for clip in held.split("val")) for label in range(3)]
    assert min(per_class) > 80
    again = hold_out(big(tmp_path, shuffled=True), 0.2, seed=3)
    assert {clip.clip_id for clip in again.split("val")} == ids
    grown = hold_out(big(tmp_path, 3000), 0.2, seed=3)
    assert {c.clip_id for c in grown.split("val") if int(c.clip_id[1:]) < 2000} == ids
    other = hold_out(big(tmp_path), 0.2, seed=4)
    assert {clip.clip_id for clip in other.split("val")} != ids


def test_hold_out_of_a_small_split_leaves_one_on_each_side(tmp_path: Path) -> None:
    table = read_clip_table(write(tmp_path, "a,train,0,v,,,,", "b,train,0,v,,,,"))
    for share in (1e-9, 0.5, 0.999999):
        for seed in range(20):
            assert hold_out(table, share, seed).splits == {"train": 1, "val": 1, "test": 0}
    assert hold_out(table, 0.0, 0) is table


def test_hold_out_refuses(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="val split already"):
        hold_out(read_clip_table(write(tmp_path, "a,train,0,v,,,,", "b,val,0,v,,,,")), 0.5, 0)
    one = read_clip_table(write(tmp_path, "a,train,0,v,,,,"))
    with pytest.raises(TableError, match="too few"):
        hold_out(one, 0.5, 0)
    with pytest.raises(UsageError, match="not in"):
        hold_out(one, 1.0, 0)


@pytest.mark.slow
def test_a_long_table_is_read_whole(tmp_path: Path) -> None:
    rows = (
        f"{i},train,{i % 24},ego/{i // 50}.mp4,exo/{i // 50}.mp4,{i % 50},{i % 50 + 1},p/{i}.npy"
        for i in range(150_000)
    )
    path = write(tmp_path, *rows)
    table = read_clip_table(path)
    assert len(table.clips) == 150_000
    assert len(missing_files(table)) == 450_000


def test_numbers_have_the_names_of_their_column(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    head = "clip_id,split,label,ego_path,class_name\n"
    path.write_text(head + "a,train,0,a.mp4,stir\nb,train,2,b.mp4,stir\nc,test,3,c.mp4,cut\nd,test,1,d.mp4,\n")
    assert read_clip_table(path).classes == ("stir (0)", "1", "stir (2)", "cut")  # each name once
    assert read_clip_table(path, num_classes=5).classes[3:] == ("cut", "4")
    path.write_text(head + "a,train,0,a.mp4,stir\nb,train,0,b.mp4,cut\n")
    with pytest.raises(TableError, match=r"label 0 has class_name 'cut', but 'stir'"):
        read_clip_table(path)
