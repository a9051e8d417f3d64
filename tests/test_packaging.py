"""The import package is the repository's root: these are the guards against what that makes easy to get wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import uniego
from uniego import __version__

ROOT = Path(__file__).parents[1]
NOT_PACKAGED = {"tests", "benchmarks", "examples", "docs"}


def project_files() -> list[Path]:
    """Files that belong to the project, relative to its root: those git tracks, or would."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout: which files belong to the project is not known")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (ROOT / (path := Path(name))).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a clean copy, since a stale build folder would leak deleted files into it."""
    clean = tmp_path_factory.mktemp("any name") / "source"
    for path in project_files():
        (clean / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, clean / path)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(clean / "dist"), str(clean)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (path,) = (clean / "dist").glob("*.whl")
    assert path.name == f"uniego-{__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_the_wheel_holds_exactly_the_package(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = project_files()
    ours = {p for p in files if p.suffix == ".py" and p.parts[0] not in NOT_PACKAGED}
    kept = (("demo", "weights"), ("stages", "report", "templates"))
    data = {p for p in files if any(p.parts[: len(folder)] == folder for folder in kept)}
    assert {p.parts[0] for p in data} == {"demo", "stages"}
    assert packed == {f"uniego/{path.as_posix()}" for path in ours | data} | {"uniego/py.typed"}
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"uniego", f"uniego-{__version__}.dist-info"}


def test_metadata(wheel: zipfile.ZipFile) -> None:
    info = f"uniego-{__version__}.dist-info"
    metadata = message_from_string(wheel.read(f"{info}/METADATA").decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
    assert "uniego = uniego.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in needed if line.startswith(("pytest", "ruff", "mypy", "pyarrow", "hypothesis"))]


def test_the_wheel_works_on_its_own(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import uniego, uniego.cli, uniego.pipeline.presets as p\n"
        "from uniego.pipeline.configfile import dump_config\n"
        "assert 'Clip table' in dump_config(p.preset('tiny'))\n"
        "print(uniego.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.stdout.strip() == str(tmp_path / "site/uniego/__init__.py"), result.stderr


def test_editable_install_is_this_checkout() -> None:
    assert uniego.__file__ is not None
    assert Path(uniego.__file__).parent.resolve() == ROOT.resolve()


def test_module_and_console_script(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("uniego")
    for command in ([sys.executable, "-m", "uniego"], [str(script)]):
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert result.stdout == f"uniego {__version__}\n", result.stderr


def test_nothing_shadows_the_package_from_its_own_root() -> None:
    """Run in the repository's root, the command must not find `cache`, `stages`, … as modules of their own."""
    code = (
        "import sys, uniego.cli, uniego.pipeline.presets\n"
        "sys.exit(bool({'cache', 'pipeline', 'stages', 'models', 'cli', 'errors'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def test_the_list_of_packages_is_complete() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(["uniego", *path.parent.parts])
        for path in project_files()
        if path.name == "__init__.py" and path.parts[0] not in NOT_PACKAGED
    }
    assert sorted(listed) == sorted(found)
    assert not (ROOT / "tests/__init__.py").exists()


def test_constraints_pin_every_dependency_they_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    names = {re.split(r"[\[<>=! ]", line)[0].lower() for line in [*project["dependencies"], *extras]}
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins)
    assert {pin.split("==")[0].lower() for pin in pins} <= names | {"distributed"}
    assert "torch" in {pin.split("==")[0] for pin in pins}


def test_no_file_of_the_package_names_a_package_index() -> None:
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    assert "index-url" not in text
    assert "://" not in text
