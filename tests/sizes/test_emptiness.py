"""What may be empty while no input is: a size that is computed is, where some size of the axes makes it 0."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.probe.annotate import annotate
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
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


CHANNELS_FIRST = "t = Transpose<perm=[0,2,1]>(x)"
CONVOLVED = {
    "a convolution": (f"{CHANNELS_FIRST} z = Conv(t, w)", False),
    "in strides": (f"{CHANNELS_FIRST} z = Conv<strides=[3]>(t, w)", False),
    "of rows that only data tells": (
        "k = Compress<axis=1>(x, keep) t = Transpose<perm=[0,2,1]>(k) z = Conv(t, w)",
        False,
    ),
    "a transposed one": (f"{CHANNELS_FIRST} z = ConvTranspose<pads=[4,4]>(t, w)", False),
    "what follows it": (f"{CHANNELS_FIRST} c = Conv(t, w) r = Relu(c) z = Softmax(r)", False),
    "a pool": (f"{CHANNELS_FIRST} z = MaxPool<kernel_shape=[5]>(t)", True),
    "a pool behind it": (f"{CHANNELS_FIRST} c = Conv(t, w) z = MaxPool<kernel_shape=[2]>(c)", True),
}


@pytest.mark.parametrize(("nodes", "empty"), CONVOLVED.values(), ids=CONVOLVED.keys())
def test_a_convolution_gives_some_wherever_it_runs(nodes: str, *, empty: bool) -> None:
    """Though nothing is known of the least number of rows here."""
    weight = "s = Constant<value_ints = [4, 4, 5]>() w = ConstantOfShape<value = float[1] {1}>(s)"
    model = prepared(f"{weight} {nodes} y = Neg(z)")
    assert may_be_empty(model, model.graph.outputs[0], 2) is empty


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize(("op", "runs"), [("Conv", False), ("MaxPool", True)])
def test_the_runtime_refuses_a_window_that_is_too_large_and_a_pool_of_it_not(op: str, *, rows: int, runs: bool) -> None:
    """What the rule leans on; another version of the runtime may do otherwise."""
    window = "Conv(x, w)" if op == "Conv" else "MaxPool<kernel_shape=[5]>(x)"
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[n,2,m] x) => (float[n,c,k] y) {{
      shape = Constant<value_ints = [3, 2, 5]>() w = ConstantOfShape<value = float[1] {{1}}>(shape)
      y = {window} }}"""
    runner = GraphRunner(ir.from_proto(onnx.parser.parse_model(text)))
    feeds = {"x": np.ones((rows, 2, 4), np.float32)}
    if runs:
        assert runner.run(feeds)[0]["y"].shape == (rows, 2, 0)
    else:
        with pytest.raises(ProbeError):
            runner.run(feeds)
