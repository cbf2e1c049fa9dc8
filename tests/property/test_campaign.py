"""Two hundred random graphs, optimized and compared at sizes drawn afterwards; `make campaign` takes ten thousand."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.exam import campaign as exam
from tests.property.judge import REFUSED, RIGHT, UNUSABLE

SEEDS = range(20_260, 20_460)
MOST_PIECES = 4
LEAST_RIGHT = 0.9


SECONDS = 300  # a graph, where other tests run beside this one


def test_random_graphs_come_out_right_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "SECONDS", SECONDS)
    entries = exam.campaign(SEEDS, jobs=2, most=MOST_PIECES, folder=None)
    faults = [entry for entry in entries if entry.kind not in (RIGHT, REFUSED, UNUSABLE)]
    assert not faults, "\n".join(map(str, faults))
    counts = Counter(entry.kind for entry in entries)
    assert sum(counts.values()) == len(SEEDS)
    assert counts[RIGHT] >= LEAST_RIGHT * len(SEEDS), counts
