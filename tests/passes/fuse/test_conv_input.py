import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(5)
CHANNELS = {"s": (1, 6, 1, 1), "t": (6, 1, 1), "w": (8, 6, 3, 3), "b": (8,), "v": (6, 8, 2, 2), "g": (8, 3, 3, 3)}
WEIGHTS: dict[str, Array] = {
    **{name: GENERATOR.uniform(0.2, 1.5, shape).astype(np.float32) for name, shape in CHANNELS.items()},
    "depth": GENERATOR.standard_normal((6, 1, 3, 3)).astype(np.float32),
    "time": GENERATOR.standard_normal((4, 6, 3)).astype(np.float32),
    "per": GENERATOR.uniform(0.2, 1.5, (6, 1)).astype(np.float32),
    "one": np.array([0.7], np.float32),
    "two": np.array(-1.3, np.float32),
    "zero": np.array([0.0], np.float32),
    "across": GENERATOR.uniform(0.2, 1.5, 6).astype(np.float32),
    "wide": GENERATOR.uniform(0.2, 1.5, (1, 1, 6, 6)).astype(np.float32),
}
PASSES = ("fold-shift-before-conv", "fold-scale-before-conv", "fold-shift-before-conv", "fold-scale-before-conv")
GONE = {
    "factor": "m = Mul(x, s) y = Conv(m, w, b)",
    "one factor": "m = Mul(two, x) y = Conv<pads=[1,1,1,1]>(m, w)",
    "quotient": "m = Div(x, s) y = Conv<pads=[1,1,1,1]>(m, w, b)",
    "shift": "a = Add(t, x) y = Conv(a, w, b)",
    "shift without a bias": "a = Add(x, one) y = Conv<strides=[2,2]>(a, w)",
    "difference": 'a = Sub(x, t) y = Conv<auto_pad="VALID">(a, w)',
    "both": "m = Mul(x, one) a = Add(m, two) y = Conv(a, w, b)",
    "normalized image": "a = Sub(x, t) m = Div(a, s) y = Conv(m, w)",
    "groups": "m = Mul(x, s) a = Add(m, t) y = Conv<group=2>(a, g, b)",
    "depthwise": "m = Mul(x, s) a = Sub(m, t) y = Conv<group=6>(a, depth)",
    "transposed": "m = Mul(x, s) y = ConvTranspose<strides=[2,2]>(m, v)",
    "groups transposed": "m = Div(x, s) y = ConvTranspose<group=3>(m, v)",
}
KEPT_SHIFT = {
    "padded": "m = Mul(x, s) a = Add(m, t) y = Conv<pads=[1,1,1,1]>(a, w, b)",
    "padded on one side": "m = Div(x, one) a = Sub(m, two) y = Conv<pads=[0,0,0,2]>(a, w, b)",
    "padded by itself": 'm = Mul(x, s) a = Add(m, one) y = Conv<auto_pad="SAME_UPPER", group=6>(a, depth)',
    "transposed": "m = Mul(x, two) a = Add(m, t) y = ConvTranspose(a, v)",
    "normalized and padded": "a = Sub(x, t) m = Div(a, s) y = Conv<pads=[1,1,1,1]>(m, w)",
}


def run(body: str, outputs: str = "float y", x: str = "batch,6,height,9") -> Outcome:
    text = f"g (float[{x}] x) => ({outputs}) {{ {body} }}"
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    given = {name: array for name, array in WEIGHTS.items() if name in words}
    outcome = run_passes(text, *PASSES, weights=given)
    assert outcome.rolled_back == []
    return outcome


@pytest.mark.parametrize("body", GONE.values(), ids=GONE)
def test_goes_into_the_weights_behind(body: str) -> None:
    outcome = run(body)
    assert outcome.ops == ["ConvTranspose" if "Transpose" in body else "Conv"]
    assert outcome.entry.applied == 0
    assert outcome.worst_error() <= 1e-4
    assert outcome.worst_error_at(3, 5) <= 1e-4


@pytest.mark.parametrize("body", KEPT_SHIFT.values(), ids=KEPT_SHIFT)
def test_a_shift_in_front_of_padding_stays(body: str) -> None:
    outcome = run(body)
    assert len(outcome.ops) == 2
    assert outcome.ops[0] in ("Add", "Sub")
    assert outcome.worst_error_at(2, 7) <= 1e-4


def test_convolutions_over_time() -> None:
    outcome = run("m = Mul(x, per) a = Add(m, per) y = Conv(a, time)", x="batch,6,rows")
    assert outcome.ops == ["Conv"]
    assert outcome.worst_error_at(2, 7) <= 1e-4


def test_one_scale_and_two_convolutions_of_which_one_is_padded() -> None:
    body = "m = Mul(x, one) a = Add(m, two) y = Conv(a, w, b) z = Conv<pads=[1,1,1,1], group=6>(a, depth)"
    outcome = run(body, "float y, float z")
    assert sorted(outcome.ops) == ["Add", "Conv", "Conv"]
    assert outcome.worst_error_at(2, 7) <= 1e-4


STAYS = {
    "read elsewhere": ("m = Mul(x, s) y = Conv(m, w) z = Neg(m)", "float y, float z"),
    "an output": ("m = Mul(x, s) y = Conv(m, w)", "float y, float m"),
    "shifted and read elsewhere": (
        "m = Mul(x, s) a = Add(m, t) y = Conv<pads=[1,1,1,1]>(a, w) z = Neg(m)",
        "float y, float z",
    ),
    "along the width": ("m = Mul(x, wide) y = Conv(m, w)", "float y"),
    "a shift and padding": ("a = Add(x, t) y = Conv<pads=[1,1,1,1]>(a, w)", "float y"),
    "a shift and a transposed convolution": ("a = Add(x, t) y = ConvTranspose(a, v)", "float y"),
    "the filters": ("m = Mul(w, one) y = Conv(x, m)", "float y"),
}


@pytest.mark.parametrize(("body", "outputs"), STAYS.values(), ids=STAYS)
def test_others_stay(body: str, outputs: str) -> None:
    outcome = run(body, outputs, "batch,6,6,6")
    assert [entry.applied for entry in outcome.entries] == [0, 0, 0, 0]


REFUSED = {
    "the weight is shared": "m = Mul(x, s) a = Conv(m, w) c = Conv(x, w) y = Add(a, c)",
    "it divides by zero": "m = Div(x, zero) y = Conv(m, w)",
    "the shift cannot be divided by the factor": "m = Mul(x, zero) a = Add(m, t) y = Conv<pads=[1,1,1,1]>(a, w)",
}


@pytest.mark.parametrize(("reason", "body"), REFUSED.items(), ids=REFUSED)
def test_says_why_it_holds_back(reason: str, body: str) -> None:
    outcome = run(body)
    assert outcome.reasons == [reason]
    assert sum(entry.applied for entry in outcome.entries) == 0


def test_a_channel_that_is_broadcast_stays() -> None:
    outcome = run("m = Mul(x, s) y = Conv(m, w)", x="batch,1,height,9")
    assert outcome.reasons == ["x has 1 channels, the convolution reads 6"]


def test_a_computed_bias_takes_no_shift() -> None:
    text = "g (float[batch,6,height,9] x, float[8] c) => (float y) { a = Add(x, t) y = Conv(a, w, c) }"
    outcome = run_passes(text, "fold-shift-before-conv", weights={name: WEIGHTS[name] for name in "tw"})
    assert outcome.reasons == ["the bias is computed"]
