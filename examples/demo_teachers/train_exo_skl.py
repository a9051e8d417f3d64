"""exo_skl: an ST-GCN that names the action from noisy 2-D skeletons of the outer view.

python examples/demo_teachers/train_exo_skl.py /tmp/teacher-clips

On clips of all twelve actions it starts from the stored network of eight.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import WEIGHTS, draw, fit, grow, note, read_clips, save_half, start, stored_as
from poses import estimated
from torch.nn import functional as F
from uniego.models.stgcn import STGCN
from uniego.models.teachers import TeacherConfig, build_teacher

NAME, SEED, STEPS, BATCH, RATE = "stgcn", 11, 2000, 32, 3e-3
GROWING = 1000, 2e-3  # steps and rate from a stored network
FRAMES, PICTURE = 24, 96
WIDTHS = (32, 32, 64, 64)


def with_absent_person(model: STGCN) -> None:
    """Fit the classifier, trained on one person, to the mean over that person and one who is not there."""
    with torch.inference_mode():
        nobody = model(torch.zeros(1, 1, FRAMES, 17, 3)).feature[0]
        layer = model.cls_head.fc_cls
        layer.bias -= layer.weight @ nobody
        layer.weight *= 2


def without_absent_person(model: STGCN) -> None:
    """Undo it, so that a stored network can go on learning from one person."""
    with torch.inference_mode():
        nobody = model(torch.zeros(1, 1, FRAMES, 17, 3)).feature[0]
        layer = model.cls_head.fc_cls
        layer.weight /= 2
        layer.bias += layer.weight @ nobody


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--steps", type=int, help=f"{STEPS}; {GROWING[0]} from a stored network")
    chosen = parser.parse_args()
    clips, generator = read_clips(chosen.clips), start(SEED)
    name, count, backwards = stored_as(NAME, clips), len(clips.actions), clips.backwards()
    growing = name != NAME
    steps, rate = GROWING if growing else (STEPS, RATE)
    steps = steps if chosen.steps is None else chosen.steps
    rng, joints, labels = np.random.default_rng(SEED), np.array(clips["joints"]), clips.labels()
    random = TeacherConfig(network="stgcn", weights="random:0", allow_random=True, pose_frames=FRAMES)
    teacher = build_teacher("exo_skl", random)  # its way of preparing skeletons alone
    model = STGCN("coco", widths=WIDTHS, classes=count, seed=SEED)
    if growing:
        grow(model, NAME)
        without_absent_person(model.eval())

    def prepared(rows: torch.Tensor, back: torch.Tensor | None = None) -> torch.Tensor:
        poses = [estimated(one, rng, PICTURE) for one in joints[rows]]
        for index in [] if back is None else back.nonzero()[:, 0].tolist():
            poses[index] = replace(poses[index], keypoints=poses[index].keypoints[:, ::-1])
        return torch.stack([teacher.prepare(pose=pose) for pose in poses])

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rows = draw(clips.train, BATCH, generator)
        back = torch.rand(BATCH, generator=generator) < 0.5  # run backwards, an action is its opposite
        batch, wanted = prepared(rows, back)[:, :1], torch.where(back, backwards[labels[rows]], labels[rows])
        turn = torch.empty(BATCH, 1, 1, 1).uniform_(0.85, 1.15, generator=generator)
        move = torch.empty(BATCH, 2).uniform_(-0.1, 0.1, generator=generator)
        seen = (batch[..., 2:] > 0).float()
        batch[..., :2] = (batch[..., :2] * turn[..., None] + move[:, None, None, None]) * seen
        logits = model(batch).logits
        loss = F.cross_entropy(logits, wanted, label_smoothing=0.05)
        return loss, {"accuracy": float((logits.argmax(1) == wanted).float().mean())}

    seconds = fit("exo_skl", [model.train()], steps, rate, loss_of)
    with_absent_person(model.eval())
    with torch.inference_mode():
        right = (model(prepared(clips.held_out)).logits.argmax(1) == labels[clips.held_out]).float()
    save_half(model.state_dict(), WEIGHTS / name / "model.safetensors")
    note(
        name,
        {
            "objective": f"cross-entropy of {count} actions" + (f"; from `demo:{NAME}`" if growing else ""),
            "seed": SEED,
            "steps": steps,
            "seconds": round(seconds),
            "accuracy": round(float(right.mean()), 4),
            "by_class": [round(value, 3) for value in right.view(-1, count).mean(0).tolist()],
        },
    )


if __name__ == "__main__":
    main()
