import numpy as np
import pytest

from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(5)
SHAPES = {"words": (9, 8), "places": (140, 8), "kinds": (2, 8), "gamma": (8,), "beta": (8,)}
WEIGHTS = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
FORMS = {
    "everything": "ids, segments, words, places, kinds, gamma, beta, mask, positions",
    "no position ids": "ids, segments, words, places, kinds, gamma, beta, mask",
    "no mask": "ids, segments, words, places, kinds, gamma, beta",
    "no segments": "ids, , words, places, , gamma, beta, mask",
    "only ids": "ids, , words, places, , gamma, beta",
}


def run(inputs: str, used: str = "y", attributes: str = "", opset: int = 23) -> Outcome:
    declared = {
        "y": "float[batch,sequence,8] y",
        "index": "int32[batch] index",
        "total": "float[batch,sequence,8] total",
    }
    shown = ", ".join(text for name, text in declared.items() if name in used)
    text = f"""
    g (int32[batch,sequence] ids, int32[batch,sequence] segments, int32[batch,sequence] mask,
       int32[batch,sequence] positions) => ({shown}) {{
      y, index, total = com.microsoft.EmbedLayerNormalization{attributes}({inputs})
    }}"""
    return run_passes(text, "raise-embed-layer-norm", "raise-embed-layer-norm", weights=WEIGHTS, opset=opset)


@pytest.mark.parametrize("inputs", FORMS.values(), ids=FORMS.keys())
def test_reads_the_kernel_as_look_ups_and_a_normalization(inputs: str) -> None:
    outcome = run(inputs)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.ops.count("Gather") == 1 + ("segments" in inputs) + ("positions" in inputs)
    assert outcome.ops[-1] == "LayerNormalization"
    assert not [name for name in outcome.ops if ":" in name]
    assert outcome.worst_error() < 1e-5
    given = {name: GENERATOR.integers(0, 2, (3, 6)).astype(np.int32) for name in ("segments", "mask")}
    given |= {name: GENERATOR.integers(0, 9, (3, 6)).astype(np.int32) for name in ("ids", "positions")}
    used = {spec.name for spec in outcome.original.graph.inputs}
    assert outcome.worst_error_at(3, 6, **{name: array for name, array in given.items() if name in used}) < 1e-5


@pytest.mark.parametrize("inputs", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("opset", [12, 23])
def test_gives_the_length_of_rows_and_the_sum_where_they_are_used(inputs: str, opset: int) -> None:
    outcome = run(inputs, "y, index, total", opset=opset)
    assert outcome.entries[0].applied == 1
    assert not [name for name in outcome.ops if ":" in name]
    assert outcome.worst_error() < 1e-5


def test_keeps_its_epsilon() -> None:
    outcome = run(FORMS["no mask"], attributes="<epsilon = 0.5>")
    assert outcome.attributes("LayerNormalization")["epsilon"] == 0.5
    assert outcome.worst_error() < 1e-5


def test_holds_back_when_the_mask_index_is_of_another_kind() -> None:
    outcome = run(FORMS["no position ids"], "y, index", attributes="<mask_index_type = 1>")
    assert outcome.reasons == ["the mask index is of another kind than a length"]
