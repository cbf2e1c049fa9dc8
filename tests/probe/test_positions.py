"""Positions: those that count the real tokens of a mask are known, and no others.

Covers: probe/sidegraph.py
"""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.probe.sidegraph import counts_positions
from tests.probe.test_sidegraph import CACHED, COUNT, NEWEST, PLACES, UNCACHED, model

POSITIONS: dict[str, tuple[str, bool]] = {
    "counted in the mask": (f"{COUNT} places = Identity(less) {NEWEST}", True),
    "padding at nothing": (f"{COUNT} places = Max(less, zero) {NEWEST}", True),
    "padding at one": (
        f"{COUNT} is = Cast<to=9>(attention_mask) places = Where(is, less, step) {NEWEST}",
        True,
    ),
    "in int32": (
        f"m = Cast<to=6>(attention_mask) s = CumSum(m, step) sums = Cast<to=7>(s) places = Sub(sums, step) {NEWEST}",
        True,
    ),
    "the last ones": (
        f"{COUNT} back = Neg(new) y = Slice(less, back, end, one)",
        True,
    ),
    "off by one": (f"{COUNT} places = Identity(sums) {NEWEST}", False),
    "off by two, as OPT has them": (f"{COUNT} places = Add(sums, step) {NEWEST}", False),
    "of the first tokens": (f"{COUNT} y = Slice(less, first, new, one)", False),
    "of all tokens": (f"{COUNT} y = Identity(less)", False),
    "places in the row": (
        f"{PLACES} zeros = Sub(attention_mask, attention_mask) places = Add(zeros, keys) {NEWEST}",
        False,
    ),
    "counted from the end": (
        f"sums = CumSum<reverse=1>(attention_mask, step) places = Sub(sums, step) {NEWEST}",
        False,
    ),
    "counted in rows": (f"sums = CumSum(attention_mask, zero) places = Sub(sums, step) {NEWEST}", False),
    "half of them": (f"{COUNT} places = Div(less, two) {NEWEST}", False),
}


@pytest.mark.parametrize(("nodes", "counted"), POSITIONS.values(), ids=POSITIONS.keys())
def test_positions_are_those_that_count_real_tokens(nodes: str, counted: bool) -> None:  # noqa: FBT001
    graph, positions = model(f"{CACHED} {nodes}", end=np.array([2**62]), two=np.array(2))
    found = counts_positions(graph, positions)
    assert found is (graph.graph.inputs[1] if counted else None)


def test_positions_by_arange_count_padding() -> None:
    """Right without padding and with padding on the right; on the left it matters."""
    graph, positions = model(f"{CACHED} {PLACES} y = Unsqueeze(seen, first)")
    assert counts_positions(graph, positions) is None


def test_positions_of_two_inputs_or_of_none_are_unknown() -> None:
    graph, positions = model(f"{CACHED} {COUNT} places = Add(less, input_ids) {NEWEST}")
    assert counts_positions(graph, positions) is None
    graph, positions = model("y = Identity(position_ids)", more=", int64[batch,sequence] position_ids")
    assert counts_positions(graph, positions) is None


def test_positions_without_a_past_are_not_asked_about() -> None:
    graph, positions = model(f"{UNCACHED} {COUNT} y = Identity(less)", past=False)
    assert counts_positions(graph, positions) is None


def test_positions_that_take_very_many_nodes_or_do_not_run_are_unknown() -> None:
    chain = " ".join(f"c{index + 1} = Neg(c{index})" for index in range(202))
    graph, positions = model(f"{CACHED} {COUNT} c0 = Identity(less) {chain} places = Identity(c202) {NEWEST}")
    assert counts_positions(graph, positions) is None
    graph, positions = model(f"{CACHED} {COUNT} y = Reshape(less, seven)", seven=np.array([1, 7]))
    assert counts_positions(graph, positions) is None
