"""One install and smoke test for every supported interpreter that is found on this machine.

The interpreter that runs the tests gets everything, pinned torch included. On another one the pinned torch may
be a build with several gigabytes of CUDA libraries; there the package is installed with its lighter dependencies
and shown to do what needs no torch. UNIEGO_TEST_INSTALL=full installs everything everywhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from uniego import __version__

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers"}
VERSIONS = ["3.11", "3.12", "3.13"]
TABLE = "clip_id,split,label,ego_path\na,train,lift,a.mp4\nb,test,turn,b.mp4\n"


def interpreter(version: str) -> Path:
    """A working interpreter of that version; skips when there is none."""
    managed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    on_path = shutil.which(f"python{version}")
    for candidate in [*([Path(on_path)] if on_path else []), *managed]:
        try:  # a version manager's shim may be on PATH without the version it stands for
            result = subprocess.run([candidate, "--version"], capture_output=True, text=True, timeout=60)
        except OSError:
            continue
        if result.returncode == 0 and result.stdout.startswith(f"Python {version}."):
            return candidate
    pytest.skip(f"Python {version} was not found on this machine")


def check(command: list[str | Path], cwd: Path, timeout: float = 900) -> str:
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def light_requirements() -> list[str]:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [line for line in lines if re.split(r"[\[<>= ]", line)[0] not in HEAVY]


def copy_of_the_source(folder: Path) -> Path:
    """A clean copy: an install from the checkout itself would leave its build folder there."""
    ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "uniego-demo")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    return folder / "source"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_install_and_smoke(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    everything = os.environ.get("UNIEGO_TEST_INSTALL") == "full" or sys.version.startswith(f"{version}.")
    source = copy_of_the_source(tmp_path)
    check([python, "-m", "venv", "env"], tmp_path)
    ours = tmp_path / "env/bin/python"
    pip: list[str | Path] = [ours, "-m", "pip", "install", "--quiet", "-c", source / "constraints.txt"]
    if everything:
        check([*pip, source], tmp_path, timeout=1800)
    else:
        check([*pip, *light_requirements()], tmp_path)
        check([ours, "-m", "pip", "install", "--quiet", "--no-deps", source], tmp_path)
    smoke(tmp_path)
    if everything:
        smoke_with_torch(tmp_path)


def smoke(folder: Path) -> None:
    """What works without torch: the command answers and a clip table is read."""
    command = folder / "env/bin/uniego"
    assert check([command, "--version"], folder) == f"uniego {__version__}\n"
    assert "extract-teachers" in check([folder / "env/bin/python", "-m", "uniego", "--help"], folder)
    (folder / "clips.csv").write_text(TABLE)
    for name in "ab":
        (folder / f"{name}.mp4").touch()
    assert "classes: 2" in check([command, "data", "check", "clips.csv", "--quick"], folder)
    check([folder / "env/bin/python", "-c", "import av, decord, h5py, numpy, zarr, rich, pydantic"], folder)


def smoke_with_torch(folder: Path) -> None:
    """A run is made, and a small network computes."""
    command = folder / "env/bin/uniego"
    check([command, "init", "run", "--data", "clips.csv", "--preset", "tiny"], folder)
    assert "preset: tiny" in check([command, "config", "show", "-r", "run"], folder)
    code = (
        "import torch; from uniego.models import TimeSformer\n"
        "m = TimeSformer(image_size=32, num_frames=2, width=16, depth=1, heads=2, num_classes=3).eval()\n"
        "assert m(torch.zeros(1, 3, 2, 32, 32)).logits.shape == (1, 3)"
    )
    check([folder / "env/bin/python", "-c", code], folder)
