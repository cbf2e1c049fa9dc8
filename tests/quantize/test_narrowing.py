"""What stays in float32 is what must: large activations, vanishing numbers, and what first goes wrong."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.proof.prepare import prepare
from onnxopt.qmath.precision import HalfKind
from onnxopt.quantize.narrowing import TOLERANCES, Halved, halve, peaks
from onnxopt.spec import Feeds
from tests.support.rules import observe, parse

RNG = np.random.default_rng(1)
W = (RNG.standard_normal((8, 8)) / 3).astype(np.float32)


def model_of(nodes: str, weights: dict[str, np.ndarray]) -> tuple[ir.Model, list[Feeds]]:
    text = f"g (float[batch,sequence,8] x) => (float[batch,sequence,8] y) {{ {nodes} }}"
    model = parse(text, weights)
    observations = observe(model)
    prepare(model)
    return model, [one.feeds for one in observations]


def halved(nodes: str, weights: dict[str, np.ndarray], kind: HalfKind = "fp16") -> Halved:
    model, feeds = model_of(nodes, weights)
    return halve(model, kind, feeds[:2], feeds[2:])


def test_an_ordinary_network_is_narrow_throughout() -> None:
    found = halved("p = MatMul (x, w) h = Tanh (p) y = MatMul (h, w)", {"w": W})
    assert (found.nodes, found.plan.wide, found.holds) == (3, {}, True)
    assert {one.name for one in found.errors} >= {"p", "h", "y"}
    assert 0 < found.errors[0].error < 2e-3


LARGE = "p = MatMul (x, w) b = Mul (p, big) r = Add (b, x) s = Mul (r, small) y = MatMul (s, w)"


def test_a_residual_near_the_end_of_the_range_stays_float() -> None:
    weights = {"w": W, "big": np.array(3e4, np.float32), "small": np.array(1e-4, np.float32)}
    found = halved(LARGE, weights)
    assert set(found.plan.wide) == {"b", "r", "s"}
    assert "reached" in found.plan.wide["r"]
    assert found.holds
    assert found.nodes == 2


def test_bf16_has_the_range_for_it() -> None:
    weights = {"w": W, "big": np.array(3e4, np.float32), "small": np.array(1e-4, np.float32)}
    found = halved(LARGE, weights, "bf16")
    assert found.plan.wide == {}
    assert TOLERANCES["fp16"] / 10 < found.errors[0].error < TOLERANCES["bf16"]


def test_a_number_that_would_vanish_keeps_its_node_float() -> None:
    found = halved(
        "p = MatMul (x, w) q = Mul (p, tiny) y = Mul (q, big)",
        {"w": W, "tiny": np.array(1e-12, np.float32), "big": np.array(1e12, np.float32)},
    )
    assert "would become 0" in found.plan.wide["q"]
    assert found.holds


def test_where_digits_cancel_the_node_goes_back_to_float() -> None:
    nodes = "p = MatMul (x, w) a = Add (p, far) y = Sub (a, far)"
    found = halved(nodes, {"w": W, "far": np.array(2000.0, np.float32)})
    assert found.plan.wide, "a difference of large numbers is wrong by more than 1 %"
    assert all("would be wrong by" in reason for reason in found.plan.wide.values())
    assert found.holds


def test_an_overflow_that_gives_zeros_is_seen_inside() -> None:
    """1 / infinity is 0: an output without an infinity or a NaN would be wrong by all of it."""
    nodes = "p = MatMul (x, w) a = Abs (p) b = Add (a, one) q = Mul (b, big) s = Mul (q, q) y = Div (large, s)"
    numbers = {"one": 1.0, "big": 300.0, "large": 3e4}
    found = halved(nodes, {"w": W, **{name: np.array(one, np.float32) for name, one in numbers.items()}})
    assert found.holds
    assert {"s", "y"} <= set(found.plan.wide)
    assert "reached" in found.plan.wide["s"]


def test_digits_missing_far_ahead_of_a_float_node_are_found() -> None:
    """The difference is made in float32 already; its digits went missing where the sum was rounded."""
    nodes = "p = MatMul (x, w) a = Add (p, far) e = Softplus (a) y = Sub (e, far)"
    found = halved(nodes, {"w": W, "far": np.array(2000.0, np.float32)})
    assert set(found.plan.wide) == {"a"}
    assert "y would be wrong" in found.plan.wide["a"]
    assert found.holds


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_the_given_model_does_not_change(kind: HalfKind) -> None:
    model, feeds = model_of("y = MatMul (x, w)", {"w": W})
    halve(model, kind, feeds, feeds)
    assert {value.dtype for node in model.graph for value in node.outputs} == {ir.DataType.FLOAT}


def test_peaks_leave_masks_out() -> None:
    model, feeds = model_of(
        "m = Add (x, low) y = Add (x, one)", {"low": np.array(-3e38, np.float32), "one": np.array(0.0, np.float32)}
    )
    found = peaks(model, feeds)
    assert found["m"] == 0.0
    assert found["y"] == pytest.approx(max(float(np.abs(one["x"]).max()) for one in feeds))
