"""Charts are well-formed SVG whatever they are given."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from uniego.pipeline import charts

SVG = "{http://www.w3.org/2000/svg}"


def parsed(*parts: str) -> ElementTree.Element:
    return ElementTree.fromstring(charts.page(parts))


def test_lines_leave_out_what_is_no_number() -> None:
    picture = parsed(charts.lines("a < b & c", {"x": [(0, 0.5), (1, math.nan), (4, 2.0)], "none": []}, "step", "share"))
    points = [line.get("points", "").split() for line in picture.iter(f"{SVG}polyline")]
    assert [len(p) for p in points] == [2, 0]
    assert points[0][1].split(",")[1] == "34.0", "values above the top are drawn at the top"
    assert any(text.text == "a < b & c" for text in picture.iter(f"{SVG}text"))
    assert len(list(parsed(charts.lines("one point", {"x": [(3, 0.5)]}, "", "")).iter(f"{SVG}circle"))) == 1


def test_bars_are_as_long_as_their_shares() -> None:
    picture = parsed(charts.bars("t", {"row": {"a": 0.25, "b": 0.75}}))
    widths = [float(r.get("width", "0")) for r in picture.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert widths[1] == 3 * widths[0] > 0


def test_heat_maps_have_a_cell_per_pair() -> None:
    picture = parsed(charts.heat_map("t", ["a", "b"], [[1.0, None], [-0.2, 0.0]]))
    cells = [r.get("fill") for r in picture.iter(f"{SVG}rect")][1:]
    assert cells == ["#143c8c", "#cccccc", "#ffffff", "#ffffff"]
    texts = [t.text for t in picture.iter(f"{SVG}text")]
    assert {"1.00", "–", "-0.20", "0.00"} < set(texts)


def test_charts_stand_below_one_another() -> None:
    picture = parsed(charts.bars("t", {"row": {"a": 1.0}}), charts.bars("u", {"row": {"a": 1.0}}))
    places = [group.get("transform") for group in picture.iter(f"{SVG}g")]
    assert places == ["translate(0 0)", "translate(0 66)"]
    assert picture.get("height") == "132"


def test_dots_show_every_value_and_the_mean() -> None:
    picture = parsed(charts.dots("t", {"a & b": [10.0, 30.0], "none": []}, "percent"))
    across = [float(dot.attrib["cx"]) for dot in picture.iter(f"{SVG}circle")]
    assert len(across) == 2
    means = [line for line in picture.iter(f"{SVG}line") if line.attrib["stroke"] == "black"]
    assert [float(line.attrib["x1"]) for line in means] == pytest.approx([sum(across) / 2], abs=0.1)
    assert "20" in [text.text for text in picture.iter(f"{SVG}text")]
