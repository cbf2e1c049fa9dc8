"""Statistics over many batches are those of all rows at once, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.calibrate.statistics import BINS, KEPT_ROWS, Statistics
from onnxopt.spec import Array


def rows(count: int = 5000, channels: int = 7) -> Array:
    generator = np.random.default_rng(0)
    scales = 10.0 ** generator.uniform(-2, 2, channels)
    return (generator.standard_normal((count, channels)) * scales).astype(np.float32)


def seen(x: Array, *pieces: int, gram: bool = False) -> Statistics:
    found = Statistics(x.shape[-1], with_gram=gram)
    for part in np.split(x, np.cumsum(pieces)):
        found.add(part)
    return found


def test_pieces_give_what_the_whole_gives() -> None:
    x = rows()
    found = seen(x, 1, 700, 2000, gram=True)
    assert found.rows == len(x)
    np.testing.assert_array_equal(found.low, x.min(axis=0))
    np.testing.assert_array_equal(found.high, x.max(axis=0))
    np.testing.assert_allclose(found.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.moments, np.square(x, dtype=np.float64).mean(axis=0), rtol=1e-5)
    assert found.gram is not None
    np.testing.assert_allclose(found.gram, x.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-2)


def test_the_histogram_holds_every_value_when_its_range_grows() -> None:
    small, large = np.full((40, 1), 0.01, np.float32), np.full((2, 1), -90.0, np.float32)
    found = seen(np.concatenate([small, large]), 40)
    assert found.counts.sum() == 42
    assert found.counts[: BINS // 2].sum() == 2
    assert found.reach >= 90.0
    step = 2 * found.reach / BINS
    assert abs(float(found.centres[found.counts > 0][-1]) - 0.01) <= step


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 2**31))
def test_the_histogram_never_loses_a_value(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    found = Statistics(3)
    for size in sizes:
        found.add(generator.standard_normal((size, 3)) * 10.0 ** generator.uniform(-3, 3))
    assert found.counts.sum() == 3 * sum(sizes)


def test_the_sample_is_bounded_and_drawn_from_all_rows() -> None:
    x = np.arange(20_000, dtype=np.float32)[:, None]
    found = seen(x, *[500] * 39)
    assert found.sample.shape == (KEPT_ROWS, 1)
    assert len(np.unique(found.sample)) == KEPT_ROWS
    assert abs(float(found.sample.mean()) - 10_000) < 1_500


def test_memory_does_not_grow_with_the_samples() -> None:
    found = seen(rows(600, 32))
    size = sum(array.nbytes for array in vars(found).values() if isinstance(array, np.ndarray))
    for _ in range(20):
        found.add(rows(600, 32))
    assert size == sum(array.nbytes for array in vars(found).values() if isinstance(array, np.ndarray))


@pytest.mark.parametrize("shape", [(4, 5, 7), (20, 7), (2, 2, 5, 7)])
def test_the_last_axis_are_the_channels(shape: tuple[int, ...]) -> None:
    found = Statistics(7)
    found.add(np.ones(shape))
    assert (found.rows, found.largest) == (20, 1.0)
