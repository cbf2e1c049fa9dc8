"""Draw small plots as SVG: rows of marks over one axis, and a curve. It takes no drawing library.

Lengths are in points (1/72 inch), x to the right and y down, as SVG has them. Colours are variables of a style sheet,
so that a drawing in a page follows its light and dark; one that is a file of its own brings them along.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH = 331.0  # on a phone a drawing is shown at about this size, so its text stays readable
TEXT, SMALL = 9.5, 8.5  # sizes of letters
INK, FAINT, LINE, PAPER = "ink", "faint", "line", "paper"
BEFORE, AFTER, WARN, SECOND = "before", "after", "warn", "second"
COLOURS = {  # in a file of its own: readable on white and on black
    INK: "#555f5b",
    FAINT: "#7b8883",
    LINE: "#b5beba",
    PAPER: "#ffffff",
    BEFORE: "#a9b4af",
    AFTER: "#0b7a75",
    WARN: "#b4540a",
    SECOND: "#7b4bb3",
}

_LETTER, _BOLD = 0.62, 0.70  # width of a letter in its size, in the widest usual font of browsers; none is asked
_GAP = 5.0  # between a label or a note and what it belongs to
_TOP, _BOTTOM = 4.0, 32.0  # above the rows; below them, for the numbers of the axis and what they are
_MOST_LABEL = 0.5  # of the width
_CURVE_HEIGHT = 110.0


def colour(name: str) -> str:
    """Return a colour as a style sheet writes it."""
    return f"var(--{name})"


@dataclass(frozen=True)
class Scale:
    """Where numbers lie on an axis.

    Attributes:
        low: where it begins; above 0 when logarithmic.
        high: where it ends, above `low`.
        is_logarithmic: by decades.
    """

    low: float
    high: float
    is_logarithmic: bool = False

    @classmethod
    def over(cls, values: Sequence[float]) -> Scale:
        """Return a linear one over numbers, and a little beyond; those that are not finite do not count."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - room, high + room)

    def share(self, value: float) -> float:
        """Return where a number lies, 0 at the low end and 1 at the high one; what is beyond lies at the end."""
        low, high, here = self.low, self.high, value
        if self.is_logarithmic:
            low, high, here = (math.log10(max(one, 1e-300)) for one in (low, high, value))
        return min(1.0, max(0.0, (here - low) / (high - low)))

    def ticks(self, most: int) -> tuple[float, ...]:
        """Return round numbers on the axis, at most so many: decades, or multiples of 1, 2 or 5 times a power of 10."""
        if self.is_logarithmic:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            return tuple(10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first + 1) / most))))
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(power * one for one in (1, 2, 5, 10, 20) if span / (power * one) <= most - 1)
        return tuple(step * place for place in range(math.ceil(self.low / step), math.floor(self.high / step) + 1))


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return how wide a text is at most; 0 for none."""
    return (_BOLD if bold else _LETTER) * size * len(text)


def tick_text(value: float) -> str:
    """Write a number of an axis."""
    return f"{value:.0e}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.6g}"


@dataclass
class Rows:
    """A plot of rows of marks, each with a label on its left, over one axis below.

    Attributes:
        labels: one per row, from above.
        scale: of the axis.
        pitch: height of a row.
        caption: what the axis shows.
        ticks: numbers on the axis; round ones when empty.
        longest_note: room for this much text is kept on the right of the axis.
    """

    labels: Sequence[str]
    scale: Scale
    pitch: float
    caption: str
    ticks: Sequence[float] = ()
    longest_note: str = ""
    marks: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Where the axis begins."""
        widest = max((text_width(label, TEXT) for label in self.labels), default=0.0)
        return min(widest, _MOST_LABEL * WIDTH) + _GAP

    @property
    def right(self) -> float:
        """Where the axis ends; half of the last number stands beyond it."""
        return WIDTH - max(text_width(self.longest_note, SMALL, bold=True) + _GAP, 0.5 * text_width("1e-04", SMALL))

    def x(self, value: float) -> float:
        """Return where a number lies."""
        return self.left + self.scale.share(value) * (self.right - self.left)

    def y(self, row: int, shift: float = 0.0) -> float:
        """Return the middle of a row, moved by a share of its height."""
        return _TOP + (row + 0.5 + shift) * self.pitch

    def bar(self, row: int, value: float, *, thick: float, fill: str, shift: float = 0.0) -> None:
        """Draw a bar from 0 to a number; `thick` and `shift` are shares of the row's height."""
        start, end = sorted((self.x(0.0), self.x(value)))
        top, height = self.y(row, shift) - 0.5 * thick * self.pitch, thick * self.pitch
        self.marks.append(_rectangle(start, top, end - start, height, fill))

    def dot(self, row: int, value: float, *, ink: str, filled: bool = True) -> None:
        """Draw a dot, or a ring."""
        fill = colour(ink if filled else PAPER)
        self.marks.append(
            f'<circle cx="{self.x(value):.1f}" cy="{self.y(row):.1f}" r="2.7" '
            f'style="fill:{fill};stroke:{colour(ink)};stroke-width:1"/>'
        )

    def interval(self, row: int, low: float, high: float, *, shift: float = 0.0) -> None:
        """Draw a line from one number to another."""
        y = self.y(row, shift)
        self.marks.append(_line((self.x(low), y), (self.x(high), y), INK, 1.2))

    def note(self, row: int, value: float, text: str, *, shift: float = 0.0, bold: bool = False) -> None:
        """Write a text to the right of a number."""
        self.marks.append(_text(self.x(value) + _GAP, self.y(row, shift), text, size=SMALL, bold=bold))

    def limit(self, value: float) -> None:
        """Draw a dashed line through all rows."""
        x = self.x(value)
        below = self.y(len(self.labels), -0.5)
        self.marks.append(_line((x, _TOP), (x, below), WARN, 1.4, dashed=True))

    def svg(self) -> str:
        """Return the drawing as an element of a page."""
        below = self.y(len(self.labels), -0.5)
        parts = []
        for value in self.ticks or self.scale.ticks(6):
            x = self.x(value)
            parts.append(_line((x, _TOP), (x, below), LINE, 0.6))
            parts.append(_text(x, below + 9, tick_text(value), size=SMALL, ink=FAINT, anchor="middle"))
        parts += self.marks
        parts.append(_line((self.left, below), (self.right, below), LINE, 0.8))
        for row, label in enumerate(self.labels):
            shown = _cut(label, self.left - _GAP, TEXT)
            parts.append(_text(self.left - _GAP, self.y(row), shown, size=TEXT, anchor="end"))
        middle = min(max(0.5 * (self.left + self.right), 0.5 * text_width(self.caption, SMALL)), WIDTH)
        parts.append(_text(middle, below + 23, self.caption, size=SMALL, ink=FAINT, anchor="middle"))
        return _element(parts, below + _BOTTOM)


