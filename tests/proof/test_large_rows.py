"""Where a row is an image or seconds of sound, few are run: counted in elements, since seconds hang on a machine.

Covers: proof/observations.py
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.load.reference import OrtReference
from onnxopt.proof.observations import MAX_ELEMENTS, observations_of
from onnxopt.spec import AxisRange, Feeds
from tests.support.axes import load

ROWS_OF_LOADING = 32  # of runs that learn what an axis takes
LARGE = [(80, 800), (3, 224, 224), (2, 30000), (48000,)]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The elements of the inputs of every run of a file."""
    found: list[int] = []
    plain = OrtReference.run

    def run(self: OrtReference, feeds: Feeds, **options: Any) -> Feeds:
        found.append(sum(array.size for array in feeds.values()))
        return plain(self, feeds, **options)

    monkeypatch.setattr(OrtReference, "run", run)
    return found


def text_of(axis: str, row: tuple[int, ...]) -> str:
    axes = ",".join(map(str, (axis, *row)))
    return f"g (float[{axes}] x) => (float[{axes}] y) {{ y = Relu(x) }}"


@pytest.mark.parametrize("row", LARGE, ids=str)
@pytest.mark.parametrize("axis", ["batch", "s6", "frames", "n"])
def test_few_large_rows_are_run(axis: str, row: tuple[int, ...], tmp_path: Path, fed: list[int]) -> None:
    loaded = load(tmp_path, text_of(axis, row))
    assert sum(fed) <= ROWS_OF_LOADING * math.prod(row)
    assert loaded.range_of(loaded.signature.axes[0]) == AxisRange()
    fed.clear()
    observations = observations_of(loaded)
    assert sum(fed) == 3 * math.prod(row)
    assert [dict(one.sizes) for one in observations] == [{loaded.signature.axes[0]: size} for size in (2, 1)]


@pytest.mark.parametrize("row", [(8,), (3, 32, 32), (1000,)], ids=str)
def test_small_rows_are_looked_at_as_ever(row: tuple[int, ...], tmp_path: Path) -> None:
    loaded = load(tmp_path, text_of("frames", row))
    sizes = [one.sizes["frames"] for one in observations_of(loaded)]
    assert len(set(sizes)) == 4
    assert sum(sizes) * math.prod(row) <= MAX_ELEMENTS


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_multiple_of_large_rows_is_found_and_kept(step: int, tmp_path: Path) -> None:
    text = "g (float[clips,40000] x) => (float[k,m] y) { y = Reshape(x, shape) }"
    loaded = load(tmp_path, text, shape=np.array([-1, step * 40000], np.int64))
    assert loaded.range_of("clips") == AxisRange(step, step)
    sizes = [one.sizes["clips"] for one in observations_of(loaded)]
    assert len(set(sizes)) == 2
    assert all(size % step == 0 for size in sizes)


def test_rows_of_two_inputs_have_sizes_of_their_own(tmp_path: Path) -> None:
    text = """g (float[clips,40000] x, float[queries,40000] q) => (float[clips,queries] y) {
      turned = Transpose<perm = [1, 0]>(q) y = MatMul(x, turned) }"""
    loaded = load(tmp_path, text)
    sizes = [dict(one.sizes) for one in observations_of(loaded)]
    assert len(sizes) == 2
    for axis in loaded.signature.axes:
        assert len({one[axis] for one in sizes}) == 2
    assert all(len(set(one.values())) == 2 for one in sizes), "axes are told apart"


def test_every_kind_of_padding_is_looked_at_however_large_rows_are(tmp_path: Path) -> None:
    text = """g (float[batch,sequence,30000] x, int64[batch,sequence] attention_mask) => (float[batch,1,30000] y) {
      seen = Cast<to = 1>(attention_mask) shown = Unsqueeze(seen, last) kept = Mul(x, shown)
      y = ReduceSum(kept, middle) }"""
    loaded = load(tmp_path, text, last=np.array([-1], np.int64), middle=np.array([1], np.int64))
    assert loaded.signature.mask == "attention_mask"
    masks = [one.feeds["attention_mask"] for one in observations_of(loaded)]
    assert any((mask[1:, 0] == 0).any() for mask in masks if len(mask) > 1)
    assert any((np.diff(mask) > 0).any() and (np.diff(mask) < 0).any() for mask in masks)
