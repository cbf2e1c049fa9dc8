"""Fusions inside of branches and loops: they fire there, they hold at other sizes, and what is not reached stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.load.given import Given
from onnxopt.load.onnx_file import load_onnx
from onnxopt.proof.cases import SEED
from onnxopt.proof.observations import others_of
from tests.support.bodies import YES, numbers, take, write

NORM = """
  mean = ReduceMean<axes = [-1], keepdims = 1>({x}) centred = Sub({x}, mean)
  two = Constant<value = float {{2}}>() squares = Pow(centred, two)
  variance = ReduceMean<axes = [-1], keepdims = 1>(squares)
  epsilon = Constant<value = float {{1e-5}}>() held = Add(variance, epsilon) root = Sqrt(held)
  normal = Div(centred, root) scaled = Mul(normal, gamma) {y} = Add(scaled, beta)"""

GELU = """
  wide = Constant<value = float {{1.4142135}}>() part = Div({x}, wide) bell = Erf(part)
  one = Constant<value = float {{1}}>() gate = Add(bell, one) open_ = Mul({x}, gate)
  half = Constant<value = float {{0.5}}>() {y} = Mul(open_, half)"""

WEIGHTS: dict[str, Any] = {
    "gamma": numbers(6, seed=1),
    "beta": numbers(6, seed=2),
    "w": numbers(6, 6, seed=3),
    "bias": numbers(6, seed=4),
}


def norm(x: str, y: str) -> str:
    """LayerNormalization spelled out."""
    return NORM.format(x=x, y=y)


def gelu(x: str, y: str) -> str:
    """GELU spelled out."""
    return GELU.format(x=x, y=y)


CHOICE = f"""
g (float[rows,6] x, bool loud) => (float[rows,6] y) {{
  r_ = Relu(x)
  [choice] y = If(loud) <
    then_branch = t () => (float[rows,6] a) {{ {norm("r_", "n_")} product = MatMul(n_, w) a = Add(product, bias) }},
    else_branch = e () => (float[rows,6] a) {{ product = MatMul(r_, w) s_ = Add(product, bias) {gelu("s_", "a")} }}
  >
}}"""


@pytest.mark.parametrize("loud", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 37, 400])
def test_both_branches_are_fused_and_hold_at_other_sizes(tmp_path: Path, *, loud: bool, rows: int) -> None:
    """The names inside are the same in both branches, and so are the weights that they read."""
    taken = take(tmp_path, CHOICE, **WEIGHTS)
    assert taken.ops("then of choice") == ["LayerNormalization", "Gemm"]
    assert taken.ops("else of choice") == ["Gemm", "Gelu"]
    assert taken.worst_error(x=numbers(rows, 6, seed=rows), loud=np.array(loud)) < 1e-5


def test_the_opset_is_raised_for_what_only_a_branch_needs(tmp_path: Path) -> None:
    taken = take(tmp_path, CHOICE, opset=15, **WEIGHTS)
    assert "LayerNormalization" in taken.ops("then of choice")
    assert taken.model.opset_imports[""] == 20
    assert taken.worst_error(x=numbers(5, 6), loud=YES) < 1e-5


def test_the_opset_stays_where_nothing_in_a_branch_needs_another(tmp_path: Path) -> None:
    text = """
    g (float[rows,6] x, bool loud) => (float[rows,6] y) {
      [choice] y = If(loud) <
        then_branch = t () => (float[rows,6] a) { product = MatMul(x, w) a = Add(product, bias) },
        else_branch = e () => (float[rows,6] a) { b = Relu(x) a = Sigmoid(b) }
      >
    }"""
    taken = take(tmp_path, text, opset=14, w=WEIGHTS["w"], bias=WEIGHTS["bias"])
    assert taken.ops("then of choice") == ["Gemm"]
    assert taken.model.opset_imports[""] == 14


def test_entries_of_the_ledger_carry_the_name_of_the_branch(tmp_path: Path) -> None:
    taken = take(tmp_path, CHOICE, **WEIGHTS)
    applied = taken.applied("then of choice")
    assert [applied[name] for name in ("fuse-layer-norm", "fuse-layer-norm-bias", "fuse-linear")] == [1, 1, 1]
    assert not taken.ledger.applied("fuse-attention")
    titles = [entry.title for entry in taken.ledger.entries if entry.where]
    assert "else of choice: fuse-gelu" in titles


def attention(heads: int, size: int) -> str:
    """Attention spelled out over t_ [batch, words, heads · size], one product for queries, keys and values each."""
    width = heads * size
    split = f"split = Constant<value_ints = [0, -1, {heads}, {size}]>() "
    parts = "".join(
        f"p{n} = MatMul(t_, w{n}) r{n} = Reshape(p{n}, split) h{n} = Transpose<perm = [0, 2, 1, 3]>(r{n}) "
        for n in "qkv"
    )
    return f"""
      {split} {parts}
      turned = Transpose<perm = [0, 1, 3, 2]>(hk) scores = MatMul(hq, turned)
      root = Constant<value = float {{{size**0.5}}}>() scaled = Div(scores, root)
      chances = Softmax<axis = -1>(scaled) seen = MatMul(chances, hv)
      back = Transpose<perm = [0, 2, 1, 3]>(seen) shape = Constant<value_ints = [0, -1, {width}]>()
      a = Reshape(back, shape)"""


@pytest.mark.parametrize(("heads", "size"), [(2, 4), (3, 8)])
def test_attention_inside_of_a_branch_is_one_operator(tmp_path: Path, heads: int, size: int) -> None:
    width = heads * size
    text = f"""
    g (float[b,s,{width}] x, int64 mode) => (float[b,s,{width}] y) {{
      limit = Constant<value = int64 {{3}}>() many = Greater(mode, limit)
      [choice] y = If(many) <
        then_branch = t () => (float[b,s,{width}] a) {{ t_ = Tanh(x) {attention(heads, size)} }},
        else_branch = e () => (float[b,s,{width}] c) {{ c = Identity(x) }}
      >
    }}"""
    weights: dict[str, Any] = {f"w{n}": numbers(width, width, seed=seed, scale=0.3) for seed, n in enumerate("qkv")}
    taken = take(tmp_path, text, opset=18, **weights)
    assert "Attention" in taken.ops("then of choice")
    assert "Softmax" not in taken.ops("then of choice")
    assert taken.ops("else of choice") == ["Identity"]
    for batch, words in ((1, 1), (2, 17), (5, 90)):
        for mode in (0, 3, 4):
            assert taken.worst_error(x=numbers(batch, words, width), mode=np.array(mode)) < 1e-5


def test_a_convolution_inside_takes_in_what_follows_it(tmp_path: Path) -> None:
    text = """
    g (float[n,3,h,w] x, bool loud) => (float[n,4,h,w] y) {
      [choice] y = If(loud) <
        then_branch = t () => (float[n,4,h,w] a) {
          c = Conv<pads = [1, 1, 1, 1]>(x, kernel) m = Mul(c, scale) a = Add(m, shift) },
        else_branch = e () => (float[n,4,h,w] a) { c = Conv<pads = [1, 1, 1, 1]>(x, kernel) a = Relu(c) }
      >
    }"""
    weights: dict[str, Any] = {
        "kernel": numbers(4, 3, 3, 3),
        "scale": numbers(4, 1, 1, seed=1),
        "shift": numbers(4, 1, 1, seed=2),
    }
    taken = take(tmp_path, text, **weights)
    assert taken.ops("then of choice") == ["Conv"]
    assert taken.ops("else of choice") == ["Conv", "Relu"]
    for loud in (True, False):
        assert taken.worst_error(x=numbers(3, 3, 9, 5), loud=np.array(loud)) < 1e-4


NESTED = f"""
g (float[rows,6] x, bool loud, bool deep) => (float[rows,6] y) {{
  [outer] y = If(loud) <
    then_branch = t () => (float[rows,6] a) {{
      r_ = Relu(x)
      [inner] a = If(deep) <
        then_branch = tt () => (float[rows,6] c) {{
          product = MatMul(r_, w) s_ = Add(product, bias) {gelu("s_", "c")} }},
        else_branch = te () => (float[rows,6] c) {{ {norm("r_", "c")} }}
      > }},
    else_branch = e () => (float[rows,6] a) {{ b = Sin(x) a = Cos(b) }}
  >
}}"""


def test_branches_inside_of_branches_are_fused(tmp_path: Path) -> None:
    taken = take(tmp_path, NESTED, **WEIGHTS)
    assert taken.ops("then of inner") == ["Gemm", "Gelu"]
    assert taken.ops("else of inner") == ["LayerNormalization"]
    assert taken.applied("then of outer, then of inner")["fuse-gelu"] == 1
    for loud in (True, False):
        for deep in (True, False):
            assert taken.worst_error(x=numbers(77, 6), loud=np.array(loud), deep=np.array(deep)) < 1e-5


def test_a_weight_lies_in_the_branch_that_alone_reads_it(tmp_path: Path) -> None:
    """The runtime lays out the weights of a convolution in blocks only there; what both read stays outside."""
    text = """
    g (float[n,2,h,w] x, bool loud) => (float[n,4,h,w] y) {
      [choice] y = If(loud) <
        then_branch = t () => (float[n,4,h,w] a) { c = Conv(x, shared) m = Conv(c, own) a = Add(m, shift) },
        else_branch = e () => (float[n,4,h,w] a) { c = Conv(x, shared) a = Relu(c) }
      >
    }"""
    weights: dict[str, Any] = {"shared": numbers(4, 2, 1, 1), "own": numbers(4, 4, 1, 1), "shift": numbers(4, 1, 1)}
    taken = take(tmp_path, text, **weights)
    assert taken.ops("then of choice") == ["Conv", "Conv"]
    assert list(taken.model.graph.initializers) == ["shared"]
    sizes = sorted(tensor.size for tensor in taken.weights("then of choice"))
    assert sizes == [4, 16]
    assert not taken.weights("else of choice")
    for loud in (True, False):
        assert taken.worst_error(x=numbers(3, 2, 5, 7), loud=np.array(loud)) < 1e-5


def test_a_value_that_several_branches_and_the_graph_around_them_read_is_kept_for_all(tmp_path: Path) -> None:
    text = f"""
    g (float[rows,6] x, bool loud, bool deep) => (float[rows,6] y, float[rows,6] z, float[rows,6] p) {{
      p = MatMul(x, w)
      [first] y = If(loud) <
        then_branch = t () => (float[rows,6] a) {{ s_ = Add(p, bias) {gelu("s_", "a")} }},
        else_branch = e () => (float[rows,6] a) {{ a = Identity(p) }}
      >
      [second] z = If(deep) <
        then_branch = t () => (float[rows,6] a) {{ s_ = Add(p, y) {norm("s_", "a")} }},
        else_branch = e () => (float[rows,6] a) {{ a = Identity(y) }}
      >
    }}"""
    taken = take(tmp_path, text, **WEIGHTS)
    assert taken.ops("then of first") == ["Add", "Gelu"]
    assert taken.ops("then of second") == ["Add", "LayerNormalization"]
    for loud in (True, False):
        for deep in (True, False):
            assert taken.worst_error(x=numbers(21, 6), loud=np.array(loud), deep=np.array(deep)) < 1e-5


def test_two_outputs_that_become_one_value_are_still_two(tmp_path: Path) -> None:
    """Both are what they were made of, which is a value from outside: no branch may give that, nor one value twice."""
    text = """
    g (float[rows,6] x, bool loud) => (float[rows,6] y, float[rows,6] z) {
      r = Relu(x)
      [choice] y, z = If(loud) <
        then_branch = t () => (float[rows,6] a, float[rows,6] b) {
          one = Transpose<perm = [1, 0]>(r) a = Transpose<perm = [1, 0]>(one)
          two = Transpose<perm = [1, 0]>(r) b = Transpose<perm = [1, 0]>(two) },
        else_branch = e () => (float[rows,6] a, float[rows,6] b) { s = Sin(r) a = Cos(s) b = Exp(s) }
      >
    }"""
    taken = take(tmp_path, text)
    assert sorted(taken.ops("then of choice")) == ["Identity", "Transpose"]
    for loud in (True, False):
        assert taken.worst_error(x=numbers(8, 6), loud=np.array(loud)) == 0


LOOP = f"""
g (float[rows,6] x, int64 turns) => (float[rows,6] y, float[turned,rows,6] all) {{
  yes = Constant<value = bool {{1}}>()
  [repeat] y, all = Loop(turns, yes, x) <
    body = b (int64 i, bool go, float[rows,6] state) => (bool on, float[rows,6] next, float[rows,6] out) {{
      on = Identity(go) product = MatMul(state, w) s_ = Add(product, bias) {gelu("s_", "next")}
      {norm("next", "out").replace("one =", "unit =")} }}
  >
}}"""


def test_the_body_of_a_loop_is_fused(tmp_path: Path) -> None:
    taken = take(tmp_path, LOOP, Given(values={"turns": (3, 1)}), **WEIGHTS)
    assert sorted(taken.ops("body of repeat")) == ["Gelu", "Gemm", "Identity", "LayerNormalization"]
    for turns in (0, 1, 2, 9):
        for rows in (1, 3, 60):
            assert taken.worst_error(x=numbers(rows, 6), turns=np.array(turns)) < 1e-5


def test_the_state_of_a_loop_may_grow(tmp_path: Path) -> None:
    """Rows are appended in every turn: no shape in there is a constant, whatever the observed turns had."""
    text = f"""
    g (float[rows,6] x, int64 turns) => (float[grown,6] y, int64[turned,2] all) {{
      yes = Constant<value = bool {{1}}>()
      [repeat] y, all = Loop(turns, yes, x) <
        body = b (int64 i, bool go, float[some,6] state) => (bool on, float[more,6] next, int64[2] out) {{
          on = Identity(go) out = Shape(state) product = MatMul(state, w) s_ = Add(product, bias) {gelu("s_", "warm")}
          next = Concat<axis = 0>(state, warm) }}
      >
    }}"""
    taken = take(tmp_path, text, Given(values={"turns": (2, 1)}), **WEIGHTS)
    assert sorted(taken.ops("body of repeat")) == ["Concat", "Gelu", "Gemm", "Identity", "Shape"]
    for turns in (0, 1, 5):
        for rows in (1, 4, 9):
            assert taken.worst_error(x=numbers(rows, 6), turns=np.array(turns)) < 1e-4


def test_the_body_of_a_scan_is_fused(tmp_path: Path) -> None:
    text = f"""
    g (float[length,rows,6] x, float[rows,6] first) => (float[rows,6] y, float[length,rows,6] all) {{
      [walk] y, all = Scan<num_scan_inputs = 1, scan_input_directions = [1],
        body = b (float[rows,6] state, float[rows,6] at) => (float[rows,6] next, float[rows,6] out) {{
          kept = Tanh(state) both = Add(kept, at) product = MatMul(both, w) s_ = Add(product, bias) {gelu("s_", "next")}
          {norm("both", "out").replace("one =", "unit =")} }}
      >(first, x)
    }}"""
    taken = take(tmp_path, text, **WEIGHTS)
    assert sorted(taken.ops("body of walk")) == ["Add", "Gelu", "Gemm", "LayerNormalization", "Tanh"]
    for length in (1, 2, 30):
        assert taken.worst_error(x=numbers(length, 5, 6), first=numbers(5, 6, seed=8)) < 1e-4


def test_a_loop_inside_of_a_branch_is_fused(tmp_path: Path) -> None:
    text = f"""
    g (float[rows,6] x, bool loud) => (float[rows,6] y) {{
      [choice] y = If(loud) <
        then_branch = t () => (float[rows,6] a) {{
          yes = Constant<value = bool {{1}}>() three = Constant<value = int64 {{3}}>() q_ = Relu(x)
          [repeat] a = Loop(three, yes, q_) <
            body = b (int64 i, bool go, float[rows,6] state) => (bool on, float[rows,6] next) {{
              on = Identity(go) product = MatMul(state, w) m = Add(product, bias) s_ = Add(m, q_)
              {gelu("s_", "next")} }}
          > }},
        else_branch = e () => (float[rows,6] a) {{ b = Sin(x) a = Cos(b) }}
      >
    }}"""
    taken = take(tmp_path, text, **WEIGHTS)
    assert sorted(taken.ops("body of repeat")) == ["Add", "Gelu", "Gemm", "Identity"]
    for loud in (True, False):
        assert taken.worst_error(x=numbers(13, 6), loud=np.array(loud)) < 1e-4


@pytest.mark.parametrize("first", [3, 200, 700])
def test_a_cut_inside_of_a_branch_is_no_whole(tmp_path: Path, first: int) -> None:
    """The first rows of an open axis are all of them in short inputs alone."""
    text = """
    g (float[rows,6] x, bool loud) => (float[rows,6] y, int64[2] size) {
      [choice] y, size = If(loud) <
        then_branch = t () => (float[rows,6] a, int64[2] b) {
          begin = Constant<value_ints = [0]>() end = Constant<value_ints = [FIRST]>()
          axes = Constant<value_ints = [0]>() last = Constant<value_ints = [9223372036854775807]>()
          head = Slice(x, begin, end, axes) tail = Slice(x, end, last, axes)
          warm = Relu(head) a = Concat<axis = 0>(warm, tail) b = Shape(warm) },
        else_branch = e () => (float[rows,6] a, int64[2] b) { s = Sin(x) a = Cos(s) b = Shape(s) }
      >
    }""".replace("FIRST", str(first))
    taken = take(tmp_path, text)
    for rows in (1, first - 1, first, first + 1, first + 50):
        for loud in (True, False):
            assert taken.worst_error(x=numbers(rows, 6), loud=np.array(loud)) == 0


def test_an_axis_that_ends_in_one_branch_goes_on_in_the_other(tmp_path: Path) -> None:
    """The table has 40 rows, and is added to inputs of as many at most: that says nothing of the cut behind the If."""
    text = """
    g (float[rows,6] x) => (float[rows,6] y, int64[1] size) {
      shape = Shape(x) zero = Constant<value_ints = [0]>() n = Gather(shape, zero)
      limit = Constant<value_ints = [40]>() short = LessOrEqual(n, limit)
      [choice] y = If(short) <
        then_branch = t () => (float[rows,6] a) { part = Slice(table, zero, n, zero) b = Add(x, part) a = Relu(b) },
        else_branch = e () => (float[rows,6] a) { b = Neg(x) a = Relu(b) }
      >
      far = Constant<value_ints = [50]>() z = Slice(x, zero, far, zero) warm = Relu(z)
      all = Shape(warm) size = Gather(all, zero)
    }"""
    taken = take(tmp_path, text, table=numbers(40, 6))
    for rows in (1, 39, 40, 41, 50, 51, 700):
        assert taken.worst_error(x=numbers(rows, 6)) == 0


def test_a_branch_that_no_input_takes_is_left_as_it_is(tmp_path: Path) -> None:
    text = f"""
    g (float[rows,6] x, int64 mode) => (float[rows,6] y) {{
      limit = Constant<value = int64 {{3}}>() many = Greater(mode, limit)
      [choice] y = If(many) <
        then_branch = t () => (float[rows,6] a) {{ r_ = Relu(x) {norm("r_", "a")} }},
        else_branch = e () => (float[rows,6] a) {{ r_ = Abs(x) {norm("r_", "a")} }}
      >
    }}"""
    taken = take(tmp_path, text, Given(values={"mode": (2,)}), **WEIGHTS)
    assert "Sqrt" in taken.ops("then of choice")
    assert taken.ops("else of choice") == ["Abs", "LayerNormalization"]
    assert not taken.applied("then of choice")


def test_a_branch_inside_that_no_input_takes_is_named(tmp_path: Path) -> None:
    text = NESTED.replace("(float[rows,6] x, bool loud, bool deep)", "(float[rows,6] x, bool loud, int64 mode)")
    text = text.replace("r_ = Relu(x)", "r_ = Relu(x) limit = Constant<value = int64 {3}>() deep = Less(mode, limit)")
    taken = take(tmp_path, text, Given(values={"mode": (2,)}), **WEIGHTS)
    assert taken.ops("then of inner") == ["Gemm", "Gelu"]
    assert "Sqrt" in taken.ops("else of inner")
    assert any("else of inner in then of outer" in note and "--value" in note for note in taken.ledger.notes)


def test_passes_that_lower_work_inside(tmp_path: Path) -> None:
    text = f"""
    g (float[b,s,6] x, bool loud) => (float[b,s,6] y) {{
      [choice] y = If(loud) <
        then_branch = t () => (float[b,s,6] a) {{ r_ = Abs(x) p = MatMul(r_, w) s_ = Add(p, bias) {gelu("s_", "a")} }},
        else_branch = e () => (float[b,s,6] a) {{ s = Sin(x) a = Cos(s) }}
      >
    }}"""
    taken = take(tmp_path, text, target="cpu", **WEIGHTS)
    assert {entry.stage for entry in taken.ledger.entries if entry.where and entry.applied} >= {"fuse", "lower/cpu"}
    for loud in (True, False):
        assert taken.worst_error(x=numbers(3, 19, 6), loud=np.array(loud)) < 1e-5


def test_inputs_of_the_proof_are_the_smallest_and_meet_every_combination_of_values(tmp_path: Path) -> None:
    """Eleven modes: as many inputs as these take, and no long row among them."""
    text = """
    g (float[rows,6] x, int64 mode) => (float[rows,6] y) {
      limit = Constant<value = int64 {3}>() many = Greater(mode, limit)
      [choice] y = If(many) <
        then_branch = t () => (float[rows,6] a) { a = Relu(x) },
        else_branch = e () => (float[rows,6] a) { a = Neg(x) }
      >
    }"""
    write(tmp_path, text)
    loaded = load_onnx(tmp_path / "m.onnx", given=Given(values={"mode": tuple(range(11))}))
    cases = [({"rows": 900 - rows}, "none") for rows in range(40)]
    made = others_of(loaded, cases, SEED)  # type: ignore[arg-type]  # the literal is one of the paddings
    assert {int(one.feeds["mode"]) for one in made} == set(range(11))
    assert len(made) == 11
    assert sorted(one.sizes["rows"] for one in made)[:8] == [861, 862, 863, 864, 865, 866, 867, 868]
