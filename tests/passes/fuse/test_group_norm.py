import numpy as np
import pytest

from onnxopt.probe.runners import GraphRunner
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(17)
CHANNELS = 8
INSTANCE = "n = InstanceNormalization<epsilon = 0.001>(r, ones, zeros)"
CENTRED = (
    "mean = ReduceMean<keepdims = 1>(r, last) c = Sub(r, mean) s = Mul(c, c) v = ReduceMean<keepdims = 1>(s, last)"
)
DECOMPOSED = f"{CENTRED} e = Add(v, epsilon) d = Sqrt(e) n = Div(c, d)"
RECIPROCAL = f"{CENTRED} e = Add(v, epsilon) d = Sqrt(e) i = Reciprocal(d) n = Mul(c, i)"


def run(
    norm: str = INSTANCE,
    *steps: str,
    groups: int = 2,
    factors: str = "8,1,1",
    split: str = "",
    ones: float = 1.0,
    opset: int = 21,
    axes: str = "batch,8,height,height",
    epsilon: float = 0.001,
) -> Outcome:
    text = f"""
    g (float[{axes}] x) => (float[{axes}] y)
    <int64[3] split = {{{split or f"0, {groups}, -1"}}}, float epsilon = {{{epsilon}}}, int64[1] last = {{-1}}> {{
      r = Reshape(x, split)
      {norm}
      back = Shape(x)
      k = Reshape(n, back)
      m = Mul(k, gamma)
      y = Add(beta, m)
    }}"""
    shape = [int(part) for part in factors.split(",")]
    weights = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name in ("gamma", "beta")}
    weights |= {"ones": np.full(groups, ones, np.float32), "zeros": np.zeros(groups, np.float32)}
    return run_passes(text, *(steps or ("fuse-group-norm", "fuse-group-norm")), weights=weights, opset=opset)


@pytest.mark.parametrize("norm", [INSTANCE, DECOMPOSED, RECIPROCAL], ids=["instance", "div", "reciprocal"])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("factors", ["8,1,1", "1,8,1,1"])
def test_fires_on_every_spelling(norm: str, groups: int, factors: str) -> None:
    outcome = run(norm, groups=groups, factors=factors)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.ops[-1] == "GroupNormalization"
    assert outcome.attributes("GroupNormalization") == {"num_groups": groups, "epsilon": pytest.approx(0.001)}
    assert outcome.worst_error() < 1e-5


def test_fires_on_sound() -> None:
    outcome = run(axes="batch,8,height", factors="8,1", groups=8)
    assert outcome.ops[-1] == "GroupNormalization"
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("size", [1.0, 1e18, 1e30, 1e33])
@pytest.mark.parametrize("norm", [DECOMPOSED, RECIPROCAL], ids=["div", "reciprocal"])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-12, 1e-17])
def test_equal_large_numbers_stay_numbers(norm: str, size: float, epsilon: float) -> None:
    """Where nothing differs the parts give β, and x / σ − mean / σ is no number if x / σ is none."""
    outcome = run(norm, "fuse-group-norm", "lower-group-norm", axes="batch,8,height", factors="8,1", epsilon=epsilon)
    assert outcome.rolled_back == []
    assert outcome.entries[0].applied == int(epsilon >= 1e-8)
    feeds = {"x": np.full((2, 8, 5), size, np.float32)}
    before, after = (GraphRunner(model).run(feeds)[0]["y"] for model in (outcome.original, outcome.model))
    assert np.isfinite(before).all()
    assert np.isfinite(after).all()


@pytest.mark.parametrize("norm", [DECOMPOSED, RECIPROCAL], ids=["div", "reciprocal"])
def test_parts_stay_where_there_may_be_no_entries(norm: str) -> None:
    """The kernel ends the process there; the parts give nothing."""
    cut = "low = Constant<value_ints = [5]>() high = Constant<value_ints = [9999]>() two = Constant<value_ints = [2]>()"
    text = f"""
    g (float[batch,8,sequence] z) => (float[batch,8,some] y)
    <int64[3] split = {{0, 2, -1}}, float epsilon = {{0.001}}, int64[1] last = {{-1}}> {{
      {cut} x = Slice(z, low, high, two) r = Reshape(x, split) {norm} back = Shape(x) k = Reshape(n, back)
      m = Mul(k, gamma) y = Add(beta, m)
    }}"""
    factors = {name: np.ones((8, 1), np.float32) for name in ("gamma", "beta")}
    outcome = run_passes(text, "fuse-group-norm", weights=factors, opset=21)
    assert outcome.reasons == ["x may have no entries, at which InstanceNormalization ends the process"]


def test_holds_back_with_a_reason() -> None:
    assert run(opset=20).reasons == ["opset 20, needs 21"]
    assert run(ones=2.0).reasons == ["the groups have factors of their own"]
    assert run(factors="1").reasons == ["gamma has shape (1,), needs (8, 1, 1)"]
    other = run(split="8, -1, 18", groups=2, axes="2,8,3,6")
    assert other.reasons == ["the groups have shape (8, 2, 18), not [batch, groups, rest]"]
    finer = run(split="0, -1, 6", groups=24, axes="batch,8,3,6")
    assert finer.reasons == ["24 groups do not divide 8 channels"]
