"""exo_rgb: a TimeSformer that names the action from eight frames of the outer view.

python examples/demo_teachers/train_exo_rgb.py /tmp/teacher-clips

Its big sibling starts from a network that knows pictures. This one starts from nothing, so the side tasks of
`looking.py` teach it to look. On clips of all twelve actions it starts from the stored network of eight.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import WEIGHTS, fit, grow, normalise, note, read_clips, save_half, start, stored_as
from looking import Footage, Lessons, widen
from uniego.models import TimeSformer
from uniego.models.teachers.preprocess import KINETICS, for_network

NAME, SEED, RATE = "timesformer", 12, 2e-3
STILLS, STILL_BATCH, STEPS, BATCH = 250, 128, 1400, 32
GROWING = 50, 650, 1e-3  # steps of the new layers alone and of all, and the latter's rate, from a stored network
SIZE, PATCH, WIDTH, DEPTH, HEADS = 96, 16, 64, 4, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--first", type=int, help=f"steps before: {STILLS} of stills, {GROWING[0]} of new layers")
    parser.add_argument("--steps", type=int, help=f"steps of naming ({STEPS}; {GROWING[1]} from a stored network)")
    chosen = parser.parse_args()
    clips, generator = read_clips(chosen.clips), start(SEED)
    footage, labels = Footage.of(clips, "exo", SIZE, PATCH, generator), clips.labels()
    name, count = stored_as(NAME, clips), len(clips.actions)
    model = TimeSformer(SIZE, PATCH, 8, WIDTH, DEPTH, HEADS, num_classes=count, drop_path=0.0, seed=SEED).train()
    growing = name != NAME
    first, steps, rate = GROWING if growing else (STILLS, STEPS, RATE)
    first, steps = first if chosen.first is None else chosen.first, steps if chosen.steps is None else chosen.steps
    if growing:
        grow(model, NAME)
        lessons = Lessons(model, SIZE // PATCH)
        new = [lessons.ways, lessons.local, model.head]
        seconds = fit("new layers", new, first, 5 * RATE, lambda _: lessons.moving(footage, BATCH, named=True))
    else:
        widen(model)
        lessons = Lessons(model, SIZE // PATCH)
        seconds = fit("stills", [lessons], first, RATE, lambda _: lessons.still(footage, STILL_BATCH))
    seconds += fit("exo_rgb", [lessons], steps, rate, lambda _: lessons.moving(footage, BATCH, named=True))
    lessons.leave()
    with torch.inference_mode():
        video = clips.pictures("exo", for_network("timesformer", SIZE, PATCH).frames, clips.held_out.tolist())
        parts = [normalise(part.float() / 255, *KINETICS).transpose(1, 2) for part in video.split(32)]
        logits = torch.cat([model(part.contiguous()).logits for part in parts])
    right = (logits.argmax(1) == labels[clips.held_out]).float()
    save_half(model.state_dict(), WEIGHTS / name / "model.safetensors", heads=str(HEADS))
    task = f"cross-entropy of {count} actions; side tasks: places, speeds and ways of wrists and object"
    note(
        name,
        {
            "objective": f"{task}; from `demo:{NAME}`" if growing else task,
            "seed": SEED,
            "steps": first + steps,
            "seconds": round(seconds),
            "accuracy": round(float(right.mean()), 4),
            "by_class": [round(value, 3) for value in right.view(-1, count).mean(0).tolist()],
        },
    )


if __name__ == "__main__":
    main()
