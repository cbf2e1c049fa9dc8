"""What is derived of graphs; each claim is held against runs at sizes that nothing looked at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import dims
from onnxopt.probe.annotate import annotate, declared
from onnxopt.probe.runners import ShapeRunner
from onnxopt.sizes import Derivation
from onnxopt.sizes.check import same_everywhere
from onnxopt.sizes.derive import claims
from onnxopt.sizes.terms import add, axis, smallest
from onnxopt.spec import AxisRange, Signature, TensorSpec
from tests.support.rules import parse

ROWS = "<int64[1] zero = {0}, int64[1] one = {1}, int64[1] k = {%d}, float limit = {%d.0}, float none = {0.0}>"
LENGTH = "n = Shape<start = 1, end = 2>(x)"
CEIL = (
    "f = Cast<to=1>(n) p = Div(f, limit) c = Ceil(p) r = Mul(c, limit) t = Cast<to=7>(r) "
    "a = Sub(t, n) z = Concat<axis=0>(zero, zero, zero, zero, a, zero) h = Pad(x, z)"
)
# every way, with k in it, of a cut that is none at small sizes; what `h` has along axis 1, in Python
CUTS: dict[str, tuple[str, Callable[[int, int], int]]] = {  # and how many rows are left of n
    "first k": ("h = Slice(x, zero, k, one)", min),
    "last k": ("b = Neg(k) h = Slice(x, b, n, one)", min),
    "min": ("m = Min(n, k) h = Slice(x, zero, m, one)", min),
    "blocks": ("q = Div(n, k) m = Mul(q, k) h = Slice(x, zero, m, one)", lambda n, k: n // k * k),
    "left over": ("m = Mod(n, k) h = Slice(x, zero, m, one)", lambda n, k: n % k),
    "relu": (
        "f = Cast<to=1>(n) d = Sub(f, limit) r = Relu(d) b = Cast<to=7>(r) h = Slice(x, b, n, one)",
        min,
    ),
    "clip": (
        "f = Cast<to=1>(n) c = Clip(f, none, limit) m = Cast<to=7>(c) h = Slice(x, zero, m, one)",
        min,
    ),
    "where": ("g = Greater(n, k) m = Where(g, k, n) h = Slice(x, zero, m, one)", min),
    "ceil": (CEIL, lambda n, k: -(-n // k) * k),
    "split": (
        "m = Min(n, k) rest = Sub(n, m) both = Concat<axis=0>(m, rest) h, tail = Split<axis=1>(x, both)",
        min,
    ),
}


def derived(text: str, k: int = 0, *, name: str = "frames", opset: int = 20) -> tuple[ir.Model, Derivation]:
    body = f"g (float[batch,{name},4] x) => (y) {ROWS % (k, k)} {{ {LENGTH} {text} y = Neg(h) }}"
    used = parse(body, opset=opset)
    derivation = Derivation()
    annotate(used, derivation, everything=True)
    return used, derivation


def value_of(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def rows(model: ir.Model, n: int) -> int:
    runner = ShapeRunner(model, [value_of(model, "h")])
    shapes, _ = runner.run({"x": np.zeros((2, n, 4), np.float32)})
    return shapes[value_of(model, "h")][1]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("k", [2, 5, 64, 131, 150, 777, 1900, 5000])
def test_a_cut_is_no_axis_and_no_constant(cut: str, k: int) -> None:
    model, derivation = derived(CUTS[cut][0], k)
    h = value_of(model, "h")
    assert (dims(h) or ())[1] is None, "whatever it is at some sizes, it is another thing at others"
    size = (derivation.of(h).dims or ())[1]
    assert k in derivation.turning(model)["frames"], "the proof of the whole looks where it changes"
    from onnxopt.sizes.check import Computation

    for n in (1, 3, k - 1, k, k + 1, 2 * k + 3):
        expected = CUTS[cut][1](n, k)
        found = int(Computation({"batch": np.array([2]), "frames": np.array([n])}).of(size)[0])
        assert found == expected == rows(model, n), n


@pytest.mark.parametrize("name", ["frames", "sequence", "s6", "DynamicDimension.0"])
def test_arithmetic_that_comes_back_to_an_axis_is_that_axis(name: str) -> None:
    if "." in name:
        name = name.replace(".", "_")
    for text in (
        "f = Cast<to=1>(n) m = Cast<to=7>(f) h = Slice(x, zero, m, one)",
        "d = Add(n, one) m = Sub(d, one) h = Slice(x, zero, m, one)",
        "m = Max(n, zero) h = Slice(x, zero, m, one)",
        "d = Mul(n, k) m = Div(d, k) h = Slice(x, zero, m, one)",
        "g = Greater(n, n) m = Where(g, zero, n) h = Slice(x, zero, m, one)",
    ):
        model, _ = derived(text, 64, name=name)
        assert dims(value_of(model, "h")) == ("batch", name, 4), text


def test_a_claim_that_only_computing_shows_is_counted_as_such() -> None:
    model, derivation = derived("f = Cast<to=1>(n) m = Cast<to=7>(f) h = Slice(x, zero, m, one)")
    assert list(derivation.computed.values()) == [4096]
    found = claims(model, derivation)
    assert (found.computed, found.computed_to, found.unknown) == (1, 4096, 0)
    assert found.derived > 6


def test_a_table_that_must_fit_ends_the_axis() -> None:
    """The first n rows of a table of 48 are added to n rows: the graph runs up to 48, and there the two are equal."""
    model = parse(
        "g (float[batch,tokens,8] x) => (y) <float[48,8] table, int64[1] zero = {0}, int64[1] ax = {0}> "
        "{ n = Shape<start=1, end=2>(x) t = Slice(table, zero, n, ax) y = Add(x, t) }",
        {"table": np.zeros((48, 8), np.float32)},
    )
    derivation = Derivation()
    annotate(model, derivation, everything=True)
    assert derivation.ranges["tokens"] == AxisRange(least=0, most=48)
    assert dims(value_of(model, "t")) == ("tokens", 8)
    assert dims(value_of(model, "y")) == ("batch", "tokens", 8)


# rows and columns of a triangle for the new positions among all; GPT-Neo keeps one in each layer
TRIANGLE = """g (float[{new},8] x, float[{whole},8] z, float[{past},8] p) => (y)
<int64[1] zero = {{0}}, int64[1] one = {{1}}> {{
  n = Shape<start=0, end=1>(x) t = Shape<start=0, end=1>(z) since = Sub(t, n) turned = Transpose(z)
  rows = Slice(table, since, t, zero) h = Slice(rows, zero, t, one) scores = MatMul(x, turned)
  {used} }}"""


@pytest.mark.parametrize("most", [9, 160, 2048])
@pytest.mark.parametrize(
    ("new", "past", "whole"),
    [("sequence", "past_sequence", "total_sequence"), ("a", "b", "a + b"), ("frames", "before", "before + frames")],
)
def test_a_table_that_must_fit_ends_a_sum_of_axes(new: str, past: str, whole: str, most: int) -> None:
    def model(used: str) -> tuple[ir.Model, Derivation]:
        text = TRIANGLE.format(new="n0", whole="n2", past="n1", used=used)
        parsed = parse(text, {"table": np.zeros((most, most), np.float32)})
        for value, name in zip(parsed.graph.inputs, (new, whole, past), strict=True):
            value.shape = ir.Shape([name, 8])  # the text of a graph knows no sums
        derivation = Derivation({new: AxisRange(1)})
        annotate(parsed, derivation, everything=True)
        return parsed, derivation

    bound, known = model("y = Add(scores, h)")
    assert known.ranges[whole].most == most
    assert dims(value_of(bound, "h")) == dims(value_of(bound, "y")) == (new, whole)
    free, known = model("y = Neg(h)")
    assert whole not in known.ranges
    assert dims(value_of(free, "h")) == (None, None)


@pytest.mark.parametrize("most", [12, 160])
def test_the_end_of_a_sum_is_none_of_its_axes_alone(most: int) -> None:
    """min(past, k) is the past only where the sum cannot reach beyond k."""
    domain = {"total_sequence": AxisRange(0, 1, most), "sequence": AxisRange(1)}
    past, new = axis("past_sequence"), axis("sequence")
    for k, same in ((most - 2, False), (most - 1, True), (most, True)):
        assert bool(same_everywhere(smallest(past, k), past, domain)) == same
        assert not same_everywhere(smallest(past, k), past, {"sequence": AxisRange(1)})
    assert same_everywhere(smallest(add(past, new), most), add(past, new), domain)
    assert not same_everywhere(smallest(add(past, new), most - 1), add(past, new), domain)


def test_a_multiple_of_an_axis_is_used() -> None:
    text = "g (float[batch,side] x) => (y) <int64[1] k = {32}, int64[1] zero = {0}, int64[1] one = {1}> "
    text += "{ n = Shape<start=1>(x) q = Div(n, k) m = Mul(q, k) h = Slice(x, zero, m, one) y = Neg(h) }"
    free, bound = parse(text), parse(text)
    annotate(free, Derivation(), everything=True)
    annotate(bound, Derivation({"side": AxisRange(least=32, step=32)}), everything=True)
    assert dims(value_of(free, "h")) == ("batch", None)
    assert dims(value_of(bound, "h")) == ("batch", "side")


def test_branches_on_sizes_are_both_followed() -> None:
    text = (
        "g (float[batch,n,4] x) => (y) <int64[1] k = {900}, int64[1] zero = {0}, int64[1] one = {1}> { "
        "s = Shape<start=1, end=2>(x) c = Greater(s, k) b = Squeeze(c, zero) "
        "h = If(b) <then_branch = t () => (u) { u = Slice(x, zero, k, one) }, else_branch = e () => (v) "
        "{ v = Identity(x) }> y = Neg(h) }"
    )
    model = parse(text)
    derivation = Derivation()
    annotate(model, derivation, everything=True)
    assert dims(value_of(model, "h")) == ("batch", None, 4)
    assert 900 in derivation.turning(model)["n"]


def test_a_loop_that_grows_has_no_size_and_one_that_does_not_has() -> None:
    text = (
        "g (float[batch,n] x, int64 turns) => (a, b) <bool go = {1}> { "
        "a, b = Loop(turns, go, x, x) "
        "<body = body (int64 i, bool c, float[batch,n] p, float[batch,m] q) => (c2, p2, q2) { "
        "c2 = Identity(c) p2 = Neg(p) q2 = Concat<axis=1>(q, p) }> }"
    )
    model = parse(text)
    annotate(model, Derivation(), everything=True)
    assert dims(value_of(model, "a")) == ("batch", "n")
    assert dims(value_of(model, "b")) == ("batch", None)


def test_outputs_promise_what_is_derived_and_keep_names_of_their_own() -> None:
    text = (
        "g (float[batch,n,4] x, int64[batch] ids) => (u, h, c, z) "
        "<int64[1] five = {5}, int64[1] zero = {0}, int64[1] one = {1}> "
        "{ u = Unique(ids) h = Slice(x, zero, five, one) c = Identity(x) z = NonZero(ids) }"
    )
    model = parse(text)
    derivation = Derivation()
    annotate(model, derivation, everything=True)
    said = Signature(
        (TensorSpec("x", "float32", ("batch", "n", 4)), TensorSpec("ids", "int64", ("batch",))),
        (
            TensorSpec("u", "int64", ("m",)),
            TensorSpec("h", "float32", ("batch", "n", 4)),
            TensorSpec("c", "float32", ("", "", 4)),
            TensorSpec("z", "int64", (1, 7)),
        ),
    )
    found = {spec.name: spec.axes for spec in declared(said, model, derivation).outputs}
    assert found == {"u": ("m",), "h": ("batch", "h_dim1", 4), "c": ("batch", "n", 4), "z": (1, "z_dim1")}


@pytest.mark.parametrize(("name", "least"), [("frames", 1), ("past_sequence", 0)])
def test_of_an_empty_past_nothing_is_claimed_that_a_reshape_would_copy(name: str, least: int) -> None:
    """A text begins with an empty past, so it stays among the sizes: [-1, 0, 4] has 4 rows then, not none."""
    text = "first = Concat<axis=0>(minus, n, four) rows = Reshape(x, flat) h = Reshape(rows, first)"
    body = f"""g (float[batch,{name},4] x) => (y)
      <int64[1] minus = {{-1}}, int64[1] four = {{4}}, int64[2] flat = {{-1, 4}}> {{ {LENGTH} {text} y = Neg(h) }}"""
    used = parse(body, opset=20)
    derivation = Derivation()
    annotate(used, derivation, everything=True)
    assert derivation.ranges.get(name, AxisRange(0)).least == least
    found = dims(value_of(used, "h"))
    assert found is not None
    assert found[1] == (name if least else None)
