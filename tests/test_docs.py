"""What README and docs/ show works when typed; what they name exists: commands, options, links, messages.

Blocks of a page run in their order, in a folder with the README's data and its finished run. A block that is not run
says so, and why, in a comment before it. The short gate runs the README and the quick pages.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from typer.testing import CliRunner
from uniego import cli, errors
from uniego.pipeline.clips import read_clip_table

ROOT = Path(__file__).parents[1]
PAGES = {
    path.name: path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
}
_BLOCK = re.compile(
    r"(?:<!-- (?P<note>not run|file): (?P<why>[^\n]+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M
)
# Where a page's shell commands start: in the README's finished run, or in the folder that holds it and the data.
IN_RUN = {
    "ablations.md",
    "analysis.md",
    "cluster.md",
    "distill.md",
    "evaluation.md",
    "released.md",
    "report.md",
    "slurm.md",
    "stages.md",
}
FRESH_RUN = {"clip-store.md", "extract.md", "proxies.md", "train-teacher.md"}  # in a run with nothing but features
QUICK = {"api.md", "cache-format.md", "extract.md", "slurm.md", "stages.md"}
PACKAGES = ("cache", "datasets", "demo", "metrics", "models", "pipeline", "stages")


class Block(NamedTuple):
    language: str
    text: str
    note: str | None  # "not run", "file", or None: it is run
    why: str


def blocks(page: str, *languages: str) -> list[Block]:
    found = _BLOCK.finditer(PAGES[page].read_text(encoding="utf-8"))
    every = [Block(m["language"], m["text"], m["note"], m["why"] or "") for m in found]
    return [block for block in every if block.language in languages]


RUN = [page for page in PAGES if any(block.note != "not run" for block in blocks(page, "bash", "python"))]


def run_bash(text: str) -> None:
    """`uniego` and `cd` lines in this process, anything else by a shell."""
    lines = [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]
    if any(words[0] not in {"uniego", "cd"} or {";", "&&", "|", "&"} & set(words) for words in lines):
        shell = f'set -euo pipefail\nuniego() {{ "{sys.executable}" -m uniego "$@"; }}\n{text}'
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return
    for words in lines:
        if words[0] == "cd":
            os.chdir(words[1])
        elif words[1] != "extract-pose" or importlib.util.find_spec("ai_edge_litert"):  # its own test says so aloud
            # The published recipes' weights are not at hand here.
            arguments = ["tiny" if word == "egoexo_fitness" else word for word in words[1:]]
            result = CliRunner().invoke(cli.app, arguments)
            assert result.exit_code == 0, f"uniego {shlex.join(arguments)}\n{result.output}"


def run_page(page: str, folder: Path) -> None:
    """Shell blocks from the page's folder on, Python in the folder with the data."""
    here = Path.cwd()
    os.chdir(folder / "my-run" if page in IN_RUN | FRESH_RUN else folder)
    try:
        for block in blocks(page, "bash", "python"):
            if block.note == "file":
                (folder / block.why).write_text(block.text, encoding="utf-8")
            elif block.note is None and block.language == "bash":
                run_bash(block.text)
            elif block.note is None:
                done = subprocess.run(
                    [sys.executable, "-c", block.text], capture_output=True, text=True, cwd=folder, check=False
                )
                assert done.returncode == 0, f"{page}\n{block.text}\n{done.stderr}"
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """The README's table with videos and skeletons behind it, an ego.mp4, and what the README's blocks made of them."""
    path = tmp_path_factory.mktemp("readme")
    (table,) = blocks("README.md", "csv")
    rows = table.text.splitlines()
    more = [rows[1 + i % 2].replace("s01_000", f"s01_9{i}") for i in range(8)]  # a step takes eight clips
    (path / "clips.csv").write_text("\n".join([*rows, *more]) + "\n", encoding="utf-8")
    for name in ("s01_ego", "s01_exo", "s02_ego"):
        make_video(path / "videos" / f"{name}.mp4", frames=180, fps=10)
    for name in ("ego", "a", "b"):
        make_video(path / f"{name}.mp4", frames=70, fps=10)
    _write_poses(path / "poses" / "s01.pkl", "s01_exo")
    run_page("README.md", path)
    return path


def _write_poses(path: Path, name: str) -> None:
    import pickle

    points = np.random.default_rng(0).uniform(1, 40, (1, 180, 17, 2)).astype(np.float16)
    annotation = {
        "frame_dir": name,
        "total_frames": 180,
        "img_shape": (48, 64),
        "label": 0,
        "keypoint": points,
        "keypoint_score": np.ones(points.shape[:-1], np.float16),
    }
    path.parent.mkdir()
    path.write_bytes(pickle.dumps([annotation]))


def test_the_readme_works_when_typed(folder: Path) -> None:
    table = read_clip_table(folder / "clips.csv")
    assert table.classes == ("pick up", "put down")
    assert table.clips[2].exo_path is None
    assert (folder / "my-run" / "distill" / "student" / "model" / "config.json").exists()


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page in QUICK else pytest.mark.slow) for page in RUN if page != "README.md"]
)
def test_a_page_works_when_typed(
    page: str, folder: Path, tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = tmp_path / "world"
    shutil.copytree(folder, world, symlinks=True)
    (world / "uniego-demo").mkdir()
    (world / "uniego-demo" / "run").symlink_to(world / "my-run")
    if page in FRESH_RUN:
        for done in ("proxies", "distill", "evaluate", "analyze", "teachers"):
            shutil.rmtree(world / "my-run" / done, ignore_errors=True)
    if page == "own-data.md":
        for i, view in ((i, view) for i in range(10) for view in ("ego", "exo")):
            place = f"{'train' if i < 8 else 'test'}/{('wave', 'clap')[i % 2]}/{i}_{view}.mp4"
            make_video(world / "own" / place, frames=30, fps=10, hue=20 * i)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(world), os.environ.get("PYTHONPATH", "")]))
    run_page(page, world)


