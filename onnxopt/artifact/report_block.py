"""Draw one block of a graph before and after: boxes in layers, from what goes in at the top to what comes out.

The layers are those of Sugiyama, Tagawa and Toda (1981, "Methods for visual understanding of hierarchical system
structures"): a node lies one layer below the lowest of those that it needs; within a layer nodes are ordered by the
mean place of their neighbours, a few times down and up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxopt.graph.outline import Block, Step

_SWEEPS = 8
_LETTER, _PAD, _HEIGHT, _GAP, _DROP = 6.6, 7.0, 22.0, 9.0, 46.0  # pixels: of a letter, a box, and between boxes
_READABLE = 0.7  # of its size, to which a drawing shrinks on a narrow screen before it must be moved
_EDGE = 12.0  # above the first layer and below the last


def drawn_block(block: Block) -> tuple[Any, Any]:
    """Return the drawings of a block before and after as markup, in the colours of the page."""
    return _drawn(block.before, "var(--before)"), _drawn(block.after, "var(--after)")


def _drawn(steps: Sequence[Step], colour: str) -> Any:
    """Return the nodes of a block as one SVG element.

    Args:
        steps: the nodes, each behind those it needs.
        colour: of their boxes.
    """
    import markupsafe

    layers = layers_of(steps)
    wide = [[len(_label(steps[place])) * _LETTER + 2 * _PAD for place in layer] for layer in layers]
    width = max(sum(row) + _GAP * (len(row) - 1) for row in wide) + 2
    height = (len(layers) - 1) * _DROP + _HEIGHT + 2 * _EDGE
    boxes: dict[int, tuple[float, float, float]] = {}
    for depth, (layer, row) in enumerate(zip(layers, wide, strict=True)):
        left = (width - sum(row) - _GAP * (len(row) - 1)) / 2
        for place, size in zip(layer, row, strict=True):
            boxes[place] = (left, _EDGE + depth * _DROP, size)
            left += size + _GAP
    needs = needs_of(steps)
    lines = [_line(boxes[first], boxes[second]) for second, firsts in needs.items() for first in firsts]
    lines += [_stub(box, top=True) for place, box in boxes.items() if not needs[place]]
    used = {first for firsts in needs.values() for first in firsts}
    lines += [_stub(box, top=False) for place, box in boxes.items() if place not in used]
    shapes = [
        markupsafe.Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.0f}" rx="5" fill="var(--paper)" stroke="{}"/>'
            '<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
        ).format(left, top, size, _HEIGHT, colour, left + size / 2, top + 15, _label(steps[place]))
        for place, (left, top, size) in boxes.items()
    ]
    head = markupsafe.Markup(
        '<svg viewBox="0 0 {:.0f} {:.0f}" style="width:{:.0f}px;max-width:max(100%,{:.0f}px)" aria-hidden="true">'
    ).format(width, height, width, _READABLE * width)
    return head + markupsafe.Markup("").join([*lines, *shapes]) + markupsafe.Markup("</svg>")


def _label(step: Step) -> str:
    """Return an operator without its domain: the colour tells a block before from one after."""
    return step.operator.rpartition("::")[2]


def needs_of(steps: Sequence[Step]) -> dict[int, list[int]]:
    """Return, for each node by its place, the places of those whose outputs it takes."""
    maker = {name: place for place, step in enumerate(steps) for name in step.outputs}
    return {
        place: list(dict.fromkeys(maker[name] for name in step.inputs if name in maker))
        for place, step in enumerate(steps)
    }


def layers_of(steps: Sequence[Step]) -> list[list[int]]:
    """Return the places of nodes layer by layer, each layer from left to right.

    Args:
        steps: nodes, each behind those it needs.
    """
    needs = needs_of(steps)
    users: dict[int, list[int]] = {place: [] for place in needs}
    depth: dict[int, int] = {}
    for place, firsts in needs.items():
        depth[place] = 1 + max((depth[first] for first in firsts), default=-1)
        for first in firsts:
            users[first].append(place)
    for place in reversed(needs):  # as far down as it may, next to what takes it
        if users[place]:
            depth[place] = min(depth[user] for user in users[place]) - 1
    layers: list[list[int]] = [[] for _ in range(max(depth.values()) + 1)]
    for place in needs:
        layers[depth[place]].append(place)
    layers = [layer for layer in layers if layer]
    for sweep in range(_SWEEPS):
        towards = needs if sweep % 2 == 0 else users
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            spots = _spots(layers)
            layer.sort(key=lambda place: _middle(place, towards, spots))  # used at once
    return layers


def _spots(layers: Sequence[Sequence[int]]) -> dict[int, float]:
    """Return where each node lies in its layer, from 0 to 1."""
    return {place: (index + 0.5) / len(layer) for layer in layers for index, place in enumerate(layer)}


def _middle(place: int, towards: Mapping[int, Sequence[int]], spots: Mapping[int, float]) -> float:
    """Return the mean place of a node's neighbours on one side; its own without any."""
    near = [spots[other] for other in towards[place]]
    return sum(near) / len(near) if near else spots[place]


def _line(upper: tuple[float, float, float], lower: tuple[float, float, float]) -> Any:
    """Return the line from a box to one below it."""
    import markupsafe

    x, y = upper[0] + upper[2] / 2, upper[1] + _HEIGHT
    u, v = lower[0] + lower[2] / 2, lower[1]
    bend = (v - y) / 2
    return markupsafe.Markup(
        '<path d="M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}" fill="none" stroke="var(--faint)"/>'
    ).format(x, y, x, y + bend, u, v - bend, u, v)


def _stub(box: tuple[float, float, float], *, top: bool) -> Any:
    """Return the short line by which something from outside goes into a box, or out of it."""
    import markupsafe

    x, start = box[0] + box[2] / 2, box[1] - _EDGE if top else box[1] + _HEIGHT
    return markupsafe.Markup('<path d="M{:.1f} {:.1f}v{:.0f}" stroke="var(--faint)"/>').format(x, start, _EDGE)
