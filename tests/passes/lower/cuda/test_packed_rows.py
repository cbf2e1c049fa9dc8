"""Lengths instead of a mask, and the same answers on every real token wherever the padding was."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.graph.cache import PADDING_KEY
from onnxopt.probe.runners import GraphRunner
from tests.passes.lower.cpu.test_padding import WEIGHTS, ids, layer, masks
from tests.support.rules import Outcome, parse, pass_of, run_passes

KINDS = ("none", "right", "left", "holes")
STEPS = ("lower-attention", "lower-skip-norm", "pack-rows")


def run(text: str, kind: str, padding: str = "any") -> Outcome:
    feeds = {"ids": ids(), "mask": masks(kind)}
    model = parse(text, {name: array for name, array in WEIGHTS.items() if name in text})
    model.graph.metadata_props[PADDING_KEY] = padding
    return run_passes(model, *STEPS, feeds=feeds, prove=False)


@pytest.mark.parametrize("kind", KINDS)
def test_real_tokens_keep_their_answers(kind: str) -> None:
    outcome = run(layer(), kind)
    assert outcome.entry.applied == 1
    lengths = next(node for node in outcome.model.graph if node.op_type == "Attention").inputs[3]
    assert lengths is not None
    for seed in (0, 1, 2):
        mask = masks(kind)[seed]
        feeds = {"ids": ids()[seed], "mask": mask}
        expected = GraphRunner(outcome.original).run(feeds)[0]["y"]
        outputs, inner = GraphRunner(outcome.model, [lengths]).run(feeds)
        found = outputs["y"]
        assert np.abs(found - expected)[mask != 0].max() < 2e-5
        assert np.isfinite(found).all()
        assert inner[lengths].dtype == np.int32
        assert inner[lengths].tolist() == np.maximum(mask.sum(axis=1), 1).tolist()


@pytest.mark.parametrize("kind", ["none", "right"])
def test_nothing_is_reordered_where_padding_is_promised_on_the_right(kind: str) -> None:
    outcome = run(layer(), kind, "right")
    assert outcome.entry.applied == 1
    assert "TopK" not in outcome.ops
    for seed in (0, 1, 2):
        mask = masks(kind)[seed]
        feeds = {"ids": ids()[seed], "mask": mask}
        expected, found = (GraphRunner(one).run(feeds)[0]["y"] for one in (outcome.original, outcome.model))
        assert np.abs(found - expected)[mask != 0].max() < 2e-5


def test_a_row_of_padding_alone_stays_finite() -> None:
    outcome = run(layer(), "right")
    feeds = {"ids": np.ones((2, 5), np.int64), "mask": np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])}
    expected = GraphRunner(outcome.original).run(feeds)[0]["y"]
    found = GraphRunner(outcome.model).run(feeds)[0]["y"]
    assert np.isfinite(found).all()
    assert np.abs(found - expected)[0, :3].max() < 2e-5


def test_a_long_row_is_sorted_as_well() -> None:
    outcome = run(layer(), "left")
    rng = np.random.default_rng(0)
    feeds = {"ids": rng.integers(0, 30, (2, 700)), "mask": (rng.random((2, 700)) < 0.6).astype(np.int64)}
    expected = GraphRunner(outcome.original).run(feeds)[0]["y"]
    found = GraphRunner(outcome.model).run(feeds)[0]["y"]
    assert np.abs(found - expected)[feeds["mask"] != 0].max() < 2e-5


def test_running_it_again_changes_nothing() -> None:
    outcome = run(layer(), "left")
    assert pass_of("pack-rows").run(outcome.model) == 0


def test_tokens_that_mix_elsewhere_are_handed_out_in_their_places() -> None:
    outcome = run(layer("Sub (r, e)", more=", float[batch,sequence,16] r"), "left")
    assert outcome.entry.applied == 1
    for seed in (0, 1, 2):
        mask = masks("left")[seed]
        feeds = {"ids": ids()[seed], "mask": mask}
        expected, found = (GraphRunner(one).run(feeds)[0] for one in (outcome.original, outcome.model))
        for name in ("y", "r"):
            assert np.abs(found[name] - expected[name])[mask != 0].max() < 2e-5, name


def test_another_attention_without_the_mask_keeps_all_rows() -> None:
    text = layer("Attention <q_num_heads = 2, kv_num_heads = 2> (r, r, r)")
    outcome = run(text, "left")
    assert outcome.entry.applied == 0
    assert any("has no such mask" in reason for reason in outcome.reasons)


def test_without_a_mask_there_is_nothing_to_do() -> None:
    outcome = run(layer().replace("(q, c, v, m)", "(q, c, v)"), "none")
    assert (outcome.entry.applied, outcome.reasons) == (0, [])
