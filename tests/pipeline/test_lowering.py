"""Which forms a model is lowered in: what is known, what is measured, and what becomes of winners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxopt.pipeline import profit as profit_module
from onnxopt.pipeline.lowering import COMBINED, RECORDED, lower
from onnxopt.pipeline.orders import LOWER
from onnxopt.pipeline.profit import Profit
from onnxopt.probe.observe import Observation
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.rewrite import Key
from onnxopt.spec import Signature, Target, TensorSpec, Workload
from tests.passes.lower.cpu.test_padding import WEIGHTS, ids, layer, masks
from tests.support.rules import observe, parse

Times = Mapping[str, list[list[float]]]
Race = Callable[[Profit, Mapping[str, Path], float], Times]
TOKENS = ("batch", "sequence")
SIGNATURE = Signature(
    (TensorSpec("ids", "int64", TOKENS), TensorSpec("attention_mask", "int64", TOKENS)),
    (TensorSpec("y", "float32", (*TOKENS, 16)),),
)
ATTENTION = "lower-attention (2 heads of 8, padding mask)"


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path))
    monkeypatch.setattr(profit_module, "records", lambda: ())


@dataclass
class Lowered:
    """A lowered model, its ledger in words, and what raced."""

    ops: list[str]
    told: list[str]
    notes: list[str]
    raced: list[list[str]]
    error: float
    forms: Mapping[Key, str]


def run(
    monkeypatch: pytest.MonkeyPatch,
    cost: Callable[[str], float],
    *,
    fills: tuple[float, ...] = (),
    measure: bool = True,
    race: Race | None = None,
    pinned: Mapping[Key, str] | None = None,
) -> Lowered:
    """Lower a layer of an encoder where forms cost what we say."""
    model = parse(layer("Gelu (r)").replace("mask", "attention_mask"), WEIGHTS)
    observations = observe(model, {"ids": ids(), "attention_mask": masks("holes")})
    prepare(model)
    original, raced = model.clone(), []

    def told(self: Profit, models: Mapping[str, Path], seconds: float) -> Times:
        del self, seconds
        raced.append(list(models))
        assert all(path.is_file() for path in models.values())
        return {name: [[cost(name)]] * 4 for name in models}

    monkeypatch.setattr(Profit, "race", race or told)
    driver = Driver(model, observations, signature=SIGNATURE)
    requests = [Observation({"batch": 1, "sequence": 4}, {"attention_mask": np.array([[1, 1, 0, 0]])})]
    workload = Workload(({"batch": 1, "sequence": 4},), fills)
    lower(driver, LOWER["cpu"], workload, _profit(requests, measure, pinned), "a layer")
    feeds = observations[-1].feeds
    before, after = (GraphRunner(m).run(feeds)[0]["y"] for m in (original, model))
    real = feeds["attention_mask"] != 0
    choices = [f"{entry.name}: {choice}" for entry in driver.ledger.entries for choice in entry.choices]
    error = float(np.abs(before - after)[real].max())
    return Lowered(
        [n.op_type for n in model.graph], choices, driver.ledger.notes, raced, error, dict(driver.ledger.forms)
    )


def _profit(requests: list[Observation], measure: bool, pinned: Mapping[Key, str] | None) -> Profit:  # noqa: FBT001  # of one caller
    return Profit(Target("cpu", 2), requests, measure=measure, pinned=pinned)


def test_every_other_form_races_against_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, lambda _: 1.0)
    assert found.raced == [
        [
            RECORDED,
            f"{ATTENTION}: MultiHeadAttention",
            "lower-gelu: as it is",
        ]
    ]
    assert "Attention" in found.ops
    assert any("Attention (measured, ms of the model per shape: Attention 1; Multi" in told for told in found.told)
    assert found.error < 1e-5


def test_a_clear_winner_takes_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, lambda name: 0.8 if "MultiHead" in name else 1.0)
    assert "MultiHeadAttention" in found.ops
    assert len(found.raced) == 1
    assert found.error < 1e-5


@pytest.mark.parametrize("fills", [(), (0.4,)])
def test_forms_that_are_taken_over_are_those_that_were_measured(
    monkeypatch: pytest.MonkeyPatch, fills: tuple[float, ...]
) -> None:
    def first(name: str) -> float:
        return 0.8 if "MultiHead" in name or "gelu" in name else 1.0

    found = run(monkeypatch, first, fills=fills)
    again = run(monkeypatch, lambda _: 1.0, fills=fills, pinned=found.forms)
    assert again.raced == []
    assert again.forms == found.forms
    assert again.ops == found.ops
    assert not [line for line in again.told if "pinned" not in line]
    usual = run(monkeypatch, lambda _: 1.0, fills=fills, pinned=dict.fromkeys(found.forms, "of another version"))
    assert usual.raced == []
    assert usual.forms != found.forms, "what does not fit is as usual; who asked for it sees that"
    assert "of another version" not in usual.forms.values()


def test_several_winners_are_put_together_only_where_that_is_faster_still(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(name: str) -> float:
        return 0.7 if "MultiHead" in name else 0.9 if "gelu" in name else 1.0

    found = run(monkeypatch, lambda name: 0.6 if name == COMBINED else alone(name))
    assert found.raced[1] == ["best alone", COMBINED]
    assert "MultiHeadAttention" in found.ops
    assert "Gelu" in found.ops
    assert not any(op == "FastGelu" for op in found.ops)
    assert any("lower-gelu: as it is (measured" in told for told in found.told)


def test_winners_that_are_in_each_others_way_leave_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, lambda name: 0.7 if "MultiHead" in name else 0.9 if "gelu" in name else 1.0)
    assert "MultiHeadAttention" in found.ops
    assert any("lower-gelu: kernel (measured" in told for told in found.told)


def test_what_was_measured_once_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, lambda name: 0.8 if "MultiHead" in name else 1.0)
    again = run(monkeypatch, lambda _: 1.0)
    assert again.raced == []
    assert "MultiHeadAttention" in again.ops
    assert any("MultiHeadAttention (cache" in told for told in again.told)
    unmeasured = run(monkeypatch, lambda _: 1.0, measure=False)
    assert "MultiHeadAttention" in unmeasured.ops


def test_without_measuring_the_first_form_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, lambda _: 1.0, measure=False)
    assert found.raced == []
    assert any("Attention (not measured)" in told for told in found.told)


@pytest.mark.parametrize(("removed", "kept", "operator"), [(1.0, 2.0, "NonZero"), (2.0, 1.0, "Attention")])
def test_padding_in_the_workload_makes_its_removal_a_choice(
    monkeypatch: pytest.MonkeyPatch, removed: float, kept: float, operator: str
) -> None:
    def cost(name: str) -> float:
        return {"padding removed": removed, "padding kept": kept}.get(name, 1.0)

    found = run(monkeypatch, cost, fills=(0.5,))
    assert found.raced[0] == ["padding removed", "padding kept"]
    assert operator in found.ops
    assert ("NonZero" in found.ops) == (operator == "NonZero")
    assert found.error < 1e-4
    word = "removed" if operator == "NonZero" else "kept"
    assert any(f"padding {word} (measured" in told for told in (*found.told, *found.notes))


def test_padding_is_removed_unmeasured_where_there_is_much_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NonZero" in run(monkeypatch, lambda _: 1.0, fills=(0.5,), measure=False).ops
    assert "NonZero" not in run(monkeypatch, lambda _: 1.0, fills=(0.9,), measure=False).ops


def test_a_race_that_told_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def race(self: Profit, models: Mapping[str, Path], seconds: float) -> Times:
        del models, seconds
        self.trouble = "the machine is too busy to tell"
        return {}

    noted = run(monkeypatch, lambda _: 1.0, race=race)
    assert noted.notes == [
        "kernels were not chosen by measure: the machine is too busy to tell; forms are those that were recorded"
    ]
    assert "Attention" in noted.ops
