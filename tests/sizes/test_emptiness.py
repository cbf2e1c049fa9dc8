"""What may be empty while no input is: a size that is computed is, where some size of the axes makes it 0."""

import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.probe.annotate import annotate
from onnxopt.proof.prepare import prepare
from onnxopt.sizes import Derivation
from onnxopt.sizes.emptiness import may_be_empty, note_ranges, shape_may_be_empty
from onnxopt.spec import AxisRange

SIZE = "n = Shape<start=1, end=2>(x)"
CUTS = {
    "a tail that short rows have nothing of": ("y = Slice(x, eight, end, one)", True),
    "the first rows": ("y = Slice(x, zero, eight, one)", False),
    "the last rows": ("y = Slice(x, less, end, one)", False),
    "all but the last": ("y = Slice(x, zero, less, one)", True),
    "every second row": ("y = Slice(x, zero, end, one, two)", False),
    "no rows at all": ("y = Slice(x, eight, eight, one)", True),
    "rows that only data tells": ("y = Compress<axis=1>(x, keep)", True),
    "half of them, rounded down": (f"{SIZE} h = Div(n, two) y = Slice(x, zero, h, one)", True),
    "half of them, rounded up": (f"{SIZE} m = Add(n, one) h = Div(m, two) y = Slice(x, zero, h, one)", False),
    "themselves": ("y = Neg(x)", False),
}


def prepared(nodes: str, ranges: dict[str, AxisRange] | None = None) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g (float[batch,sequence,4] x, bool[n] keep) => (float y)
    <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] eight = {{8}}, int64[1] less = {{-1}},
     int64[1] end = {{2147483647}}> {{ {nodes} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    derivation = Derivation(dict(ranges or {}))
    prepare(model, derivation)
    annotate(model, derivation)
    note_ranges(model.graph, derivation.ranges)
    return model


@pytest.mark.parametrize(("nodes", "empty"), CUTS.values(), ids=CUTS.keys())
def test_tells_whether_a_cut_may_leave_nothing(nodes: str, *, empty: bool) -> None:
    model = prepared(nodes)
    assert may_be_empty(model, model.graph.outputs[0], 1) is empty
    assert may_be_empty(model, model.graph.outputs[0], -2) is empty
    assert shape_may_be_empty(model, model.graph.outputs[0]) is empty
    assert not may_be_empty(model, model.graph.outputs[0], 0)


def test_a_size_at_which_the_model_does_not_run_empties_nothing() -> None:
    nodes = CUTS["a tail that short rows have nothing of"][0]
    for least, empty in ((8, True), (9, False), (20, False)):
        model = prepared(nodes, {"sequence": AxisRange(least=least)})
        assert may_be_empty(model, model.graph.outputs[0], 1) is empty


@pytest.mark.parametrize(("nodes", "empty"), [("y = Neg(x)", True), ("y = Concat<axis=1>(x, x, one_row)", False)])
def test_a_past_is_empty_before_the_first_token(nodes: str, *, empty: bool) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,past_sequence,4] x, float[batch,1,4] one_row) => (float y) {{ {nodes} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    derivation = Derivation()
    prepare(model, derivation)
    assert may_be_empty(model, model.graph.outputs[0], 1) is empty


def test_what_is_not_known_may_be_empty() -> None:
    model = prepared("y = Neg(x)")
    assert may_be_empty(model, model.graph.outputs[0], 7)
    assert may_be_empty(model, None, 0)
    assert shape_may_be_empty(model, None)
