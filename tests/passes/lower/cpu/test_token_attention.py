import numpy as np
import pytest

from onnxopt.spec import Array
from tests.passes.lower.contrib.test_attention import HEADS, MASK, padded
from tests.support.rules import Outcome, run_passes


def run(attributes: str = HEADS, *, mask: bool = True, width: int = 8) -> Outcome:
    declared = ", int64[batch,sequence] key_mask" if mask else ""
    text = f"""
    g (float[batch,sequence,8] q, float[batch,sequence,{width}] k, float[batch,sequence,{width}] v{declared})
      => (float y) {{
      {MASK if mask else ""}
      y = Attention<{attributes}>(q, k, v{", mask" if mask else ""})
    }}"""
    weights: dict[str, Array] = {"middle": np.array([1, 2]), "one": np.array([1])} if mask else {}
    return run_passes(text, "lower-token-attention", "lower-token-attention", weights=weights)


@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
def test_takes_queries_keys_and_values_as_they_are(mask: bool) -> None:  # noqa: FBT001 - a parameter of the test
    outcome = run(mask=mask)
    assert outcome.ops[-1] == "com.microsoft::MultiHeadAttention"
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


@pytest.mark.parametrize("kind", ["left", "right", "holes"])
def test_padding_on_any_side_gives_the_rows_of_the_standard_form(kind: str) -> None:
    assert run().worst_error_at(4, 9, key_mask=padded(kind)) < 1e-5


def test_keeps_a_scale_of_its_own() -> None:
    outcome = run(f"{HEADS}, scale=0.2")
    assert outcome.attributes("MultiHeadAttention")["scale"] == pytest.approx(0.2)
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize(
    ("attributes", "width", "reason"),
    [
        ("q_num_heads=2, kv_num_heads=1", 4, "grouped queries"),
        (f"{HEADS}, is_causal=1", 8, "causal"),
        (f"{HEADS}, softcap=5.0", 8, "soft-capped scores"),
    ],
)
def test_holds_back_with_the_reason(attributes: str, width: int, reason: str) -> None:
    outcome = run(attributes, mask=False, width=width)
    assert (outcome.reasons, outcome.rolled_back) == ([reason], [])
