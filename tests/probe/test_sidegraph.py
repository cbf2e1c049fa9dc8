"""Masks, positions and tables are known by what they compute, at every length where they could be something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.graph import known_dims
from onnxopt.graph.cache import CONTEXT_KEY, complete
from onnxopt.load.onnx_file import load_onnx
from onnxopt.probe.program import ProbeError
from onnxopt.probe.sidegraph import (
    FREE_KEY,
    LONGEST_PROBE,
    MaskMeaning,
    MaskOrigin,
    SideGraph,
    is_contract,
    long_probe,
    meaning_of_mask,
    origin_of_mask,
    probes,
    telling_lengths,
    telling_size,
)
from onnxopt.proof.observations import observations_of
from onnxopt.proof.prepare import prepare
from onnxopt.spec import Array
from tests.support.rules import Constant, parse

CONSTANTS: dict[str, Array] = {
    "zero": np.array(0),
    "step": np.array(1),
    "one": np.array([1]),
    "first": np.array([0]),
    "second": np.array([1]),
    "last": np.array([-1]),
    "middle": np.array([1, 2]),
    "minus_one": np.array(-1),
    "chunk": np.array(8),
    "window": np.array(5),
    "nought": np.array(0, np.float32),
    "unit": np.array(1, np.float32),
    "lowest": np.array(np.finfo(np.float32).min),
    "minus_inf": np.array(-np.inf, np.float32),
    "some": np.array(-1, np.float32),
}
CACHED = (
    "new = Shape<start=1, end=2>(input_ids) total = Shape<start=1, end=2>(attention_mask) past = Sub(total, new)"
    " to = Squeeze(total) since = Squeeze(past)"
)
UNCACHED = "total = Shape<start=1, end=2>(attention_mask) to = Squeeze(total) since = Identity(zero)"
PLACES = "keys = Range(zero, to, step) seen = Range(since, to, step) queries = Unsqueeze(seen, last)"
REAL = "kept = Cast<to=9>(attention_mask) real = Unsqueeze(kept, middle)"
CAUSAL = "past_keys = LessOrEqual(keys, queries)"
NEAR = "from = Sub(queries, window) near = Greater(keys, from)"
BOTH = f"{CAUSAL} {NEAR} inside = And(past_keys, near) y = And(real, inside)"


def model(nodes: str, *, past: bool = True, more: str = "", **weights: Array) -> tuple[ir.Model, ir.Value]:
    """Return a graph whose output y is made of a padding mask, and y."""
    inputs = "int64[batch,sequence] input_ids, int64[batch,total_sequence] attention_mask"
    text = f"g ({inputs if past else 'int64[batch,sequence] attention_mask'}{more}) => (y) {{ {nodes} }}"
    held = {**CONSTANTS, **weights}
    made = parse(text, {name: array for name, array in held.items() if name in text})
    return made, made.graph.outputs[0]


def meaning(mask: str, *, past: bool = True, more: str = "", **weights: Array) -> MaskMeaning | str:
    return meaning_of_mask(
        *model(f"{CACHED if past else UNCACHED} {PLACES} {REAL} {mask}", past=past, more=more, **weights)
    )


MEANT: dict[str, tuple[str, bool, int]] = {
    "padding alone": ("y = Identity(real)", False, 0),
    "causal": (f"{CAUSAL} y = And(real, past_keys)", True, 0),
    "causal, additive": (f"{CAUSAL} both = And(real, past_keys) y = Where(both, nought, lowest)", True, 0),
    "causal, -inf": (f"{CAUSAL} both = And(real, past_keys) y = Where(both, nought, minus_inf)", True, 0),
    "causal and padding added up": (
        f"{CAUSAL} a = Where(past_keys, nought, lowest) b = Where(real, nought, minus_inf) y = Add(a, b)",
        True,
        0,
    ),
    "a window": (BOTH, True, 5),
    "a window, additive": (BOTH.replace("y = And", "both = And") + " y = Where(both, nought, lowest)", True, 5),
    "a window of one": (BOTH.replace("window", "step"), True, 1),
}


@pytest.mark.parametrize("past", [True, False], ids=["with a cache", "without"])
@pytest.mark.parametrize(("mask", "causal", "window"), MEANT.values(), ids=MEANT.keys())
def test_a_mask_is_known_by_what_it_allows(mask: str, causal: bool, window: int, *, past: bool) -> None:  # noqa: FBT001
    found = meaning(mask, past=past)
    assert isinstance(found, MaskMeaning), found
    assert (found.source.name, found.causal, found.window) == ("attention_mask", causal, window)


@pytest.mark.parametrize("past", [True, False], ids=["with a cache", "without"])
@pytest.mark.parametrize("window", [37, 50, 64, 300, 1024])
def test_a_window_larger_than_the_probes_is_found_through_its_constant(window: int, *, past: bool) -> None:
    """At 48 tokens all of these look alike."""
    found = meaning(BOTH, past=past, window=np.array(window))
    assert isinstance(found, MaskMeaning), found
    assert (found.causal, found.window) == (True, window)


def test_what_only_a_long_past_shows_is_seen_behind_one() -> None:
    """The first key is forgotten behind 63 others; without a past no length would tell."""
    forgets = "later = Add(since, step) short = Less(later, far) other = Greater(keys, zero) left = Or(short, other)"
    found = meaning(f"{CAUSAL} {forgets} seen_keys = And(past_keys, left) y = And(real, seen_keys)", far=np.array(64))
    assert found == "not a causal mask: it allows other keys (batch 1, sequence 3, past 63, no padding)"


def test_a_window_too_large_to_probe_is_unknown() -> None:
    found = meaning(BOTH, window=np.array(LONGEST_PROBE))
    assert found == f"the mask compares with a number or a table that asks for a probe of {LONGEST_PROBE + 2} keys"


def test_a_window_that_no_text_of_the_model_reaches_is_none() -> None:
    graph, mask = model(f"{CACHED} {PLACES} {REAL} {BOTH}", window=np.array(4096))
    graph.graph.metadata_props[CONTEXT_KEY] = "2048"
    found = meaning_of_mask(graph, mask)
    assert isinstance(found, MaskMeaning)
    assert (found.causal, found.window) == (True, 0)


@given(window=st.integers(1, 200), past=st.booleans())
@settings(max_examples=10, deadline=None)
def test_any_window(window: int, *, past: bool) -> None:
    found = meaning(BOTH, past=past, window=np.array(window))
    assert isinstance(found, MaskMeaning), found
    assert found.window == window


KEYS = "not a causal mask: it allows other keys ("
OTHER = "not a padding mask: it allows other keys ("
FAR_BIAS = "y = Where(both, f, lowest)"
UNKNOWN: dict[str, tuple[str, str]] = {
    "chunks": (
        (
            f"{CAUSAL} kc = Div(keys, chunk) qc = Div(queries, chunk) same = Equal(kc, qc) in = And(past_keys, same)"
            " y = And(real, in)"
        ),
        KEYS,
    ),
    "a prefix that all see": (
        f"{CAUSAL} early = Less(keys, window) in = Or(past_keys, early) y = And(real, in)",
        OTHER,
    ),
    "the future alone": ("later = GreaterOrEqual(keys, queries) y = And(real, later)", OTHER),
    "strictly the past": ("before = Less(keys, queries) y = And(real, before)", OTHER),
    "one further key": ("ahead = Add(queries, step) in = LessOrEqual(keys, ahead) y = And(real, in)", OTHER),
    "a window around": (
        (
            "from = Sub(queries, window) a = Greater(keys, from) up = Add(queries, window) b = Less(keys, up)"
            " in = And(a, b) y = And(real, in)"
        ),
        OTHER,
    ),
    "counted from the first new token": (
        (
            "n = Squeeze(new) rows = Range(zero, n, step) r = Unsqueeze(rows, last) in = LessOrEqual(keys, r)"
            " y = And(real, in)"
        ),
        KEYS,
    ),
    "padding inverted": ("y = Not(real)", "not a "),
    "padding left out": (
        f"{CAUSAL} any = Not(real) all = Or(any, real) y = And(all, past_keys)",
        KEYS,
    ),
    "padding of another row": (
        f"{CAUSAL} swapped = Slice(real, last, back, first, last) y = And(swapped, past_keys)",
        KEYS,
    ),
    "a shift that differs from row to row": (
        (
            "sums = CumSum(attention_mask, step) counted = Unsqueeze(sums, middle) place = Unsqueeze(seen, last)"
            " in = LessOrEqual(counted, place) y = And(real, in)"
        ),
        "not a ",
    ),
    "masked keys keep a weight": (
        f"{CAUSAL} a = Where(past_keys, nought, lowest) b = Where(real, nought, some) y = Add(a, b)",
        "not a causal mask: masked keys keep a weight (",
    ),
    "all masked keys keep a weight": (
        f"{CAUSAL} in = And(real, past_keys) y = Where(in, nought, some)",
        "not a padding mask: it adds something to allowed keys (",
    ),
    "something is added to allowed keys": (
        f"{CAUSAL} in = And(real, past_keys) y = Where(in, unit, lowest)",
        "not a causal mask: it adds something to allowed keys (",
    ),
    "a bias that grows with the square of the distance": (
        f"{CAUSAL} both = And(real, past_keys) d = Sub(keys, queries) e = Mul(d, d) f = Cast<to=1>(e) {FAR_BIAS}",
        "not a causal mask: what it adds to allowed keys does not grow evenly with their place (",
    ),
    "too many axes": (
        f"{CAUSAL} in = And(real, past_keys) y = Unsqueeze(in, first)",
        "the shape of the mask is [1, 1, 1, 50, 50] for 50 tokens",
    ),
    "no causality behind a past": (
        (
            "p = Squeeze(past) zeros = Sub(queries, queries) far = Add(zeros, p) shown = Max(far, queries)"
            " wide = Mul(shown, shown) in = LessOrEqual(keys, wide) y = And(real, in)"
        ),
        KEYS,
    ),
}


@pytest.mark.parametrize(("mask", "reason"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_another_mask_is_refused_with_a_reason(mask: str, reason: str) -> None:
    found = meaning(mask, back=np.array([-(2**62)]))
    assert isinstance(found, str)
    assert found.startswith(reason)


def test_what_a_mask_hangs_on_is_named() -> None:
    nothing = meaning(f"{CAUSAL} y = Unsqueeze(past_keys, first)")
    assert nothing == "the mask depends on no input"
    other = "other = Cast<to=9>(second_mask) u = Unsqueeze(other, middle) y = And(real, u)"
    two = meaning(other, more=", int64[batch,total_sequence] second_mask")
    assert two == "the mask depends on attention_mask, second_mask"
    square = "n = Cast<to=9>(square) y = Unsqueeze(n, one)"
    assert meaning(square, more=", int64[batch,sequence,total_sequence] square") == "square is not [batch, keys]"
    fixed = "n = Cast<to=9>(fixed) y = Unsqueeze(n, middle)"
    assert meaning(fixed, more=", int64[batch,8] fixed") == "fixed is not [batch, keys]"


@pytest.mark.parametrize(
    ("inner", "is_mask"),
    [
        ("m = Cast<to=9>(states) y = Unsqueeze(m, middle)", True),
        ("r = Relu(states) m = Cast<to=9>(r) y = Unsqueeze(m, middle)", False),  # -1 is hidden
        ("i = Cast<to=7>(states) m = Cast<to=9>(i) y = Unsqueeze(m, middle)", False),  # a half is
        ("m = Greater(states, half) y = Unsqueeze(m, middle)", False),
    ],
)
def test_a_mask_of_floats_is_one_where_that_is_so_for_all_floats(inner: str, *, is_mask: bool) -> None:
    half: dict[str, Any] = {"half": np.array(0.5, np.float32)} if "half" in inner else {}
    graph, mask = model(f"{CACHED} {inner}", more=", float[batch,total_sequence] states", **half)
    assert isinstance(meaning_of_mask(graph, mask), MaskMeaning) == is_mask


@pytest.mark.parametrize(
    ("kind", "free"),
    [
        ("int64[batch,sequence]", False),
        ("bool[batch,keys]", False),
        ("bool[keys]", True),
        ("bool[sequence,sequence]", True),
        ("bool[batch,1,sequence,sequence]", True),
        ("int64[batch,1,sequence]", True),
        ("float[batch,keys]", True),
    ],
)
def test_what_may_hold_anything_is_told_from_a_padding_mask(kind: str, *, free: bool) -> None:
    graph = parse(
        f"g (float[batch,4] x, {kind} m) => (float y) {{ f = Cast<to=1>(m) i = Sub(one, f) y = Mul(i, far) }}",
        {"one": np.float32(1), "far": np.float32(-1e9)},
    )
    origin = origin_of_mask(graph.graph.outputs[0])
    assert (origin.free is not None, origin.far, origin.endless) == (free, True, False)


def test_of_a_file_that_is_not_our_export_any_mask_may_hold_anything() -> None:
    graph = parse(
        "g (int64[batch,n] m, int64[batch,n] other) => (float y) { f = Cast<to=1>(m) i = Sub(one, f) y = Mul(i, far) }",
        {"one": np.float32(1), "far": np.float32(-1e4)},
    )
    mask = graph.graph.outputs[0]
    assert origin_of_mask(mask) == MaskOrigin(None, (1e4,), reckoned=True)
    graph.graph.meta[FREE_KEY] = frozenset({"m"})
    assert origin_of_mask(mask).free is graph.graph.inputs[0]
    assert [is_contract(value) for value in graph.graph.inputs] == [False, True]
    found = origin_of_mask(graph.clone().graph.outputs[0]).free
    assert found is not None, "a copy has forgotten it"
    assert found.name == "m"


def test_activations_among_the_scores_hide_nothing() -> None:
    """A bias that follows from queries, as DeBERTa's, is made of the model's inputs in the end."""
    body = "p = MatMul(x, table) s = Mul(p, half) y = Add(s, row)"
    weights: dict[str, Constant] = {
        "table": np.ones((4, 4), np.float32),
        "half": np.float32(0.5),
        "row": np.ones(4, np.float32),
    }
    graph = parse(f"g (float[batch,4] x) => (float y) {{ {body} }}", weights)
    assert origin_of_mask(graph.graph.outputs[0]) == MaskOrigin(None, (), reckoned=True)


def test_a_mask_that_takes_very_many_nodes_is_not_run() -> None:
    chain = " ".join(f"c{index + 1} = Not(c{index})" for index in range(202))
    assert meaning(f"c0 = Identity(real) {chain} y = Identity(c202)") == "more than 200 nodes compute the mask"


def test_a_mask_that_does_not_run_alone_is_unknown() -> None:
    found = meaning("y = Reshape(real, seven)", seven=np.array([1, 1, 1, 7]))
    assert isinstance(found, str)
    assert found.startswith("the mask cannot be probed: ")


def test_the_answer_is_kept_with_the_mask() -> None:
    graph, mask = model(f"{CACHED} {PLACES} {REAL} {CAUSAL} y = And(real, past_keys)")
    assert meaning_of_mask(graph, mask) is meaning_of_mask(graph, mask)
    copy = graph.clone()
    place = next(index for index, node in enumerate(graph.graph) if mask in node.outputs)
    again = meaning_of_mask(copy, list(copy.graph)[place].outputs[0])
    assert isinstance(again, MaskMeaning)
    assert again.source in copy.graph.inputs  # not the input of the model that was copied


def test_a_stored_triangle_is_probed_at_its_length() -> None:
    """GPT-2 of old cut its mask out of a table."""
    cut = (
        f"{CACHED} {REAL} from_to = Concat<axis=0>(past, zero_one) to_to = Concat<axis=0>(total, total)"
        " part = Slice(table, from_to, to_to, axes) y = And(real, part)"
    )
    more: dict[str, Any] = {"zero_one": np.array([0]), "axes": np.array([2, 3])}
    triangle = np.tril(np.ones((64, 64), bool))[None, None]
    graph, mask = model(cut, table=triangle, **more)
    found = meaning_of_mask(graph, mask)
    assert isinstance(found, MaskMeaning)
    assert (found.causal, found.window) == (True, 0)
    broken = triangle.copy()
    broken[..., 63, 2] = False
    graph, mask = model(cut, table=broken, **more)
    assert isinstance(meaning_of_mask(graph, mask), str)


@given(
    batch=st.integers(1, 3),
    new=st.integers(1, 9),
    past=st.integers(0, 9),
    window=st.integers(0, 12),
    causal=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_what_a_meaning_allows(batch: int, new: int, past: int, window: int, *, causal: bool) -> None:
    """Word by word, against the arrays."""
    _, value = model("y = Identity(attention_mask)")
    generator = np.random.default_rng(batch * new + past)
    mask = generator.integers(0, 2, (batch, past + new))
    probe = type(long_probe(1))(complete({"batch": batch, "sequence": new, "past_sequence": past}), "", mask)
    allowed = MaskMeaning(value, causal, window).allowed(probe)
    assert allowed.shape == (batch, 1, new, past + new)
    for row in range(batch):
        for query in range(new):
            for key in range(past + new):
                wanted = mask[row, key] and (not causal or key <= past + query)
                wanted = wanted and (not window or key > past + query - window)
                assert allowed[row, 0, query, key] == bool(wanted)


def test_probes_show_every_kind_of_padding() -> None:
    """Rows differ, some are empty, and with a cache padding lies in the past too."""
    every, without = probes(with_past=True), probes(with_past=False)
    assert {probe.kind for probe in every} == {"no padding", "right padding", "left padding", "holes", "an empty row"}
    assert all(probe.past == 0 for probe in without)
    assert [str(probe) for probe in every if not probe.past] == [str(probe) for probe in without]
    assert len(without) < len(every)
    for probe in every:
        assert probe.mask.shape == (probe.sizes["batch"], probe.sizes["total_sequence"])
        assert probe.sizes["total_sequence"] == probe.past + probe.sizes["sequence"]
    assert any(probe.past and not probe.mask[:, : probe.past].all() and probe.mask.any(axis=1).all() for probe in every)
    assert any(probe.past and probe.sizes["sequence"] == 1 for probe in every)
    texts = [str(probe) for probe in every]
    assert "batch 2, sequence 5, left padding" in texts
    assert "batch 3, sequence 4, past 7, holes" in texts


def test_lengths_that_tell_are_constants_ahead_of_comparisons_and_tables() -> None:
    def lengths(nodes: str, **weights: Any) -> list[int]:
        graph, _ = model(f"{CACHED} {PLACES} {nodes}", **weights)
        return telling_lengths(tuple(graph.graph))

    assert lengths("a = Sub(queries, far) y = Greater(keys, a)", far=np.array(99)) == [101]
    assert lengths("a = Sub(queries, far) y = Greater(keys, a)", far=np.array(-99)) == [101]
    assert lengths("a = Sub(queries, far) y = Greater(keys, a)", far=np.array(20)) == []
    assert lengths("y = Sub(queries, far)", far=np.array(99)) == []
    assert lengths("a = Add(queries, far) y = Less(a, keys)", far=np.array(2**40)) == []
    assert lengths("y = Gather(table, keys)", table=np.zeros((70, 3))) == [70]
    assert lengths("y = Gather(table, keys)", table=np.zeros(70)) == []
    assert lengths("y = Trilu<upper=0>(far, zero)", far=np.zeros((80, 60))) == [60, 80]


COUNT = "sums = CumSum(attention_mask, step) less = Sub(sums, step)"
NEWEST = "y = Slice(places, past, total, one)"


def test_a_side_graph_knows_what_is_read_and_what_is_measured() -> None:
    graph, mask = model(f"{CACHED} {PLACES} {REAL} {CAUSAL} y = And(real, past_keys)")
    side = SideGraph(graph, (mask,))
    assert {leaf.name for leaf in side.leaves} == {"input_ids", "attention_mask"}
    assert [leaf.name for leaf in side.read] == ["attention_mask"]
    assert side.nodes[-1] is mask.producer()


def test_a_side_graph_that_stops_takes_the_stop_as_its_input() -> None:
    graph, table = model(
        f"{CACHED} {COUNT} places = Identity(less) {NEWEST.replace('y', 'p')} f = Cast<to=1>(p) y = Cos(f)"
    )
    positions = next(value for node in graph.graph for value in node.outputs if value.name == "p")
    positions.type = ir.TensorType(ir.DataType.INT64)
    side = SideGraph(graph, (table,), stop=(positions,))
    assert side.leaves == side.read == (positions,)
    assert [node.op_type for node in side.nodes] == ["Cast", "Cos"]
    asked = np.array([[3, 1, 4]])
    assert np.allclose(side.run({}, {positions: asked})[0], np.cos(asked), atol=1e-6)


def test_a_stop_does_not_hide_what_goes_around_it() -> None:
    graph, value = model(f"{CACHED} {COUNT} places = Identity(less) y = Add(places, sums)")
    stop = next(one for node in graph.graph for one in node.outputs if one.name == "places")
    side = SideGraph(graph, (value,), stop=(stop,))
    assert {leaf.name for leaf in side.leaves} == {"places", "attention_mask"}


def test_a_side_graph_wants_the_size_of_every_axis() -> None:
    graph, mask = model(f"{CACHED} {PLACES} {REAL} {CAUSAL} y = And(real, past_keys)")
    with pytest.raises(ProbeError, match="the sizes of input_ids are not known"):
        SideGraph(graph, (mask,)).run({"batch": 1, "total_sequence": 3}, {})


SLOPES = np.array([0.5, 0.0625], np.float32).reshape(1, 2, 1, 1)
HIDDEN = f"{CAUSAL} both = And(real, past_keys) hidden = Where(both, nought, lowest)"
COUNTED = "places = CumSum(attention_mask, last) turned = Unsqueeze(places, middle) far = Cast<to=1>(turned)"
COLUMNS = "far = Cast<to=1>(keys)"


@pytest.mark.parametrize("past", [True, False], ids=["with a cache", "without"])
@pytest.mark.parametrize(("places", "columns"), [(COUNTED, False), (COLUMNS, True)], ids=["tokens", "columns"])
def test_alibi_is_known_by_its_slopes(places: str, *, columns: bool, past: bool) -> None:
    """Bloom counts the real tokens of a row, MPT its columns."""
    found = meaning(f"{HIDDEN} {places} grown = Mul(far, slopes) y = Add(hidden, grown)", past=past, slopes=SLOPES)
    assert isinstance(found, MaskMeaning), found
    assert (found.causal, found.columns) == (True, columns)
    assert np.allclose(found.slopes, SLOPES.ravel(), rtol=1e-4)


def test_a_bias_that_does_not_grow_evenly_is_no_alibi() -> None:
    bias = f"{HIDDEN} {COLUMNS} square = Mul(far, far) grown = Mul(square, slopes) y = Add(hidden, grown)"
    assert "does not grow evenly with their place" in str(meaning(bias, slopes=SLOPES))


def test_zeros_for_every_head_are_no_bias() -> None:
    """T5 adds them to what its cross-attention hides."""
    found = meaning("a = Where(real, nought, lowest) y = Add(a, zeros)", zeros=np.zeros((1, 4, 1, 1), np.float32))
    assert isinstance(found, MaskMeaning), found
    assert (found.causal, found.slopes) == (False, ())


BLOCKS = """
<ir_version: 10, opset_import: ["" : 20]>
g (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask) => (float[batch,sequence] y, float[steps] z)
  <int64[1] more = {255}, int64[1] block = {256}> {
  n = Shape <start = 1, end = 2> (input_ids)
  m = Add (n, more)
  blocks = Div (m, block)
  z = ConstantOfShape (blocks)
  real = Mul (input_ids, attention_mask)
  y = Cast <to = 1> (real)
}"""


def test_rows_are_longer_than_the_blocks_that_a_graph_counts(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(BLOCKS), tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    assert telling_size(loaded.model.graph) == 259
    observations = observations_of(loaded)
    assert [item.sizes["sequence"] for item in observations] == [7, 11, 13, 259]
    prepare(loaded.model)
    made = next(value for node in loaded.model.graph for value in node.outputs if node.op_type == "ConstantOfShape")
    assert known_dims(made) is None, "the number of blocks is no constant"


@pytest.mark.parametrize(
    ("step", "size"),
    [
        ("m = Add (n, many)", 0),
        ("m = Div (n, many)", 303),
        ("m = Min (n, many)", 303),
        ("m = Div (n, most)", 0),
        ("m = Div (n, unit)", 0),
    ],
)
def test_only_numbers_that_make_a_size_of_another_count(step: str, size: int) -> None:
    text = f"""g (float[batch,sequence] x) => (int64[1] y)
      <int64[1] many = {{300}}, int64[1] most = {{9223372036854775807}}, int64[1] unit = {{1}}>
      {{ n = Shape <start = 1, end = 2> (x) {step} y = Neg (m) }}"""
    assert telling_size(parse(text).graph) == size
