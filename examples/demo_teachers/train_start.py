"""The start of the demo's student and proxies: what ImageNet weights are to their big siblings.

python examples/demo_teachers/train_start.py /tmp/teacher-clips

A TimeSformer of the student's shape watches ego clips of people whom no data set of the demo has. It learns where hands
and object are and how they move (`looking.py`), and is never told the name of an action.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from common import WEIGHTS, fit, note, read_clips, save_half, start
from looking import Footage, Lessons, widen
from uniego.demo.preset import demo_config
from uniego.models import TimeSformer

NAME, SEED, RATE = "start", 17, 2e-3
STILLS, STILL_BATCH, STEPS, BATCH = 400, 128, 5000, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--stills", type=int, default=STILLS)
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    clips, generator = read_clips(chosen.clips), start(SEED)
    shape = demo_config().student
    footage = Footage.of(clips, "ego", shape.image_size, shape.patch_size, generator)
    model = TimeSformer(
        shape.image_size,
        shape.patch_size,
        shape.num_frames,
        shape.width,
        shape.depth,
        shape.heads,
        num_classes=1,
        drop_path=0.0,
        seed=SEED,
    ).train()
    widen(model)
    lessons = Lessons(model, shape.image_size // shape.patch_size, relative=True)
    seconds = fit("stills", [lessons], chosen.stills, RATE, lambda _: lessons.still(footage, STILL_BATCH))
    seconds += fit("start", [lessons], chosen.steps, RATE, lambda _: lessons.moving(footage, BATCH, named=False))
    with torch.inference_mode():
        unseen = replace(footage, rows=clips.held_out)
        wrong = [lessons.look(*unseen.moving(BATCH)[:2])[1] for _ in range(15)]
    lessons.leave()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    save_half(state, WEIGHTS / NAME / "model.safetensors", heads=str(shape.heads))
    facts = {name: round(float(torch.stack([one[name] for one in wrong]).mean()), 4) for name in wrong[0]}
    note(
        NAME,
        {
            "objective": "places, speeds and ways of wrists and object in the ego view; no names of actions",
            "seed": SEED,
            "steps": chosen.stills + chosen.steps,
            "seconds": round(seconds),
            **facts,
        },
    )


if __name__ == "__main__":
    main()
