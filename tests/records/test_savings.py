"""What became of a model's own weights: what passes made themselves on the way is no saving."""

from __future__ import annotations

import pytest

from onnxopt.records.rewrites import PassRecord
from onnxopt.records.savings import net_bytes, savings


def ledger(*entries: tuple[str, int] | tuple[str, int, str]) -> tuple[PassRecord, ...]:
    """Entries of passes that were applied once: name, bytes that went, stage."""
    return tuple(
        PassRecord(name=name, stage=(*stage, "canonicalize")[0], numerics="exact", applied=1, bytes_saved=count)
        for name, count, *stage in entries
    )


def test_what_is_made_and_merged_again_and_again_was_never_in_the_file() -> None:
    found = ledger(
        ("merge-initializers", 10),
        *[("fold-constants", -100), ("merge-initializers", 100)] * 5,
        ("remove-unused", 3),
    )
    assert savings(found) == {"duplicate or tied": 10, "no longer read": 3}
    assert sum(net_bytes(found)) == sum(record.bytes_saved for record in found) == 13


def test_the_latest_that_was_made_is_the_first_to_be_set_off() -> None:
    found = ledger(("fold-constants", -50), ("fuse-linear", -20, "fuse"), ("remove-unused", 60))
    assert net_bytes(found) == [-10, 0, 0]
    assert savings(found) == {}


def test_new_weights_that_stay_are_growth() -> None:
    found = ledger(("fold-constants", -68), ("remove-unused", 23))
    assert net_bytes(found) == [-45, 0]
    assert savings(found) == {}


def test_what_nobody_reads_after_a_rewrite_was_replaced_and_is_no_saving() -> None:
    found = ledger(
        ("remove-unused", 4), ("quantize-static", -25, "quantize"), ("remove-unused", 100), ("merge-initializers", 7)
    )
    assert net_bytes(found) == [4, 0, 75, 7]
    assert savings(found) == {"no longer read": 4, "duplicate or tied": 7}


@pytest.mark.parametrize(("inlined", "duplicates"), [(0, 40), (1, 0)])
def test_lifted_constants_came_with_the_file_but_for_those_of_functions(inlined: int, duplicates: int) -> None:
    first = PassRecord(name="inline-functions", stage="canonicalize", numerics="exact", applied=inlined)
    found = (first, *ledger(("lift-constants", -90), ("merge-initializers", 40)))
    assert savings(found) == ({"duplicate or tied": duplicates} if duplicates else {})
