import pytest

from tests.support.rules import names_read, run_passes

INTO_RESHAPE = """
g (float[batch,sequence,4] x) => (float[n,m] y)
<int64 index = {INDEX}, int64[1] listed = {INDEX}, int64[1] axes = {0}, int64[1] rest = {-1}> {
  h = Relu(x)
  s = Shape(h)
  SPELLING
  shape = Concat<axis=0>(d, rest)
  y = Reshape(h, shape)
}"""
SPELLINGS = {
    "scalar index": "g = Gather(s, index) d = Unsqueeze(g, axes)",
    "list as index": "d = Gather<axis=0>(s, listed)",
}


def graph(spelling: str, index: int) -> str:
    return INTO_RESHAPE.replace("SPELLING", spelling).replace("INDEX", str(index))


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize(("index", "start"), [(0, 0), (1, 1), (2, 2), (-2, 1)])
def test_reads_one_dimension_with_one_shape(spelling: str, index: int, start: int) -> None:
    outcome = run_passes(graph(spelling, index), "read-dimension", "read-dimension")
    assert outcome.ops == ["Relu", "Shape", "Concat", "Reshape"]
    assert outcome.attributes("Shape") == {"start": start, "end": start + 1}
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


HELD_BACK = {
    "two dimensions": ("s = Shape(x) y = Gather(s, both)", "not one dimension"),
    "a scalar result": ("s = Shape(x) y = Gather(s, index)", "the result is not a list of one"),
    "a part of the shape": ("s = Shape<start=1>(x) y = Gather(s, listed)", "a part of the shape"),
    "every other dimension": ("s = Shape(x) y = Slice(s, zero, end, zero, two)", "not neighbours in a known order"),
    "no dimension": ("s = Shape(x) y = Slice(s, end, end)", "no dimension at all"),
}


@pytest.mark.parametrize(("nodes", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(nodes: str, reason: str) -> None:
    text = f"""
    g (float[batch,sequence,4] x) => (int64 y)
    <int64[2] both = {{0, 1}}, int64 index = {{1}}, int64[1] listed = {{1}}, int64[1] zero = {{0}},
     int64[1] end = {{9}}, int64[1] two = {{2}}> {{ {nodes} }}"""
    outcome = run_passes(text, "read-dimension")
    assert (outcome.entry.applied, outcome.reasons) == (0, [reason])


@pytest.mark.parametrize(("cut", "start", "end"), [("-1 9", 2, 3), ("0 2", 0, 2), ("1 -1", 1, 2), ("-2 99", 1, 3)])
def test_a_slice_of_a_shape_is_a_part_of_it(cut: str, start: int, end: int) -> None:
    first, last = cut.split()
    text = f"""
    g (float[batch,sequence,4] x) => (int64[n] y)
    <int64[1] first = {{{first}}}, int64[1] last = {{{last}}}> {{ s = Shape(x) y = Slice(s, first, last) }}"""
    outcome = run_passes(text, "read-dimension", "read-dimension")
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.attributes("Shape") == {"start": start, "end": end}
    assert outcome.worst_error_at(3, 2) == 0


def test_a_size_that_is_known_is_a_constant() -> None:
    text = "g (float[batch,sequence,4] x) => (int64[1] y) { s = Shape<start=2>(x) y = Neg(s) }"
    outcome = run_passes(text, "read-known-dimension", "read-known-dimension")
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.ops == ["Neg"]
    assert outcome.worst_error_at(3, 2) == 0


@pytest.mark.parametrize("shape", ["Shape(x)", "Shape<start=1>(x)", "Shape<end=1>(x)"])
def test_a_size_that_changes_is_no_constant(shape: str) -> None:
    outcome = run_passes(
        f"g (float[batch,sequence,4] x) => (int64[n] y) {{ s = {shape} y = Neg(s) }}", "read-known-dimension"
    )
    assert outcome.entry.applied == 0


def test_holds_back_below_opset_15() -> None:
    outcome = run_passes(graph(SPELLINGS["list as index"], 1), "read-dimension", opset=13)
    assert outcome.reasons == ["opset 13, needs 15"]


@pytest.mark.parametrize(
    ("shape", "source", "axes"),
    [
        ("Shape<start=1, end=2>(h)", "ids", (1, 2)),
        ("Shape<start=0, end=2>(h)", "ids", (0, 2)),
        ("Shape<start=-2, end=-1>(h)", "ids", (1, 2)),
        ("Shape<start=0, end=1>(flipped)", "ids", (1, 2)),
    ],
)
def test_asks_an_input_that_has_the_same_axes(shape: str, source: str, axes: tuple[int, int]) -> None:
    text = f"""
    g (int64[batch,sequence] ids, float[2,4] table) => (int64[n] y) {{
      h = Gather(table, ids)
      flipped = Transpose<perm=[1,0,2]>(h)
      y = {shape}
    }}"""
    outcome = run_passes(text, "read-dimension-from-input", "read-dimension-from-input", "remove-unused")
    assert outcome.ops == ["Shape"]
    assert names_read(outcome.model.graph.node(0))[0] == source
    assert outcome.attributes("Shape") == {"start": axes[0], "end": axes[1]}
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(4, 1) == 0


FROM_INPUT_HELD_BACK = {
    "an input": ("y = Shape<start=1>(x)", "it reads an input already"),
    "a size": ("h = Relu(x) y = Shape<start=1>(h)", "it reads sizes that are not axes of inputs"),
    "another order": (
        "h = Transpose<perm=[1,0,2]>(x) y = Shape<start=0, end=2>(h)",
        "no input has the axes ['sequence', 'batch']",
    ),
    "a length that depends on data": ("n = NonZero(x) y = Shape(n)", "the shape is not known"),
    "a sum of axes": ("h = Concat<axis=1>(x, more) y = Shape<start=1, end=2>(h)", "no input has the axes"),
}


@pytest.mark.parametrize(("nodes", "reason"), FROM_INPUT_HELD_BACK.values(), ids=FROM_INPUT_HELD_BACK.keys())
def test_keeps_asking_an_intermediate_value_with_the_reason(nodes: str, reason: str) -> None:
    text = f"""
    g (float[batch,sequence,4] x, float[batch,2,4] more) => (int64[n] y) {{ {nodes} }}"""
    outcome = run_passes(text, "read-dimension-from-input")
    assert outcome.entry.applied == 0
    assert len(outcome.reasons) == 1
    assert outcome.reasons[0].startswith(reason)
