import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(13)


def weights(channels: int, **shapes: tuple[int, ...]) -> dict[str, Array]:
    made = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("gamma", "beta", "mean", "variance"):
        made[name] = GENERATOR.uniform(0.2, 2.0, channels).astype(np.float32)
    return made


def run(body: str, given: dict[str, Array], x: str = "batch,4,7,7", y: str = "batch,6,height,width") -> Outcome:
    text = f"g (float[{x}] x) => (float[{y}] y) {{ {body} y = BatchNormalization(h, gamma, beta, mean, variance) }}"
    outcome = run_passes(text, "fold-batch-norm", "fold-batch-norm", weights=given)
    assert outcome.rolled_back == []
    return outcome


PRODUCTS = {
    "Conv": ("h = Conv(x, w, b)", "batch,4,7,7", "batch,6,5,5", {"w": (6, 4, 3, 3), "b": (6,)}),
    "Conv without a bias": ("h = Conv(x, w)", "batch,4,7,7", "batch,6,5,5", {"w": (6, 4, 3, 3)}),
    "Conv of groups": ("h = Conv<group = 2>(x, w, b)", "batch,4,7,7", "batch,6,5,5", {"w": (6, 2, 3, 3), "b": (6,)}),
    "Conv over time": ("h = Conv(x, w)", "batch,4,rows", "batch,6,rows", {"w": (6, 4, 1)}),
    "ConvTranspose": ("h = ConvTranspose(x, w, b)", "batch,4,7,7", "batch,6,9,9", {"w": (4, 6, 3, 3), "b": (6,)}),
    "ConvTranspose of groups": (
        "h = ConvTranspose<group = 2>(x, w)",
        "batch,4,7,7",
        "batch,6,9,9",
        {"w": (4, 3, 3, 3)},
    ),
    "Gemm": ("h = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)", "batch,4", "batch,6", {"w": (4, 6), "b": (6,)}),
    "Gemm of a turned weight": ("h = Gemm<transB = 1>(x, w)", "batch,4", "batch,6", {"w": (6, 4)}),
    "Gemm of one bias": ("h = Gemm(x, w, b)", "batch,4", "batch,6", {"w": (4, 6), "b": (1,)}),
    "MatMul": ("h = MatMul(x, w)", "batch,4", "batch,6", {"w": (4, 6)}),
    "MatMul and Add": ("p = MatMul(x, w) h = Add(b, p)", "batch,4", "batch,6", {"w": (4, 6), "b": (6,)}),
}


@pytest.mark.parametrize(("body", "x", "y", "shapes"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_folds_into_every_product(body: str, x: str, y: str, shapes: dict[str, tuple[int, ...]]) -> None:
    outcome = run(body, weights(6, **shapes), x, y)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert "BatchNormalization" not in outcome.ops
    assert outcome.worst_error() < 2e-5
    assert outcome.worst_error_at(2, 5) < 2e-5


def test_uses_the_epsilon_of_the_graph() -> None:
    given = weights(6, w=(4, 6)) | {"variance": np.full(6, 1e-4, np.float32)}
    text = """
    g (float[batch,4] x) => (float[batch,6] y) {
      h = MatMul(x, w)
      y = BatchNormalization<epsilon = 0.1>(h, gamma, beta, mean, variance)
    }"""
    assert run_passes(text, "fold-batch-norm", weights=given).worst_error() < 1e-5


def test_holds_back_when_the_product_is_also_used_elsewhere() -> None:
    text = """
    g (float[batch,4] x) => (float[batch,6] y, float[batch,6] h) {
      h = MatMul(x, w)
      y = BatchNormalization(h, gamma, beta, mean, variance)
    }"""
    outcome = run_passes(text, "fold-batch-norm", weights=weights(6, w=(4, 6)))
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]


def test_holds_back_when_the_channels_are_not_the_columns() -> None:
    outcome = run("h = MatMul(x, w)", weights(3, w=(4, 6)), "batch,3,4", "batch,3,6")
    assert outcome.reasons == ["the channels of the product are not on its second axis"]


def test_holds_back_when_the_bias_is_computed() -> None:
    given = weights(6, w=(6, 4, 1, 1), base=(6,))
    outcome = run("b = Neg(base) h = Conv(x, w, b)", given, "batch,4,7,7", "batch,6,7,7")
    assert outcome.reasons == ["the bias is computed"]


def test_holds_back_when_the_bias_differs_by_row() -> None:
    for shape in ((6, 6), (6, 1)):
        outcome = run("h = Gemm(x, w, b)", weights(6, w=(4, 6), b=shape), "6,4", "6,6")
        assert outcome.reasons == [f"the bias has shape {shape}, needs [6]"]


def test_leaves_a_normalization_without_a_product_alone() -> None:
    assert run("h = Relu(x)", weights(4), "batch,4,7,7", "batch,4,7,7").entry.applied == 0
