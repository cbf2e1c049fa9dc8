import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(3)


def constant(*shape: int) -> Array:
    return GENERATOR.uniform(0.5, 2.0, shape).astype(np.float32)


def run(body: str, weights: dict[str, Array], x: str = "batch,sequence,6") -> Outcome:
    text = f"g (float[{x}] x) => (float y) {{ {body} }}"
    outcome = run_passes(text, "drop-leading-axes", "drop-leading-axes", weights=weights)
    assert outcome.rolled_back == []
    return outcome


@pytest.mark.parametrize("body", ["Add(x, c)", "Add(c, x)", "Mul(c, x)", "Sub(x, c)", "Sub(c, x)", "Div(c, x)"])
@pytest.mark.parametrize("shape", [(1, 6), (1, 1, 6), (1, 1, 1), (1, 1)])
def test_a_vector_is_written_as_one(body: str, shape: tuple[int, ...]) -> None:
    outcome = run(f"y = {body}", {"c": constant(*shape)})
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.constant(body[:3], 0 if "(c" in body else 1).shape == shape[-1:]
    assert outcome.worst_error_at(4, 3) == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_the_bias_of_a_gemm_keeps_its_factors() -> None:
    outcome = run(
        "y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, c)", {"w": constant(5, 6), "c": constant(1, 5)}, "batch,6"
    )
    assert outcome.constant("Gemm", 2).shape == (5,)
    assert outcome.attributes("Gemm") == {"alpha": 0.5, "beta": 2.0, "transB": 1}
    assert outcome.worst_error_at(3, 4) == 0


def test_the_other_readers_of_a_constant_keep_it() -> None:
    text = "g (float[batch,6] x) => (float y, float z) { y = Add(x, c) z = Concat<axis=0>(x, c) }"
    outcome = run_passes(text, "drop-leading-axes", weights={"c": constant(1, 6)})
    assert outcome.entry.applied == 1
    assert outcome.worst_error_at(3, 4) == 0


@pytest.mark.parametrize(
    ("shape", "x"),
    [
        ((1, 1, 6), "batch,6"),
        ((1, 6), "6"),
        ((6,), "batch,6"),
        ((6, 1), "6,6"),
        ((1, 2, 6), "batch,2,6"),
        ((), "batch,6"),
    ],
    ids=["one axis more", "a vector", "no axis of 1", "a column", "a matrix behind", "a number"],
)
def test_others_stay(shape: tuple[int, ...], x: str) -> None:
    outcome = run("y = Add(x, c)", {"c": constant(*shape)}, x)
    assert outcome.entry.applied == 0


@pytest.mark.parametrize("bias", [(1, 4), (1, 1, 4)])
def test_a_linear_layer_is_recognised_behind_it(bias: tuple[int, ...]) -> None:
    text = "g (float[batch,sequence,6] x) => (float y) { m = MatMul(x, w) y = Add(m, c) }"
    weights = {"w": constant(6, 4), "c": constant(*bias)}
    outcome = run_passes(text, "drop-leading-axes", "lower-linear", weights=weights)
    assert outcome.ops.count("Gemm") == 1
    assert outcome.worst_error_at(3, 4) <= 1e-5
