"""A plan is not yet a result: layers whose rewrite was undone or turned down are told as float.

Covers: quantize/trials.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph.layers import Layers
from onnxopt.load.onnx_file import load_onnx
from onnxopt.pipeline.pipeline import Pipeline
from onnxopt.probe.observe import Observation
from onnxopt.qmath.affine import columns
from onnxopt.qmath.precision import Affine, Plan, PlannedLinear, Precision
from onnxopt.quantize.run import _layer
from onnxopt.quantize.trials import carry_out, left_in_float
from onnxopt.records.quantization import QuantizationRecord
from onnxopt.spec import Target, Workload
from onnxopt.timing import latency
from onnxopt.timing.latency import speedup_of
from onnxopt.timing.rounds import Start
from tests.support.planned import planned
from tests.support.rules import parse

LAYERS = 4
TEXT = (
    "g (float[batch,32] h0) => (float[batch,32] y) {"
    + " ".join(f"p{i} = MatMul(h{i}, w{i}) h{i + 1} = Tanh(p{i})" for i in range(LAYERS))
    + f" y = Neg(h{LAYERS}) }}"
)
WEIGHTS = {f"w{i}": np.random.default_rng(i).standard_normal((32, 32)).astype(np.float32) / 5 for i in range(LAYERS)}


@pytest.fixture(autouse=True)
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ir.save(parse(TEXT, WEIGHTS), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)


def fused() -> Pipeline:
    pipeline = Pipeline(load_onnx(Path("model.onnx")), Target("cpu"))
    pipeline.canonicalize_and_fuse()
    pipeline.raise_to_quantize()
    return pipeline


def grid(weight: np.ndarray, *, step: float = 0.05) -> PlannedLinear:
    """A layer in static int8; a step of the grid that is much too large is what the driver rolls back."""
    return PlannedLinear(Precision("int8"), activation=Affine(step, 128), columns=columns(weight))


def told(plan: Plan) -> dict[str, str]:
    pipeline = fused()
    trial = pipeline.fork()
    carry_out(trial, plan)
    undone = left_in_float(trial, Layers.of(pipeline.model), plan)
    records = {label: _layer(one, None, undone.get(label)) for label, one in plan}
    return {label: f"{record.precision} {record.reason}".strip() for label, record in records.items()}


def test_a_layer_that_was_rolled_back_is_told_as_float() -> None:
    steps = [0.05, 0.05, 100.0, 0.05]
    found = told(Plan({f"w{i}": grid(WEIGHTS[f"w{i}"], step=step) for i, step in enumerate(steps)}))
    assert [found[f"w{i}"] for i in (0, 1, 3)] == ["int8"] * 3
    assert found["w2"].startswith("fp32 rolled back: ")


def test_a_layer_that_a_guard_turns_down_is_told_as_float() -> None:
    wrong = planned(WEIGHTS["w1"][:, :16])
    found = told(Plan({"w0": planned(WEIGHTS["w0"]), "w1": wrong}))
    assert found == {"w0": "int8-weights:32", "w1": "fp32 the plan's codes are [16, 32]"}


def test_a_layer_that_no_pass_carries_out_is_told_as_float() -> None:
    found = told(Plan({"w0": PlannedLinear(Precision("int8-dynamic")), "w1": grid(WEIGHTS["w1"])}))
    assert found["w1"] == "int8"
    assert found["w0"].startswith("fp32 ")


def test_what_was_planned_in_float_keeps_its_reason() -> None:
    found = told(Plan({"w0": grid(WEIGHTS["w0"]), "w1": PlannedLinear(Precision(), "kept by the user")}))
    assert found == {"w0": "int8", "w1": "fp32 kept by the user"}


def test_the_speed_beside_float_is_weighed_and_told_with_its_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_rounds(*_: object, **__: object) -> list[list[Start]]:
        slow = [Start(1.0, 1, 1, [[time], [9.0]]) for time in (2.0, 2.2) * 3]
        return [slow, [Start(1.0, 1, 1, [[1.0], [10.0]])] * 6]

    monkeypatch.setattr(latency, "run_rounds", run_rounds)
    requests = [Observation({"batch": size}, {"h0": np.zeros((size, 32), np.float32)}) for size in (1, 8)]
    paths = tmp_path / "a" / "model.onnx", tmp_path / "b" / "model.onnx"
    gains = {
        weights: speedup_of(
            *paths, requests, Target("cpu"), lambda _: None, workload=Workload(({}, {}), (), weights)
        ).speedup
        for weights in ((), (1.0, 30.0))
    }
    assert gains[()] > 1.0 > gains[1.0, 30.0]
    record = QuantizationRecord(asked="int8", shipped=True, speedup=1.04, speedup_low=0.99, speedup_high=1.1)
    assert "beside float  1.04x (0.99 to 1.10): no difference seen, geometric mean over the workload" in record.lines()
    assert "speedup" not in record.to_json()
