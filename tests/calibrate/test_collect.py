"""Statistics of tensors of a running model: texts and images, in several passes, interrupted and gone on with.

Covers: calibrate/state.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.calibrate import collect as collecting
from onnxopt.calibrate import state
from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.data import CalibrationData
from onnxopt.calibrate.statistics import IMAGE_ROWS, Statistics
from onnxopt.records.quantization import CalibrationRecord
from onnxopt.spec import Feeds
from tests.support.rules import parse

SAMPLES = 24


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path))
    return tmp_path


def network() -> tuple[ir.Model, list[ir.Value]]:
    weights = {"w": np.random.default_rng(1).standard_normal((6, 3, 3, 3)).astype(np.float32)}
    model = parse(
        "g (float[batch,3,height,height] x) => (float y) { c = Conv(x, w) r = Relu(c) y = HardSwish(r) }", weights
    )
    for node in model.graph:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return model, [model.graph.inputs[0], *(node.outputs[0] for node in model.graph)]


def samples(size: int = 20) -> CalibrationData:
    generator = np.random.default_rng(2)
    feeds = [{"x": generator.standard_normal((1, 3, size, size)).astype(np.float32)} for _ in range(SAMPLES)]
    record = CalibrationRecord(source="test", samples=SAMPLES, sha256="of these")
    return CalibrationData(record, ready=tuple(feeds))


def test_channels_of_images_are_the_second_axis_and_inputs_count_too() -> None:
    model, values = network()
    data = samples()
    found = collect(model, values, data, "fit", images=values)
    assert [one.channels for one in found.values()] == [3, 6, 6, 6]
    x = np.concatenate([data.ready[place]["x"] for place in data.part("fit")])
    np.testing.assert_array_equal(found[values[0]].low, x.min(axis=(0, 2, 3)))
    np.testing.assert_allclose(found[values[0]].mean, x.mean(axis=(0, 2, 3), dtype=np.float64), atol=1e-6)
    assert found[values[2]].smallest == 0.0


def test_of_a_large_image_the_extremes_are_of_all_and_the_moments_of_some() -> None:
    image = np.random.default_rng(3).standard_normal((1, 2, 200, 200)).astype(np.float32)
    image[0, 1, 199, 199] = 50.0
    seen = Statistics(2)
    seen.add_image(image)
    assert seen.high[1] == 50.0
    assert IMAGE_ROWS <= seen.rows < 2 * IMAGE_ROWS
    assert abs(seen.moments[0] - 1.0) < 0.1


def test_many_tensors_take_several_passes_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = network()
    whole = collect(model, values, samples(), "fit", images=values)
    monkeypatch.setattr(collecting, "CAPTURED_BYTES", 10_000)
    apart = collect(model, values, samples(), "fit", images=values)
    for value in values:
        np.testing.assert_array_equal(whole[value].counts, apart[value].counts)


class Interrupted(CalibrationData):
    """Samples whose reader is stopped after some of them."""

    def batches(self, *args: object, **options: object) -> Iterator[Feeds]:
        for number, feeds in enumerate(super().batches(*args, **options)):  # type: ignore[arg-type]  # passed on
            if number == 6:
                raise KeyboardInterrupt
            yield feeds


def test_an_interrupted_calibration_goes_on_where_it_was(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = network()
    data = samples()
    whole = collect(model, values, data, "fit", images=values)
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        collect(model, values, Interrupted(data.record, ready=data.ready), "fit", images=values)
    assert len(list(own_cache.rglob("*.npz"))) == 1
    runs: list[str] = []
    monkeypatch.setattr(state, "SAVE_SECONDS", 1e9)
    found = collect(model, values, data, "fit", images=values, progress=runs.append)
    assert len(runs) == len(data.part("fit")) - 6
    assert list(own_cache.rglob("*.npz")) == [], "it has served"
    for value in values:
        one, other = whole[value].state(), found[value].state()
        assert one.keys() == other.keys()
        for part in one:
            np.testing.assert_array_equal(one[part], other[part])


def test_the_state_of_other_samples_or_weights_is_not_taken(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = network()
    data = samples()
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        collect(model, values, Interrupted(data.record, ready=data.ready), "fit", images=values)
    other = CalibrationData(data.record.model_copy(update={"sha256": "of others"}), ready=data.ready)
    runs: list[str] = []
    collect(model, values, other, "fit", images=values, progress=runs.append)
    assert len(runs) == len(data.part("fit"))
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.zeros((6, 3, 3, 3), np.float32), name="w")
    collect(model, values, data, "fit", images=values, progress=runs.append)
    assert len(runs) == 2 * len(data.part("fit"))


def test_a_broken_state_is_as_good_as_none(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = network()
    data = samples()
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        collect(model, values, Interrupted(data.record, ready=data.ready), "fit", images=values)
    next(own_cache.rglob("*.npz")).write_bytes(b"PK no archive")
    assert len(collect(model, values, data, "fit", images=values)) == len(values)
