"""Terms of sizes are written in one way, and are what plain arithmetic gives.

Covers: sizes/check.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.sizes.check import Computation
from onnxopt.sizes.terms import (
    BOOL,
    INT,
    Number,
    Poly,
    Size,
    add,
    axis,
    broadcast,
    call,
    divide,
    exact_quotient,
    fresh,
    largest,
    modulo,
    multiply,
    not_negative,
    pos,
    smallest,
    subtract,
)

N, M, B = axis("n"), axis("m"), axis("b")
SIZES = {
    "n": np.array([0, 1, 2, 7, 199, 200, 201, 5000]),
    "m": np.array([3, 0, 1, 7, 1, 200, 9, 31]),
    "b": np.arange(8),
}


def values(number: Number) -> list[int]:
    return [int(one) for one in Computation(SIZES).of(number)]


def test_sums_and_products_are_written_in_one_way() -> None:
    assert multiply(add(N, 2), B) == add(multiply(B, N), multiply(2, B))
    assert subtract(add(N, M), M) == N
    assert subtract(N, N) == 0
    assert multiply(N, 0) == 0


@pytest.mark.parametrize("limit", [1, 5, 200, 2000])
def test_what_is_cut_off_and_what_is_left_are_everything(limit: int) -> None:
    first = smallest(N, limit)
    assert add(first, subtract(N, first)) == N
    assert subtract(N, first) == pos(subtract(N, limit))
    assert values(first) == [min(size, limit) for size in SIZES["n"]]


def test_signs_decide_what_they_can() -> None:
    assert largest(N, 0) == N
    assert smallest(N, add(N, 3)) == N
    assert pos(subtract(-1, N)) == 0
    assert not_negative(smallest(N, 5))
    assert not not_negative(subtract(N, 5))
    assert call("equal", BOOL, add(N, 1), 0) is False
    assert call("greater_equal", BOOL, N, 0) is True
    assert not isinstance(call("greater", BOOL, N, 2), bool)


def test_exact_quotients_are_found_by_form() -> None:
    total = add(N, M)
    assert exact_quotient(multiply(multiply(B, total), 12), multiply(B, 4)) == multiply(total, 3)
    assert exact_quotient(multiply(B, total), total) == B
    assert exact_quotient(N, 2) is None
    assert divide(multiply(N, 256), 256) == N
    assert modulo(multiply(N, 4), 2) == 0


def test_division_is_cut_towards_zero_as_the_runtime_does() -> None:
    assert values(divide(subtract(N, 5), 3)) == [int((size - 5) / 3) for size in SIZES["n"]]
    assert call("div", INT, -7, 2) == -3
    assert call("mod", INT, -7, 2) == 1


def test_dimensions_that_broadcast() -> None:
    assert broadcast(N, 1) == N
    assert broadcast(N, N) == N
    assert broadcast(N, 7) == 7
    assert broadcast(N, M) == broadcast(M, N) != N
    both = Computation(SIZES)
    found = both.of(broadcast(N, M))
    assert both.valid.tolist() == [False, True, True, True, True, True, False, False]
    assert found[both.valid].tolist() == [0, 2, 7, 199, 200]


def test_sizes_of_data_are_equal_to_nothing_but_themselves() -> None:
    found = fresh()
    assert subtract(found, found) == 0
    assert fresh() != found


def test_floats_are_computed_in_their_own_precision() -> None:
    wide = call("cast", "float32", N)
    blocks = call("ceil", "float32", call("div", "float32", wide, np.float32(512)))
    assert values(call("cast", INT, call("mul", "float32", blocks, np.float32(512)))) == [
        int(np.ceil(size / 512) * 512) for size in SIZES["n"]
    ]
    lost = call("cast", INT, call("cast", "float32", 2**24 + 1))
    assert lost == 2**24


_sizes = st.recursive(
    st.sampled_from([N, M, B, 0, 1, 2, 5, 200]),
    lambda inner: st.one_of(
        *(st.tuples(st.just(name), inner, inner) for name in ("add", "sub", "mul", "max", "min", "div"))
    ),
    max_leaves=6,
)


def built(tree: object) -> tuple[Size, np.ndarray]:
    """Return a term, and what plain arithmetic makes of the same tree."""
    if isinstance(tree, tuple):
        name, left, right = tree
        (first, one), (second, other) = built(left), built(right)
        plain = {
            "add": one + other,
            "sub": one - other,
            "mul": one * other,
            "max": np.maximum(one, other),
            "min": np.minimum(one, other),
            "div": np.trunc(one / np.where(other == 0, 1, other)).astype(np.int64) if name == "div" else one,
        }[name]
        made = call(name, INT, first, second)
        assert isinstance(made, (int, Poly))
        return made, plain
    return tree, Computation(SIZES).of(tree)  # type: ignore[return-value,arg-type]  # a leaf is a size


@given(_sizes)
def test_terms_are_what_plain_arithmetic_gives(tree: object) -> None:
    made, plain = built(tree)
    computation = Computation(SIZES)
    found = computation.of(made)
    valid = computation.valid & (np.abs(plain) < 2**40)
    if "div" not in repr(tree):
        assert np.array_equal(found[valid], plain[valid])
    else:  # a divisor of 0 anywhere is no size of the model, and simplification may have taken it away
        positive = valid & (SIZES["n"] > 0) & (SIZES["m"] > 0) & (SIZES["b"] > 0)
        assert found[positive].shape == plain[positive].shape
