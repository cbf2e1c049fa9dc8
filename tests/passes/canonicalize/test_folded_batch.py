import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

HEADS = "float[batch,2,sequence,4]"
SIZES = "b = Shape<start=0, end=1>(q) s = Shape<start=2, end=3>(q)"
FOLD = "rows = Concat<axis=0>(rest, s, four) qf = Reshape(q, rows) kf = Reshape(k, rows)"
UNFOLD = "scores = Concat<axis=0>(b, two, s, s) h = Reshape(p, scores)"
WEIGHTS: dict[str, Array] = {
    "rest": np.array([-1]),
    "two": np.array([2]),
    "four": np.array([4]),
    "half": np.array(0.5, np.float32),
}
PRODUCTS = {
    "a product": ("kt = Transpose<perm=[0,2,1]>(kf) p = MatMul(qf, kt)", ["Transpose", "MatMul", "Neg"]),
    "a scaled one": (
        "qs = Mul(qf, half) kt = Transpose<perm=[0,2,1]>(kf) p = MatMul(qs, kt)",
        ["Mul", "Transpose", "MatMul", "Neg"],
    ),
    "weights of a product": (
        "kt = Transpose<perm=[0,2,1]>(kf) m = MatMul(qf, kt) p = Softmax<axis=-1>(m)",
        ["Transpose", "MatMul", "Softmax", "Neg"],
    ),
    "torch.baddbmm": (
        "kt = Transpose<perm=[0,2,1]>(kf) m = MatMul(qf, kt) n = Mul(m, half) p = Add(n, n)",
        ["Transpose", "MatMul", "Mul", "Add", "Neg"],
    ),
}


def run(product: str, *steps: str, unfold: str = UNFOLD, fold: str = FOLD) -> Outcome:
    text = f"g ({HEADS} q, {HEADS} k) => (float y) {{ {SIZES} {fold} {product} {unfold} y = Neg(h) }}"
    used = {name: array for name, array in WEIGHTS.items() if f" {name})" in text or f"{name}," in text}
    return run_passes(text, *(steps or ("unfold-batch",)), weights=used)


def missed(outcome: Outcome) -> list[str]:
    """The reasons, without those of Reshapes that are none of the pass's business."""
    return [item.reason for item in outcome.entry.refused if not item.needless]


@pytest.mark.parametrize(("product", "ops"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_computes_on_batch_and_heads_apart(product: str, ops: list[str]) -> None:
    outcome = run(product, "unfold-batch", "unfold-batch", "remove-unused")
    assert sorted(outcome.ops) == sorted(ops)
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.worst_error() < 1e-5
    for batch, sequence in ((1, 1), (4, 2), (2, 4), (7, 1)):
        assert outcome.worst_error_at(batch, sequence) < 1e-5


def test_a_bias_that_is_made_folded_is_unfolded() -> None:
    """ALiBi in BLOOM comes as [batch * heads, 1, keys]."""
    bias = "ones = Concat<axis=0>(rest, one, s) af = Reshape(alibi, ones) ag = Abs(af)"
    product = f"{bias} kt = Transpose<perm=[0,2,1]>(kf) m = MatMul(qf, kt) p = Add(m, ag)"
    text = (
        f"g ({HEADS} q, {HEADS} k, float[batch,2,sequence] alibi) => (float y) "
        f"{{ {SIZES} {FOLD} {product} {UNFOLD} y = Neg(h) }}"
    )
    weights = {**{name: WEIGHTS[name] for name in ("rest", "two", "four")}, "one": np.array([1])}
    outcome = run_passes(text, "unfold-batch", "remove-unused", weights=weights)
    assert outcome.rolled_back == []
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5
    assert outcome.worst_error_at(4, 3) < 1e-5


def test_heads_that_come_back_in_front_of_the_batch_stay_folded() -> None:
    product = PRODUCTS["a product"][0]
    outcome = run(product, unfold=UNFOLD.replace("(b, two, s, s)", "(two, b, s, s)"))
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert missed(outcome) == ["other axes are folded"]


def test_leaves_a_product_of_matrices_that_were_never_folded() -> None:
    text = """
    g (float[6,sequence,4] q, float[6,4,sequence] k) => (float y) {
      p = MatMul(q, k)
      s = Shape<start=1, end=2>(q)
      target = Concat<axis=0>(two_three, s, s)
      h = Reshape(p, target)
      y = Neg(h)
    }"""
    outcome = run_passes(text, "unfold-batch", weights={"two_three": np.array([2, 3])})
    assert (outcome.entry.applied, missed(outcome), outcome.rolled_back) == (0, [], [])
    assert "nothing is multiplied in between" in outcome.reasons


NEEDLESS = {
    "nothing is multiplied": ("p = Add(qf, kf)", "same = Shape(q) h = Reshape(p, same)"),
    "the matrices are cut": (PRODUCTS["a product"][0], "cut = Concat<axis=0>(b, s, s, two) h = Reshape(p, cut)"),
}


@pytest.mark.parametrize(("product", "unfold"), NEEDLESS.values(), ids=NEEDLESS.keys())
def test_leaves_what_is_no_batch_of_products(product: str, unfold: str) -> None:
    outcome = run(product, unfold=unfold)
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert all(item.needless for item in outcome.entry.refused)
    assert outcome.worst_error() == 0


def test_a_product_that_is_read_elsewhere_stays() -> None:
    product = PRODUCTS["a product"][0]
    text = f"g ({HEADS} q, {HEADS} k) => (float y, float p) {{ {SIZES} {FOLD} {product} {UNFOLD} y = Neg(h) }}"
    outcome = run_passes(text, "unfold-batch", weights={name: WEIGHTS[name] for name in ("rest", "two", "four")})
    assert outcome.entry.applied == 0
    assert missed(outcome) == ["an inner value is also used elsewhere or is a graph output"]
