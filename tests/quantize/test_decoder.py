"""The search for the bits of a decoder's layers, on gpt2-mini with its real weights.

Covers: judge/piecewise.py, quantize/found.py, quantize/positions.py, quantize/run.py, quantize/workplace.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from onnxopt.calibrate.data import CalibrationData, read_calibration
from onnxopt.graph import weight_files
from onnxopt.graph.cache import CONTEXT_KEY
from onnxopt.graph.files import save_graph
from onnxopt.graph.layers import Layers
from onnxopt.judge.language_models import OnnxLanguageModel
from onnxopt.judge.piecewise import piecewise_losses
from onnxopt.load.entry import load
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.observations import observations_of
from onnxopt.qmath.blocks import dequantize, quantize
from onnxopt.qmath.knapsack import Assignment, Halving, Option, Search, Searched, assign
from onnxopt.qmath.precision import PlannedLinear, Precision
from onnxopt.quantize.decoder import STEPS, DecoderPlanner, alike, units_of
from onnxopt.quantize.divergence import LanguageProbe
from onnxopt.quantize.found import Found
from onnxopt.quantize.positions import all_positions
from onnxopt.quantize.roundings import Rounding, recorded_seconds
from onnxopt.quantize.run import stricter
from onnxopt.records.events import Step
from onnxopt.run.session import Session
from onnxopt.texts.windows import Window
from tests.support.fused import fuse

CHOICES = [Precision.parse(text) for text in ("int4-weights:128", "int4-weights:32", "int8-weights:64")]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    found = load(resolve("gpt2-mini"))
    found.model.graph.metadata_props[CONTEXT_KEY] = "256"
    fuse(found)
    return found


@pytest.fixture(scope="module")
def data(loaded: Loaded) -> CalibrationData:
    return read_calibration(loaded, "builtin", samples=24)


def test_all_positions_are_answered_as_the_last_was(loaded: Loaded) -> None:
    whole = all_positions(loaded.model)
    for observation in observations_of(loaded):
        last, every = (GraphRunner(model).run(observation.feeds)[0]["logits"] for model in (loaded.model, whole))
        assert last.shape[1] == 1
        assert every.shape[1] == observation.sizes["sequence"]
        np.testing.assert_allclose(last[:, -1], every[:, -1], atol=2e-5)


@pytest.fixture(scope="module")
def searches(loaded: Loaded, data: CalibrationData) -> dict[float, Found]:
    planner = DecoderPlanner.of(Layers.of(loaded.model), data, CHOICES)
    return {ratio: planner.within(ratio) for ratio in (2.0, 0.5)}


def test_a_wide_budget_takes_the_fastest_and_one_that_nothing_keeps_the_nearest(
    searches: dict[float, Found],
) -> None:
    wide, none = searches[2.0], searches[0.5]
    assert (wide.fits, none.fits) == (True, False)
    assert len(wide.front) == 1
    found = {label: str(one.precision) for label, one in wide.plan}
    assert set(found.values()) <= {"int4-weights:128", "int4-weights:64", "int8-weights:64", "fp32"}
    nearest = min(none.front, key=lambda one: one.value)
    own = [str(one.precision) for label, one in none.plan if not label.endswith("#table")]
    assert nearest.counts == {name: own.count(name) for name in set(own)}


def test_a_large_model_is_planned_piece_by_piece_as_well(
    searches: dict[float, Found], loaded: Loaded, data: CalibrationData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 1 << 20)
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path))
    told: list[str] = []
    found = DecoderPlanner.of(Layers.of(loaded.model), data, CHOICES, progress=told.append).within(2.0)
    expected = searches[2.0]
    assert found.fits
    assert {label: one.precision for label, one in found.plan} == {label: one.precision for label, one in expected.plan}
    assert math.log(found.value or 0) == pytest.approx(math.log(expected.value or 0), rel=0.1)
    assert sum(one.loss for one in found.sensitivities) == pytest.approx(math.log(found.value or 0), rel=1e-6)
    steps = [step for step in told if isinstance(step, Step) and step.work == "rounding"]
    assert {step.total for step in steps} == {25}
    assert [step.done for step in steps] == sorted(step.done for step in steps)


def test_what_an_original_loses_is_told_by_its_pieces(loaded: Loaded, data: CalibrationData, tmp_path: Path) -> None:
    rows = [data.rows[0][:40], data.rows[1][:23], data.rows[2][:40]]
    told: list[str] = []
    found = piecewise_losses(loaded, all_positions(loaded.model), rows, told.append)
    assert found is not None
    assert told[0].startswith("judge: original, part 1 of ")
    path = save_graph(loaded.model.clone(), tmp_path / "original")
    model = OnnxLanguageModel(Session(path), None)  # token by token
    windows = [Window(np.array(row, np.int64), 1) for row in rows]
    expected = [float(np.mean(one)) for one in model.losses(windows[:1], told.append)]
    np.testing.assert_allclose(found[:1], expected, rtol=1e-4)
    assert len({round(one, 3) for one in found}) == 3
    assert piecewise_losses(loaded, loaded.model, rows, told.append) is None  # it answers for the last position


@dataclass
class Additive:
    """Stands in for a model: it diverges by the sum of what the chosen weights differ from 1."""

    runs: int = 0

    def __call__(self, assignment: Assignment) -> float:
        self.runs += 1
        weights = [dequantize(one.blocks) for one in assignment.planned.values() if one.blocks is not None]
        return sum(float(np.square(weight - 1).mean()) for weight in weights)


def two_ways() -> list[list[Option]]:
    """Return twenty layers, each fast and harmful or slow and less so."""
    ones = np.ones((32, 4), np.float32)
    roundings, slopes = {}, {}
    for number in range(20):
        own = []
        for size, seconds in ((0.01 * (number + 1), 1.0), (0.001 * (number + 1), 2.0)):
            blocks = replace(quantize(ones, 8, 32), scales=np.full((4, 1), (1 - size) / -128, np.float32))
            precision = Precision("int8-weights" if seconds > 1 else "int4-weights", 32)
            own.append(Rounding(PlannedLinear(precision, blocks=blocks), size**2, seconds))
        roundings[str(number)], slopes[str(number)] = own, 1.0
    return units_of(roundings, slopes)


def within(search: Search, ratio: float) -> Searched:
    return search.within(math.log(ratio), Halving(math.log(ratio), STEPS))


def test_the_search_keeps_its_budget_in_the_least_time() -> None:
    found = {}
    for ratio in (1.5, 1.1, 1.02, 1.0001, 1.0):
        probe = Additive()
        one = within(Search(two_ways(), probe), ratio)
        kinds = [planned.precision.kind for planned in one.best.assignment.planned.values()]
        found[ratio] = (one.fits, sum(2.0 if kind == "int8-weights" else 1.0 for kind in kinds))
        assert probe.runs <= 12
        assert all(math.exp(point.loss) <= ratio for point in one.front) == (len(one.front) == 1 and one.fits)
    assert [fits for fits, _ in found.values()] == [True, True, True, False, False]
    seconds = [time for _, time in found.values()]
    assert seconds == sorted(seconds)
    assert seconds[0] == 20.0
    assert 20.0 < seconds[1] < seconds[2] < 40.0


def test_harms_are_ranked_and_add_up(searches: dict[float, Found], loaded: Loaded, data: CalibrationData) -> None:
    found = searches[2.0]
    values = [one.loss for one in found.sensitivities]
    assert values == sorted(values, reverse=True)
    probe = LanguageProbe(Layers.of(all_positions(loaded.model)), list(data.batches("choose", most=2)))
    linears = {one.label for one in found.sensitivities}
    swaps = {label: dequantize(one.blocks) for label, one in found.plan if one.blocks is not None and label in linears}
    assert probe.divergence({}) < 1e-9
    assert 0.3 * sum(values) < probe.divergence(swaps) < 3 * sum(values)
    ruined = {label: np.zeros_like(weight) for label, weight in swaps.items()}
    assert probe.divergence(ruined) > 1


def test_layers_that_may_become_one_product_get_one_precision() -> None:
    def rounding(text: str, noise: float, seconds: float) -> Rounding:
        return Rounding(PlannedLinear(Precision.parse(text)), noise, seconds)

    fast, slow = "int4-weights:128", "int8-weights:128"
    roundings = {
        "q": [rounding(fast, 4.0, 1.0), rounding(slow, 0.1, 2.0)],
        "k": [rounding(fast, 0.2, 1.0), rounding(slow, 0.1, 2.0)],
        "o": [rounding(fast, 0.2, 1.0), rounding(slow, 0.1, 2.0)],
    }
    units = units_of(roundings, dict.fromkeys(roundings, 1.0), [["q", "k"]])
    chosen = assign(units, 1.0).planned
    assert [str(chosen[label].precision) for label in "qko"] == [slow, slow, fast]
    assert [option.seconds for option in units[0]] == [2.0, 4.0]
    assert [option.loss for option in units[0]] == pytest.approx([4.2, 0.2])


def test_the_checkpoints_own_grid_is_one_more_option() -> None:
    own = quantize(np.ones((64, 8), np.float32), 8, 32)
    planned = [
        PlannedLinear(Precision("int8-weights", 32), why, blocks=own) for why in ("", "the checkpoint's own grid")
    ]
    roundings = {"head": [Rounding(planned[0], 2.0, 1.0), Rounding(planned[1], 0.0, 1.0)]}
    for slope in (1.0, 0.0):  # without any harm, too
        chosen = assign(units_of(roundings, {"head": slope}), math.inf).planned["head"]
        assert chosen.reason == "the checkpoint's own grid"


def test_layers_of_one_kind_and_depth_are_measured_together() -> None:
    labels = [f"h.{n}.{name}" for n in range(7) for name in ("up", "down")] + ["head"]
    groups = alike(labels)
    assert [len(group) for group in groups] == [3, 3, 1, 3, 3, 1, 1]
    assert groups[0] == ["h.0.up", "h.1.up", "h.2.up"]
    assert sorted(label for group in groups for label in group) == sorted(labels)


def test_more_bits_and_smaller_blocks_take_longer() -> None:
    texts = ("int4-weights:128", "int4-weights:32", "int4-weights:32:asymmetric", "int8-weights:32")
    times = [recorded_seconds(576, 1536, Precision.parse(text)) for text in texts]
    assert times == sorted(times)
    assert 1.3 < times[1] / times[0] < 1.5  # 56 and 40 us


def test_a_plan_that_the_judge_turns_down_is_followed_by_a_stricter_one() -> None:
    assert stricter(0.8, 0.05, 0.1) == 0.5
    assert stricter(0.8, 0.0, 0.1) == 0.4  # nothing was lost in the search: half of what was allowed
    assert stricter(0.8, 0.0999, 0.1) == pytest.approx(0.72)
