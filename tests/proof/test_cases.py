"""A proof looks at the smallest sizes, where something changes, at the workload and the longest, and says its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxopt.graph import weight_files
from onnxopt.load.entry import load as load_source
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from onnxopt.proof.cases import Case, cases_of, note_turning, proved_ranges, short_of
from onnxopt.spec import AxisRange, Workload, padding_of_row
from tests.support.axes import encoder_text, load, table

RELU = """g (float[frames,4] x) => (float[frames,4] y) { y = Relu(x) }"""


def sizes_of(loaded: Loaded, axis: str, workload: Workload | None = None) -> set[int]:
    """Return the sizes at which an axis is proved."""
    return {sizes[axis] for sizes, _ in cases_of(loaded, workload)}


def test_small_sizes_are_proved(tmp_path: Path) -> None:
    assert {1, 2, 3, 5} <= sizes_of(load(tmp_path, RELU), "frames")


@pytest.mark.parametrize("turn", [2, 47, 500, 1500])
def test_sizes_at_which_something_changes_are_proved_with_their_neighbours(turn: int, tmp_path: Path) -> None:
    loaded = replace(load(tmp_path, RELU), turning={"frames": (turn,)})
    assert {turn - 1, turn, turn + 1} <= sizes_of(loaded, "frames")


def test_numbers_of_the_graph_stand_in_for_what_was_not_derived(tmp_path: Path) -> None:
    text = """g (float[frames,4] x) => (float[m,4] y) { y = Slice(x, zero, end) }"""
    loaded = load(tmp_path, text, zero=np.array([0], np.int64), end=np.array([57], np.int64))
    assert not {56, 57, 58} <= sizes_of(loaded, "frames")
    note_turning(loaded)
    assert {56, 57, 58} <= sizes_of(loaded, "frames")


def test_the_workload_is_proved_axis_by_axis_where_it_costs_too_much(tmp_path: Path) -> None:
    loaded = load(tmp_path, encoder_text(), table=table())
    assert ({"batch": 6, "sequence": 50}) in [sizes for sizes, _ in cases_of(loaded, Workload.parse("6x50"))]
    huge = [sizes for sizes, _ in cases_of(loaded, Workload.parse("9x4000"))]
    assert {"batch": 9, "sequence": 7} in huge
    assert max(sizes["sequence"] for sizes in huge) < 4000


def test_the_longest_that_is_promised_is_proved_or_the_end_is_said(tmp_path: Path) -> None:
    loaded = replace(load(tmp_path, RELU), ranges={"frames": AxisRange(1, 1, 900)})
    assert max(sizes_of(loaded, "frames")) == 900
    found = proved_ranges(loaded, [sizes for sizes, _ in cases_of(loaded)])
    assert (found["frames"].least, found["frames"].most, found["frames"].promised) == (1, 900, 900)
    assert short_of(found) == []
    open_ended = load(tmp_path, encoder_text("a", "b", "n", "len"), table=table())
    long = replace(open_ended, ranges={"sequence": AxisRange(1, 1, 100_000)})
    ends = proved_ranges(long, [sizes for sizes, _ in cases_of(long)])
    assert 128 < ends["len"].most < 100_000
    assert short_of(ends) == [
        f"axis 'len' is proved from 1 up to {ends['len'].most}; sizes up to 100000 would cost more than a proof may"
    ]


def test_sizes_stay_within_steps_and_ends(tmp_path: Path) -> None:
    loaded = replace(load(tmp_path, RELU), ranges={"frames": AxisRange(24, 8, 104)}, turning={"frames": (50,)})
    assert all(size % 8 == 0 and 24 <= size <= 104 for size in sizes_of(loaded, "frames"))
    assert {24, 32, 48, 56, 104} <= sizes_of(loaded, "frames")


def test_the_same_model_is_proved_at_the_same_cases(tmp_path: Path) -> None:
    first, second = (load(tmp_path, encoder_text(), table=table()) for _ in range(2))
    assert cases_of(first) == cases_of(second)


def test_other_sides_of_an_image_are_small_while_one_is_moved(tmp_path: Path) -> None:
    text = """g (float[many,3,tall,wide] x) => (float[many,3,tall,wide] y) { y = Relu(x) }"""
    loaded = load(tmp_path, text)
    tall, wide = loaded.signature.inputs[0].axes[2:]
    usual = ({str(tall): 224, str(wide): 256, str(loaded.signature.axes[0]): 1},)
    ranges = {str(tall): AxisRange(32, 32), str(wide): AxisRange(32, 32)}
    found = [sizes for sizes, _ in cases_of(replace(loaded, proved_sizes=usual, ranges=ranges))]
    assert {(224, 256)} < {(sizes[str(tall)], sizes[str(wide)]) for sizes in found}
    moved = [(sizes[str(tall)], sizes[str(wide)]) for sizes in found if sizes[str(tall)] != 224]
    assert {(32, 32), (32, 64), (64, 32), (160, 64), (64, 160)} <= set(moved)
    assert max(high * wide for high, wide in moved) <= 128 * 160


@pytest.mark.parametrize("text", ["gpt2-mini", "encoder"])
def test_a_large_model_is_proved_with_as_many_rows_of_each_padding(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_source(resolve("gpt2-mini")) if text == "gpt2-mini" else load(tmp_path, encoder_text(), table=table())
    small = cases_of(loaded)
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    large = cases_of(loaded)
    before, after = rows_by_padding(small), rows_by_padding(large)
    assert set(after) == set(before) == {"none", "right", "left", "holes"}
    assert all(after[kind] >= before[kind] for kind in ("right", "left", "holes"))
    assert "mixed" in {padding for _, padding in large}
    assert len(large) < len(small)


def rows_by_padding(cases: list[Case]) -> Counter[str]:
    """Count the rows of prompts by their padding."""
    return Counter(
        padding_of_row(padding, row)
        for sizes, padding in cases
        if sizes["batch"] > 1 and not sizes.get("past_sequence", 0)
        for row in range(sizes["batch"])
    )


def test_a_batch_that_is_not_free_has_one_kind_of_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    loaded = replace(load(tmp_path, encoder_text(), table=table()), ranges={"batch": AxisRange(1, 1, 2)})
    assert {padding for _, padding in cases_of(loaded)} == {"none", "right", "left", "holes"}
