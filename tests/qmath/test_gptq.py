"""GPTQ: better products than rounding, exact where nothing is correlated, safe with inputs never seen."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.qmath import gptq as gptq_module
from onnxopt.qmath.blocks import dequantize, quantize, sqnr_db
from onnxopt.qmath.gptq import Inputs, gptq


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
    made = gptq(w, Inputs.of(h, act_order=act_order), 4, block, symmetric=symmetric)
    assert made.codes.shape == rounded.codes.shape
    assert sqnr_db(w, dequantize(made), h) > sqnr_db(w, dequantize(rounded), h) + 3


def test_uncorrelated_inputs_leave_plain_rounding() -> None:
    w, _ = problem(64, 16)
    moment = np.linspace(1, 2, 64)
    made = gptq(w, Inputs.of(np.diag(moment)), 4, 32)
    expected = quantize(w, 4, 32, method="mse", moment=moment.astype(np.float32))
    np.testing.assert_allclose(dequantize(made), dequantize(expected), atol=1e-7)


def test_one_pair_of_inputs_is_rounded_as_the_formula_says() -> None:
    """With two inputs the second takes back what rounding the first did: eq. 2 of the paper by hand."""
    w = np.array([[0.33], [0.48]], np.float32)
    h = np.array([[2.0, 1.2], [1.2, 1.0]])
    made = gptq(w, Inputs.of(h, damping=1e-9), 4, 16)
    step = float(made.scales[0, 0])
    first = np.rint(0.33 / step) * step
    second = 0.48 - (first - 0.33) * h[0, 1] / h[1, 1]
    np.testing.assert_allclose(dequantize(made)[:, 0], [first, np.rint(second / step) * step], rtol=1e-5)


def test_inputs_never_seen_are_rounded_and_break_nothing() -> None:
    w, h = problem(64, 16)
    h[:, 5] = h[5, :] = 0
    made = dequantize(gptq(w, Inputs.of(h), 4, 32))
    assert np.isfinite(made).all()
    assert np.abs(made[5] - w[5]).max() < 0.05


def test_a_moment_of_few_samples_is_damped_until_it_works() -> None:
    w, _ = problem(64, 16)
    x = np.random.default_rng(0).standard_normal((3, 64))
    assert np.isfinite(dequantize(gptq(w, Inputs.of(x.T @ x), 4, 32))).all()


def test_the_moment_must_fit() -> None:
    w, h = problem(64, 16)
    with pytest.raises(ValueError, match="of 10 inputs; the weight has 64"):
        gptq(w, Inputs.of(h[:10, :10]), 4, 32)
    with pytest.raises(ValueError, match="not finite"):
        Inputs.of(h * np.nan)
    with pytest.raises(ValueError, match="not finite"):
        Inputs.of(h[:10])


def test_both_ways_to_the_factor_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, h = problem(700, 4)
    h[:, 5] = h[5, :] = 0
    inverted = Inputs.of(h)
    monkeypatch.setattr(gptq_module, "MOST_INVERTED", 64)
    turned = Inputs.of(h)
    np.testing.assert_array_equal(np.tril(turned.factor, -1), 0)
    np.testing.assert_allclose(turned.factor, inverted.factor, rtol=2e-3, atol=2e-4 * np.abs(inverted.factor).max())


def test_what_is_rounded_in_threads_is_what_is_rounded_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = problem(96, 2500)
    found = {}
    for threads in (1, 3):
        monkeypatch.setattr("onnxopt.host.threads.available_threads", lambda count=threads: count)
        found[threads] = gptq(w, Inputs.of(h), 4, 32)
    np.testing.assert_array_equal(found[1].codes, found[3].codes)
    np.testing.assert_array_equal(found[1].scales, found[3].scales)
