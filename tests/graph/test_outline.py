"""The outline of a graph, and the block that lost most nodes between values that kept their names."""

from __future__ import annotations

import itertools

import onnx.parser
import onnx_ir as ir

from onnxopt.graph.outline import MOST_NODES, Step, largest_block, outline_of

TEXT = """
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[n,4] x) => (float[n,4] y) <float[4] w = {1, 2, 3, 4}> {
    half = Constant <value = float {0.5}> ()
    scaled = Mul(x, w)
    halved = Mul(scaled, half)
    cut = Clip(halved, , half)
    y = com.microsoft.Gelu(cut)
}"""


def chain(length: int, prefix: str, *, start: str = "x", end: str = "y") -> list[Step]:
    """So many nodes in a row."""
    names = [start, *(f"{prefix}{place}" for place in range(length - 1)), end]
    return [Step("Relu", (first,), (second,)) for first, second in itertools.pairwise(names)]


def test_weights_constants_and_what_is_left_out_are_no_inputs() -> None:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(TEXT))
    assert outline_of(model) == (
        Step("Mul", ("x",), ("scaled",)),
        Step("Mul", ("scaled",), ("halved",)),
        Step("Clip", ("halved",), ("cut",)),
        Step("com.microsoft::Gelu", ("cut",), ("y",)),
    )


def test_the_block_that_lost_most_nodes_is_found_between_names_that_both_have() -> None:
    before = [*chain(3, "a", end="m"), *chain(9, "b", start="m", end="n"), *chain(4, "c", start="n")]
    after = [*chain(1, "d", end="m"), *chain(2, "e", start="m", end="n"), *chain(4, "f", start="n")]
    block = largest_block(before, after)
    assert block is not None
    assert (block.output, len(block.before), len(block.after), block.lost) == ("n", 9, 2, 7)
    assert block.before == tuple(before[3:12]), "in the order of the graph"


def test_of_layers_that_are_alike_the_middle_one_is_taken() -> None:
    before = [one for layer in range(5) for one in chain(4, f"a{layer}_", start=f"h{layer}", end=f"h{layer + 1}")]
    after = [one for layer in range(5) for one in chain(1, "", start=f"h{layer}", end=f"h{layer + 1}")]
    block = largest_block(before, after)
    assert block is not None
    assert block.output == "h3"


def test_what_is_too_large_to_draw_or_lost_nothing_is_no_block() -> None:
    assert largest_block(chain(MOST_NODES + 1, "a"), chain(1, "b")) is None
    assert largest_block(chain(3, "a"), chain(3, "b")) is None
    assert largest_block(chain(3, "a"), chain(2, "b", end="z")) is None
    assert largest_block([], []) is None
