import numpy as np
import pytest

from onnxopt.passes.quantize.pooling import SumTokensInOrder
from onnxopt.qmath.precision import Plan, PlannedLinear, Precision
from tests.support.rules import run_passes

STATIC = Plan({"w": PlannedLinear(Precision("int8"))})
POOLING = """
g (float[batch,sequence,8] x, int64[batch,sequence] key_mask) => (float y) {
  f = Cast<to=1>(key_mask)
  m = Unsqueeze(f, one)
  y = MatMul(m, x)
}"""


def test_adds_row_to_row() -> None:
    step = SumTokensInOrder(STATIC)
    outcome = run_passes(POOLING, step, step, weights={"one": np.array([1])})
    assert outcome.ops == ["Cast", "Unsqueeze", "Transpose", "Mul", "CumSum", "Slice"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("more", [1, 6, 37, 200])
def test_padding_behind_a_text_changes_no_bit(more: int) -> None:
    from onnxopt.probe.runners import GraphRunner

    outcome = run_passes(POOLING, SumTokensInOrder(STATIC), weights={"one": np.array([1])})
    x = np.random.default_rng(0).standard_normal((1, 51, 8)).astype(np.float32)
    runner = GraphRunner(outcome.model)
    alone = runner.run({"x": x, "key_mask": np.ones((1, 51), np.int64)})[0]["y"]
    longer = np.concatenate([x, np.full((1, more, 8), 3.0, np.float32)], axis=1)
    mask = np.concatenate([np.ones((1, 51), np.int64), np.zeros((1, more), np.int64)], axis=1)
    assert np.array_equal(alone, runner.run({"x": longer, "key_mask": mask})[0]["y"])
    batch = {"x": np.concatenate([longer, longer[:, ::-1]]), "key_mask": np.concatenate([mask, mask[:, ::-1]])}
    assert np.array_equal(alone[0], runner.run(batch)[0]["y"][0])


@pytest.mark.parametrize(
    "plan", [Plan(), Plan({"w": PlannedLinear(Precision("int8-dynamic"))})], ids=["none", "dynamic"]
)
def test_leaves_graphs_alone_that_have_no_fixed_grids(plan: Plan) -> None:
    outcome = run_passes(POOLING, SumTokensInOrder(plan), weights={"one": np.array([1])})
    assert outcome.ops[-1] == "MatMul"


def test_leaves_the_product_of_an_attention_alone() -> None:
    text = "g (float[batch,sequence,sequence] p, float[batch,sequence,8] v) => (float y) { y = MatMul(p, v) }"
    assert run_passes(text, SumTokensInOrder(STATIC)).ops == ["MatMul"]


def test_is_in_the_catalogue() -> None:
    assert run_passes(POOLING, "sum-tokens-in-order", weights={"one": np.array([1])}).ops[-1] == "MatMul"
