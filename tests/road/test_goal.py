"""Options are read once: what was asked for, and what a recipe or a default says where nothing was.

Covers: road/asked.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.judge.metrics import MetricBudget
from onnxopt.load.source.source import Source
from onnxopt.prune.spec import PruneSpec
from onnxopt.qmath.precision import Precision
from onnxopt.road.asked import left_of, precision_of, spec_of, target_of
from onnxopt.road.goal import Goal
from onnxopt.road.options import Options, PackageOptions, PrecisionOptions, PruneOptions, TuneOptions
from onnxopt.spec import Budget, Target, Workload

SOURCE = Source("x.onnx", "x", "onnx", Path("x.onnx"))
CPU = Target("cpu")


def test_what_nobody_asks_for_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    goal = Goal.of(Options(), CPU, SOURCE, None)
    assert (goal.workload, goal.budget, goal.out) == (Workload(), Budget(), Path("build/x"))
    assert (goal.quantize, goal.half, goal.tune) == (None, None, TuneOptions())


@pytest.mark.parametrize("workload", ["3x5", Workload.parse("3x5")])
@pytest.mark.parametrize("budget", ["1e-3", 1e-3, Budget(1e-3)])
def test_words_and_objects_are_the_same(workload: str | Workload, budget: str | float | Budget, tmp_path: Path) -> None:
    options = Options(package=PackageOptions(workload=workload), quantize=PrecisionOptions(budget=budget))
    goal = Goal.of(options, CPU, SOURCE, tmp_path / "out")
    assert (goal.workload, goal.budget) == (Workload.parse("3x5"), Budget(1e-3))
    assert target_of(PackageOptions(Target("portable"))) == target_of(PackageOptions("portable"))


def test_a_precision_takes_the_budget_of_a_metric() -> None:
    asked = PrecisionOptions("cosine>=0.9", "int8-weights:64", Path("a.txt"), 7, "mse", "head", force_calibration=True)
    limit, quantize, half = precision_of(asked, CPU)
    assert (limit, half) == (None, None)
    assert quantize is not None
    assert quantize.precision == Precision("int8-weights", 64)
    assert quantize.budget == MetricBudget("cosine", 0.9)
    assert (quantize.calibration, quantize.samples, quantize.methods) == ("a.txt", 7, ("mse",))
    assert (quantize.keep, quantize.force, quantize.asked) == ("head", True, "int8-weights:64")


@pytest.mark.parametrize(("asked", "with_io"), [("fp16", False), ("FP16:io", True), ("auto", False)])
def test_sixteen_bits_are_for_devices(asked: str, with_io: bool) -> None:  # noqa: FBT001 - a case
    limit, quantize, half = precision_of(PrecisionOptions(1e-2, asked, calibration_samples=3), Target("cuda"))
    assert (limit, quantize) == (Budget(1e-2), None)
    assert half is not None
    assert (half.kind, half.with_io, half.samples, half.asked) == ("fp16", with_io, 3, asked)


@pytest.mark.parametrize(
    ("asked", "target", "said"),
    [
        (PrecisionOptions("cosine>=0.9"), CPU, "is one of quantization, and the precision is fp32"),
        (PrecisionOptions(precision="fp16", keep="head"), Target("cuda"), "--keep and --calibrator are for int8"),
        (PrecisionOptions(precision="fp16", calibrator="mse"), Target("tensorrt"), "--keep and --calibrator are for"),
        (PrecisionOptions(precision="bf16"), CPU, "bf16 is not made for target cpu"),
    ],
)
def test_what_does_not_go_together_is_refused(asked: PrecisionOptions, target: Target, said: str) -> None:
    with pytest.raises(InputError, match=said):
        precision_of(asked, target)


def test_pruning_is_read_with_how_it_chooses() -> None:
    options = PruneOptions(importance="magnitude", align=4, seed=3, budget="cosine>=0.9")
    made = PruneSpec.parse("heads=1", importance="magnitude", align=4, seed=3)
    assert spec_of("heads=1", options) == made
    assert spec_of(made, PruneOptions()) is made
    assert left_of(options) == MetricBudget("cosine", 0.9)
    assert left_of(PruneOptions()) is None
    with pytest.raises(InputError, match="unknown importance 'luck'"):
        spec_of("heads=1", PruneOptions(importance="luck"))
