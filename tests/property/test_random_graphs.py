"""Whole random graphs are optimized and stay equal at sizes drawn afterwards; what is unsound is found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.probe.observe import Observation
from onnxopt.probe.runners import ShapeRunner
from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.spec import Exact, Feeds
from tests.exam.campaign import campaign, recorded, render
from tests.property.generate import Drawn, draw
from tests.property.judge import (
    UNUSABLE,
    Promise,
    answers_of,
    compared,
    difference,
    judge,
    leaves_range,
    open_session,
    shaken,
)
from tests.property.pieces import PIECES
from tests.property.repro import write_repro
from tests.property.shrink import shrunk, tidied
from tests.property.sizes import Case, axes_of, case_at, cases

SMALL = (7, 11, 13)  # sizes at which a claim is seen


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    return [draw(seed) for seed in range(300)]


def test_the_same_seed_draws_the_same_graph() -> None:
    assert draw(5).model.SerializeToString() == draw(5).model.SerializeToString()
    assert draw(5).model.SerializeToString() != draw(6).model.SerializeToString()


def test_every_piece_is_drawn_and_nearly_every_graph_runs(drawn: list[Drawn]) -> None:
    assert {name for one in drawn for name in one.pieces} == set(PIECES)
    ran = 0
    for one in drawn[:100]:
        session = open_session(one.model, plain=True)
        ran += any(answers_of(session, case.feeds) for case in islice(cases(one.model, one.seed, square=one.square), 6))
    assert ran >= 85


def test_sizes_reach_from_nothing_to_three_thousand(drawn: list[Drawn]) -> None:
    sizes = [size for one in drawn for case in islice(cases(one.model, one.seed), 4) for size in case.sizes.values()]
    assert min(sizes) == 0
    assert 2500 < max(sizes) <= 3000
    assert {1, 2, 3} < set(sizes)


@pytest.mark.parametrize("seed", [114, 325])
def test_axes_without_a_name_are_right_or_said_to_be_one(seed: int, tmp_path: Path) -> None:
    """Attention whose mask may have a row for all; a sum of inputs whose rows may be one."""
    one = draw(seed)
    assert sum(name.endswith("[0]") for name in axes_of(one.model)) > 1
    verdict = judge(one.model, seed, tmp_path, square=one.square)
    assert (verdict.kind, verdict.reason) == ("right", "")
    assert verdict.compared > 3


def test_axes_without_a_name_often_have_one_size() -> None:
    one = draw(114).model
    first = [[size for name, size in case.sizes.items() if name.endswith("[0]")] for case in islice(cases(one, 1), 40)]
    assert 10 < sum(len(set(sizes)) == 1 for sizes in first) < 40


def test_a_promise_covers_what_is_said_of_sizes() -> None:
    promise = Promise({"batch": 1}, {"x[0]": "batch", "mask[0]": "batch", "x[1]": "n"}, frozenset({"batch"}))
    assert promise.covers({"x[0]": 3, "mask[0]": 3, "x[1]": 0})
    assert not promise.covers({"x[0]": 0, "mask[0]": 0, "x[1]": 2})
    assert not promise.covers({"x[0]": 3, "mask[0]": 1, "x[1]": 2})
    assert Promise({}, promise.names, frozenset()).covers({"x[0]": 3, "mask[0]": 1}), "nothing is said of it"
    assert promise.leaves_out({"x": np.zeros((0, 3), np.float32)}), "whatever the name that its axis had"
    assert not promise.leaves_out({"x": np.zeros((3, 0), np.float32), "other": np.zeros(0)})


@dataclass(frozen=True)
class Constant:
    """What a shape was in every run."""

    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Followed:
    """The axes of an input that a shape followed."""

    source: ir.Value
    part: slice


class SizeAsSeen(Rule):
    """Shape(x)  →  what it was at a few small sizes: a constant, or the same axes of an input. Unsound on purpose."""

    name = "test-size-as-seen"
    min_opset = 15
    numerics = Exact()
    observations: ClassVar[list[Observation]] = []

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        yield op.Shape(x)

    def guard(self, match: Match, x: ir.Value) -> None:
        match.require(not x.is_graph_input(), "it reads an input already", x)
        match.require(not match.root.outputs[0].is_graph_output(), "the shape is an output", match.root)
        runner = ShapeRunner(match.model, [x])
        runs = [runner.run(item.feeds)[0][x] for item in self.observations]
        seen = [shape[slice(*_part(match.root, len(shape)))] for shape in runs]
        if len(set(seen)) == 1:
            match.note(Constant(tuple(seen[0])))
            return
        for value in match.model.graph.inputs:
            for axis in range(len(value.shape or ()) - len(seen[0]) + 1):
                part = slice(axis, axis + len(seen[0]))
                had = [item.feeds[value.name or ""].shape[part] for item in self.observations]
                if had == seen:
                    match.note(Followed(value, part))
                    return
        match.require(condition=False, reason="it follows nothing that was seen", where=x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        if Constant in match.facts:
            return op.ints(list(match.noted(Constant).sizes), "sizes")
        found = match.noted(Followed)
        return op.Shape(found.source, start=found.part.start, end=found.part.stop)


def _part(node: ir.Node, rank: int) -> tuple[int, int]:
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    return (start.as_int() if start else 0), (end.as_int() if end else rank)


def _observed(model: onnx.ModelProto) -> list[Observation]:
    rng = random.Random(0)  # noqa: S311  not a secret
    seen = []
    for size in SMALL:
        sizes = {axis: size + 10 * place for place, axis in enumerate(sorted(axes_of(model)))}
        case = case_at(model, sizes, rng)
        seen.append(Observation(case.sizes, case.feeds))
    return seen


def _after(one: Drawn, observations: list[Observation], rule: Rule | None, room: Path) -> Path | None:
    """Put a graph through the driver with one rule, or with none, proof included; None when nothing was rewritten."""
    model = ir.from_proto(one.model)
    prepare(model)
    driver = Driver(model, observations)
    if rule is not None and not driver.apply(rule).applied:
        return None
    for value in (value for node in model.graph for value in node.outputs):
        value.shape = None  # what is declared is another claim, and not this rule's
    path = room / f"{one.seed}-{rule is None}.onnx"
    onnx.save(ir.to_proto(model), path)
    return path


def test_a_claim_that_was_seen_but_not_derived_is_found(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for seed in range(200):
        if found["planted: wrong"] == 5:
            break
        one = draw(seed, most=3)
        sessions = open_session(one.model, plain=True), open_session(one.model, plain=False)
        observations = _observed(one.model)
        if any(answers_of(sessions[0], dict(item.feeds)) is None for item in observations):
            continue
        SizeAsSeen.observations = observations
        for rule in (SizeAsSeen(), None):
            path = _after(one, observations, rule, tmp_path)
            if path is None:
                break
            tried = islice(cases(one.model, seed, square=one.square), 24)
            verdict = compared(one.model, sessions, path, tried)
            found[f"{'planted' if rule else 'as it was'}: {verdict.outcome}"] += 1
    assert found["planted: wrong"] == 5, found
    assert found["as it was: right"] >= 5, found
    assert not found["as it was: wrong"], found


# The judge


@pytest.mark.parametrize(
    ("nodes", "leaves"),
    [
        ("d = Identity(x)", True),
        ("m = ReduceMax<keepdims=1>(x, last) d = Sub(x, m)", False),
    ],
)
def test_what_overflows_where_the_original_did_not_is_told(nodes: str, *, leaves: bool) -> None:
    def opened(body: str) -> Any:
        text = f"g (float[n,4] x) => (float[n,4] y) <int64[1] last = {{-1}}> {{ {body} }}"
        return open_session(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}'), plain=True)

    softmax = opened("y = Softmax(x)")
    nodes += " e = Exp(d) s = ReduceSum<keepdims=1>(e, last) y = Div(e, s)"
    case = Case({"n": 3}, {"x": np.linspace(0.2, 1, 12, dtype=np.float32).reshape(3, 4)})
    said = leaves_range((softmax, softmax), (opened(nodes),) * 2, ["y"], case)
    assert (said is not None) is leaves
    assert not leaves or "y leaves the range of numbers at inputs 1000 times as large" in (said or "")


def test_an_answer_that_differs_beyond_its_own_sensitivity_is_told() -> None:
    expected = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    steady = [expected + np.float32(1e-8)]
    assert difference(expected, expected + np.float32(1e-6), steady) is None
    assert "expected" in (difference(expected, expected + np.float32(1e-3), steady) or "")
    assert "shape" in (difference(expected, expected[:2], steady) or "")
    assert "is float64" in (difference(expected, expected.astype(np.float64), steady) or "")
    assert difference(expected, expected + np.float32(1e-3), [expected + np.float32(1e-3)]) is None


def test_not_a_number_must_stand_where_it_stood() -> None:
    expected = np.array([1.0, np.nan, np.inf], np.float32)
    assert difference(expected, expected.copy(), [expected]) is None
    assert difference(expected, np.array([np.nan, 1.0, np.inf], np.float32), [expected]) is not None
    assert difference(expected, np.array([1.0, np.nan, -np.inf], np.float32), [expected]) is not None


def test_a_shake_moves_no_mask_and_nothing_as_large_as_its_filler() -> None:
    feeds: Feeds = {"x": np.array([1.0, -3e38, 0.5], np.float32), "mask": np.ones(3, np.float32), "ids": np.arange(3)}
    moved = shaken(feeds, 0)
    assert moved["x"][1] == feeds["x"][1]
    assert 0 < np.abs(moved["x"] - feeds["x"])[[0, 2]].max() < 1e-5
    assert (moved["mask"] == 1).all()
    assert (moved["ids"] == feeds["ids"]).all()


def test_a_graph_that_no_runtime_runs_is_no_verdict_on_onnxopt(tmp_path: Path) -> None:
    model = draw(3).model
    model.graph.node[0].op_type = "NoSuchOperator"
    assert judge(model, 3, tmp_path).outcome == UNUSABLE


# Shrinking


def test_shrinking_keeps_what_is_bad_and_little_else(drawn: list[Drawn]) -> None:
    one = next(
        item for item in drawn if "gelu" in item.pieces and len(item.model.graph.node) > 30 and _has_erf(item.model)
    )
    small = shrunk(one.model, lambda model: _has_erf(model) and _runs(model), seconds=30)
    assert _has_erf(small)
    assert len(small.graph.node) <= 4
    assert tidied(small).SerializeToString() == small.SerializeToString()


def _has_erf(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "Erf" for node in model.graph.node)


def _runs(model: onnx.ModelProto) -> bool:
    try:
        open_session(model, plain=True)
    except Exception:  # noqa: BLE001  ONNX Runtime raises several kinds
        return False
    return True


def test_a_fault_is_written_so_that_it_can_be_run_again(tmp_path: Path) -> None:
    one = draw(3)
    verdict = judge(one.model, 3, tmp_path)
    verdict.case = next(cases(one.model, 3))
    write_repro(tmp_path / "fault", one.model, verdict)
    assert {path.name for path in (tmp_path / "fault").iterdir()} == {
        "drawn.onnx",
        "drawn.txt",
        "feeds.npz",
        "repro.py",
    }
    compile((tmp_path / "fault" / "repro.py").read_text(encoding="utf-8"), "repro.py", "exec")


def test_the_record_counts_every_graph_once() -> None:
    entries = campaign(range(3), jobs=1, most=1, folder=None)
    record = recorded(entries, 1.0)
    assert [entry.seed for entry in entries] == [0, 1, 2]
    assert sum(record["outcomes"].values()) == 3
    assert f"{record['graphs']} random graphs (seeds 0 to 2)" in render(record)
