from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.spec import Array
from tests.support.rules import Outcome, names_read, run_passes

ATTENTION = "y = Attention<scale=0.3>(q, kr, vr)"


def repeated(name: str, axis: str = "after_heads") -> str:
    alone = f"{name}u = Unsqueeze({name}, {axis})"
    return f"{alone} {name}e = Expand({name}u, copies_{name}) {name}r = Reshape({name}e, {name}m)"


def run(
    nodes: str = f"{repeated('k')} {repeated('v')} {ATTENTION}",
    *steps: str,
    heads: tuple[int, int, int] = (4, 2, 2),
    sizes: tuple[int, int] = (8, 8),
    more: str = "",
    outputs: str = "float y",
    opset: int = 23,
    **weights: Array,
) -> Outcome:
    """Heads of queries, keys and values before they are repeated; sizes of keys and values."""
    axes = [(heads[0], sizes[0]), (heads[1], sizes[0]), (heads[2], sizes[1])]
    tensors = ", ".join(
        f"float[batch,{count},sequence,{size}] {name}" for name, (count, size) in zip("qkv", axes, strict=True)
    )
    held: dict[str, Array] = {"after_heads": np.array([2]), "before_heads": np.array([1]), "after_keys": np.array([3])}
    for name, (count, size) in zip("kv", axes[1:], strict=True):
        held[f"copies_{name}"] = np.array([1, 1, heads[0] // count, 1, 1])
        held[f"{name}m"] = np.array([0, heads[0], -1, size])
    text = f"g ({tensors}{more}) => ({outputs}) {{ {nodes} }}"
    used = {name: array for name, array in {**held, **weights}.items() if name in text}
    return run_passes(text, *(steps or ("fuse-grouped-heads",)), weights=used, opset=opset)


def test_lets_the_operator_share_heads() -> None:
    outcome = run(f"{repeated('k')} {repeated('v')} {ATTENTION}", "fuse-grouped-heads", "fuse-grouped-heads")
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.ops == ["Attention"]
    assert names_read(outcome.model.graph.node(0)) == ["q", "k", "v"]
    assert outcome.attributes("Attention") == {"scale": pytest.approx(0.3)}
    for batch, sequence in ((1, 1), (2, 70), (4, 3)):
        assert outcome.worst_error_at(batch, sequence) < 1e-5


SPELLINGS = {
    "a shape made of sizes": (
        "b = Shape<start=0, end=1>(k) h = Shape<start=1, end=2>(k) s = Shape<start=2, end=4>(k)"
        " ce = Concat<axis=0>(b, h, two, s) cm = Concat<axis=0>(b, four, s)"
        " ku = Unsqueeze(k, after_heads) ke = Expand(ku, ce) kr = Reshape(ke, cm)"
        " vu = Unsqueeze(v, after_heads) ve = Expand(vu, ce) vr = Reshape(ve, cm)"
    ),
    "axes counted from the end": f"{repeated('k', 'from_end')} {repeated('v', 'from_end')}",
}


@pytest.mark.parametrize("nodes", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_however_the_shapes_are_spelled(nodes: str) -> None:
    more: dict[str, Any] = {"two": np.array([2]), "four": np.array([4]), "from_end": np.array([-3])}
    outcome = run(f"{nodes} {ATTENTION}", "fuse-grouped-heads", "remove-unused", **more)
    assert outcome.ops == ["Attention"]
    assert outcome.worst_error_at(2, 33) < 1e-5


@given(
    groups=st.integers(1, 3),
    copies=st.integers(1, 4),
    sizes=st.tuples(st.sampled_from((4, 8)), st.sampled_from((4, 6, 8))),
    batch=st.integers(1, 3),
    sequence=st.integers(1, 20),
)
@settings(max_examples=12, deadline=None)
def test_any_number_of_groups(groups: int, copies: int, sizes: tuple[int, int], batch: int, sequence: int) -> None:
    outcome = run(heads=(groups * copies, groups, groups), sizes=sizes)
    assert outcome.rolled_back == []
    assert outcome.ops == ["Attention"]
    assert outcome.worst_error_at(batch, sequence) < 1e-5


@pytest.mark.parametrize("mask", ["float[batch,1,sequence,sequence] bias", "bool[batch,1,sequence,sequence] mask"])
def test_hands_the_mask_and_the_attributes_on(mask: str) -> None:
    attention = f"y = Attention<scale=0.3, is_causal=1, softcap=2.0>(q, kr, vr, {mask.split()[1]})"
    outcome = run(f"{repeated('k')} {repeated('v')} {attention}", more=f", {mask}")
    assert outcome.ops == ["Attention"]
    assert outcome.attributes("Attention") == {"scale": pytest.approx(0.3), "is_causal": 1, "softcap": 2.0}
    assert outcome.worst_error() < 1e-5


def test_heads_that_others_read_too_stay_for_them() -> None:
    """Two layers may attend to the same keys, and a repeated one may be looked at."""
    nodes = f"{repeated('k')} {repeated('v')} {ATTENTION} z = Neg(kr)"
    outcome = run(nodes, outputs="float y, float z")
    assert outcome.entry.applied == 1
    assert outcome.ops == ["Unsqueeze", "Expand", "Reshape", "Attention", "Neg"]
    assert names_read(outcome.model.graph.node(3)) == ["q", "k", "v"]
    assert outcome.worst_error() < 1e-5


TURNED = f"kt = Transpose<perm=[0,2,1,3]>(k) {repeated('kt').replace('_kt', '_k').replace('ktm', 'km')}"
HELD_BACK = {
    "copies of all heads one after the other": (
        f"{repeated('k', 'before_heads')} {repeated('v', 'before_heads')} {ATTENTION}",
        {"copies_k": np.array([1, 2, 1, 1, 1]), "copies_v": np.array([1, 2, 1, 1, 1])},
        "heads become ('batch', 2, 2, 'sequence', 8) and then ('batch', 4, 'sequence', 8)",
    ),
    "values one after the other": (
        f"{repeated('k')} {repeated('v', 'before_heads')} {ATTENTION}",
        {"copies_v": np.array([1, 2, 1, 1, 1])},
        "heads become ('batch', 2, 2, 'sequence', 8) and then ('batch', 4, 'sequence', 8)",
    ),
    "copies of keys and not of heads": (
        f"{repeated('k', 'after_keys')} {repeated('v', 'after_keys')} {ATTENTION}",
        {"copies_k": np.array([1, 1, 1, 2, 1]), "copies_v": np.array([1, 1, 1, 2, 1])},
        "heads become ('batch', 2, 'sequence', 2, 8) and then ('batch', 4, 'sequence', 8)",
    ),
    "the order of tokens and heads is another": (
        f"{TURNED} {repeated('v')} {ATTENTION.replace('kr', 'ktr')}",
        {},
        "heads become ('batch', 'sequence', 2, 2, 8) and then ('batch', 4, 'sequence', 8)",
    ),
}


@pytest.mark.parametrize(("nodes", "weights", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_where_heads_lie_otherwise(nodes: str, weights: dict[str, Any], reason: str) -> None:
    outcome = run(nodes, **weights)
    assert outcome.rolled_back == []
    assert outcome.reasons == [reason]
    assert outcome.worst_error() == 0


def test_holds_back_where_the_operator_shares_what_was_repeated() -> None:
    """Eight heads of queries for four of keys, which are two."""
    outcome = run(heads=(8, 2, 2), copies_k=np.array([1, 1, 2, 1, 1]), copies_v=np.array([1, 1, 2, 1, 1]),
                  km=np.array([0, 4, -1, 8]), vm=np.array([0, 4, -1, 8]))  # fmt: skip
    assert outcome.reasons == ["heads become ('batch', 2, 2, 'sequence', 8) and then ('batch', 4, 'sequence', 8)"]
    assert outcome.worst_error() == 0


def test_holds_back_where_keys_and_values_are_shared_differently() -> None:
    outcome = run(heads=(4, 2, 1))
    assert outcome.reasons == ["keys and values have different numbers of heads"]
    assert outcome.worst_error() == 0


def test_holds_back_where_the_attention_splits_tokens() -> None:
    nodes = (
        f"{repeated('k')} {repeated('v')} qt = Transpose<perm=[0,2,1,3]>(q) q3 = Reshape(qt, tokens)"
        " y = Attention<q_num_heads=4, kv_num_heads=4>(q3, kr, vr)"
    )
    outcome = run(nodes, tokens=np.array([0, 0, -1]), km=np.array([0, -1, 32]), vm=np.array([0, -1, 32]))
    assert outcome.reasons == ["the attention works on tokens"]
    assert outcome.worst_error() == 0


def test_holds_back_when_a_cache_is_written() -> None:
    nodes = f"{repeated('k')} {repeated('v')} y, pk, pv = Attention<scale=0.3>(q, kr, vr)"
    outcome = run(nodes, outputs="float y, float pk")
    assert outcome.reasons == ["another output of the node is used, which the new form does not have"]
    assert outcome.worst_error() == 0


def test_an_attention_that_reads_a_cache_is_another_pattern() -> None:
    nodes = f"{repeated('k')} {repeated('v')} y, nk, nv = Attention<scale=0.3>(q, kr, vr, , pk, pv)"
    outcome = run(
        nodes, more=", float[batch,4,rows,8] pk, float[batch,4,rows,8] pv", outputs="float y, float nk, float nv"
    )
    assert (outcome.entry.applied, outcome.reasons) == (0, [])


def test_keys_alone_that_are_repeated_are_another_pattern() -> None:
    outcome = run(f"{repeated('k')} y = Attention<scale=0.3>(q, kr, v)", heads=(4, 2, 4))
    assert (outcome.entry.applied, outcome.reasons) == (0, [])
