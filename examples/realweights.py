"""The whole road over one real pair of videos, with really trained teachers and no model hub.

    python examples/realweights.py EGO_VIDEO EXO_VIDEO [FOLDER]      (default: realweights/)

The two videos show the same moments from two cameras and start together. They are cut into clips of half a second,
and the label of a clip is the half of the recording it lies in: enough to see every part work on real pictures, not a
data set to draw conclusions from. Student and proxies are the `tiny` preset's. What to install: docs/realweights.md.
"""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import yaml
from uniego.models.teachers.realweights import write_dinov2_small
from uniego.pipeline.video import open_video

SECONDS = 0.5


def uniego(*words: object) -> None:
    """Run one command of uniego, or end as it ends."""
    command = [sys.executable, "-m", "uniego", *map(str, words)]
    print(f"$ uniego {' '.join(command[3:])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def write_table(path: Path, ego: Path, exo: Path, poses: Path) -> None:
    """Clips of half a second; every fourth is for testing."""
    with open_video(ego) as one, open_video(exo) as other:
        count = math.floor(min(video.info.frame_count / video.info.fps for video in (one, other)) / SECONDS)
    if count < 8:
        sys.exit(f"{ego} and {exo}: {count} clips of {SECONDS} s, too few; take videos of four seconds or more")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["clip_id", "split", "label", "ego_path", "exo_path", "pose_path", "start_s", "end_s"])
        for i in range(count):
            split, label = "test" if i % 4 == 2 else "train", "first" if i < count / 2 else "second"
            row = [f"clip{i:03d}", split, label, ego, exo, poses, i * SECONDS, (i + 1) * SECONDS]
            writer.writerow(row)


def teachers(dinov2: Path) -> dict[str, dict[str, object]]:
    """The pool of run.yaml: two image networks on both views, and the demo's skeleton network."""
    pool: dict[str, dict[str, object]] = {}
    for view in ("exo", "ego"):
        pool[f"{view}_lite0"] = {"network": "uniego.models.teachers.realweights:EfficientNetLite0", "frames": 2}
        pool[f"{view}_dino"] = {"network": "dinov2", "weights": f"dir:{dinov2}", "layers": [8], "frames": 2}
    return {**pool, "exo_skl": {"network": "stgcn", "weights": "demo:stgcn"}}


def main() -> None:
    """Skeletons, clip table, teachers, and the stages up to the evaluation."""
    if len(sys.argv) not in {3, 4}:
        sys.exit(str(__doc__).strip().splitlines()[2].strip())
    ego, exo = (Path(name).resolve() for name in sys.argv[1:3])
    root = Path(sys.argv[3] if len(sys.argv) == 4 else "realweights").absolute()
    run, dinov2, poses = root / "run", root / "dinov2-small", root / "poses.pkl"
    root.mkdir(parents=True, exist_ok=True)
    if not (dinov2 / "config.json").exists():
        write_dinov2_small(dinov2)
    uniego("extract-pose", exo, "--out", poses, "--overlay", root / "skeletons")
    if not (run / "run.yaml").exists():
        write_table(root / "clips.csv", ego, exo, poses)
        uniego("init", run, "--data", root / "clips.csv", "--preset", "tiny")
        config = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
        config["teachers"] = teachers(dinov2)
        (run / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    for stage in ("extract-teachers", "train-proxies", "distill", "evaluate"):
        uniego(stage, "--run", run)


if __name__ == "__main__":
    main()
