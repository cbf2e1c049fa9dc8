import itertools

import pytest

from tests.support.rules import run_passes


def chain(first: tuple[int, ...], second: tuple[int, ...]) -> str:
    return f"""
    g (float[batch,sequence,2,4] x) => (float[a,b,c,d] y) {{
      h = Transpose<perm={list(first)}>(x)
      y = Transpose<perm={list(second)}>(h)
    }}"""


@pytest.mark.parametrize("second", list(itertools.permutations(range(4)))[::5])
@pytest.mark.parametrize("first", [(0, 2, 1, 3), (3, 0, 1, 2), (1, 2, 3, 0)])
def test_composes_two_permutations(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    outcome = run_passes(chain(first, second), "merge-transposes", "merge-transposes")
    assert outcome.ops == ["Transpose"]
    assert tuple(outcome.attributes("Transpose")["perm"]) == tuple(first[axis] for axis in second)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_merges_a_longer_chain() -> None:
    text = """
    g (float[batch,sequence,2,4] x) => (float[a,b,c,d] y) {
      h = Transpose<perm=[1,2,3,0]>(x)
      i = Transpose<perm=[1,2,3,0]>(h)
      j = Transpose<perm=[1,2,3,0]>(i)
      y = Transpose<perm=[0,2,1,3]>(j)
    }"""
    outcome = run_passes(text, "merge-transposes")
    assert outcome.ops == ["Transpose"]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_the_inner_transpose_stays_for_its_other_readers() -> None:
    text = """
    g (float[batch,sequence,4] x) => (float[a,b,c] y, float[sequence,batch,4] h) {
      h = Transpose<perm=[1,0,2]>(x)
      y = Transpose<perm=[2,0,1]>(h)
    }"""
    outcome = run_passes(text, "merge-transposes")
    assert outcome.ops == ["Transpose", "Transpose"]
    assert [list(node.attributes["perm"].value) for node in outcome.model.graph] == [[1, 0, 2], [2, 1, 0]]
    assert outcome.worst_error() == 0


def test_holds_back_without_a_permutation() -> None:
    text = "g (float[batch,4] x) => (float[batch,4] y) { h = Transpose(x) y = Transpose<perm=[1,0]>(h) }"
    outcome = run_passes(text, "merge-transposes")
    assert outcome.reasons == ["a Transpose without perm reverses an unknown rank"]
