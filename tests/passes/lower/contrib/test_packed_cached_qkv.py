from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.cached import Decoder, Lowered, lower
from tests.support.rules import Outcome, run_passes

LOWERED = ("lower-cached-attention", "merge-transposes", "remove-no-ops", "merge-reshapes", "remove-no-ops")
PACKED = (*LOWERED, "remove-unused", "pack-cached-qkv", "pack-cached-qkv")


def run(decoder: Decoder) -> Lowered:
    return lower(decoder.model(), *PACKED)


@pytest.mark.parametrize("decoder", [Decoder(), replace(Decoder(), heads=(4, 4))], ids=["grouped", "a head each"])
def test_three_projections_become_one(decoder: Decoder) -> None:
    found = run(decoder)
    assert found.rolled_back == []
    assert found.applied[-2:] == [2, 0]
    for node in found.nodes("GroupQueryAttention"):
        assert (node.inputs[1], node.inputs[2]) == (None, None)
        packed = node.inputs[0]
        assert packed is not None
        assert packed.producer() is not None
    found.prove()


HEADS, GROUPS, SIZE = 4, 2, 8
WIDE, NARROW = HEADS * SIZE, GROUPS * SIZE
KERNEL = (
    "y, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
    "(q, k, v, past_k, past_v, lengths, total)"
)


def graph(text: str, *, more: str = "", outputs: str = "") -> str:
    return f"""
    g (float[batch,sequence,16] x, float[batch,2,sequence,8] past_k, float[batch,2,sequence,8] past_v{more})
    => (float[batch,one,32] y, float[batch,2,n,8] pk, float[batch,2,n,8] pv{outputs}) {{
      t = Slice(x, zero, first, axis)
      s = Shape<start=1, end=2>(x)
      all = Add(s, first)
      batch = Shape<start=0, end=1>(x)
      spread = Expand(s, batch)
      lengths = Cast<to=6>(spread)
      scalar = Squeeze(all)
      total = Cast<to=6>(scalar)
      {text}
      {KERNEL}
    }}"""


def weights(text: str, **given: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "wq": (16, WIDE),
        "wk": (16, NARROW),
        "wv": (16, NARROW),
        "wp": (16, WIDE + 2 * NARROW),
    }
    shapes |= {"bq": (WIDE,), "bk": (NARROW,), "bv": (NARROW,)}
    made = {name: generator.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    constants = {"zero": np.array([0]), "first": np.array([1]), "axis": np.array([1])}
    constants["widths"] = np.array([WIDE, NARROW, NARROW])
    return {name: array for name, array in {**made, **constants, **given}.items() if name in text}


def pack(text: str, *, more: str = "", outputs: str = "", **given: np.ndarray) -> Outcome:
    whole = graph(text, more=more, outputs=outputs)
    return run_passes(whole, "pack-cached-qkv", "pack-cached-qkv", weights=weights(whole, **given))


APART = "q = MatMul(t, wq) k = MatMul(t, wk) v = MatMul(t, wv)"
SPELLINGS = {
    "without bias": (APART, ["MatMul"]),
    "with biases": (
        "a = MatMul(t, wq) q = Add(a, bq) b = MatMul(t, wk) k = Add(b, bk) c = MatMul(t, wv) v = Add(bv, c)",
        ["MatMul", "Add"],
    ),
    "with one bias": ("a = MatMul(t, wq) q = Add(a, bq) k = MatMul(t, wk) v = MatMul(t, wv)", ["MatMul", "Add"]),
    "packed and split again": ("p = MatMul(t, wp) q, k, v = Split<axis=2>(p, widths)", ["MatMul"]),
}


@pytest.mark.parametrize(("text", "ops"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_packs_each_spelling(text: str, ops: list[str]) -> None:
    outcome = pack(text)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert [op for op in outcome.ops if op in ("MatMul", "Split")] == ["MatMul"]
    assert outcome.ops.count("Add") == ops.count("Add") + 1  # one is of the lengths
    assert outcome.worst_error_at(2, 3) < 1e-5


def test_a_projection_that_others_use_stays_apart() -> None:
    outcome = pack(f"{APART} z = Neg(k)", outputs=", float[batch,one,16] z")
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]


def test_a_weight_that_others_use_stays_apart() -> None:
    outcome = pack(f"{APART} z = Neg(wv)", outputs=", float[16,16] z")
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["the weight of v is shared"]


def test_projections_of_two_inputs_stay_apart() -> None:
    outcome = pack("q = MatMul(t, wq) u = Neg(t) k = MatMul(u, wk) v = MatMul(t, wv)")
    assert outcome.entry.applied == 0


def test_parts_in_another_order_stay_apart() -> None:
    outcome = pack("p = MatMul(t, wp) k, v, q = Split<axis=2>(p, turned)", turned=np.array([NARROW, NARROW, WIDE]))
    assert outcome.entry.applied == 0
    assert outcome.worst_error() == 0
