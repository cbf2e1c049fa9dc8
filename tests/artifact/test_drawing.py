"""Plots as SVG: marks lie where their numbers are, texts do not leave the drawing, a file is whole by itself."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree as ET

import pytest

from onnxopt.artifact.drawing import COLOURS, WIDTH, Rows, Scale, as_file, curve, text_width, tick_text


def parts(svg: str, kind: str) -> list[ET.Element]:
    """The elements of a drawing that are of one kind."""
    return list(ET.fromstring(svg).iter(kind))  # noqa: S314  # our own


def number(element: ET.Element, name: str) -> float:
    return float(element.attrib[name])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 7.0), (0.0, 1e-6), (5.0, 5e7), (99.0, 101.0)])
@pytest.mark.parametrize("most", [4, 6])
def test_ticks_are_round_few_and_on_the_axis(low: float, high: float, most: int) -> None:
    ticks = Scale(low, high).ticks(most)
    assert 2 <= len(ticks) <= most
    assert all(low <= tick * (1 + 1e-12) and tick <= high * (1 + 1e-12) for tick in ticks)
    steps = {round((after - before) / (high - low), 9) for before, after in itertools.pairwise(ticks)}
    assert len(steps) == 1
    step = ticks[1] - ticks[0]
    assert f"{step:.3e}"[:5] in {"1.000", "2.000", "5.000"}


@pytest.mark.parametrize("high", [1e-3, 4e6, 1e9])
def test_ticks_of_decades_are_powers_of_ten(high: float) -> None:
    ticks = Scale(6e-10, high, is_logarithmic=True).ticks(6)
    assert 2 <= len(ticks) <= 6
    assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in ticks)


@pytest.mark.parametrize(
    ("scale", "value", "share"),
    [
        (Scale(0, 50), 25, 0.5),
        (Scale(0, 50), -1, 0.0),
        (Scale(0, 50), math.inf, 1.0),
        (Scale(0, 50), math.nan, 0.0),
        (Scale(1e-4, 1, is_logarithmic=True), 1e-2, 0.5),
        (Scale(1e-4, 1, is_logarithmic=True), 0.0, 0.0),
    ],
)
def test_numbers_lie_in_their_places_and_none_beyond(scale: Scale, value: float, share: float) -> None:
    assert scale.share(value) == pytest.approx(share)


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [0.0], [-1.0, 2.0, math.inf]])
def test_a_scale_over_whatever_there_is_has_a_length(values: list[float]) -> None:
    scale = Scale.over(values)
    assert scale.low < scale.high
    assert all(scale.low <= value <= scale.high for value in values if math.isfinite(value))


def test_bars_are_as_long_as_their_numbers() -> None:
    plot = Rows(["a", "b", "c"], Scale(-1.0, 3.0), 20.0, "what")
    for row, value in enumerate((1.0, 3.0, -1.0)):
        plot.bar(row, value, thick=0.5, fill="after")
    first, second, third = parts(plot.svg(), "rect")
    assert number(second, "width") == pytest.approx(3 * number(first, "width"), abs=0.3)
    assert number(third, "x") + number(third, "width") == pytest.approx(number(first, "x"), abs=0.2)  # up to 0
    assert number(second, "y") - number(first, "y") == pytest.approx(20.0, abs=0.1)


@pytest.mark.parametrize("label", ["8 × 128", "1,024 × 2,048 × 16, 26% real", "9" * 200])
def test_no_text_leaves_the_drawing(label: str) -> None:
    note = "1,234 ms, 12.34×"
    plot = Rows([label, "1"], Scale(0.0, 100.0), 30.0, "% of the original's time", longest_note=note)
    plot.note(0, 100.0, note, bold=True)
    svg = plot.svg()
    height = float(ET.fromstring(svg).attrib["viewBox"].split()[3])  # noqa: S314  # our own
    for text in parts(svg, "text"):
        bold = "font-weight" in text.attrib
        width = text_width(text.text or "", number(text, "font-size"), bold=bold)
        start = number(text, "x") - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attrib["text-anchor"]] * width
        assert start >= -0.1
        assert start + width <= WIDTH + 0.1
        assert 0 < number(text, "y") < height


def test_texts_stay_texts() -> None:
    label = "<script>&\"'"
    svg = Rows([label], Scale(0, 1), 20.0, "a < b").svg()
    assert "<script" not in svg
    assert label in [text.text for text in parts(svg, "text")]


def test_a_curve_goes_from_left_to_right_and_up_where_numbers_grow() -> None:
    svg = curve([(0, 1.0), (50, 3.0), (75, math.nan), (100, 2.0)], across="step", up="loss")
    (line,) = parts(svg, "polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(places) == 3
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[1][1] < places[2][1] < places[0][1]
    assert {"step", "loss"} <= {text.text for text in parts(svg, "text")}


@pytest.mark.parametrize("points", [[(0.0, 1.0)], [(0.0, 2.0), (1.0, 2.0)], [(0.0, 0.0), (1e6, 1e-12)]])
def test_a_curve_of_little_is_drawn_too(points: list[tuple[float, float]]) -> None:
    assert "<polyline" in curve(points, across="x", up="y")


def test_a_file_has_its_colours_and_its_name_space() -> None:
    plot = Rows(["a"], Scale(0, 1), 20.0, "x")
    plot.dot(0, 0.5, ink="after", filled=False)
    content = as_file(plot.svg())
    assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314  # our own
    used = set(re.findall(r"var\(--(\w+)\)", content))
    assert used <= {*COLOURS}
    assert all(f"--{name}:#" in content for name in used)
    assert as_file("") == ""


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.25, "0.25"), (1e-9, "1e-09"), (3e5, "3e+05"), (75, "75")])
def test_numbers_of_an_axis_are_short(value: float, text: str) -> None:
    assert tick_text(value) == text
