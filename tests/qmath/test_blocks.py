"""Grids in blocks: what they can hold, what they round to, and how far a search gets against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.qmath.blocks import METHODS, dequantize, fit, pack, quantize, size_bytes, split, sqnr_db, unpack


def weight(rows: int = 96, columns: int = 24, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_stays_within_half_a_step(bits: int, block: int, *, symmetric: bool) -> None:
    w = weight()
    made = quantize(w, bits, block, symmetric=symmetric)
    steps = np.repeat(np.abs(made.scales), block, axis=1)[:, : len(w)].T
    off = np.abs(dequantize(made) - w)
    # a grid with an even number of codes has one step less on its shorter side; zero points are rounded too
    assert (off <= steps * (1.0 + 1e-5)).all()
    assert np.mean(off <= steps * 0.5001) > 0.9
    assert made.codes.shape == (24, 96)
    assert made.codes.max() < 1 << bits
    assert made.scales.shape == (24, -(-96 // block))
    assert (made.zero_points is None) == symmetric


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_element_of_a_block_lies_on_a_symmetric_grid(bits: int) -> None:
    w = weight()
    made = dequantize(quantize(w, bits, 32))
    for column, block in itertools.product(range(24), range(3)):
        own = w[block * 32 : block * 32 + 32, column]
        place = int(np.abs(own).argmax())
        np.testing.assert_allclose(made[block * 32 + place, column], own[place], rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_numbers_on_a_grid_come_back(*, symmetric: bool) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 16, (64, 8)).astype(np.float32)
    codes[::32], codes[1::32] = 0, 15
    zero = 8 if symmetric else 3
    w = ((codes - zero) * np.float32(0.25)).astype(np.float32)
    for method in METHODS[: 2 if symmetric else 3]:
        np.testing.assert_array_equal(dequantize(quantize(w, 4, 32, symmetric=symmetric, method=method)), w)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_search_comes_near_brute_force(*, symmetric: bool, weighted: bool) -> None:
    generator = np.random.default_rng(1)
    blocks = generator.standard_t(4, (40, 32)).astype(np.float32)
    h = generator.uniform(0.1, 4, 32).astype(np.float32) if weighted else np.ones(32, np.float32)
    scales, zeros = fit(blocks, 4, symmetric=symmetric, method="mse", importance=h)
    found = _error(blocks, scales, zeros, h)
    steps = np.linspace(0.02, 0.16, 281) * np.abs(blocks).max(-1, keepdims=True)
    tries = [
        _error(blocks, sign * steps[:, index], np.full(len(blocks), zero, np.float32), h)
        for index in range(steps.shape[1])
        for sign in ((1, -1) if symmetric else (1,))
        for zero in ((8,) if symmetric else range(16))
    ]
    best = np.min(tries, axis=0)
    assert np.mean(found / best) < 1.06
    rtn = _error(blocks, *fit(blocks, 4, symmetric=symmetric), h)
    assert (found <= rtn * 1.00001).all()
    assert found.sum() < 0.95 * rtn.sum()


def _error(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, h: np.ndarray) -> np.ndarray:
    codes = np.clip(np.rint(blocks / scales[:, None] + zeros[:, None]), 0, 15)
    squares: np.ndarray = np.square(blocks - scales[:, None] * (codes - zeros[:, None]))
    return np.asarray((h * squares).sum(-1))


def test_hqq_lowers_the_norm_it_is_made_for() -> None:
    w = weight(256, 64, seed=3)
    plain, moved = (dequantize(quantize(w, 4, 64, symmetric=False, method=name)) for name in ("rtn", "hqq"))
    assert (np.abs(w - moved) ** 0.7).sum() < 0.97 * (np.abs(w - plain) ** 0.7).sum()


def test_inputs_of_large_moment_are_kept_better() -> None:
    w = weight(64, 64, seed=5)
    moment = np.where(np.arange(64) % 8 == 0, 100.0, 1.0).astype(np.float32)
    known, unknown = (quantize(w, 4, 32, method="mse", moment=one) for one in (moment, None))
    assert sqnr_db(w, dequantize(known), moment) > sqnr_db(w, dequantize(unknown), moment) + 0.5


def test_more_bits_and_smaller_blocks_lose_less() -> None:
    w = weight(512, 32)
    found = [sqnr_db(w, dequantize(quantize(w, bits, block))) for bits, block in ((4, 256), (4, 128), (4, 32), (8, 32))]
    assert found == sorted(found)
    assert found[-1] > 40


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_single_elements_survive(*, symmetric: bool) -> None:
    w = np.zeros((40, 3), np.float32)
    w[7, 1], w[39, 2] = 3.0, -1e-3
    for method in METHODS[: 2 if symmetric else 3]:
        made = dequantize(quantize(w, 4, 16, symmetric=symmetric, method=method))
        np.testing.assert_allclose(made, w, rtol=1e-6)


@pytest.mark.parametrize(
    ("bits", "block", "wrong"), [(3, 32, "3 bits"), (4, 48, "block of 48"), (4, 8, "block of 8"), (8, 512, "of 512")]
)
def test_grids_that_no_kernel_reads_are_refused(bits: int, block: int, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        quantize(weight(), bits, block)


def test_nan_is_refused_and_hqq_needs_zero_points() -> None:
    broken = weight()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        quantize(broken, 4, 32)
    with pytest.raises(ValueError, match="zero points"):
        quantize(weight(), 4, 32, method="hqq")


@given(st.integers(1, 70), st.sampled_from([4, 8]))
@settings(max_examples=30, deadline=None)
def test_packing_comes_back(count: int, bits: int) -> None:
    codes = np.random.default_rng(count).integers(0, 1 << bits, (3, count)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.shape[-1] == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, count), codes)


def test_sizes_count_padding() -> None:
    made = quantize(weight(100, 8), 4, 32, symmetric=False)
    assert size_bytes(made) == 8 * 4 * 16 + 8 * 4 * 4 + 8 * 2
    assert split(np.ones((2, 33), np.float32), 32).shape == (2, 2, 32)


def test_the_ratio_counts_inputs_by_their_moment() -> None:
    w, off = np.ones((2, 1), np.float32), np.array([[1.0], [0.9]], np.float32)
    assert abs(sqnr_db(w, off) - 10 * np.log10(2 / 0.01)) < 1e-4
    assert abs(sqnr_db(w, off, np.array([3.0, 1.0])) - 10 * np.log10(4 / 0.01)) < 1e-4
    assert abs(sqnr_db(w, off, np.diag([3.0, 1.0])) - 10 * np.log10(4 / 0.01)) < 1e-4
    assert sqnr_db(w, w) == float("inf")
