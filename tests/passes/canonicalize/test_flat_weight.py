from __future__ import annotations

import numpy as np
import pytest

from tests.support.rules import run_passes

RNG = np.random.default_rng(11)
TEXT = "g (float[{x}] x) => (float[{y}] y) {{ h = MatMul(x, w)\n y = Relu(h) }}"


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "y", "shape"),
    [
        ("batch,sequence,6", "batch,sequence,5", (1, 6, 5)),
        ("batch,9,40", "batch,9,33", (1, 40, 33)),
        ("batch,2,sequence,7", "batch,2,sequence,3", (1, 7, 3)),
        ("batch,2,sequence,7", "batch,2,sequence,3", (1, 1, 7, 3)),
    ],
)
def test_drops_the_axes_of_one(x: str, y: str, shape: tuple[int, ...]) -> None:
    outcome = run_passes(TEXT.format(x=x, y=y), "flatten-weight", "flatten-weight", weights={"w": weight(*shape)})
    assert outcome.ops == ["MatMul", "Relu"]
    assert outcome.constant("MatMul", 1).shape == shape[-2:]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5
    assert outcome.worst_error_at(4, 300) < 1e-5


@pytest.mark.parametrize("opset", [11, 23])
@pytest.mark.parametrize(("x", "shape", "rank"), [("batch,6", (1, 1, 6, 5), 2), ("batch,sequence,6", (1, 1, 6, 5), 1)])
def test_puts_back_the_axes_that_the_weight_alone_has(x: str, shape: tuple[int, ...], rank: int, opset: int) -> None:
    y = ",".join(["1"] * rank + x.split(",")[:-1] + ["5"])
    outcome = run_passes(TEXT.format(x=x, y=y), "flatten-weight", weights={"w": weight(*shape)}, opset=opset)
    assert outcome.ops == ["MatMul", "Unsqueeze", "Relu"]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(7, 2) < 1e-5


def test_two_products_share_the_matrix() -> None:
    text = "g (float[batch,sequence,4] x) => (float y) { a = MatMul(x, w)\n b = MatMul(a, w)\n y = Relu(b) }"
    outcome = run_passes(text, "flatten-weight", "merge-initializers", "remove-unused", weights={"w": weight(1, 4, 4)})
    assert outcome.entries[0].applied == 2
    assert len(outcome.model.graph.initializers) == 1
    assert outcome.worst_error() < 1e-5


HELD_BACK = {
    "several matrices": (
        "g (float[batch,3,sequence,4] x) => (float y) { y = MatMul(x, w) }",
        (3, 4, 2),
        "the weight has shape [3, 4, 2]: several matrices",
    ),
    "a vector": (
        "g (float[4] x) => (float y) { y = MatMul(x, w) }",
        (1, 4, 2),
        "x is a vector, whose product has an axis less",
    ),
    "another reader": (
        "g (float[batch,sequence,4] x) => (float y) { h = MatMul(x, w)\n s = ReduceSum(w)\n y = Add(h, s) }",
        (1, 4, 2),
        "the weight is read by other operators too",
    ),
}


@pytest.mark.parametrize(("text", "shape", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(text: str, shape: tuple[int, ...], reason: str) -> None:
    outcome = run_passes(text, "flatten-weight", weights={"w": weight(*shape)})
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])


def test_a_matrix_stays_without_a_word() -> None:
    outcome = run_passes(
        "g (float[batch,4] x) => (float y) { y = MatMul(x, w) }", "flatten-weight", weights={"w": weight(4, 2)}
    )
    assert outcome.entry.applied == 0
    assert all(item.needless for item in outcome.entry.refused)
