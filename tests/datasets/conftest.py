"""Small data sets in the layout that each is published in, made by code: names and numbers are invented."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from uniego import cli

OLD, NEW = "HMC_84358933_mono10bit", "HMC_21179183_mono10bit"
SEQUENCES = {
    "nusar-2021_action_both_9001-a01_9001_user_id_2021-02-01_100000": OLD,
    "nusar-2021_action_both_9002-b02_9002_user_id_2021-02-02_100000": NEW,
}
Call = Callable[..., Any]


@pytest.fixture(scope="session")
def call() -> Call:
    """Runs `uniego data ...` and returns its result."""
    return lambda *arguments: CliRunner().invoke(cli.app, ["data", *map(str, arguments)])


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of a CSV file."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    return read


@cache
def picture(number: int, side: tuple[int, int]) -> bytes:
    """A JPEG picture."""
    out = io.BytesIO()
    Image.new("RGB", side, (number * 2, 40, 90)).save(out, "JPEG")
    return out.getvalue()


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_csv(path: Path, header: str, lines: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n", encoding="utf-8")


# --- EgoExo-Fitness -------------------------------------------------------------------------------------------------

RECORDS = {
    "AbC123": ("20230901-Zhang", ("ego_m", "ego_l", "exo_m", "exo_l", "exo_r")),
    "dEf456": ("20230902-Li", ("ego_m", "exo_l", "exo_r")),
    "gHi789": ("20231001-Zhang", ("ego_m", "exo_m")),
    "jKl012": ("20231001-Wang", ("ego_m",)),
}


@pytest.fixture
def fitness(tmp_path: Path) -> Path:
    """Four records of 90 frames (exo views have 85), two sequences each; one record without exo views."""
    root = tmp_path / "fitness"
    records, database, actions = [], {}, {}
    for rid, (actor, views) in RECORDS.items():
        frames = {}
        for view in views:
            count = 90 if view.startswith("ego") else 85
            folder = root / "frames_open" / rid / view
            folder.mkdir(parents=True)
            side = (24, 32) if view in {"exo_l", "exo_r"} else (32, 24)  # filmed by a camera on its side
            for number in range(1, count + 1):
                (folder / f"frame_{number:010d}.jpg").write_bytes(picture(number, side))
            frames[view] = {"path": f"frames_open/{rid}/{view}", "num_frames": count}
            for seq, start, end, subset in (("4-3-1", 10, 40, "train"), ("b2-5-3-1-2", 45, 88, "test")):
                if view == "ego_l":
                    subset = {"train": "test", "test": "train"}[subset]  # as officially: by view as well
                names = ("Kneeling Right-side Torso Twist", "Left Leg Lunge With Knee Lift")
                middle = (start + end) // 2
                database[f"{rid}_{seq}_{view}"] = {
                    "annotations": [
                        {
                            "label": name,
                            "segment_time": [a / 30, b / 30],
                            "segment": [(a - start) / 30, (b - start) / 30],
                            "segment_frame": [],
                            "fps": 30,
                        }
                        for name, a, b in zip(names, (start, middle), (middle, end), strict=True)
                    ],
                    "duration": (end - start) / 30,
                    "fps": 30,
                    "num_frames": end - start,
                    "resolution": "",
                    "subset": subset,
                    "view": view,
                    "actor": rid,
                    "path": f"frames_open{rid}/{view}/",
                    "seq_st": start,
                    "seq_ed": end,
                }
        record = {
            "original_actor": actor,
            "views": list(views),
            "frames": frames,
            "num_views": len(views),
            "num_sequences": "2",
            "sequences": {"sequence_start_end_frame": [[10, 40], [45, 88]]},
            "num_actions": 2,
        }
        records.append({**record, "record_id": rid} if rid == "dEf456" else record)
        actions[rid] = {"num_actions": 2, "action_info": [[3, 10, 25], [12, 45, 88]]}
    folder = root / "raw_annotations"
    write_json(
        folder / "meta_records.json", {"records": records, "record_index": {r: i for i, r in enumerate(RECORDS)}}
    )
    write_json(folder / "subaction_level_annotations_ant13_style_v1.json", {"classes": [], "database": database})
    write_json(folder / "action_level_annotations.json", actions)
    pair = "/PATH/TO/VIDEO_FRAME/{0}/ego_m/GH010723 3-3-3 20 60 /PATH/TO/VIDEO_FRAME/{0}/exo_m/rgb_out_2 3-3-3 20 60\n"
    (folder / "train_pairs_open.txt").write_bytes(pair.format("AbC123").encode() + bytes(1000))
    (folder / "test_pairs_open.txt").write_text(pair.format("dEf456"))
    return root


# --- Assembly101 ----------------------------------------------------------------------------------------------------

FINE = "id,video,start_frame,end_frame,action_id,verb_id,noun_id,action_cls,verb_cls,noun_cls,toy_id,toy_name,is_shared"


@pytest.fixture
def assembly101(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """Two recordings of 2 seconds with one headset each, in e4, v3 and v1; two segments each, a row per view."""
    root = tmp_path / "assembly101"
    lines: dict[str, list[list[object]]] = {"train": [], "validation": []}
    for split, (sequence, ego) in zip(lines, SEQUENCES.items(), strict=True):
        views = (ego, "C10118_rgb", "C10095_rgb", "HMC_84346135_mono10bit")
        for view in views[:3]:
            frames = 100 if view == NEW else 120  # an ego video shorter than the annotation
            make_video(root / "recordings" / sequence / f"{view}.mp4", frames=frames, fps=60)
        for first, last, action, verb, noun, name in (
            ("000000006", "000000024", "0010", "0018", "0027", "clap hand,clap,hand"),
            ("000000030", "000000057", "0182", "0004", "0026", "unscrew track with screwdriver,unscrew,track"),
        ):
            for view in views:
                row = [f"{len(lines[split]):07d}", f"{sequence}/{view}.mp4", first, last, action, verb, noun, name]
                lines[split].append([*row, "a01", "suv", 0, int(view.startswith("C"))])
    for split, content in lines.items():
        write_csv(root / f"fine-grained-annotations/{split}.csv", FINE + ",is_RGB", content)
    _coarse(root / "coarse-annotations")
    hands = {"landmarks": {h: np.ones((21, 3)).tolist() for h in "01"}, "tracking_confidence": {"0": 1.0, "1": 1.0}}
    write_json(root / "poses@60fps" / f"{next(iter(SEQUENCES))}.json", [hands] * 120)
    return root


def _coarse(folder: Path) -> None:
    classes = [(0, 0, 0, "attach wheel", "attach", "wheel"), (1, 1, 0, "detach wheel", "detach", "wheel")]
    write_csv(folder / "actions.csv", "action_id,verb_id,noun_id,action_cls,verb_cls,noun_cls", classes)
    first, second = SEQUENCES
    (folder / "coarse_labels").mkdir()
    (folder / "coarse_splits").mkdir()
    label = "3\t20\tattach wheel\t\n20\t33\tdetach wheel\tcorrection"
    (folder / f"coarse_labels/assembly_{first}.txt").write_text(label)  # no final newline
    (folder / f"coarse_labels/disassembly_{second}.txt").write_bytes(label.replace("\n", "\r\n").encode())
    (folder / "coarse_splits/train_coarse_assembly.txt").write_text(f"assembly_{first}.txt\tshared\ta01\tsuv\n")
    # one loader writes it like this, and validation goes by "val"
    (folder / "coarse_splits/val_coarse_disassembly.txt").write_text(f"disassebly_{second}.txt\tshared\tb02\tcar\n")


# --- Ego-Exo4D ------------------------------------------------------------------------------------------------------


@pytest.fixture
def egoexo4d(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """Four takes: best_exo, none but in the descriptions, none at all, and one that was dropped."""
    root = tmp_path / "egoexo4d"
    takes = [
        _take("uid-a", "cmu_bike01_2", "aria01", "cam02"),
        _take("uid-b", "iiith_cooking_01_1", "aria02", None),
        _take("uid-c", "sfu_cooking_003_5", "aria01", None),
        _take("uid-d", "uniandes_x_1", "aria01", "cam01"),
    ]
    takes[3]["is_dropped"] = True
    for take in takes[:3]:
        ego = next(iter(take["frame_aligned_videos"]))
        for name in (f"{ego}_214-1.mp4", "cam01.mp4", "cam02.mp4"):
            path = root / "takes" / take["take_name"] / "frame_aligned_videos" / "downscaled" / "448" / name
            make_video(path, frames=60, fps=30)
    write_json(root / "takes.json", takes)
    splits = {"uid-a": "train", "uid-b": "train", "uid-c": "val", "uid-d": "train"}
    parts = {s: [uid for uid, split in splits.items() if split == s] for s in ("train", "val", "test")}
    annotations = root / "annotations"
    write_json(annotations / "splits.json", {"split_to_take_uids": parts, "take_uid_to_split": splits})
    vocabulary = {"843": "Add oil", "1567": "Stir", "7": "Remove wheel", "9": "Never seen"}
    for part in ("train", "val"):
        found = {t["take_uid"]: _keysteps(t) for t in takes if splits[t["take_uid"]] == part}
        taxonomy = {"Cooking": {}, "Bike": {}}
        write_json(
            annotations / f"keystep_{part}.json", {"annotations": found, "taxonomy": taxonomy, "vocabulary": vocabulary}
        )
    described = [
        {"rejected": "1", "descriptions": [_text(0.1, "cam01")] * 5},
        {
            "rejected": False,
            "descriptions": [
                _text(0.1, "cam02"),
                _text(1.2, "cam02"),
                _text(1.3, "cam01"),
                {"text": "", "timestamp": 1.4, "unsure": "0", "best_exo": None},
            ],
        },
    ]
    write_json(annotations / "atomic_descriptions_train.json", {"annotations": {"uid-b": described}})
    write_json(annotations / "atomic_descriptions_val.json", {"annotations": {}})
    joints = {"cam01": {"nose": {"x": 1, "y": 2, "placement": "manual"}}, "cam02": {"nose": {"x": 1, "y": 2}}}
    write_json(annotations / "ego_pose/train/body/automatic/uid-a.json", {"0": [{"annotation2D": joints}]})
    write_json(annotations / "ego_pose/train/hand/annotation/uid-a.json", {"0": [{"annotation2D": {}}]})
    _benchmark(annotations / "keystep_benchmark")
    return root


def _text(second: float, camera: str) -> dict[str, Any]:
    return {"text": "C does", "timestamp": second, "subject": "C", "unsure": "0", "best_exo": {"cam_id": camera}}


def _take(uid: str, name: str, aria: str, best: str | None) -> dict[str, Any]:
    def videos(camera: str, streams: dict[str, str | None]) -> dict[str, Any]:
        return {
            stream: {"cam_id": camera, "stream_id": stream, "relative_path": path} for stream, path in streams.items()
        }

    folder = "frame_aligned_videos"
    aligned = {
        aria: videos(aria, {"et": f"{folder}/{aria}_211-1.mp4", "rgb": f"{folder}/{aria}_214-1.mp4"}),
        "best_exo": videos("best_exo", {"0": None}),
        "collage": videos("collage", {"0": f"{folder}/collage.mp4"}),
        "cam02": videos("cam02", {"0": f"{folder}/cam02.mp4"}),
        "cam01": videos("cam01", {"0": f"{folder}/cam01.mp4"}),
        "moblie": videos("moblie", {"0": None}),
    }
    cameras = [
        {"cam_id": aria, "is_ego": True, "device_type": "aria"},
        {"cam_id": "cam01", "is_ego": False, "device_type": "gopro"},
    ]
    return {
        "take_uid": uid,
        "take_name": name,
        "root_dir": f"takes/{name}",
        "best_exo": best,
        "is_dropped": False,
        "capture": {"cameras": cameras},
        "frame_aligned_videos": aligned,
    }


def _keysteps(take: dict[str, Any]) -> dict[str, Any]:
    def step(start: float, end: float, unique: int, name: str) -> dict[str, Any]:
        return {"start_time": start, "end_time": end, "step_id": 1, "step_name": name, "step_unique_id": unique}

    segments = [
        step(0.0, 0.8, 843, "Add oil"),
        step(0.5, 1.5, 1567, "Stir"),
        step(1.5, 1.5, 1567, "Stir"),
        step(1.9, 30.0, 7, "Remove wheel"),
        step(5.0, 6.0, 7, "Remove wheel"),
    ]
    return {"take_uid": take["take_uid"], "take_name": take["take_name"], "scenario": "Cooking", "segments": segments}


def _benchmark(folder: Path) -> None:
    lines = [(1, 7, '"Remove wheel, rear"', "Bike"), (0, 843, "Add oil", "Cooking")]
    write_csv(folder / "label_mapping.csv", "label_id,step_unique_id,step_name,scenario_name", lines)
    for part, uid in (("train", "uid-a"), ("val", "uid-c")):
        segments = [
            {"take_uid": uid, "start_time": 0.0, "end_time": 0.8, "step_unique_id": 843, "label_id": 0},
            {"take_uid": uid, "start_time": 1.0, "end_time": 1.5, "step_unique_id": 7, "label_id": 0},
        ]
        write_json(folder / f"keystep_segment_{part}.json", {"segments": segments})
