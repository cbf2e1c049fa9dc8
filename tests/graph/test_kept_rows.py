"""Padded positions are nobody's answer, wherever they lie: in rows, in a cache, behind the last position.

Covers: graph/roles.py
"""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.graph.kept_rows import ending_last, rows_that_matter
from onnxopt.graph.roles import mask_of
from onnxopt.spec import Array, Signature, TensorSpec

PLAIN = ("batch", "sequence")
IDS = TensorSpec("input_ids", "int64", PLAIN)
MASK = TensorSpec("attention_mask", "int64", PLAIN)
LONG_MASK = TensorSpec("attention_mask", "int64", ("batch", "total_sequence"))
KEPT = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 0, 0]])
FRONT = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
NEW = 2  # of five positions, with a cache


def rows(
    axes: tuple[int | str, ...], shape: tuple[int, ...], *, packed: bool = False, cached: bool = True
) -> Array | None:
    signature = Signature((IDS, LONG_MASK if cached else MASK), (TensorSpec("y", "float32", axes),))
    return rows_that_matter(signature, {"attention_mask": KEPT}, "y", np.zeros(shape), packed=packed)


def wanted(array: Array | None, expected: Array) -> bool:
    return array is not None and array.dtype == np.bool_ and np.array_equal(array, expected != 0)


def test_a_row_per_position() -> None:
    assert wanted(rows((*PLAIN, 4), (3, 5, 4), cached=False), KEPT)
    assert wanted(rows(PLAIN, (3, 5), cached=False), KEPT)


@pytest.mark.parametrize("packed", [False, True])
def test_with_a_cache_a_row_per_new_position(packed: bool) -> None:  # noqa: FBT001
    """These are in their own place again, whatever the layout of the cache."""
    assert wanted(rows((*PLAIN, 4), (3, NEW, 4), packed=packed), KEPT[:, -NEW:])
    assert wanted(rows((*PLAIN, 4), (3, 5, 4), packed=packed), KEPT)


@pytest.mark.parametrize("packed", [False, True])
def test_the_last_position_alone(packed: bool) -> None:  # noqa: FBT001
    assert wanted(rows(("batch", 1, 4), (3, 1, 4), packed=packed), KEPT[:, -1:])
    assert wanted(rows(("batch", 4), (3, 4), packed=packed), KEPT[:, -1])


def test_keys_and_values_that_are_real() -> None:
    axes = ("batch", 2, "total_sequence", 8)
    aligned, packed = rows(axes, (3, 2, 5, 8)), rows(axes, (3, 2, 5, 8), packed=True)
    for head in range(2):
        assert aligned is not None
        assert packed is not None
        assert np.array_equal(aligned[:, head], KEPT != 0)
        assert np.array_equal(packed[:, head], FRONT != 0)
    assert aligned is not None
    assert aligned.shape == (3, 2, 5)


def test_both_layouts_hold_the_same_in_the_same_order() -> None:
    """What `verify` compares: the real keys of both, row by row."""
    aligned = np.arange(3 * 5).reshape(3, 1, 5, 1)
    packed = np.full_like(aligned, -1)
    for row in range(3):
        real = aligned[row, 0, KEPT[row] != 0]
        packed[row, 0, : len(real)] = real
    axes = ("batch", 1, "total_sequence", 1)
    ours, theirs = rows(axes, packed.shape, packed=True), rows(axes, aligned.shape)
    assert np.array_equal(packed[ours], aligned[theirs])


def test_all_of_an_output_matters_where_no_position_is_padding() -> None:
    assert rows(("batch", 8), (3, 8), cached=False) is None
    assert rows(("batch", 1, 8), (3, 1, 8), cached=False) is None
    assert rows(("batch", 2, 8, 8), (3, 2, 8, 8)) is None
    assert rows(("heads", "sequence", 8), (3, NEW, 8)) is None
    assert rows(("batch",), (3,)) is None
    assert rows((), ()) is None


def test_an_output_of_another_size_than_its_axes_say_matters_whole() -> None:
    assert rows((*PLAIN, 4), (2, 5, 4), cached=False) is None
    assert rows(("batch", 2, "total_sequence", 8), (3, 2, 4, 8)) is None


def test_a_model_without_a_mask_has_no_padding() -> None:
    plain = Signature((IDS,), (TensorSpec("y", "float32", (*PLAIN, 4)),))
    assert mask_of(plain) is None
    assert rows_that_matter(plain, {}, "y", np.zeros((3, 5, 4))) is None
    square = TensorSpec("attention_mask", "int64", ("batch", 1, "sequence", "sequence"))
    assert mask_of(Signature((IDS, square), ())) is None
    assert mask_of(Signature((IDS, LONG_MASK), ())) is LONG_MASK


def test_an_output_that_is_not_in_the_signature_matters_whole() -> None:
    signature = Signature((IDS, MASK), ())
    assert rows_that_matter(signature, {"attention_mask": KEPT}, "z", np.zeros((3, 5))) is None


def test_rows_that_end_with_padding_are_moved_to_the_last_column() -> None:
    signature = Signature(
        (IDS, LONG_MASK, TensorSpec("past_key_values.0.key", "float32", ("batch", 2, "past_sequence", 4))), ()
    )
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    ids = np.arange(10, 26).reshape(4, 4) * mask
    past = np.zeros((4, 2, 0, 4))
    moved = ending_last(signature, {"input_ids": ids, "attention_mask": mask, "past_key_values.0.key": past})
    assert moved is not None
    assert moved["attention_mask"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert moved["input_ids"].tolist() == [[0, 0, 10, 11], [0, 15, 0, 17], [0, 18, 0, 20], [0, 0, 0, 0]]
    assert moved["past_key_values.0.key"] is past
    assert ending_last(signature, moved) is None


def test_rows_behind_a_past_stay() -> None:
    signature = Signature((IDS, LONG_MASK), ())
    assert ending_last(signature, {"input_ids": np.ones((3, NEW)), "attention_mask": KEPT}) is None
    assert ending_last(Signature((IDS, MASK), ()), {"input_ids": KEPT, "attention_mask": KEPT}) is None
