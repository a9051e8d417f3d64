"""What MkDocs does not do by itself: pages outside of docs/, and the package as a reader of Python finds it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "build" / "site-source"
# Files at the top that are pages of the site, under these names.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# Links that leave docs/ and lead somewhere else in the site; the README's place is taken by its first page.
ELSEWHERE = {**PAGES, "README.md": "getting-started.md"}


def on_startup(**_: Any) -> None:
    """Link the package under its name: its folder is the repository, which may be called anything and holds more."""
    package = SOURCE / "uniego"
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        link.unlink()
    for path in [*ROOT.glob("*.py"), *(init.parent for init in ROOT.glob("*/__init__.py"))]:
        if path.name != "tests":
            (package / path.name).symlink_to(path)


def on_files(files: Files, config: Any) -> Files:
    """Add pages from outside of docs/, and the examples that pages link to as files to read."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/([^)]*)\)", r"](\1)", text)
        files.append(File.generated(config, page, content=_inside(text)))
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.suffix in {".py", ".yaml"}:
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, f"{name}.txt", content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to the same things inside the site."""
    return _inside(markdown)


def _inside(markdown: str) -> str:
    for name, page in ELSEWHERE.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}(#[^)]*)?\)", rf"]({page})", markdown)
    return re.sub(r"\]\(\.\./(examples/[^)]+\.(?:py|yaml))\)", r"](\1.txt)", markdown)
