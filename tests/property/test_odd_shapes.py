"""Passes refuse what they cannot do, or do it right: nothing is left for the proof to roll back."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.graph import known_dims
from onnxopt.pipeline.orders import CANONICALIZE, FUSE, LOWER
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Array, Feeds
from tests.support.odd_graphs import FAMILIES, LOWEST, odd_graph
from tests.support.rules import Outcome, run_passes

EACH = 40
TOLERANCE = 1e-4
HIDING = ((0.0, 1.0), (0.0, 1.0, 0.5, 2.0, -1.0), (0.0,))
BIASES = ((0.0, -1e4), (0.0, LOWEST), (LOWEST,), (-1e9,), (0.3, -1.7e38))


def hostile(outcome: Outcome, seed: int) -> tuple[int, int, Feeds]:
    """Return sizes, and masks that hide everything, are half open, or add what swallows a score."""
    generator = np.random.default_rng(seed)
    batch, sequence = int(generator.choice([1, 2, 3])), int(generator.choice([1, 2, 5, 9]))
    sizes = {"batch": batch, "sequence": sequence}
    given: Feeds = {}
    for value in outcome.original.graph.inputs:
        name, dims = value.name or "", [dim if isinstance(dim, int) else sizes[dim] for dim in known_dims(value) or ()]
        pools = HIDING if name.startswith("mask") else BIASES if name.startswith("bias") else ()
        if pools and value.dtype is not None:
            pool = pools[generator.integers(len(pools))]
            given[name] = generator.choice(pool, dims).astype(value.dtype.numpy())
    return batch, sequence, given


def has_an_answer(outcome: Outcome, feeds: Feeds) -> bool:
    """Tell whether the original gives numbers: a row of -inf has no weights."""
    found: list[Array] = list(GraphRunner(outcome.original).run(feeds)[0].values())
    return all(not np.isnan(array).any() for array in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_graphs_come_out_right_and_nothing_is_rolled_back(family: str) -> None:
    applied = 0
    for seed in range(EACH):
        text, weights = odd_graph(family, seed)
        try:
            outcome = run_passes(text, "remove-no-ops", *CANONICALIZE, *FUSE, *LOWER["cpu"], weights=weights)
        except (InputError, ProbeError):
            continue  # it does not run as it is written either
        assert outcome.rolled_back == [], text
        applied += any(entry.applied for entry in outcome.entries if entry.stage != "canonicalize")
        for batch, sequence in ((1, 1), (4, 3), (2, 9)):
            assert outcome.worst_error_at(batch, sequence) < TOLERANCE, text
    assert applied > EACH / 4


@pytest.mark.parametrize("seed", range(EACH))
def test_attention_is_right_whatever_its_masks_hold(seed: int) -> None:
    text, weights = odd_graph("attention", 1000 + seed)
    try:
        outcome = run_passes(text, "remove-no-ops", "fuse-attention", "fuse-padding-mask", weights=weights)
    except (InputError, ProbeError):
        return
    assert outcome.rolled_back == [], text
    for case in range(4):
        batch, sequence, given = hostile(outcome, case)
        with np.errstate(all="ignore"):
            if has_an_answer(outcome, outcome.feeds_at(batch, sequence, **given)):
                # -10000 added to a score leaves a thousandth of it, in either order
                assert outcome.worst_error_at(batch, sequence, **given) < 30 * TOLERANCE, text
