import numpy as np
import pytest

from onnxopt.probe.runners import GraphRunner
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(19)


def run(axes: str, groups: int, kind: str = "float", *, computed: bool = False) -> Outcome:
    given, made = (f", {kind}[8] gamma", "") if computed else ("", "")
    text = f"""
    g ({kind}[{axes}] x{given}) => ({kind}[{axes}] y) {{
      {made}y = GroupNormalization<num_groups = {groups}, epsilon = 0.01>(x, gamma, beta)
    }}"""
    numbers = {
        name: GENERATOR.standard_normal(8).astype("f4" if kind == "float" else "f2") for name in ("gamma", "beta")
    }
    if computed:
        del numbers["gamma"]
    return run_passes(text, "lower-group-norm", "lower-group-norm", weights=numbers)


@pytest.mark.parametrize("axes", ["batch,8,height", "batch,8,6,6", "batch,8,height,height", "batch,8,3,5,2"])
@pytest.mark.parametrize("computed", [False, True], ids=["", "computed factors"])
def test_runs_groups_as_channels(axes: str, *, computed: bool) -> None:
    outcome = run(axes, 2, computed=computed)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert "InstanceNormalization" in outcome.ops
    assert ("Shape" in outcome.ops) == (axes.count("height") > 0)
    assert outcome.worst_error_at(2, 5) < 1e-5


def test_a_group_of_one_channel_needs_no_reshape() -> None:
    outcome = run("batch,8,height", 8)
    assert outcome.ops == ["InstanceNormalization", "Mul", "Add"]
    assert outcome.attributes("InstanceNormalization")["epsilon"] == pytest.approx(0.01)
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("number", [2.0**33, 2.0**60, 2.0**100])
def test_channels_that_hold_one_large_number_get_their_offset(groups: int, number: float) -> None:
    outcome = run("batch,8,16", groups)
    beta = outcome.original.graph.initializers["beta"].const_value
    assert beta is not None
    feeds = outcome.feeds_at(2, 5, x=np.full((2, 8, 16), number, np.float32))
    found = GraphRunner(outcome.model).run(feeds)[0]["y"]
    np.testing.assert_allclose(found, np.broadcast_to(beta.numpy()[:, None], (2, 8, 16)), rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_small_deviations_from_a_large_mean_are_not_lost(groups: int) -> None:
    outcome = run("batch,8,64", groups)
    x = (GENERATOR.standard_normal((2, 8, 64)) + 100).astype(np.float32)
    rows = x.astype(np.float64).reshape(2, groups, -1)
    normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 0.01)
    weights = outcome.original.graph.initializers
    gamma, beta = (tensor.numpy()[:, None] for name in ("gamma", "beta") if (tensor := weights[name].const_value))
    found = GraphRunner(outcome.model).run(outcome.feeds_at(2, 5, x=x))[0]["y"]
    np.testing.assert_allclose(found, normal.reshape(2, 8, 64) * gamma + beta, rtol=1e-4, atol=1e-4)


def test_holds_back_where_the_kernel_does_not_go() -> None:
    assert run("batch,8,6,6", 2, "float16").reasons == ["x is FLOAT16; the CPU kernel takes float32"]
    assert run("batch,8", 2).reasons == ["x has rank 2, needs 3 or more"]