def test_what_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks(page, "bash", "python"):
            assert block.note is None or len(block.why) > 8, f"{page}: {block.text}"
        text = _BLOCK.sub("", PAGES[page].read_text(encoding="utf-8"))
        assert "not run: " not in text, f"{page}: the comment must stand right before its block"
        assert not re.search(r"^    (uniego|python|pip) ", text, flags=re.M), f"{page}: commands belong into ```bash"


def _commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words behind `uniego`, command) of everything that can be called, groups too."""
    yield words, group
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(command, (*words, name))


COMMANDS = dict(_commands(typer.main.get_command(cli.app)))


def _named(page: str) -> Iterator[list[str]]:
    """The words of every `uniego …` line of shell blocks, and of every `uniego …` in running text."""
    for block in blocks(page, "bash"):
        for line in block.text.splitlines():
            for part in re.findall(r"(?:^|do |-- )uniego (.*?)(?=$|;| #| &)", line):
                yield part.split()
    text = _BLOCK.sub("", PAGES[page].read_text(encoding="utf-8")).replace("\n", " ")
    for part in re.findall(r"`uniego ([^`]*)`", text):
        yield part.split()


@pytest.mark.parametrize("page", PAGES)
def test_named_commands_and_options_exist(page: str) -> None:
    for words in _named(page):
        path: tuple[str, ...] = ()
        while len(path) < len(words) and (*path, words[len(path)].split("|")[0]) in COMMANDS:
            path = (*path, words[len(path)].split("|")[0])
        assert path or words[0].startswith(("-", "…", "COMMAND")), f"{page}: uniego {' '.join(words)}"
        known = {name for given in COMMANDS[path].params for name in (*given.opts, *given.secondary_opts)} | {"--help"}
        if path == ("submit",):  # what follows -- is the stage's own
            known |= {"--strict", "--"}
        stages = {
            name for name in re.findall(r"--?[a-z][a-z-]*", " ".join(words)) if f" {name}" in f" {' '.join(words)}"
        }
        assert stages <= known, f"{page}: uniego {' '.join(words)}: {stages - known}"


def test_every_command_is_documented() -> None:
    page = PAGES["commands.md"].read_text(encoding="utf-8")
    leaves = [
        " ".join(words) for words, command in COMMANDS.items() if words and not getattr(command, "commands", None)
    ]
    assert [name for name in leaves if f"`uniego {name}`" not in page] == []
    readme = PAGES["README.md"].read_text(encoding="utf-8")
    assert {words[0] for words in COMMANDS if words and f"uniego {words[0]}" not in readme} == set()


def _anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as the site and most viewers of Markdown make them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    titles = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in re.findall(r"^#+ +(.*)$", plain, flags=re.M)]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", text):
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{page}: {target}"
        if anchor and found.suffix == ".md" and not anchor.startswith("uniego."):
            assert anchor in _anchors(found.read_text(encoding="utf-8")), f"{page}: {target}#{anchor}"


def _texts() -> Iterator[tuple[str, int | None]]:
    """Every text of the program, NUL for what is filled in, and the exit code of the error that it is written for."""
    for path in [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]:
        codes: dict[ast.AST, int] = {}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and hasattr(errors, node.func.id):
                codes |= dict.fromkeys(ast.walk(node), getattr(getattr(errors, node.func.id), "exit_code", 1))
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                yield "".join(parts), codes.get(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value, codes.get(node)


def _quoted() -> Iterator[tuple[str, int | None]]:
    """The messages that troubleshooting.md quotes, and the exit code beside each, where its table has one."""
    names = {"message": 0, "exit code": 1, "reason": 1}  # first column of a table: where its messages stand
    first = None
    for line in PAGES["troubleshooting.md"].read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            first = None
        elif first is None:
            first = cells[0]
        elif not line.startswith("|-"):
            code = int(cells[0]) if first == "exit code" else None
            yield from ((text, code) for text in re.findall(r"`([^`]+)`", cells[names[first]]))


def test_quoted_messages_are_in_the_program() -> None:
    texts, quoted = list(_texts()), list(_quoted())
    assert len(quoted) > 60
    for message, code in quoted:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.S)
        found = {of for text, of in texts if pattern.search(text)}
        assert found, f"{message!r} is not in the program"
        assert code is None or found == {None} or code in found, f"{message!r} ends with {found}, not {code}"


def test_exit_codes_are_those_of_the_program() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    for page in ("README.md", "commands.md"):
        table = PAGES[page].read_text(encoding="utf-8").split("| code | meaning |")[1].split("\n\n")[0]
        assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.M)} == codes


def test_every_page_is_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f": {path.name}\n" not in site] == []


def test_the_site_builds_without_warnings_and_asks_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings_handlers.python", reason="pip install 'uniego[docs]'")
    pytest.importorskip("material")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(https?:)?//', page.read_text(encoding="utf-8")
        )
        assert not fetched, page
    assert "Selective Proxy Distillation" in (site / "search" / "search_index.json").read_text(encoding="utf-8")
