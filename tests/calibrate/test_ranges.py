"""Each calibrator does what its name says, and the best of them is chosen on rows that none has seen.

Covers: qmath/affine.py
"""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.calibrate.ranges import METHODS, choose, methods_of, ranges
from onnxopt.calibrate.statistics import Statistics
from onnxopt.errors import InputError
from onnxopt.qmath.affine import asymmetric, columns, quantize, rounded
from onnxopt.qmath.precision import Scheme
from onnxopt.spec import Array


def watched(x: Array) -> Statistics:
    found = Statistics(x.shape[-1])
    for part in np.array_split(x, 10):
        found.add(part)
    return found


def normal(count: int = 20_000, outliers: int = 0) -> Array:
    x = np.random.default_rng(1).standard_normal((count, 1)).astype(np.float32)
    x[:outliers] = 60.0
    return x


def test_min_max_covers_everything() -> None:
    x = normal(outliers=1)
    assert ranges(watched(x), "min-max") == [(float(x.min()), 60.0)]


@pytest.mark.parametrize("method", ["moving-average", "percentile", "mse"])
def test_the_others_do_not_let_one_outlier_take_the_grid(method: str) -> None:
    [(low, high), *_] = ranges(watched(normal(outliers=1)), method)  # type: ignore[arg-type]  # a name of a method
    assert low < -2.0
    assert 2.0 < high < 59.0


def test_entropy_keeps_the_range_of_a_uniform_tensor() -> None:
    x = np.random.default_rng(2).uniform(-1, 3, (20_000, 1)).astype(np.float32)
    [(low, high)] = ranges(watched(x), "entropy")
    assert -1.01 <= low <= -0.9
    assert 2.7 <= high <= 3.01


def test_least_squares_is_no_worse_than_min_max_on_what_it_has_seen() -> None:
    x = normal(outliers=3)
    found = watched(x)

    def error(low: float, high: float) -> float:
        scale, zero = asymmetric(low, high)
        return float(np.square(rounded(x, scale, zero) - x, dtype=np.float64).sum())

    assert error(*ranges(found, "mse")[0]) <= error(*ranges(found, "min-max")[0]) * 1.001


def test_the_choice_has_the_least_error_of_the_product_on_held_out_rows() -> None:
    x, other = normal(outliers=2), normal(400)[::-1].copy()
    weight = np.random.default_rng(3).standard_normal((1, 5)).astype(np.float32)
    found = watched(x)

    def error(low: float, high: float) -> float:
        scale, zero = asymmetric(low, high)
        return float(np.square((rounded(other, scale, zero) - other) @ weight, dtype=np.float64).sum())

    grid, method = choose(found, other, weight, METHODS)
    least = min(error(*pair) for one in METHODS for pair in ranges(found, one))
    assert method in METHODS
    assert error((0 - grid.zero_point) * grid.scale, (255 - grid.zero_point) * grid.scale) == pytest.approx(
        least, rel=0.2
    )


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 3.0), (-4.0, -1.0), (0.0, 0.0)])
def test_zero_is_exact_on_every_grid(low: float, high: float) -> None:
    scale, zero = asymmetric(low, high)
    assert 0 <= zero <= 255
    assert float(rounded(np.zeros(1, np.float32), scale, zero)[0]) == 0.0
    ends = rounded(np.array([low, high], np.float32), scale, zero)
    assert np.abs(ends - [low, high]).max() <= scale / 2 + 1e-6


def test_a_target_without_zero_points_gets_symmetric_int8() -> None:
    x = np.abs(normal(2_000))
    weight = np.ones((1, 1), np.float32)
    grid, _ = choose(watched(x), x[:100], weight, ("min-max",), scheme=Scheme(symmetric=True))
    assert (grid.dtype, grid.zero_point, grid.unsigned) == ("int8", 0, 128)
    assert grid.scale == pytest.approx(float(x.max()) / 127)


def test_columns_have_scales_of_their_own() -> None:
    weight = np.random.default_rng(4).standard_normal((64, 3)).astype(np.float32) * np.array([1, 100, 0.01], np.float32)
    codes, scales = columns(weight)
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    assert np.abs(codes * scales - weight).max(axis=0) == pytest.approx(scales / 2, rel=2.0)


def test_seven_bits_keep_pairs_of_products_inside_sixteen_bits() -> None:
    codes, _ = columns(np.random.default_rng(5).standard_normal((64, 8)).astype(np.float32), bits=7)
    assert 2 * 255 * int(np.abs(codes).max()) < 2**15


def test_a_column_of_zeros_stays_zero() -> None:
    codes, scales = columns(np.zeros((4, 2), np.float32))
    assert not codes.any()
    assert np.isfinite(scales).all()


def test_rounds_half_to_even_as_the_operator_does() -> None:
    assert quantize(np.array([0.5, 1.5, 2.5], np.float32), 1.0, 0, 0, 255).tolist() == [0, 2, 2]


def test_an_unknown_calibrator_is_refused() -> None:
    assert methods_of("mse") == ("mse",)
    with pytest.raises(InputError, match="unknown calibrator"):
        methods_of("median")
