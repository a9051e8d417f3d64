"""The report in a real headless Chromium: renders, asks nothing of a network, tabs, filters, sorting, theme, print."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from uniego.pipeline.rundir import Run
from uniego.stages.report.page import write_report

GROUPS = ["Run", "Training", "Results", "Analyses", "Pictures"]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(finished, tmp_path_factory.mktemp("page") / "report.html")


@contextmanager
def opened(browser: Any, report: Path, width: int = 1200, **options: Any) -> Iterator[Any]:
    """The page; at the end nothing may have been complained of or asked for."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    page.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith(("http", "ws")) else None)
    page.goto(report.as_uri())
    yield page
    context.close()
    assert complaints == []


def shown(page: Any) -> list[str]:
    """The panels that are seen."""
    return [panel.get_attribute("id") for panel in page.locator(".panel").all() if panel.is_visible()]


def test_tabs_by_mouse_and_keyboard(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        tabs = page.get_by_role("tab")
        assert tabs.all_inner_texts() == GROUPS
        assert shown(page) == ["run"]
        tabs.nth(2).click()
        assert shown(page) == ["results"]
        page.keyboard.press("ArrowRight")
        assert shown(page) == ["analyses"]
        page.keyboard.press("End")
        page.keyboard.press("ArrowRight")  # round to the first
        assert shown(page) == ["run"]
        assert page.locator("[aria-selected=true]").all_inner_texts() == ["Run"]
        page.goto(f"{report.as_uri()}#confusion")  # a link into a section opens its tab
        assert shown(page) == ["results"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(browser: Any, report: Path, width: int, scheme: str) -> None:
    with opened(browser, report, width, color_scheme=scheme) as page:
        for tab in page.get_by_role("tab").all():
            tab.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab.inner_text()
        sizes = page.evaluate("[...document.images].map(i => i.complete ? Math.min(i.naturalWidth, i.width) : 0)")
        assert len(sizes) > 100
        assert min(sizes) > 30


@pytest.mark.slow
def test_filters_and_sorting(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        settings = page.get_by_role("searchbox", name="Filter settings")
        settings.fill("distill top_k")
        rows = page.locator("section#configuration tbody tr:visible")
        assert [row.split("\t")[0] for row in rows.all_inner_texts()] == ["distill.top_k"]
        assert re.fullmatch(r"1 of \d+ rows", page.locator("section#configuration output").inner_text())
        settings.fill("nothing has this name")
        assert rows.count() == 0
        page.get_by_role("tab", name="Training").click()
        table = page.locator("section#who-taught-whom table[data-sort]").first
        table.get_by_role("button", name="lessons").click()
        lessons = [int(cell) for cell in table.locator("tbody td:nth-child(2)").all_inner_texts()]
        assert lessons == sorted(lessons, reverse=True)
        table.get_by_role("button", name="lessons").click()
        assert [int(cell) for cell in table.locator("tbody td:nth-child(2)").all_inner_texts()] == lessons[::-1]
        page.get_by_role("tab", name="Pictures").click()
        queries = page.locator("#retrieval-gallery .pic-query:visible")
        whole = queries.count()
        missed = page.locator("#retrieval-gallery .choice button").filter(has_text="Missed")
        missed.click()
        assert 0 < queries.count() < whole
        assert {query.get_attribute("data-first") for query in queries.all()} == {"wrong"}


@pytest.mark.slow
def test_the_theme_is_the_systems_until_it_is_chosen(browser: Any, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, report, color_scheme="dark") as page:
        assert page.evaluate(ground) == "rgb(21, 24, 28)"
        page.get_by_role("button", name="Switch to light colours").click()
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        page.emulate_media(media="print")
        assert page.evaluate(ground) == "rgb(255, 255, 255)"


@pytest.mark.slow
def test_on_paper_and_without_scripts_all_is_shown(browser: Any, report: Path) -> None:
    everything = [name.lower() for name in GROUPS]
    with opened(browser, report) as page:
        page.emulate_media(media="print")
        assert shown(page) == everything
        assert not page.locator(".control").first.is_visible()
        assert page.pdf().startswith(b"%PDF")
    with opened(browser, report, java_script_enabled=False) as page:
        assert shown(page) == everything
        page.locator("nav.tabs a").nth(3).click()
        assert page.url.endswith("#analyses")


@pytest.mark.slow
def test_hostile_names_stay_text(browser: Any, run: Run, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    name = run.table().classes[0]
    for path in (run.root / "evaluate/student/recognition").glob("*.csv"):
        path.write_text(path.read_text().replace(name, evil))
    with opened(browser, write_report(run, tmp_path / "report.html")) as page:
        page.get_by_role("tab", name="Results").click()
        assert page.locator("#per-class").get_by_text(evil).count() == 1
