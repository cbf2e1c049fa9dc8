import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxopt.spec import Array
from tests.support.rules import SIZES, Outcome, names_read, run_passes

FREQUENCIES = {4: [1.0, 0.1], 8: [1.0, 0.3, 0.1, 0.03], 6: [1.0, 0.2, 0.04]}
POSITIONS = [
    np.arange(sequence)[None] + 3 * np.arange(batch)[:, None] for batch, sequence in SIZES
]  # every row from a start of its own

# p is float [batch or 1, 1, sequence, 1]: positions as the angles take them
COUNTED = "f = Cast<to=1>(positions) p = Unsqueeze(f, ones_and_three)"
RANGE = "n = Shape<start=2, end=3>(x) s = Squeeze(n) r = Range(zero, s, step) f = Cast<to=1>(r)"
COUNTED_IN_RANGE = f"{RANGE} p = Unsqueeze(f, all_but_sequence)"
HALVES = "a = Mul(p, frequencies) e = Concat<axis=-1>(a, a)"
PAIRS = "a = Mul(p, frequencies) u = Unsqueeze(a, last) d = Concat<axis=-1>(u, u) e = Reshape(d, flat)"
ANGLES = "e = Mul(p, frequencies)"
TABLES = "cos = Cos(e) sin = Sin(e)"
STORED = (
    "c = Gather(cos_table, positions) cos = Unsqueeze(c, one) s = Gather(sin_table, positions) sin = Unsqueeze(s, one)"
)

SLICES = "low = Slice(t, nothing, middle, last_of_four) high = Slice(t, middle, end, last_of_four)"
SPLIT = "low, high = Split<axis=-1, num_outputs=2>(t)"
EVEN_AND_ODD = "low = Slice(t, nothing, end, last_of_four, two) high = Slice(t, one, end, last_of_four, two)"
TURN = "neg = Neg(high) turned = Concat<axis=-1>(neg, low)"
TURN_PAIRS = (
    "neg = Neg(high) nu = Unsqueeze(neg, last) lu = Unsqueeze(low, last)"
    " stack = Concat<axis=-1>(nu, lu) turned = Reshape(stack, shape_of_heads)"
)
ADD = "m = Mul(t, cos) n2 = Mul(turned, sin) z = Add(m, n2)"
APART = (
    "fc = Mul(low, cos) ss = Mul(high, sin) left = Sub(fc, ss)"
    " sc = Mul(high, cos) fs = Mul(low, sin) right = Add(sc, fs) z = Concat<axis=-1>(left, right)"
)
WHOLE = "t = Identity(h)"
PART_BY_SLICE = "t = Slice(h, nothing, cut, last_of_four) rest = Slice(h, cut, end, last_of_four)"
PART_BY_SPLIT = "t, rest = Split<axis=3>(h, parts)"
JOIN = "y0 = Concat<axis=3>(z, rest)"
ALL = "y0 = Identity(z)"

LLAMA = (WHOLE, SLICES, TURN, ADD, ALL)
LLAMA_TABLES = f"{COUNTED} {HALVES} {TABLES}"
GPTJ = (WHOLE, EVEN_AND_ODD, TURN_PAIRS, ADD, ALL)
GPTJ_TABLES = f"{COUNTED} {PAIRS} {TABLES}"
GPT_OSS = (WHOLE, SPLIT, APART, ALL)
GPT_OSS_TABLES = f"{COUNTED} {ANGLES} {TABLES}"


