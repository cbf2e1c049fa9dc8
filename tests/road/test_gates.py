"""What is required of a result and is not so ends the command with 1, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxopt.errors import GateError, InputError
from onnxopt.records.manifest import Evidence, FormName, Shipped
from onnxopt.records.measurements import Race
from onnxopt.records.quantization import QuantizationRecord
from onnxopt.road.ahead import require_measurable
from onnxopt.road.forms import Before
from onnxopt.road.gates import require_met
from onnxopt.road.options import Options, PrecisionOptions, TuneOptions
from onnxopt.road.shipping import Decision, Form
from onnxopt.road.work import Worked
from onnxopt.spec import Target


def worked(*races: Race, form: FormName = "optimized", quantization: QuantizationRecord | None = None) -> Worked:
    loaded: Any = SimpleNamespace(name="mine")
    decision = Decision(Form(form, loaded, Path("x"), None, ()), Shipped(form=form), races)  # type: ignore[arg-type]  # no ledger is read
    return Worked(decision, Target("cpu"), Evidence(quantization=quantization), [], {}, Before(0, {}, (), Path))


def race(form: FormName, low: float, high: float) -> Race:
    return Race(form=form, speedup=(low + high) / 2, low=low, high=high, turns=6, shapes=())


def speed(wanted: float) -> Options:
    return Options(tune=TuneOptions(require_speedup=wanted))


@pytest.mark.parametrize(
    ("wanted", "low", "high"), [(1.0, 0.97, 1.07), (1.0, 1.2, 1.3), (1.5, 1.4, 1.6), (0.5, 0.7, 0.8)]
)
def test_a_speed_that_may_be_what_was_required_passes(wanted: float, low: float, high: float) -> None:
    require_met([worked(race("optimized", low, high))], speed(wanted))


@pytest.mark.parametrize(("wanted", "low", "high"), [(1.0, 0.8, 0.99), (1.5, 1.2, 1.3)])
def test_a_speed_that_is_seen_to_be_less_does_not(wanted: float, low: float, high: float) -> None:
    with pytest.raises(
        GateError, match=rf"{wanted:g}x was required, and the optimized graph is .*\({low:.2f} to"
    ) as caught:
        require_met([worked(race("optimized", low, high))], speed(wanted))
    assert caught.value.exit_code == 1
    assert "nothing was written" in str(caught.value)


def test_the_original_is_as_fast_as_itself() -> None:
    original = worked(race("optimized", 0.8, 0.9), race("fused", 0.7, 0.9), form="original")
    require_met([original], speed(1.0))
    with pytest.raises(
        GateError, match=r"the original would be shipped: the optimized graph is .*, the fused graph is"
    ):
        require_met([original], speed(1.1))


def test_where_no_time_is_measured_nothing_is_shown() -> None:
    with pytest.raises(GateError, match="no time could be measured here"):
        require_met([worked()], speed(0.1))


def test_each_part_of_a_pair_is_held_to_it() -> None:
    parts = [worked(race("optimized", 1.5, 1.7)), worked(race("optimized", 0.7, 0.8))]
    with pytest.raises(GateError, match="the decoder: 1x was required"):
        require_met(parts, speed(1.0))


def test_the_float_graph_is_not_the_precision_that_was_required() -> None:
    options = Options(quantize=PrecisionOptions(precision="int8", require_precision=True))
    beyond = QuantizationRecord(asked="int8", shipped=False, reason="beyond its budget: cosine 0.9")
    with pytest.raises(GateError, match="int8 was required, and the float graph would be shipped: beyond its budget"):
        require_met([worked(quantization=beyond)], options)
    require_met([worked(quantization=beyond.model_copy(update={"shipped": True}))], options)
    require_met([worked(quantization=beyond)], Options(quantize=PrecisionOptions(precision="int8")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(tune=TuneOptions(measure=False, require_speedup=1.0)), "drop --no-measure"),
        (Options(tune=TuneOptions(require_speedup=0.0)), "is no speed-up"),
        (Options(tune=TuneOptions(require_speedup=float("nan"))), "is no speed-up"),
        (Options(quantize=PrecisionOptions(require_precision=True)), "--require-precision: the precision is fp32"),
    ],
)
def test_what_cannot_be_told_is_not_asked(options: Options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        require_measurable(options)


def test_what_can_be_told_is_asked() -> None:
    quantize = PrecisionOptions(precision="int4-weights", require_precision=True)
    require_measurable(Options(quantize=quantize, tune=TuneOptions(require_speedup=1.5)))
    require_measurable(Options(tune=TuneOptions(measure=False)))
