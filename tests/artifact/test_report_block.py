"""The drawing of a block: nodes below what they need, apart from each other, in the page's colours."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from onnxopt.artifact.report_block import drawn_block, layers_of, needs_of
from onnxopt.graph.outline import Block, Step


def drawn_at_random(seed: int, count: int) -> list[Step]:
    """A graph of so many nodes, each behind those it needs."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    steps: list[Step] = []
    for place in range(count):
        known = ["in", *(name for step in steps for name in step.outputs)]
        operator = rng.choice(("Add", "LayerNormalization", "com.microsoft::GroupQueryAttention", "Reshape"))
        inputs = tuple(rng.sample(known[-6:], min(len(known), rng.randint(1, 3))))
        steps.append(Step(operator, inputs, (f"v{place}",)))
    return steps


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 7, 45])
def test_every_node_lies_below_those_it_needs(seed: int, count: int) -> None:
    steps = drawn_at_random(seed, count)
    layers = layers_of(steps)
    depth = {place: level for level, layer in enumerate(layers) for place in layer}
    assert sorted(depth) == list(range(count))
    assert all(depth[first] < depth[second] for second, firsts in needs_of(steps).items() for first in firsts)
    assert layers == layers_of(steps), "the same every time"


@pytest.mark.parametrize("seed", range(4))
def test_no_box_lies_over_another_or_is_cut(seed: int) -> None:
    before, _ = drawn_block(Block("y", tuple(drawn_at_random(seed, 40)), (Step("Relu", ("x",), ("y",)),)))
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', before)
    assert box
    found = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', before)
    boxes = [tuple(map(float, one)) for one in found]
    assert len(boxes) == 40
    for x, y, width, height in boxes:
        assert x >= 0 and y >= 0
        assert x + width <= float(box[1])
        assert y + height <= float(box[2])
    for (x, y, width, height), (u, v, other, _) in itertools.combinations(boxes, 2):
        assert x + width < u or u + other < x or y + height < v or v + height < y


def test_order_within_layers_takes_crossings_away() -> None:
    """Two chains whose nodes are written down in turns, the second time the other way round."""
    steps = [Step("A", ("x",), ("a",)), Step("B", ("x",), ("b",)), Step("B", ("b",), ("c",)), Step("A", ("a",), ("d",))]
    first, second = layers_of(steps)
    assert [steps[place].operator for place in first] == [steps[place].operator for place in second]


def test_names_out_of_files_stay_text() -> None:
    step = Step("<script>alert(1)</script>", ("x",), ("y",))
    before, _ = drawn_block(Block("y", (step,), (step,)))
    assert "<script" not in before
    assert "&lt;script&gt;" in before
