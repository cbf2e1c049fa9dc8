import numpy as np
import pytest

from tests.support.rules import run_passes

FOLDED = """
g (float[batch,2,sequence,4] k) => (float y) {
  s = Shape<start=2, end=3>(k)
  b = Shape<start=0, end=1>(k)
  rest_s_4 = Concat<axis=0>(rest, s, four)
  b_2_4_s = Concat<axis=0>(b, two, four, s)
  folded = Reshape(k, rest_s_4)
  turned = Transpose<perm=[0,2,1]>(folded)
  h = Reshape(turned, b_2_4_s)
  y = Neg(h)
}"""
WEIGHTS = {"rest": np.array([-1]), "two": np.array([2]), "four": np.array([4])}


def test_swaps_the_last_two_axes_in_place() -> None:
    outcome = run_passes(FOLDED, "unfold-transpose", "unfold-transpose", "remove-unused", weights=WEIGHTS)
    assert outcome.ops == ["Transpose", "Neg"]
    assert list(outcome.attributes("Transpose")["perm"]) == [0, 1, 3, 2]
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0
    assert outcome.worst_error_at(4, 2) == 0


HELD_BACK = {
    "the fold cuts the matrices": (
        FOLDED.replace("Concat<axis=0>(rest, s, four)", "Concat<axis=0>(rest, four, s)"),
        "the fold changes the matrices",
    ),
    "the axes are unfolded in another order": (
        FOLDED.replace("Concat<axis=0>(b, two, four, s)", "Concat<axis=0>(two, b, four, s)"),
        "the axes are not unfolded again",
    ),
    "the axes stay folded": (
        FOLDED.replace("Concat<axis=0>(b, two, four, s)", "Concat<axis=0>(rest, four, s)"),
        "the axes are not unfolded again",
    ),
}


@pytest.mark.parametrize(("text", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(text: str, reason: str) -> None:
    outcome = run_passes(text, "unfold-transpose", weights=WEIGHTS)
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])


def test_a_matrix_without_a_batch_of_batches_stays() -> None:
    text = """
    g (float[batch,sequence,4] k) => (float y) {
      folded = Reshape(k, zeros)
      turned = Transpose<perm=[0,2,1]>(folded)
      h = Reshape(turned, zeros)
      y = Neg(h)
    }"""
    outcome = run_passes(text, "unfold-transpose", weights={"zeros": np.array([0, 0, 0])})
    assert outcome.reasons == ["x is not a batch of batches of matrices"]
