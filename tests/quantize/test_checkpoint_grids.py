"""Grids of GGUF files: the codes of a kernel stand for the file's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.graph.linears import find_linears
from onnxopt.qmath.blocks import dequantize, quantize, sqnr_db
from onnxopt.quantize.checkpoint_grids import known_grids
from onnxopt.spec import Array
from tests.support.rules import parse

gguf = pytest.importorskip("gguf")
TEXT = "g (float[rows,96] x) => (float[rows,40] y) { y = MatMul(x, w) }"


def written(path: Path, kind: str, weight: Array) -> Array:
    """Write a float32 [out, in] weight and return the numbers that the file holds."""
    quantized = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(weight, quantized)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.attn_q.weight", data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return np.asarray(gguf.quants.dequantize(data, quantized), np.float32)


def weight(seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal((40, 96)) * 0.1).astype(np.float32)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q5_0", 8), ("Q8_0", 8)])
def test_grids_around_zero_come_back_exactly(kind: str, bits: int, tmp_path: Path) -> None:
    restored = written(tmp_path / "m.gguf", kind, weight())
    moved = restored[np.random.default_rng(1).permutation(40)]  # as importers move rotary halves
    (grid,) = known_grids(tmp_path / "m.gguf", find_linears(parse(TEXT, {"w": moved.T}))).values()
    assert (grid.kind, grid.exact, grid.blocks.bits, grid.blocks.block_size) == (kind, True, bits, 32)
    assert grid.blocks.zero_points is None
    np.testing.assert_array_equal(dequantize(grid.blocks), moved.T)


@pytest.mark.parametrize(("kind", "steps"), [("Q4_1", 17), ("Q5_1", 8)])
def test_grids_with_a_minimum_are_held_in_finer_steps(kind: str, steps: int, tmp_path: Path) -> None:
    restored = written(tmp_path / "m.gguf", kind, weight())
    (grid,) = known_grids(tmp_path / "m.gguf", find_linears(parse(TEXT, {"w": restored.T}))).values()
    assert (grid.kind, grid.exact, grid.blocks.bits) == (kind, False, 8)
    step = np.repeat(grid.blocks.scales, 32, axis=1).T * steps
    assert (np.abs(dequantize(grid.blocks) - restored.T) <= step / steps / 2 * 1.001).all()
    # as near as 8 bits get; 4 bits with whole zero points lose as much as rounding the original did
    again = sqnr_db(restored.T, dequantize(quantize(restored.T, 4, 32, symmetric=False)))
    assert sqnr_db(restored.T, dequantize(grid.blocks)) > max(again + 15, 38)


def test_blocks_on_one_side_of_zero_are_rounded(tmp_path: Path) -> None:
    restored = written(tmp_path / "m.gguf", "Q4_1", weight() * 0.01 + 3)
    (grid,) = known_grids(tmp_path / "m.gguf", find_linears(parse(TEXT, {"w": restored.T}))).values()
    assert np.abs(dequantize(grid.blocks) - restored.T).max() < 3 / 255


def test_weights_of_another_model_are_not_taken(tmp_path: Path) -> None:
    restored = written(tmp_path / "m.gguf", "Q8_0", weight())
    other = restored.copy()
    other[7, 7] += 1e-3
    assert known_grids(tmp_path / "m.gguf", find_linears(parse(TEXT, {"w": other.T}))) == {}
    written(tmp_path / "f.gguf", "F16", weight())
    assert known_grids(tmp_path / "f.gguf", find_linears(parse(TEXT, {"w": restored.T}))) == {}


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(InputError, match="no GGUF file"):
        known_grids(tmp_path / "m.gguf", find_linears(parse(TEXT, {"w": weight().T})))
