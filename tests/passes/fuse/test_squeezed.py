import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(4)
WEIGHTS: dict[str, Array] = {
    name: GENERATOR.uniform(0.3, 1.7, shape).astype(np.float32)
    for name, shape in {
        "w": (6, 4, 1, 3),
        "v": (4, 6, 1, 2),
        "own": (6,),
        "column": (1, 6, 1),
        "flat": (6, 1),
        "along": (5,),
        "wide": (1, 1, 6, 1),
        "low": (),
        "two": (2, 1, 1),
    }.items()
} | {
    "nought": np.array(0, np.float32),
    "third": np.array([2]),
    "back": np.array([-2]),
    "first": np.array([0]),
    "both": np.array([0, 2]),
    "second": np.array([1]),
    "only": GENERATOR.standard_normal((1, 4, 3, 3)).astype(np.float32),
}
ALL = ("compute-before-squeeze", "fold-conv-mul", "fold-conv-add", "fold-batch-norm", "compute-before-squeeze")
CONV = "c = Conv(x, w, own) s = Squeeze(c, third)"
FOLDED = {
    "a bias": f"{CONV} y = Add(s, column)",
    "a bias in front": f"{CONV} y = Add(flat, s)",
    "a factor and a shift": "c = Conv(x, w) s = Squeeze(c, back) m = Mul(s, column) y = Add(m, low)",
    "a transposed convolution": "c = ConvTranspose(x, v) s = Squeeze(c, third) y = Add(s, column)",
    "a normalization": f"{CONV} y = BatchNormalization(s, own, own, own, own)",
    "a bias and a normalization": "c = Conv(x, w) s = Squeeze(c, third) b = Add(s, column) "
    "y = BatchNormalization(b, own, own, own, own)",
}
MOVED = {
    "Relu": (f"{CONV} y = Relu(s)", ["Conv", "Relu", "Squeeze"]),
    "a bias and Relu": (f"{CONV} b = Add(s, column) y = Relu(b)", ["Conv", "Relu", "Squeeze"]),
    "LeakyRelu": (f"{CONV} y = LeakyRelu<alpha=0.3>(s)", ["Conv", "LeakyRelu", "Squeeze"]),
    "Clip": (f"{CONV} y = Clip(s, nought, low)", ["Conv", "Clip", "Squeeze"]),
    "along the length": (f"{CONV} y = Mul(s, along)", ["Conv", "Mul", "Squeeze"]),
    "a quotient": (f"{CONV} y = Div(s, column)", ["Conv", "Div", "Squeeze"]),
    "of one row": ("c = Conv(x, w, own) s = Squeeze(c, both) y = Add(s, flat)", ["Conv", "Squeeze"]),
}


def run(body: str, x: str = "batch,4,1,7", outputs: str = "float y") -> Outcome:
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    weights = {name: array for name, array in WEIGHTS.items() if name in words}
    outcome = run_passes(f"g (float[{x}] x) => ({outputs}) {{ {body} }}", *ALL, weights=weights)
    assert outcome.rolled_back == []
    assert outcome.entry.applied == 0
    return outcome


@pytest.mark.parametrize("body", FOLDED.values(), ids=FOLDED)
def test_what_comes_behind_goes_into_the_weights(body: str) -> None:
    outcome = run(body)
    assert outcome.ops == ["ConvTranspose" if "Transpose" in body else "Conv", "Squeeze"]
    assert outcome.worst_error_at(3, 2) < 1e-4


@pytest.mark.parametrize(("body", "ops"), MOVED.values(), ids=MOVED)
def test_what_cannot_go_into_the_weights_stands_beside_them(body: str, ops: list[str]) -> None:
    outcome = run(body, "1,4,1,7" if "both" in body else "batch,4,1,7")
    assert outcome.ops == ops
    assert outcome.worst_error_at(3, 2) < 1e-4


STAYS = {
    "no convolution": "c = Neg(x) s = Squeeze(c, third) y = Relu(s)",
    "all axes of one": "c = Conv(x, w) s = Squeeze(c) y = Relu(s)",
    "a constant with more axes": f"{CONV} y = Add(s, wide)",
    "another activation": f"{CONV} y = Softmax(s)",
    "a constant in front of a difference": f"{CONV} y = Sub(column, s)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_others_stay(body: str) -> None:
    outcome = run(body)
    assert sum(entry.applied for entry in outcome.entries) == 0


def test_the_channels_stay_where_a_normalization_looks_for_them() -> None:
    body = "c = Conv(x, only) s = Squeeze(c, second) y = BatchNormalization(s, along, along, along, along)"
    assert "BatchNormalization" in run(body, "batch,4,7,7").ops


def test_axes_are_an_attribute_below_opset_13() -> None:
    body = "c = Conv(x, w) s = Squeeze<axes=[-2]>(c) b = Add(s, column) y = Relu(b)"
    text = f"g (float[batch,4,1,7] x) => (float y) {{ {body} }}"
    weights = {name: WEIGHTS[name] for name in ("w", "column")}
    outcome = run_passes(text, "compute-before-squeeze", "fold-conv-add", weights=weights, opset=12)
    assert outcome.ops == ["Conv", "Relu", "Squeeze"]
    assert outcome.worst_error_at(3, 2) < 1e-4


def test_holds_back_when_the_squeezed_value_is_read_elsewhere() -> None:
    outcome = run(f"{CONV} y = Relu(s) z = Neg(s)", outputs="float y, float z")
    assert outcome.entries[0].refused[0].reason == "an inner value is also used elsewhere or is a graph output"