def constants(size: int, rotated: int) -> dict[str, Array]:
    angles = np.arange(160)[:, None] * np.array(FREQUENCIES[rotated])
    return {
        "zero": np.array(0),
        "zero_and_two": np.array([0, 2]),
        "step": np.array(1),
        "nothing": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "end": np.array([2**62]),
        "last": np.array([-1]),
        "last_of_four": np.array([3]),
        "third": np.array([2]),
        "fourth": np.array([3]),
        "ones_and_three": np.array([1, 3]),
        "two_and_three": np.array([2, 3]),
        "all_but_sequence": np.array([0, 1, 3]),
        "middle": np.array([rotated // 2]),
        "cut": np.array([rotated]),
        "parts": np.array([rotated, size - rotated]),
        "flat": np.array([0, 0, 0, -1]),
        "shape_of_heads": np.array([0, 0, 0, -1]),
        "frequencies": np.array(FREQUENCIES[rotated], np.float32),
        "cos_table": np.cos(np.concatenate([angles, angles], axis=1)).astype(np.float32),
        "sin_table": np.sin(np.concatenate([angles, angles], axis=1)).astype(np.float32),
    }


def run(
    parts: tuple[str, ...],
    tables: str = LLAMA_TABLES,
    *,
    size: int = 8,
    rotated: int | None = None,
    steps: tuple[str, ...] = ("remove-no-ops", "fuse-rotary", "fuse-rotary", "remove-unused"),
    opset: int = 23,
    kind: str = "float",
    batch: str = "batch",
    heads: str = "2",
    more: str = "",
    **weights: Array,
) -> Outcome:
    rows = "1" if batch == "1" else batch
    inputs = f"{kind}[{batch},{heads},sequence,{size}] x"
    if "positions" in tables:
        inputs += f", int64[{rows},sequence] positions"
    text = f"g ({inputs}{more}) => ({kind} y) {{ h = Neg(x) {tables} {' '.join(parts)} y = Neg(y0) }}"
    held = {**constants(size, rotated or size), **weights}
    used = {name: array for name, array in held.items() if name in text}
    places = [rows % len(held["cos_short"]) for rows in POSITIONS] if "cos_short" in tables else POSITIONS
    feeds = {"positions": places} if "positions" in tables and batch == "batch" else None
    return run_passes(text, *steps, weights=used, feeds=feeds, opset=opset)


def error_at(outcome: Outcome, batch: int, sequence: int, start: int = 0) -> float:
    places = start + np.arange(sequence)[None] + np.arange(batch)[:, None]
    given = {"positions": places} if any(value.name == "positions" for value in outcome.model.graph.inputs) else {}
    return outcome.worst_error_at(batch, sequence, **given)


SPELLINGS: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "Llama: halves by Slice": (LLAMA, LLAMA_TABLES, False),
    "halves by Split": ((WHOLE, SPLIT, TURN, ADD, ALL), LLAMA_TABLES, False),
    "operands of Mul and Add the other way": (
        (WHOLE, SLICES, TURN, "m = Mul(cos, t) n2 = Mul(sin, turned) z = Add(n2, m)", ALL),
        LLAMA_TABLES,
        False,
    ),
    "stored tables behind Gather": (LLAMA, STORED, False),
    "positions counted from 0, one row for all": (LLAMA, f"{COUNTED_IN_RANGE} {HALVES} {TABLES}", False),
    "tables of two axes": (LLAMA, f"{RANGE} p = Unsqueeze(f, one) {HALVES} {TABLES}", False),
    "tables of three axes": (LLAMA, f"{RANGE} p = Unsqueeze(f, zero_and_two) {HALVES} {TABLES}", False),
    "GPT-J: pairs": (GPTJ, GPTJ_TABLES, True),
    "pairs, one row for all": (GPTJ, f"{COUNTED_IN_RANGE} {PAIRS} {TABLES}", True),
    "gpt-oss: halves apart by Split": (GPT_OSS, GPT_OSS_TABLES, False),
    "gpt-oss: halves apart by Slice": ((WHOLE, SLICES, APART, ALL), GPT_OSS_TABLES, False),
    "gpt-oss: one row for all": (GPT_OSS, f"{COUNTED_IN_RANGE} {ANGLES} {TABLES}", False),
}


@pytest.mark.parametrize(("parts", "tables", "interleaved"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_turns_a_whole_head_however_it_is_spelled(parts: tuple[str, ...], tables: str, *, interleaved: bool) -> None:
    outcome = run(parts, tables)
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries[1:3]] == [1, 0]
    assert outcome.ops.count("RotaryEmbedding") == 1
    assert not {"Add", "Sub", "Split"} & set(outcome.ops)
    assert outcome.attributes("RotaryEmbedding")["interleaved"] == int(interleaved)
    assert "rotary_embedding_dim" not in outcome.attributes("RotaryEmbedding")
    assert outcome.worst_error() < 1e-5
    for batch, sequence in ((1, 1), (4, 3), (2, 60)):
        assert error_at(outcome, batch, sequence) < 1e-5


PARTIAL = {
    "Llama by Slice": ((PART_BY_SLICE, SLICES, TURN, ADD, JOIN), LLAMA_TABLES, 0),
    "Llama by Split": ((PART_BY_SPLIT, SPLIT, TURN, ADD, JOIN), LLAMA_TABLES, 0),
    "part by Slice, halves by Split": ((PART_BY_SLICE, SPLIT, TURN, ADD, JOIN), LLAMA_TABLES, 0),
    "GPT-J by Slice": ((PART_BY_SLICE, EVEN_AND_ODD, TURN_PAIRS, ADD, JOIN), GPTJ_TABLES, 1),
    "GPT-J by Split": ((PART_BY_SPLIT, EVEN_AND_ODD, TURN_PAIRS, ADD, JOIN), GPTJ_TABLES, 1),
    "gpt-oss by Slice": ((PART_BY_SLICE, SLICES, APART, JOIN), GPT_OSS_TABLES, 0),
    "gpt-oss by Split": ((PART_BY_SPLIT, SPLIT, APART, JOIN), GPT_OSS_TABLES, 0),
}


@pytest.mark.parametrize(("parts", "tables", "interleaved"), PARTIAL.values(), ids=PARTIAL.keys())
def test_turns_the_first_part_of_a_head(parts: tuple[str, ...], tables: str, interleaved: int) -> None:
    outcome = run(parts, tables, size=10, rotated=4)
    assert outcome.rolled_back == []
    assert [entry.applied for entry in outcome.entries[1:3]] == [2, 0]
    found = outcome.attributes("RotaryEmbedding")
    assert (found["rotary_embedding_dim"], found["interleaved"]) == (4, interleaved)
    assert not {"Add", "Sub", "Split", "Concat"} & set(outcome.ops[outcome.ops.index("Sin") :])
    assert outcome.worst_error() < 1e-5
    for batch, sequence in ((1, 1), (4, 3), (2, 60)):
        assert error_at(outcome, batch, sequence, start=9) < 1e-5


@given(
    spelling=st.sampled_from(sorted(SPELLINGS)),
    rotated=st.sampled_from(sorted(FREQUENCIES)),
    batch=st.integers(1, 4),
    sequence=st.integers(1, 40),
    start=st.integers(0, 100),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_equals_the_original_at_any_size(spelling: str, rotated: int, batch: int, sequence: int, start: int) -> None:
    parts, tables, _ = SPELLINGS[spelling]
    outcome = run(parts, tables, size=rotated)
    assert outcome.entries[1].applied == 1
    assert error_at(outcome, batch, sequence, start) < 1e-5


def test_queries_and_keys_share_their_tables() -> None:
    again = (
        "lk = Slice(k, nothing, middle, last_of_four) hk = Slice(k, middle, end, last_of_four) nk = Neg(hk)"
        " tk = Concat<axis=-1>(nk, lk) mk = Mul(k, cos) ok = Mul(tk, sin) zk = Add(mk, ok)"
        " both = Concat<axis=1>(z, zk) y0 = Identity(both)"
    )
    for tables in (LLAMA_TABLES, f"{COUNTED_IN_RANGE} {HALVES} {TABLES}"):
        outcome = run(
            (*LLAMA[:-1], again),
            tables,
            more=", float[batch,2,sequence,8] k, int64[batch,sequence] input_ids",
            steps=("remove-no-ops", "fuse-rotary", "merge-initializers", "merge-equal-nodes", "remove-unused"),
        )
        assert outcome.entries[1].applied == 2
        turns = [node for node in outcome.model.graph if node.op_type == "RotaryEmbedding"]
        assert len({node.inputs[1] for node in turns}) == len({node.inputs[2] for node in turns}) == 1
        assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("batch", ["1", "3"])
def test_a_batch_of_a_known_size(batch: str) -> None:
    outcome = run(LLAMA, f"{COUNTED_IN_RANGE} {HALVES} {TABLES}", batch=batch)
    assert outcome.rolled_back == []
    assert outcome.ops.count("RotaryEmbedding") == 1
    assert ("Expand" in outcome.ops) == (batch == "3")
    assert outcome.ops.count("Shape") == 1  # that of the range
    assert outcome.worst_error() < 1e-5


def test_swapped_tables_are_another_rotation_of_the_same_form() -> None:
    """x · sin + rotate(x) · cos needs no more than the tables in that order."""
    swapped = (WHOLE, SLICES, TURN, "m = Mul(t, sin) n2 = Mul(turned, cos) z = Add(m, n2)", ALL)
    outcome = run(swapped)
    assert outcome.rolled_back == []
    node = next(node for node in outcome.model.graph if node.op_type == "RotaryEmbedding")
    made_by = {value.name: one for one in outcome.model.graph for value in one.outputs}
    ahead = [names_read(made_by[names_read(made_by[table])[0]])[0] for table in names_read(node)[1:]]  # Squeeze, Slice
    assert ahead == ["sin", "cos"]
    assert error_at(outcome, 2, 9) < 1e-5


OTHERS = {
    "the sign is on the other half": (
        (WHOLE, SLICES, "neg = Neg(low) turned = Concat<axis=-1>(high, neg)", ADD, ALL),
        LLAMA_TABLES,
    ),
    "no sign": ((WHOLE, SLICES, "turned = Concat<axis=-1>(high, low)", ADD, ALL), LLAMA_TABLES),
    "subtracted": (
        (WHOLE, SLICES, TURN, "m = Mul(t, cos) n2 = Mul(turned, sin) z = Sub(m, n2)", ALL),
        LLAMA_TABLES,
    ),
    "apart, both added": ((WHOLE, SPLIT, APART.replace("Sub", "Add"), ALL), GPT_OSS_TABLES),
    "apart, subtracted the other way": (
        (WHOLE, SPLIT, APART.replace("Sub(fc, ss)", "Sub(ss, fc)"), ALL),
        GPT_OSS_TABLES,
    ),
    "apart, tables swapped in one half": (
        (
            WHOLE,
            SPLIT,
            APART.replace("Mul(high, cos)", "Mul(high, sin)").replace("Mul(low, sin)", "Mul(low, cos)"),
            ALL,
        ),
        GPT_OSS_TABLES,
    ),
    "apart, joined the other way": (
        (WHOLE, SPLIT, APART.replace("(left, right)", "(right, left)"), ALL),
        GPT_OSS_TABLES,
    ),
    "apart, the Split the other way": (
        (WHOLE, "high, low = Split<axis=-1, num_outputs=2>(t)", APART, ALL),
        GPT_OSS_TABLES,
    ),
    "joined along the tokens": (
        (WHOLE, SPLIT, APART.replace("axis=-1>(left", "axis=2>(left"), ALL),
        GPT_OSS_TABLES,
    ),
}


@pytest.mark.parametrize(("parts", "tables"), OTHERS.values(), ids=OTHERS.keys())
def test_another_formula_is_no_rotation(parts: tuple[str, ...], tables: str) -> None:
    outcome = run(parts, tables)
    assert "RotaryEmbedding" not in outcome.ops
    assert outcome.rolled_back == []
    assert outcome.worst_error() == 0


HALVED, PAIRED = "the parts are not the halves", "the parts are not the pairs"
UNEQUAL = "the tables do not hold every angle twice (batch "
HELD_BACK: dict[str, tuple[tuple[str, ...], str, str]] = {
    "halves in the wrong order": (
        (WHOLE, SLICES.replace("low =", "was =").replace("high =", "low =").replace("was =", "high ="), TURN, ADD, ALL),
        LLAMA_TABLES,
        HALVED,
    ),
    "halves apart in the wrong order": (
        (WHOLE, SLICES.replace("low =", "was =").replace("high =", "low =").replace("was =", "high ="), APART, ALL),
        GPT_OSS_TABLES,
        HALVED,
    ),
    "a third part of no width": (
        (WHOLE, "low, high, none = Split<axis=-1>(t, and_nothing)", TURN, ADD, ALL),
        LLAMA_TABLES,
        HALVED,
    ),
    "halves of even and odd entries": ((WHOLE, EVEN_AND_ODD, TURN, ADD, ALL), LLAMA_TABLES, HALVED),
    "pairs of halves": ((WHOLE, SLICES, TURN_PAIRS, ADD, ALL), GPTJ_TABLES, PAIRED),
    "halves of unequal width": (
        (WHOLE, "low, high = Split<axis=-1>(t, unequal)", TURN, ADD, ALL),
        LLAMA_TABLES,
        HALVED,
    ),
    "pairs that do not stay together": (
        (
            WHOLE,
            EVEN_AND_ODD,
            TURN_PAIRS.replace("Unsqueeze(neg, last)", "Unsqueeze(neg, fourth)").replace(
                "Unsqueeze(low, last)", "Unsqueeze(low, fourth)"
            ),
            ADD,
            ALL,
        ),
        GPTJ_TABLES,
        "the pairs do not stay together",
    ),
    "tables of halves for pairs": (GPTJ, LLAMA_TABLES, UNEQUAL),
    "tables of pairs for halves": (LLAMA, GPTJ_TABLES, UNEQUAL),
    "halves of a table that differ": (
        LLAMA,
        f"{COUNTED} a = Mul(p, frequencies) b = Neg(a) e = Concat<axis=-1>(a, b) {TABLES}",
        UNEQUAL,
    ),
    "halves of a stored table that differ": (LLAMA, STORED.replace("cos_table", "other_table"), UNEQUAL),
    "only the sines differ": (LLAMA, STORED.replace("sin_table", "other_table"), UNEQUAL),
    "tables that are inputs": (
        LLAMA,
        "cos = Identity(c) sin = Identity(s)",
        "the tables do not hold every angle twice",
    ),
    "tables with a row per head": (
        LLAMA,
        f"{COUNTED} v = Mul(p, frequencies) a = Expand(v, head_rows) e = Concat<axis=-1>(a, a) {TABLES}",
        "a table is ('batch', 2, 'sequence', 8)",
    ),
    "tables of unequal width": (
        LLAMA,
        f"{COUNTED} {HALVES} cos = Cos(e) sin = Cast<to=1>(p)",
        "the tables differ in width",
    ),
    "tables of one column": (LLAMA, f"{COUNTED} cos = Cos(p) sin = Sin(p)", "tables for 1 of 8 entries of a head"),
    "tables that cannot be run alone": (LLAMA, f"{STORED}".replace("_table", "_short"), "the tables cannot be probed"),
}


@pytest.mark.parametrize(("parts", "tables", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_a_reason(parts: tuple[str, ...], tables: str, reason: str) -> None:
    table = constants(8, 8)["cos_table"]
    other = table.copy()
    other[20:, 5] += 0.5
    outcome = run(
        parts,
        tables,
        steps=("remove-no-ops", "fuse-rotary"),
        more=", float[batch,1,sequence,8] c, float[batch,1,sequence,8] s" if "Identity(c)" in tables else "",
        other_table=other,
        unequal=np.array([3, 5]),
        and_nothing=np.array([4, 4, 0]),
        head_rows=np.array([1, 2, 1, 1]),
        cos_short=table[:30],
        sin_short=table[:30],
    )
    assert outcome.rolled_back == []
    assert len(outcome.reasons) == 1, outcome.reasons
    assert outcome.reasons[0].startswith(reason)
    assert outcome.worst_error() == 0


REST = "the rest of a head is not what the tables leave"
OTHER_RESTS = {
    "overlaps": PART_BY_SLICE.replace("rest = Slice(h, cut", "rest = Slice(h, two"),
    "leaves something out": PART_BY_SLICE.replace("rest = Slice(h, cut, end", "rest = Slice(h, cut, five"),
    "has holes": PART_BY_SLICE.replace("cut, end, last_of_four", "cut, end, last_of_four, two"),
    "is the first of three": "t, rest, none = Split<axis=3>(h, three_parts)",
    "follows the second part": "skipped = Identity(h) t = Slice(h, one, five, last_of_four)"
    " rest = Slice(h, five, end, last_of_four)",
}


@pytest.mark.parametrize("parts", OTHER_RESTS.values(), ids=OTHER_RESTS.keys())
def test_a_part_is_turned_alone_when_the_rest_is_another(parts: str) -> None:
    outcome = run(
        (parts, SLICES, TURN, ADD, JOIN),
        size=10,
        rotated=4,
        steps=("remove-no-ops", "fuse-rotary"),
        three_parts=np.array([4, 3, 3]),
        five=np.array([5]),
    )
    assert outcome.rolled_back == []
    assert outcome.entry.applied == 1
    assert outcome.reasons == [REST]
    assert "rotary_embedding_dim" not in outcome.attributes("RotaryEmbedding")
    assert error_at(outcome, 2, 9) < 1e-5


def test_a_rest_of_other_heads_is_no_rest_of_a_head() -> None:
    parts = "t, rest = Split<axis=1, num_outputs=2>(h)"
    outcome = run((parts, SLICES, TURN, ADD, JOIN), steps=("fuse-rotary",))
    assert outcome.rolled_back == []
    assert outcome.reasons == [REST]
    assert outcome.worst_error() < 1e-5


def test_holds_back_where_heads_have_no_axis_of_their_own() -> None:
    outcome = run(("t = Squeeze(h, one)", *LLAMA[1:]), heads="1", steps=("fuse-rotary",), last_of_four=np.array([-1]))
    assert outcome.reasons == ["x is not [batch, heads, sequence, size]"]


def test_holds_back_on_integers() -> None:
    tables = LLAMA_TABLES.replace("cos = Cos(e) sin = Sin(e)", "c = Cos(e) cos = Cast<to=6>(c) sin = Cast<to=6>(e)")
    outcome = run(LLAMA, tables, kind="int32", steps=("remove-no-ops", "fuse-rotary"))
    assert outcome.reasons == ["x is not a float tensor"]


def test_holds_back_where_very_many_nodes_compute_the_tables() -> None:
    chain = " ".join(f"f{index + 1} = Neg(f{index})" for index in range(202))
    tables = f"f0 = Cast<to=1>(positions) {chain} p = Unsqueeze(f202, ones_and_three) {HALVES} {TABLES}"
    outcome = run(LLAMA, tables, steps=("remove-no-ops", "fuse-rotary"))
    assert outcome.reasons == ["more than 200 nodes compute the tables"]


def test_holds_back_when_an_inner_value_leaves() -> None:
    outcome = run((*LLAMA[:-1], "also = Relu(turned) y0 = Add(z, also)"), steps=("remove-no-ops", "fuse-rotary"))
    assert "an inner value is also used elsewhere or is a graph output" in outcome.reasons
    assert outcome.entry.applied == 0


def test_holds_back_below_opset_23() -> None:
    outcome = run(LLAMA, opset=22, steps=("remove-no-ops", "fuse-rotary"))
    assert outcome.reasons == ["opset 22, needs 23"]


TOKENS_FIRST = "h2 = Transpose<perm=[0, 2, 1, 3]>(h) t = Identity(h2)"
TOKENS_FIRST_PART = "h2 = Transpose<perm=[0, 2, 1, 3]>(h) t = Slice(h2, nothing, cut, last_of_four)"
TURNED_BACK = "y0 = Transpose<perm=[0, 2, 1, 3]>(z)"
JOINED_BACK = (
    "rest = Slice(h2, cut, end, last_of_four) y1 = Concat<axis=3>(z, rest) y0 = Transpose<perm=[0, 2, 1, 3]>(y1)"
)
BEHIND_TOKENS = GPTJ_TABLES.replace("ones_and_three", "two_and_three")


@pytest.mark.parametrize("rotated", [8, 4])
def test_heads_behind_the_tokens_are_turned_there(rotated: int) -> None:
    """GPT-J turns [batch, sequence, heads, size] and transposes later."""
    parts = (
        (TOKENS_FIRST, EVEN_AND_ODD, TURN_PAIRS, ADD, TURNED_BACK)
        if rotated == 8
        else (TOKENS_FIRST_PART, EVEN_AND_ODD, TURN_PAIRS, ADD, JOINED_BACK)
    )
    assert BEHIND_TOKENS != GPTJ_TABLES
    outcome = run(parts, BEHIND_TOKENS, rotated=rotated)
    assert outcome.rolled_back == []
    assert outcome.ops.count("RotaryEmbedding") == 1
    assert outcome.attributes("RotaryEmbedding")["interleaved"] == 1
    assert outcome.attributes("RotaryEmbedding").get("rotary_embedding_dim", 8) == rotated
    assert outcome.ops.count("Concat") == 1  # that of the table
    assert error_at(outcome, 2, 5, start=9) < 2e-6
