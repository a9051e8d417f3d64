"""exo_rgb: a TimeSformer that names the action from eight frames of the outer view.

python examples/demo_teachers/train_exo_rgb.py /tmp/teacher-clips

Its big sibling starts from a network that knows pictures. This one starts from nothing, so the side tasks of
`looking.py` teach it to look.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import WEIGHTS, fit, normalise, note, read_clips, save_half, start
from looking import Footage, Lessons, widen
from uniego.models import TimeSformer
from uniego.models.teachers.preprocess import KINETICS, for_network

NAME, SEED, RATE = "timesformer", 12, 2e-3
STILLS, STILL_BATCH, STEPS, BATCH = 250, 128, 1400, 32
SIZE, PATCH, WIDTH, DEPTH, HEADS = 96, 16, 64, 4, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--stills", type=int, default=STILLS)
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    clips, generator = read_clips(chosen.clips), start(SEED)
    footage, labels = Footage.of(clips, "exo", SIZE, PATCH, generator), clips.labels()
    model = TimeSformer(SIZE, PATCH, 8, WIDTH, DEPTH, HEADS, num_classes=8, drop_path=0.0, seed=SEED).train()
    widen(model)
    lessons = Lessons(model, SIZE // PATCH)
    seconds = fit("stills", [lessons], chosen.stills, RATE, lambda _: lessons.still(footage, STILL_BATCH))
    seconds += fit("exo_rgb", [lessons], chosen.steps, RATE, lambda _: lessons.moving(footage, BATCH, named=True))
    lessons.leave()
    with torch.inference_mode():
        video = clips.pictures("exo", for_network("timesformer", SIZE, PATCH).frames, clips.held_out.tolist())
        parts = [normalise(part.float() / 255, *KINETICS).transpose(1, 2) for part in video.split(32)]
        logits = torch.cat([model(part.contiguous()).logits for part in parts])
    right = (logits.argmax(1) == labels[clips.held_out]).float()
    save_half(model.state_dict(), WEIGHTS / NAME / "model.safetensors", heads=str(HEADS))
    note(
        NAME,
        {
            "objective": "cross-entropy of 8 actions; side tasks: places, speeds and ways of wrists and object",
            "seed": SEED,
            "steps": chosen.stills + chosen.steps,
            "seconds": round(seconds),
            "accuracy": round(float(right.mean()), 4),
            "by_class": [round(value, 3) for value in right.view(-1, 8).mean(0).tolist()],
        },
    )


if __name__ == "__main__":
    main()
