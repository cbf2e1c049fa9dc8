import numpy as np
import pytest

from tests.support.rules import run_passes

GENERATOR = np.random.default_rng(3)
WEIGHTS = {name: GENERATOR.standard_normal(8).astype(np.float32) for name in ("gamma", "beta", "bias")}
SKIPS = {
    "everything": "com.microsoft.SkipLayerNormalization<epsilon = 0.01>(x, skip, gamma, beta, bias)",
    "no bias": "com.microsoft.SkipLayerNormalization(x, skip, gamma, beta)",
    "no beta": 'com.microsoft.SkipLayerNormalization(x, skip, gamma, "", bias)',
    "only gamma": "com.microsoft.SkipLayerNormalization(x, skip, gamma)",
}
SIMPLE = {
    "bias": "com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.01>(x, skip, gamma, bias)",
    "no bias": "com.microsoft.SkipSimplifiedLayerNormalization(x, skip, gamma)",
}


def graph(kernel: str, *, total: bool = False, kind: str = "float") -> str:
    made, shown = ('y, "", "", s', f", {kind}[batch,sequence,8] s") if total else ("y", "")
    kernel = kernel.replace('""', "")
    return f"""
    g ({kind}[batch,sequence,8] x, {kind}[batch,sequence,8] skip) => ({kind}[batch,sequence,8] y{shown}) {{
      {made.replace('""', "")} = {kernel}
    }}"""


@pytest.mark.parametrize("total", [False, True], ids=["", "with the sum"])
@pytest.mark.parametrize("kernel", SKIPS.values(), ids=SKIPS.keys())
def test_reads_a_skip_as_a_sum_and_a_normalization(kernel: str, *, total: bool) -> None:
    outcome = run_passes(graph(kernel, total=total), "raise-skip-layer-norm", "raise-skip-layer-norm", weights=WEIGHTS)
    assert outcome.ops == [*["Add"] * (2 if "bias" in kernel else 1), "LayerNormalization"]
    assert outcome.attributes("LayerNormalization")["epsilon"] == pytest.approx(0.01 if "0.01" in kernel else 1e-12)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.worst_error_at(2, 6) < 1e-5


@pytest.mark.parametrize("total", [False, True], ids=["", "with the sum"])
@pytest.mark.parametrize("kernel", SIMPLE.values(), ids=SIMPLE.keys())
def test_reads_a_simplified_skip_as_a_sum_and_a_normalization(kernel: str, *, total: bool) -> None:
    outcome = run_passes(graph(kernel, total=total), "raise-skip-rms-norm", "raise-skip-rms-norm", weights=WEIGHTS)
    assert outcome.ops == [*["Add"] * (2 if "bias" in kernel else 1), "RMSNormalization"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.worst_error_at(2, 6) < 1e-5


def test_a_skip_that_broadcasts_still_does() -> None:
    text = """
    g (float[batch,sequence,8] x) => (float[batch,sequence,8] y) <float[1,1,8] skip = {1, 2, 3, 4, 5, 6, 7, 8}> {
      s = Mul(x, x)
      y = com.microsoft.SkipLayerNormalization(x, s, gamma, beta)
    }"""
    assert run_passes(text, "raise-skip-layer-norm", weights=WEIGHTS).worst_error() < 1e-5


@pytest.mark.parametrize("axis", ["", "<axis = 2>", "<axis = -1, epsilon = 0.01>"])
def test_reads_a_simplified_norm_by_its_standard_name(axis: str) -> None:
    kernel = f"SimplifiedLayerNormalization{axis}(h, gamma)"
    text = f"""
    g (float[batch,sequence,8] x) => (float[batch,sequence,8] y) {{
      h = Neg(x)
      y = {kernel}
    }}"""
    outcome = run_passes(text, "raise-rms-norm", "raise-rms-norm", weights=WEIGHTS)
    assert outcome.ops == ["Neg", "RMSNormalization"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("opset", [12, 16])
def test_spells_norms_out_where_the_opset_has_none(opset: int) -> None:
    layer = run_passes(graph(SKIPS["everything"]), "raise-skip-layer-norm", weights=WEIGHTS, opset=opset)
    rms = run_passes(graph(SIMPLE["bias"]), "raise-skip-rms-norm", weights=WEIGHTS, opset=opset)
    for outcome in (layer, rms):
        assert "ReduceMean" in outcome.ops
        assert not [name for name in outcome.ops if ":" in name or "Norm" in name]
        assert outcome.worst_error() < 1e-5


def test_what_is_spelled_out_is_fused_again() -> None:
    spelled = run_passes(graph(SIMPLE["bias"]), "raise-skip-rms-norm", weights=WEIGHTS, opset=22).model
    spelled.graph.opset_imports[""] = 23
    assert run_passes(spelled, "fuse-rms-norm").ops == ["Add", "Add", "RMSNormalization"]


def test_holds_back_in_half_precision_without_the_operator() -> None:
    weights = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    for kernel, name, operator in (
        (SKIPS["no bias"], "raise-skip-layer-norm", "LayerNormalization"),
        (SIMPLE["no bias"], "raise-skip-rms-norm", "RMSNormalization"),
    ):
        outcome = run_passes(graph(kernel, kind="float16"), name, weights=weights, opset=16)
        reason = f"x is FLOAT16 and opset 16 has no {operator}: its parts would overflow or round"
        assert (outcome.entry.applied, outcome.reasons) == (0, [reason])


def test_holds_back_when_the_norm_is_over_two_axes() -> None:
    text = """
    g (float[batch,3,8] x) => (float[batch,3,8] y) { y = SimplifiedLayerNormalization<axis = 1>(x, wide) }"""
    outcome = run_passes(text, "raise-rms-norm", weights={"wide": np.ones((3, 8), np.float32)})
    assert outcome.reasons == ["normalizes from axis 1 on, not the last"]


def test_leaves_standard_norms_alone() -> None:
    text = "g (float[batch,8] x) => (float[batch,8] y) { y = RMSNormalization(x, gamma) }"
    assert run_passes(text, "raise-rms-norm", weights=WEIGHTS).entry.applied == 0


@pytest.mark.parametrize("inputs", ["x, gamma, beta", "x, gamma"])
def test_spells_out_the_layer_norm_of_a_graph_that_is_too_old_for_it(inputs: str) -> None:
    text = f"""
    g (float[batch,8] x) => (float[batch,8] y) {{ y = LayerNormalization<epsilon = 0.01>({inputs}) }}"""
    outcome = run_passes(text, "raise-layer-norm", "raise-layer-norm", weights=WEIGHTS, opset=14)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.ops.count("ReduceMean") == 2
    assert outcome.worst_error() < 1e-5
    assert run_passes(text, "raise-layer-norm", weights=WEIGHTS, opset=17).entry.applied == 0


def test_an_old_layer_norm_over_two_axes_stays() -> None:
    text = "g (float[batch,3,8] x) => (float[batch,3,8] y) { y = LayerNormalization<axis = 1>(x, wide) }"
    outcome = run_passes(text, "raise-layer-norm", weights={"wide": np.ones((3, 8), np.float32)}, opset=14)
    assert outcome.reasons == ["normalizes from axis 1 on, not the last"]