def curve(points: Sequence[tuple[float, float]], *, across: str, up: str, ink: str = AFTER) -> str:
    """Return a curve as an element of a page.

    Args:
        points: x and y of each, from left to right; a y that is not finite is left out.
        across: what x is.
        up: what y is.
        ink: its colour.
    """
    shown = [(x, y) for x, y in points if math.isfinite(y)]
    scales = Scale.over([x for x, _ in shown]), Scale.over([y for _, y in shown])
    ticks = scales[0].ticks(6), scales[1].ticks(5)
    left = max(text_width(tick_text(value), SMALL) for value in ticks[1]) + _GAP
    right, top, below = WIDTH - _GAP, 16.0, 16.0 + _CURVE_HEIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        return left + scales[0].share(x) * (right - left), below - scales[1].share(y) * (below - top)

    parts = [_text(0.0, 7.0, up, size=SMALL, ink=FAINT)]
    for value in ticks[1]:
        _, y = at(0.0, value)
        parts += [_line((left, y), (right, y), LINE, 0.6)]
        parts += [_text(left - _GAP, y, tick_text(value), size=SMALL, ink=FAINT, anchor="end")]
    for value in ticks[0]:
        x, _ = at(value, 0.0)
        parts.append(_text(x, below + 9, tick_text(value), size=SMALL, ink=FAINT, anchor="middle"))
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in shown))
    parts.append(f'<polyline points="{way}" style="fill:none;stroke:{colour(ink)};stroke-width:1.5"/>')
    parts.append(_line((left, below), (right, below), LINE, 0.8))
    parts.append(_text(0.5 * (left + right), below + 23, across, size=SMALL, ink=FAINT, anchor="middle"))
    return _element(parts, below + _BOTTOM)


def as_file(element: str) -> str:
    """Return an element of a page as the content of a file of its own, with its colours; empty when there is none."""
    if not element:
        return ""
    style = "".join(f"--{name}:{code};" for name, code in COLOURS.items())
    head, body = element.split(">", 1)
    names = 'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif"'
    return f"{head.replace('<svg', f'<svg {names}', 1)}><style>:root{{{style}}}</style>{body}\n"


def _element(parts: Sequence[str], height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" aria-hidden="true">{"".join(parts)}</svg>'


def _rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} style="fill:{colour(fill)}"/>'


def _line(start: tuple[float, float], end: tuple[float, float], ink: str, width: float, *, dashed: bool = False) -> str:
    place = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    dashes = ";stroke-dasharray:5 3" if dashed else ""
    return f'<line {place} style="stroke:{colour(ink)};stroke-width:{width:g}{dashes}"/>'


def _text(
    x: float, y: float, text: str, *, size: float, ink: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    """Write a text whose middle is at a height; the letters of most fonts reach 0.7 of their size above their line."""
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x:.1f}" y="{y + 0.35 * size:.1f}" font-size="{size:g}" text-anchor="{anchor}"{weight}'
    return f'<text {place} style="fill:{colour(ink)}">{html.escape(text)}</text>'


def _cut(text: str, width: float, size: float) -> str:
    """Return as much of a text as there is room for."""
    most = int(width / (_LETTER * size) + 1e-6)
    return text if len(text) <= most else f"{text[: most - 1]}…"
