"""The learning rate equals the released solver's at 200 fractional epochs."""

import json
from pathlib import Path

import pytest
from uniego.pipeline.config import OptimizerConfig, ScheduleConfig
from uniego.stages.schedule import learning_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "lr_schedule.json").read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_equals_the_release(name: str) -> None:
    solver = GOLDEN[name]["solver"]
    schedule = ScheduleConfig(
        kind="cosine" if "COSINE_END_LR" in solver else "steps",
        steps=solver.get("STEPS", [0]),
        factors=solver.get("LRS", [1]),
        end_lr=solver.get("COSINE_END_LR", 0.0),
        warmup_epochs=solver["WARMUP_EPOCHS"],
        warmup_lr=solver.get("WARMUP_START_LR", 0.0),
    )
    optimizer = OptimizerConfig(lr=solver["BASE_LR"])
    ours = [learning_rate(e, optimizer, schedule, epochs=solver["MAX_EPOCH"]) for e in GOLDEN[name]["epoch"]]
    assert ours == pytest.approx(GOLDEN[name]["lr"], rel=1e-12, abs=1e-15)


def test_steps_must_start_at_zero_and_increase() -> None:
    with pytest.raises(ValueError, match="must start at 0"):
        ScheduleConfig(steps=[1, 2], factors=[1, 0.1])
    with pytest.raises(ValueError, match="must start at 0"):
        ScheduleConfig(steps=[0, 3, 2], factors=[1, 0.1, 0.01])
