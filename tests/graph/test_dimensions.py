import onnx
import onnx_ir as ir
import pytest

from onnxopt.graph.dimensions import with_leading_axes_of


def source(nodes: str, inputs: str = "float[a,b,4] x, float[a,b,4] other, float[4,4] w") -> str | None:
    """Return the name of the value whose leading axes those of `y` are."""
    constants = "<float[4] vector = {1,2,3,4}, float[1,4,4] block, int64[1] four = {4}>"
    text = f'<ir_version: 9, opset_import: ["" : 18]> g ({inputs}) => (float[a,b,4] y) {constants} {{ {nodes} }}'
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    return with_leading_axes_of(model.graph.outputs[0]).name


@pytest.mark.parametrize(
    "nodes",
    [
        "h = Relu(x) y = Softmax<axis=1>(h)",
        "h = MatMul(x, w) y = Add(vector, h)",
        "s = Sigmoid(x) y = Mul(s, x)",
        "h = MatMul(x, w) k = Add(h, x) j = Tanh(k) y = Sub(j, x)",
        "l = Shape<start=0,end=-1>(x) t = Concat<axis=0>(l, four) y = Reshape<allowzero=1>(other, t)",
    ],
)
def test_goes_back_to_the_first_value_of_the_same_axes(nodes: str) -> None:
    assert source(nodes) == "x"


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("h = Relu(x) y = Add(h, other)", "y"),  # one of them may be 1 long
        ("h = Transpose<perm=[1,0,2]>(x) y = Relu(h)", "h"),
        ("y = MatMul(x, block)", "y"),
        ("y = MatMul(w, x)", "y"),
        ("l = Shape<start=0,end=-1>(x) t = Concat<axis=0>(l, four) y = Reshape(other, t)", "y"),  # 0 means another
        ("l = Shape<start=0,end=-2>(x) t = Concat<axis=0>(l, four, four) y = Reshape<allowzero=1>(x, t)", "y"),
    ],
)
def test_stops_where_axes_may_change(nodes: str, found: str) -> None:
    assert source(nodes) == found
