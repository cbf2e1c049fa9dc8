from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.run import cost
from onnxopt.run.cost import MARGIN, Cost, elements_of, measure_cost, measure_whole, unknown_cost
from onnxopt.spec import Array, TensorSpec


class Fake:
    """A session whose runs take what a formula says, as `_peak` is told."""

    inputs = (TensorSpec("x", "int64", ("batch", "n")),)

    def __init__(self, taken: Any) -> None:
        self.taken, self.last = taken, 0.0

    def run(self, feeds: Mapping[str, Array], outputs: Any = None, *, shrink: bool = False) -> None:
        rows, length = feeds["x"].shape
        self.last = self.taken(rows, length)


@pytest.fixture
def _seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(session: Fake, feeds: Mapping[str, Array]) -> float:
        session.run(feeds)
        return session.last

    monkeypatch.setattr(cost, "_peak", peak)


def made(rows: int, length: int) -> dict[str, Array]:
    return {"x": np.ones((rows, length), np.int64)}


@pytest.mark.usefixtures("_seen")
@pytest.mark.parametrize(("linear", "square"), [(3000.0, 0.0), (3000.0, 7.0), (10.0, 40.0)])
@pytest.mark.parametrize("fixed", [0.0, 1e6])
def test_what_rows_take_is_found(linear: float, square: float, fixed: float) -> None:
    session: Any = Fake(lambda rows, n: fixed + rows * (linear * n + square * n * n))
    found = measure_cost(session, made, short=16, long=256)
    assert found.measured
    for length in (16, 100, 256, 2000):
        right = linear * length + square * length**2
        assert MARGIN * (right + fixed) * 0.99 <= found.run_bytes(1, length) <= MARGIN * (right + fixed) * 1.01 + 99


@pytest.mark.usefixtures("_seen")
def test_rows_of_one_length_are_weighed_as_they_are() -> None:
    session: Any = Fake(lambda rows, n: rows * 500.0 * n)
    assert measure_cost(session, made, short=9, long=9).run_bytes(1, 9) == pytest.approx(MARGIN * 4500, abs=9)
    assert measure_whole(session, made(1, 9)).run_bytes(1, 18) == pytest.approx(MARGIN * 9000, abs=9)


def test_where_nothing_runs_the_guess_is_a_large_one() -> None:
    def fails(rows: int, length: int) -> float:
        raise InputError("it does not run")

    session: Any = Fake(fails)
    assert measure_cost(session, made, short=1, long=8) == unknown_cost(session)
    assert measure_whole(session, made(1, 8)) == unknown_cost(session)
    assert not unknown_cost(session).measured


def test_budgets_become_rows_and_lengths() -> None:
    found = Cost(100.0, 2.0, 5000.0)
    assert found.rows_within(found.run_bytes(10, 50) + 1, 50) == 10
    assert found.rows_within(found.run_bytes(1, 50) - 2, 50) == 0
    assert found.rows_within(10, 50) == 0
    longest = found.elements_within(100_000)
    assert found.run_bytes(1, longest) <= 100_000 < found.run_bytes(1, longest + 1)
    assert elements_of({"a": np.ones((2, 5)), "b": np.ones((2, 3))}, 2) == 8
