"""Plans of weights only: who gets codes, on which grids, and why the others stay."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.graph.layers import Layers
from onnxopt.qmath.blocks import dequantize, quantize, sqnr_db
from onnxopt.qmath.precision import Precision
from onnxopt.quantize.weights import WEIGHT_METHODS, SeenInput, plan_weights
from onnxopt.spec import Array
from tests.support.rules import parse

TEXT = """
g (int64[batch,sequence] ids) => (float[batch,sequence,900] y) {
  x = Gather(words, ids)
  a = MatMul(x, up)
  b = Add(a, bias)
  c = MatMul(b, down)
  h = Transpose<perm=[1,0]>(words)
  y = MatMul(c, h)
}
"""
INT4, INT8 = Precision("int4-weights", 32), Precision("int8-weights", 128)


def weight(*shape: int) -> Array:
    return (np.random.default_rng(shape).standard_normal(shape) * 0.1).astype(np.float32)


def weights() -> dict[str, Array]:
    return {"words": weight(900, 96), "up": weight(96, 160), "bias": weight(160), "down": weight(160, 96)}


def layers() -> Layers:
    return Layers.of(parse(TEXT, weights()))


def seen(width: int, *, whole: bool = True) -> SeenInput:
    generator = np.random.default_rng(width)
    x = generator.standard_normal((4000, width // 4)) @ generator.standard_normal((width // 4, width)) + 0.5
    moment = x.T @ x / len(x)
    return SeenInput(moment if whole else np.diag(moment), x.mean(axis=0))


def test_every_layer_and_table_is_planned_and_the_head_keeps_8_bits() -> None:
    plan = plan_weights(layers(), INT4)
    found = {label: str(one.precision) for label, one in plan}
    assert found == {
        "up": "int4-weights:32",
        "down": "int4-weights:32",
        "words": "int8-weights:32",  # 64 does not divide 96, and the table must be whole blocks
        "words#table": "int8-weights:32",
    }
    assert plan.linears["words"].blocks is plan.linears["words#table"].blocks
    every = plan_weights(layers(), INT4, head=None)
    assert str(every.linears["words"].precision) == "int4-weights:32"


def test_each_layer_can_have_its_own_precision() -> None:
    plan = plan_weights(layers(), {"up": INT8, "down": INT4})
    assert [str(one.precision) for _, one in plan] == ["int8-weights:128", "int4-weights:32", "fp32", "fp32"]
    assert plan.linears["words"].reason == "kept by the plan"
    assert plan.linears["words#table"].reason == "it shares the weight of words, which keeps it"


def test_what_is_kept_says_why() -> None:
    plan = plan_weights(layers(), INT8, keep={"up", "words#table"})
    assert (plan.linears["up"].blocks, plan.linears["up"].reason) == (None, "kept by the user")
    assert plan.linears["words#table"].reason == "kept by the user"
    narrow = "g (float[rows,8] x) => (float[rows,40] y) { y = MatMul(x, w) }"
    plan = plan_weights(Layers.of(parse(narrow, {"w": weight(8, 40)})), INT8)
    assert plan.linears["w"].reason == "8 inputs are less than a block"


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("precision", [INT4, Precision("int4-weights", 64, symmetric=False), INT8])
def test_methods_lose_no_more_than_rounding(method: str, precision: Precision) -> None:
    model, inputs = parse(TEXT, weights()), {"up": seen(96), "down": seen(160), "words": seen(96)}
    plan = plan_weights(Layers.of(model), precision, method=method, seen=inputs, head=None)  # type: ignore[arg-type]  # a method
    for label, width in (("up", 96), ("down", 160)):
        made = plan.linears[label]
        assert made.blocks is not None
        own = made.precision
        bits = made.blocks.bits
        plain = quantize(weights()[label], bits, own.block_size, symmetric=own.symmetric)
        corrects = method == "gptq" or (method == "auto" and bits == 4)
        moment = seen(width).moment if corrects else None
        if method == "mse" or (method == "auto" and bits == 8):
            moment = np.diag(seen(width).moment)
        ratios = [sqnr_db(weights()[label], dequantize(one), moment) for one in (made.blocks, plain)]
        if method == "hqq":  # it lowers another norm
            assert ratios[0] > ratios[1] - 1
        else:
            assert ratios[0] >= ratios[1] - 1e-6
        if corrects:
            assert ratios[0] > ratios[1] + 3


def test_the_bias_takes_back_the_mean_of_what_rounding_does() -> None:
    inputs = {"up": seen(96, whole=False)}
    plan = plan_weights(layers(), INT4, seen=inputs)
    made = plan.linears["up"]
    assert made.blocks is not None
    assert made.bias is not None
    mean = inputs["up"].mean
    before, after = (
        mean @ w + b for w, b in ((weights()["up"], weights()["bias"]), (dequantize(made.blocks), made.bias))
    )
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert plan.linears["down"].bias is None


def test_known_codes_are_taken_as_they_are() -> None:
    own = quantize(weights()["up"], 8, 32)
    plan = plan_weights(layers(), INT4, given={"up": own})
    assert plan.linears["up"].blocks is own
    assert (str(plan.linears["up"].precision), plan.linears["up"].reason) == (
        "int8-weights:32",
        "the checkpoint's own grid",
    )


def test_wrong_questions_are_one_line() -> None:
    model = parse(TEXT, weights())
    with pytest.raises(InputError, match="not a precision of weights only"):
        plan_weights(Layers.of(model), Precision("int8"))
    with pytest.raises(InputError, match="gptq has not seen the input"):
        plan_weights(Layers.of(model), INT4, method="gptq", seen={"up": seen(96, whole=False)})


def test_the_same_question_gets_the_same_codes() -> None:
    inputs = {"up": seen(96), "down": seen(160)}
    first, second = (plan_weights(layers(), INT4, seen=inputs) for _ in range(2))
    for label, one in first:
        other = second.linears[label]
        if one.blocks is not None and other.blocks is not None:
            np.testing.assert_array_equal(one.blocks.codes, other.blocks.codes)
            np.testing.assert_array_equal(one.blocks.scales, other.blocks.scales)
