"""The judge: by its metric, within its budget, on its own part of the data; the original is asked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.calibrate.data import CalibrationData
from onnxopt.errors import InputError
from onnxopt.judge import gate
from onnxopt.judge.gate import Judge
from onnxopt.judge.metrics import Metric, MetricBudget
from onnxopt.load.loaded import Loaded
from onnxopt.records.quantization import CalibrationRecord
from onnxopt.spec import Array, Feeds, Signature, TensorSpec
from tests.support.rules import parse

PRODUCT = """
g (float[batch,5] x) => (float[batch,3] y) {
  y = MatMul(x, weight)
}"""
WEIGHT = np.random.default_rng(4).standard_normal((5, 3)).astype(np.float32)


def signature_of(output: str = "y", *more: TensorSpec) -> Signature:
    taken = TensorSpec("x", "float32", ("batch", 5))
    return Signature((taken, *more), (TensorSpec(output, "float32", ("batch", 3)),))


@dataclass
class Product:
    """Answers as the exact weight does."""

    name: str = "the product"

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        return {"y": feeds["x"] @ WEIGHT}


def saved(weight: Array, folder: Path) -> Path:
    folder.mkdir()
    ir.save(parse(PRODUCT, {"weight": weight}), folder / "model.onnx")
    return folder / "model.onnx"


def judge_of(budget: str, original: Path) -> Judge:
    generator = np.random.default_rng(5)
    ready = tuple({"x": generator.standard_normal((1, 5)).astype(np.float32)} for _ in range(24))
    data = CalibrationData(CalibrationRecord(source="made up", samples=24), ready=ready)
    model = parse(PRODUCT, {"weight": WEIGHT})
    loaded = Loaded("product", model, signature_of(), Product(), None, "onnx")  # type: ignore[arg-type]  # feeds nothing
    return Judge(loaded, original, data, Metric.of(loaded.signature), MetricBudget.parse(budget))


@pytest.mark.parametrize(("off", "holds"), [(0.0, True), (0.01, True), (1.0, False)])
def test_a_result_is_held_against_the_reference(off: float, *, holds: bool, tmp_path: Path) -> None:
    noise = np.random.default_rng(6).standard_normal(WEIGHT.shape).astype(np.float32)
    candidate = saved(WEIGHT + off * noise, tmp_path / "candidate")
    told: list[str] = []
    judge = judge_of("cosine>=0.99", tmp_path / "nowhere.onnx")
    found = judge.judged(candidate, told.append)
    assert found.holds == holds
    assert (found.value == pytest.approx(1.0, abs=1e-6)) == (off == 0.0)
    assert found.low <= found.value <= found.high
    assert found.worst <= found.value
    assert (found.metric, found.budget, found.samples) == ("cosine", "cosine>=0.99", len(judge.data.part("judge")))
    assert len(told) == found.samples < 24


def test_a_budget_of_another_metric_is_refused() -> None:
    with pytest.raises(InputError, match="bounds perplexity, this model is judged by cosine") as caught:
        judge_of("perplexity<=+2%", Path("nowhere.onnx"))
    assert "cosine>=0.995" in str(caught.value)


def test_the_original_is_asked_once_by_each_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"original": [2.0, 3.0], "other": [1.0, 1.0], "worse": [2.2, 3.2], "same": [2.0, 3.0]}
    asked: list[str] = []

    def losses(path: Path, rows: object, say: object) -> list[float]:
        asked.append(path.name)
        return known[path.name]

    monkeypatch.setattr(gate, "_losses", losses)
    both, taken, given = ("key", "value"), ("batch", 2, "past_sequence", 4), ("batch", 2, "total_sequence", 4)
    past = [TensorSpec(f"past_key_values.0.{kind}", "float32", taken) for kind in both]
    present = [TensorSpec(f"present.0.{kind}", "float32", given) for kind in both]
    ids, logits = TensorSpec("input_ids", "int64", ("batch", "sequence")), ("batch", "sequence", 9)
    signature = Signature((ids, *past), (TensorSpec("logits", "float32", logits), *present))
    data = CalibrationData(CalibrationRecord(source="made up", samples=2), rows=((1, 2, 3), (4, 5, 6)))
    loaded = Loaded("decoder", parse(PRODUCT, {"weight": WEIGHT}), signature, Product(), None, "onnx")  # type: ignore[arg-type]  # feeds nothing

    def judge(original: str) -> Judge:
        return Judge(loaded, Path(original), data, Metric.of(signature), MetricBudget.parse("perplexity<=+10%"))

    one, other = judge("original"), judge("other")
    assert one.is_of_language
    values = [one.judged(Path(name), lambda _: None).value for name in ("same", "worse")]
    assert values == pytest.approx([1.0, np.exp(0.2)])
    assert asked == ["original", "same", "worse"]
    assert not other.judged(Path("same"), lambda _: None).holds
    assert asked[3:] == ["other", "same"]
