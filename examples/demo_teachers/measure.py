"""What the stored teachers are worth on people they never saw: writes demo/weights/quality.json and README.md.

    python examples/demo_teachers/measure.py /tmp/teacher-clips
    python examples/demo_teachers/measure.py /tmp/teacher-clips --keep  # the README alone, from quality.json

Every teacher is built and fed as extraction does it. A ridge classifier on its features, fitted on some of the
training people, is scored on the held-out ones: once on the mean of a clip's rows, which is what a proxy learns to
imitate, and once on all rows side by side, which still tells their order. The clips are those of the demo's eight
actions; what the networks of twelve reach on held-out people is measured at the end of their training.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from common import PICKS, WEIGHTS, Clips, read_clips, start
from poses import estimated
from torch import Tensor
from uniego.demo.actions import ACTIONS
from uniego.demo.teachers import demo_teachers
from uniego.models.teachers import Teacher, build_teacher

SEED, FITTED = 16, 1200
PENALTY = 0.03  # of the number of clips; features have unit variance


def features(teacher: Teacher, clips: Clips, rows: Tensor) -> Tensor:
    """float32 [n, rows, dim]."""
    frames, joints = clips[teacher.view], clips["joints"]
    prepared = []
    for row in rows.tolist():
        pose = estimated(joints[row], np.random.default_rng((SEED, row)), frames.shape[2])
        pictures = torch.from_numpy(np.array(frames[row][PICKS])) if teacher.frames else None
        prepared.append(teacher.prepare(pictures, pose))
    return torch.cat([teacher.features(prepared[at : at + 32]) for at in range(0, len(prepared), 32)])


def probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of a ridge classifier, all choices fixed beforehand."""
    mean, spread = train.mean(0), train.std(0) + 1e-6
    train, test = ((part - mean) / spread for part in (train.double(), test.double()))
    classes = int(train_labels.max()) + 1
    wanted = torch.eye(classes, dtype=torch.float64)[train_labels] - 1 / classes
    gram = train.T @ train + PENALTY * len(train) * torch.eye(train.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, train.T @ wanted)
    return float(((test @ weights).argmax(1) == test_labels).float().mean())


def measure(key: str, clips: Clips) -> dict[str, object]:
    teacher = build_teacher(key, demo_teachers()[key])
    labels, fitted = clips.labels(), clips.train[-FITTED:]
    train, test = features(teacher, clips, fitted), features(teacher, clips, clips.held_out)
    one = teacher.prepare(
        torch.from_numpy(np.array(clips[teacher.view][0][PICKS])) if teacher.frames else None,
        estimated(clips["joints"][0], np.random.default_rng(SEED), 96),
    )
    times = []
    for _ in range(25):
        began = time.perf_counter()
        teacher.features([one])
        times.append(time.perf_counter() - began)

    def score(shape: str, wanted: Tensor) -> float:
        parts = [part.mean(1) if shape == "mean" else part.flatten(1) for part in (train, test)]
        return round(probe(parts[0], wanted[fitted], parts[1], wanted[clips.held_out]), 4)

    facts: dict[str, object] = {"network": teacher.config.network, "dim": teacher.dim}
    facts |= {"probe_mean": score("mean", labels), "probe_mean_pair": score("mean", labels // 2)}
    if teacher.rows > 1:
        facts["probe_ordered"] = score("ordered", labels)
    return {**facts, "milliseconds": round(1000 * min(times), 1)}


def table(quality: dict[str, dict[str, object]]) -> str:
    lines = ["| teacher | network | width | mean of rows | which pair, mean of rows | rows in order | ms per clip |"]
    lines.append("|---|---|---|---|---|---|---|")
    for key, facts in quality.items():
        ordered = f"{facts['probe_ordered']:.1%}" if "probe_ordered" in facts else "one row"
        numbers = f"{facts['probe_mean']:.1%} | {facts['probe_mean_pair']:.1%} | {ordered} | {facts['milliseconds']}"
        lines.append(f"| `{key}` | `demo:{facts['network']}` | {facts['dim']} | {numbers} |")
    return "\n".join(lines)


def trainings() -> str:
    lines = [
        "| network | objective | steps | seconds | measured on held-out people | KB |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(WEIGHTS.glob("*/training.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        told = {"objective", "steps", "seconds", "seed", "by_class"}
        results = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if name not in told)
        size = round((path.parent / "model.safetensors").stat().st_size / 1000)
        numbers = f"{facts['steps']} | {facts['seconds']} | {results or 'see the probes'} | {size}"
        lines.append(f"| `demo:{path.parent.name}` | {facts['objective']} | {numbers} |")
    return "\n".join(lines)


TEXT = """# The demo's teachers

Six small networks under the nine keys, trained from nothing on rendered clips of {subjects} people ({clips} clips,
data seed {domain}) and measured on {held_out} people ({tested} clips) whom they never saw. None of these people is in
a data set of the demo. The weights are stored in half precision. Licence: Apache-2.0, as the rest of the repository.
`examples/demo_teachers/` renders, trains and measures. `demo:start` is no teacher: student and proxies start
from it, as the published recipe starts from ImageNet weights.

`demo:timesformer12` and `demo:stgcn12` stand for two of the six where a data set has all twelve actions. They start
from the networks of eight and learned from twelve clips of each of the same people; accuracies by action are in their
`training.json`.

## How they were trained

{trainings}

## What their features tell

Accuracy of a ridge classifier over 8 actions (chance 12.5 %) or their 4 pairs (25 %), fitted on {fitted} training
clips. The mean of a clip's rows cannot tell the order of frames, and of every pair one action is the other backwards:
a teacher of single frames that knows the pair and no more reaches 50 % of actions. In order, the rows of single frames
tell more. Times are of one thread, one clip at a time.

{table}

All nine: {total:.0f} ms per clip.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument(
        "--keep", action="store_true", help="measure nothing: write the README of quality.json as it is"
    )
    chosen = parser.parse_args()
    clips, kept = read_clips(chosen.clips), WEIGHTS / "quality.json"
    if clips.actions != ACTIONS:
        raise SystemExit(f"{chosen.clips} holds {len(clips.actions)} actions; measure on clips of the demo's eight")
    start(SEED)
    quality = json.loads(kept.read_text(encoding="utf-8")) if chosen.keep else {}
    for key in [] if chosen.keep else demo_teachers():
        quality[key] = measure(key, clips)
        print(key, quality[key], flush=True)
    kept.write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    facts = json.loads((chosen.clips / "clips.json").read_text(encoding="utf-8"))
    text = TEXT.format(
        subjects=facts["subjects"],
        held_out=facts["held_out"],
        domain=hex(facts["domain"]),
        clips=len(clips.train),
        tested=len(clips.held_out),
        fitted=FITTED,
        trainings=trainings(),
        table=table(quality),
        total=sum(float(str(row["milliseconds"])) for row in quality.values()),
    )
    (WEIGHTS / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
