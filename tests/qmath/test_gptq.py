"""GPTQ: better products than rounding, exact where nothing is correlated, safe with inputs never seen."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.qmath.blocks import dequantize, quantize, sqnr_db
from onnxopt.qmath.gptq import gptq


def problem(rows: int = 160, columns: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and the second moment of correlated inputs."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((rows, rows // 4))
    x = generator.standard_normal((2000, rows // 4)) @ mixing.T + 0.3 * generator.standard_normal((2000, rows))
    return (generator.standard_normal((rows, columns)) * 0.05).astype(np.float32), x.T @ x / len(x)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 128, 256])
def test_products_come_out_better_than_by_rounding(block: int, *, symmetric: bool, act_order: bool) -> None:
    w, h = problem()
    rounded = quantize(w, 4, block, symmetric=symmetric, method="mse", moment=np.diag(h))
    made = gptq(w, h, 4, block, symmetric=symmetric, act_order=act_order)
    assert made.codes.shape == rounded.codes.shape
    assert sqnr_db(w, dequantize(made), h) > sqnr_db(w, dequantize(rounded), h) + 3


def test_uncorrelated_inputs_leave_plain_rounding() -> None:
    w, _ = problem(64, 16)
    moment = np.linspace(1, 2, 64)
    made = gptq(w, np.diag(moment), 4, 32)
    expected = quantize(w, 4, 32, method="mse", moment=moment.astype(np.float32))
    np.testing.assert_allclose(dequantize(made), dequantize(expected), atol=1e-7)


def test_one_pair_of_inputs_is_rounded_as_the_formula_says() -> None:
    """With two inputs the second takes back what rounding the first did: eq. 2 of the paper by hand."""
    w = np.array([[0.33], [0.48]], np.float32)
    h = np.array([[2.0, 1.2], [1.2, 1.0]])
    made = gptq(w, h, 4, 16, act_order=True, damping=1e-9)
    step = float(made.scales[0, 0])
    first = np.rint(0.33 / step) * step
    second = 0.48 - (first - 0.33) * h[0, 1] / h[1, 1]
    np.testing.assert_allclose(dequantize(made)[:, 0], [first, np.rint(second / step) * step], rtol=1e-5)


def test_inputs_never_seen_are_rounded_and_break_nothing() -> None:
    w, h = problem(64, 16)
    h[:, 5] = h[5, :] = 0
    made = dequantize(gptq(w, h, 4, 32))
    assert np.isfinite(made).all()
    assert np.abs(made[5] - w[5]).max() < 0.05


def test_a_moment_of_few_samples_is_damped_until_it_works() -> None:
    w, _ = problem(64, 16)
    x = np.random.default_rng(0).standard_normal((3, 64))
    assert np.isfinite(dequantize(gptq(w, x.T @ x, 4, 32))).all()


def test_the_moment_must_fit() -> None:
    w, h = problem(64, 16)
    with pytest.raises(ValueError, match="64 inputs"):
        gptq(w, h[:10, :10], 4, 32)
    with pytest.raises(ValueError, match="not finite"):
        gptq(w, h * np.nan, 4, 32)
