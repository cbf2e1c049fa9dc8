import numpy as np
import pytest

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
    assert outcome.ops == ["InstanceNormalization"]
    assert outcome.attributes("InstanceNormalization")["epsilon"] == pytest.approx(0.01)
    assert outcome.worst_error() < 1e-5


def test_holds_back_where_the_kernel_does_not_go() -> None:
    assert run("batch,8,6,6", 2, "float16").reasons == ["x is FLOAT16; the CPU kernel takes float32"]
    assert run("batch,8", 2).reasons == ["x has rank 2, needs 3 or more"]
