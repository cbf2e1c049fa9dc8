"""Formulas of pruning against their definitions, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.prune.graph.zeros import smallest_gone, two_of_four
from onnxopt.prune.selection import (
    RIDGE,
    Moments,
    activation,
    allocate,
    choose,
    left_error,
    magnitude,
    refit,
    removal_errors,
    transfer,
)

RNG = np.random.default_rng(3)


def correlated(rows: int = 4000, size: int = 12, hidden: int = 5) -> np.ndarray:
    """Inputs whose entries are mixtures of a few others, about a mean that is not zero."""
    mixed = RNG.normal(size=(rows, hidden)) @ RNG.normal(size=(hidden, size))
    return (mixed + 0.05 * RNG.normal(size=(rows, size)) + 1.5).astype(np.float32)


def moments(x: np.ndarray) -> Moments:
    found = Moments(x.shape[1])
    for part in np.array_split(x, 3):
        found.add(part)
    return found


def test_moments_are_those_of_the_rows() -> None:
    x = correlated()
    found = moments(x).matrix(centred=True)
    expected = np.cov(x.T.astype(np.float64), bias=True)
    expected[np.diag_indices(12)] += RIDGE * np.trace(expected) / 12
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_refit_is_least_squares(*, bias: bool) -> None:
    x, weight = correlated(), RNG.normal(size=(12, 4)).astype(np.float32)
    shift = RNG.normal(size=4).astype(np.float32) if bias else None
    kept = np.array([0, 1, 3, 5, 6, 8, 11])
    fitted, moved = refit(weight, shift, moments(x), kept)
    wanted = x @ weight + (shift if shift is not None else 0)
    columns = np.hstack([x[:, kept], np.ones((len(x), 1))]) if bias else x[:, kept]
    best, *_ = np.linalg.lstsq(columns.astype(np.float64), wanted.astype(np.float64), rcond=None)
    ours = x[:, kept] @ fitted + (moved if moved is not None else 0)
    least = np.square(columns @ best - wanted).mean()
    assert np.square(ours - wanted).mean() < 1.1 * least + 1e-3
    assert np.square(x[:, kept] @ weight[kept] + (shift if bias else 0) - wanted).mean() > 20 * least


def test_a_refit_and_a_transfer_are_the_same() -> None:
    x, weight = correlated(), RNG.normal(size=(12, 4))
    kept, gone = np.arange(8), np.arange(8, 12)
    fitted, _ = refit(weight, np.zeros(4), moments(x), kept)
    share, _ = transfer(moments(x), kept, gone, centred=True)
    np.testing.assert_allclose(fitted, weight[kept] + share @ weight[gone], rtol=0.05, atol=0.05)


def test_the_error_of_a_removal_is_that_of_the_refit() -> None:
    x, weight = correlated(), RNG.normal(size=(12, 4))
    found = removal_errors(weight, moments(x))
    scale = float(np.sum(weight * (moments(x).matrix(centred=True) @ weight)))
    for member in range(12):
        kept = np.setdiff1d(np.arange(12), [member])
        expected = left_error(weight, moments(x), kept, centred=True, fitted=True) * scale
        assert found[member] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("unit", [1, 3])
def test_what_can_be_told_from_the_rest_goes_first(unit: int) -> None:
    x = RNG.normal(size=(3000, 12)).astype(np.float32)
    x[:, 3:6] = x[:, 6:9] @ RNG.normal(size=(3, 3)) * 10  # large, and told by others
    weight = np.ones((12, 2), np.float32)
    common: dict[str, Any] = {"slices": [weight], "weight": weight, "moments": moments(x), "unit": unit}
    gone = np.setdiff1d(np.arange(12 // unit), choose("error", 3 // unit, **common))
    assert set(gone) <= ({3, 4, 5, 6, 7, 8} if unit == 1 else {1, 2})
    kept = choose("activation", 3 // unit, **common)
    assert set(range(3, 6)) <= set(kept) if unit == 1 else 1 in kept


def test_scores_are_norms() -> None:
    weight, other = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 5))
    expected = np.sqrt(np.square(weight).sum(1) + np.square(other).sum(1)).reshape(2, 2)
    np.testing.assert_allclose(magnitude([weight, other], 2), np.sqrt(np.square(expected).sum(1)))
    x = correlated(size=4)
    power = np.square(x).mean(0) * np.square(weight).sum(1)
    np.testing.assert_allclose(activation(weight, moments(x)), np.sqrt(power), rtol=1e-4)


def test_a_budget_goes_where_it_costs_least() -> None:
    cheap, dear = [0.0, 0.01, 0.03, 0.3], [0.0, 0.2, 0.5, 0.9]
    sizes = [[0, 8, 16, 24]] * 2
    assert allocate([cheap, dear], sizes, 16) == [2, 0]
    assert allocate([cheap, dear], sizes, 24) == [2, 1]
    assert allocate([cheap, dear], sizes, 1000) == [3, 3]


def test_zeros_are_the_smallest() -> None:
    array = RNG.normal(size=(16, 8)).astype(np.float32)
    half = smallest_gone(array, 0.5)
    assert np.count_nonzero(half) == 64
    assert np.abs(array[half == 0]).max() <= np.abs(half[half != 0]).min()
    for axis in (0, 1):
        fours = two_of_four(array, axis)
        assert fours is not None
        moved = np.moveaxis(fours, axis, -1).reshape(-1, 4)
        assert (np.count_nonzero(moved, axis=1) == 2).all()
        whole = np.moveaxis(array, axis, -1).reshape(-1, 4)
        assert (np.abs(moved).sum(1) >= np.sort(np.abs(whole), axis=1)[:, 2:].sum(1) - 1e-5).all()
    assert two_of_four(np.ones((6, 4)), 0) is None
