"""`uniego demo` from the data to the comparison, on the smallest data set it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import uniego
from typer.testing import CliRunner
from uniego import cli
from uniego.pipeline.rundir import Run
from uniego.stages.status import status


@pytest.mark.slow
def test_the_whole_journey(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--clips", "24", "--size", "64"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    for text in ("trained on labels alone", "distilled from nine teachers", "linear probe", "altogether"):
        assert text in result.output
    run = Run.open(out / "run")
    stages = status(run)["stages"]
    assert all(entry["state"] == "done" and not entry["random"] for entry in stages["extract-teachers"].values())
    assert {entry["state"] for entry in stages["train-proxies"].values()} == {"done"}
    assert set(stages["evaluate"]) == {"student", "ego-only"}
    assert uniego.load(out / "run").encode(out / "data" / "videos" / "s002_ego.mp4").shape == (64,)
    again = CliRunner().invoke(cli.app, arguments)
    assert again.exit_code == 0, again.output
    assert again.output.count("nothing to do") >= 13  # data aside, every piece of work is finished
