"""What a contract forgives: rounding, row by row, and what roundings become; nothing of a mask, nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import region
from onnxopt.proof.contract import MOST_WIDENING, Verdict, by_rows, compare, is_switch, mask_inputs, noise_like, shaken
from onnxopt.spec import Array, Exact, Lossy, Reassociated
from tests.support.rules import Constant, parse

CONTRACT = Reassociated(rtol=2e-5, atol=2e-6)
LOWEST = float(np.finfo(np.float32).min)


def judged(old: Array, new: Array, moved: Array | None = None) -> Verdict:
    return compare(CONTRACT, [old], [new], 0.0, {}, moved=None if moved is None else [moved])


def value(name: str) -> ir.Value:
    return ir.Value(name=name)


def test_a_small_row_is_held_to_its_own_size() -> None:
    """One row of 1000 and one of 1: an error of 1e-3 is nothing to the tensor, and a lot to the second."""
    old = np.array([[1000.0, -500.0], [1.0, 0.5]], np.float32)
    far, near = old.copy(), old.copy()
    far[1, 0] += 1e-3
    near[0, 0] += 1e-3
    assert judged(old, far).reason
    assert not judged(old, near).reason


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4, 1), (1, 1, 12)])
def test_rows_are_vectors_along_the_last_axis_longer_than_one(shape: tuple[int, ...]) -> None:
    reference = np.arange(1.0, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    moved = reference.copy()
    moved.reshape(-1)[-1] += 3
    rows = by_rows(moved, reference)
    width = next(size for size in reversed(shape) if size > 1)
    assert len(rows.moved) == reference.size // width
    assert (rows.moved[-1], rows.moved[:-1].sum()) == (3, 0)
    np.testing.assert_array_equal(rows.size, reference.reshape(-1, width).max(axis=1))


def test_where_nan_and_infinities_lie_counts() -> None:
    old = np.array([[1.0, np.nan], [np.inf, 1.0], [-np.inf, 2.0]], np.float32)
    assert not judged(old, old.copy()).reason
    for place, other in (((0, 1), 1.0), ((1, 0), -np.inf), ((2, 0), np.nan), ((0, 0), np.nan), ((1, 1), np.inf)):
        new = old.copy()
        new[place] = other
        assert judged(old, new).reason, place
        assert np.isinf(by_rows(new, old).moved).sum() == 1


def test_what_roundings_become_widens_the_row_that_they_move_and_no_other() -> None:
    old = np.ones((2, 4), np.float32)
    new = old + np.float32(1e-4)
    assert judged(old, new).reason
    assert not judged(old, new, np.array([1e-4, 1e-4])).reason
    assert judged(old, new, np.array([1e-4, 0.0])).reason


@pytest.mark.parametrize("moved", [1.0, 1e30])
def test_widening_ends_at_a_multiple_of_the_contract(moved: float) -> None:
    old = np.ones((1, 4), np.float32)
    most = MOST_WIDENING * (CONTRACT.atol + CONTRACT.rtol)
    assert not judged(old, old + np.float32(0.9 * most), np.array([moved])).reason
    assert judged(old, old + np.float32(1.2 * most), np.array([moved])).reason


@pytest.mark.parametrize("moved", [np.inf, np.nan])
def test_a_row_that_roundings_make_infinite_is_not_widened(moved: float) -> None:
    old = np.ones((1, 4), np.float32)
    assert judged(old, old + np.float32(1e-4), np.array([moved])).reason


def test_half_precision_is_held_to_its_own_roundings() -> None:
    for dtype, near, far in ((np.float16, 2.0**-10, 2.0**-7), (ml_dtypes.bfloat16, 2.0**-7, 2.0**-4)):
        old = np.ones((2, 4), np.float32)
        assert not judged(old.astype(dtype), (old + near).astype(dtype)).reason
        assert judged(old.astype(dtype), (old + far).astype(dtype)).reason


def test_tensors_of_no_size_are_equal() -> None:
    empty = np.zeros((0, 4), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for numerics in (CONTRACT, Exact(), Lossy("sqnr_db", 30.0)):
            assert not compare(numerics, [empty], [empty.copy()], 0.0, {}).reason
        assert judged(empty, np.zeros((4, 0), np.float32)).reason
        key = value("x")
        assert noise_like({key: empty}, 1.0, 0)[key] is empty
        assert shaken({key: empty}, (), 0)[key].shape == (0, 4)


def test_another_type_or_shape_is_refuted_under_every_contract() -> None:
    old = np.ones((2, 2), np.float32)
    for numerics in (CONTRACT, Exact(), Lossy("sqnr_db", 30.0)):
        for new in (old.astype(np.float64), old[:1], old.astype(np.int64)):
            assert compare(numerics, [old], [new], 0.0, {}).reason


DECIDING = {
    "0 and 1": np.array([0.0, 1.0, 1.0]),
    "0 and -10000": np.array([0.0, -10000.0]),
    "0 and finfo.min": np.array([0.0, LOWEST]),
    "0 and -inf": np.array([0.0, -np.inf]),
    "lengths": np.array([7.0, 131.0, 4.0]),
    "2 and -1": np.array([2.0, -1.0]),
    "nothing but zeros": np.zeros(4),
}


@pytest.mark.parametrize("array", DECIDING.values(), ids=DECIDING.keys())
def test_what_decides_is_neither_moved_nor_drawn(array: Array) -> None:
    given = {value("m"): array.astype(np.float32)}
    assert is_switch(array)
    for found in (shaken(given, (), 0), noise_like(given, 1.0, 0)):
        for key, kept in found.items():
            np.testing.assert_array_equal(kept, given[key])


def test_a_bias_moves_and_what_it_hides_does_not() -> None:
    bias = np.array([[0.25, -0.5, LOWEST, -10000.3, -np.inf]], np.float32)
    (found,) = shaken({value("bias"): bias}, (), 0).values()
    np.testing.assert_array_equal((found != bias)[0], [True, True, False, False, False])
    (drawn,) = noise_like({value("bias"): bias}, 1.0, 0).values()
    np.testing.assert_array_equal(drawn, bias)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_activations_move_by_two_units_of_their_own_precision(dtype: type) -> None:
    before: Array = np.random.default_rng(0).standard_normal((64, 64)).astype(dtype)
    (after,) = shaken({value("x"): before}, (), 0).values()
    assert after.dtype == before.dtype
    unit = {2: 2.0**-7 if dtype is ml_dtypes.bfloat16 else 2.0**-10}.get(before.dtype.itemsize, 2.0**-23)
    moved = np.abs(after.astype(np.float64) - before.astype(np.float64)) / np.abs(before.astype(np.float64))
    assert 0.5 * unit < moved.max() < 3.1 * unit


def test_a_single_number_is_no_activation_to_draw_anew() -> None:
    """A threshold, a factor, a length."""
    given = {value("threshold"): np.array(0.37, np.float32), value("factor"): np.array([[1.7]], np.float32)}
    assert list(noise_like(given, 10.0, 0).values()) == list(given.values())


Given = dict[ir.Value, Array]


def test_noise_follows_names_and_not_the_order_of_inputs() -> None:
    arrays = {name: np.random.default_rng(ord(name)).standard_normal(8).astype(np.float32) for name in "abc"}
    keys = {name: value(name) for name in arrays}
    for order in ("abc", "cab"):
        given = {keys[name]: arrays[name] for name in order}
        makers: tuple[Callable[[Given], Given], ...] = (
            lambda values: noise_like(values, 1.0, 3),
            lambda values: shaken(values, (), 3),
        )
        for make in makers:
            expected = make({keys["b"]: arrays["b"]})[keys["b"]]
            np.testing.assert_array_equal(make(given)[keys["b"]], expected)


ROLES = {
    "multiplied by finfo.min": "i = Sub(one, m) a = Mul(i, lowest) s = Add(x, a) y = Softmax(s)",
    "divided by a tiny mask number": "i = Sub(one, m) a = Div(i, lowest) s = Add(x, a) y = Softmax(s)",
    "choosing a mask number": "c = Less(m, half) s = Where(c, ten_thousand, x) y = Softmax(s)",
    "the mask of an attention": "y = Attention<q_num_heads=1, kv_num_heads=1>(x, x, x, m)",
}


@pytest.mark.parametrize("body", ROLES.values(), ids=ROLES.keys())
def test_a_mask_is_known_by_what_is_done_to_it(body: str) -> None:
    numbers = {"one": 1.0, "half": 0.5, "lowest": LOWEST, "ten_thousand": -1e4}
    weights: dict[str, Constant] = {name: np.float32(number) for name, number in numbers.items() if name in body}
    model = parse(f"g (float[1,4,4] x, float[4,4] m) => (float y) {{ {body} }}", weights)
    nodes = list(model.graph)
    found = mask_inputs([region(nodes, nodes[-1].outputs)])
    assert [one.name for one in found] == ["m"]


def test_activations_are_no_masks() -> None:
    body = "p = MatMul(x, m) s = Mul(p, half) w = Softmax(s) y = MatMul(w, x)"
    model = parse(f"g (float[1,4,4] x, float[4,4] m) => (float y) {{ {body} }}", {"half": np.float32(0.5)})
    nodes = list(model.graph)
    assert mask_inputs([region(nodes, nodes[-1].outputs)]) == []
