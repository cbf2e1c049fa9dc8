from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxopt.graph import region
from onnxopt.observe import Observation
from onnxopt.pipeline import prepare
from onnxopt.profit import AS_IS, Profit, decide, signature
from onnxopt.requests import fit_workload, ragged_lengths, requests_of
from onnxopt.spec import Target, Workload
from tests.support.rules import observe, parse


def rounds(*series: list[float]) -> list[list[list[list[float]]]]:
    """Times by form, round, shape, run: one run per shape, one list of round times per form."""
    return [[[[value]] for value in times] for times in series]


def test_a_form_wins_only_when_it_is_faster_by_more_than_the_noise() -> None:
    recorded = [10.0, 10.2, 9.9, 10.1]
    assert decide(["a", "b"], rounds(recorded, [8.0, 8.1, 7.9, 8.2])).form == "b"
    assert decide(["a", "b"], rounds(recorded, [9.9, 9.8, 10.1, 9.7])).form == "a"
    assert decide(["a", "b"], rounds(recorded, [5.0, 10.4, 10.3, 10.2])).form == "a"


def test_the_fastest_of_several_clear_winners_is_taken() -> None:
    choice = decide(["a", "b", "c"], rounds([10.0] * 4, [9.0] * 4, [7.0] * 4))
    assert choice.form == "c"
    assert choice.times_ms == {"a": (10.0,), "b": (9.0,), "c": (7.0,)}
    assert not choice.disagree


def test_shapes_weigh_the_same_and_their_disagreement_is_said() -> None:
    times = [[[[1.0], [100.0]]] * 4, [[[0.5], [120.0]]] * 4]
    choice = decide(["a", "b"], times)
    assert choice.form == "b"
    assert choice.disagree
    assert "disagree" in str(choice)


MODEL = """
g (float[batch,64] x) => (float[batch,64] y) <float half = {0.5}> {
  a = Mul (x, half) b = Mul (a, half) y = Relu (b)
}"""


def forms_of_a_region() -> tuple[object, dict[str, object]]:
    model = parse(MODEL)
    prepare(model, observe(model))
    nodes = list(model.graph)
    old = region(nodes, nodes[-1].outputs)
    return model, {"default": region(nodes, nodes[-1].outputs), AS_IS: old}


def profit(*, measure: bool, seconds: float = 60.0) -> Profit:
    feeds = {"x": np.ones((4, 64), np.float32)}
    return Profit(Target("cpu"), [Observation({"batch": 4}, feeds)], measure=measure, seconds=seconds)


def test_without_measuring_the_recorded_winner_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path))
    model, forms = forms_of_a_region()
    choice = profit(measure=False).choose_region("test", forms, model)  # type: ignore[arg-type]
    assert (choice.form, choice.source) == ("default", "recorded")
    assert not list(tmp_path.rglob("*.json"))


def test_a_measured_choice_is_kept_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path))
    model, forms = forms_of_a_region()
    first = profit(measure=True).choose_region("test", forms, model)  # type: ignore[arg-type]
    assert first.source == "measured"
    assert set(first.times_ms) == {"default", AS_IS}
    assert all(time > 0 for series in first.times_ms.values() for time in series)
    second = profit(measure=False).choose_region("test", forms, model)  # type: ignore[arg-type]
    assert (second.form, second.source, second.times_ms) == (first.form, "cache", first.times_ms)
    (file,) = tmp_path.rglob("*.json")
    file.write_text(json.dumps({"form": 3}), encoding="utf-8")
    assert profit(measure=False).choose_region("test", forms, model).source == "recorded"  # type: ignore[arg-type]


def test_when_the_time_is_used_up_the_recorded_winner_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path))
    model, forms = forms_of_a_region()
    assert profit(measure=True, seconds=0.0).choose_region("test", forms, model).source == "recorded"  # type: ignore[arg-type]


def test_regions_of_one_class_share_a_signature_and_others_do_not() -> None:
    text = """g (float[batch,4] x) => (float[batch,4] y, float[batch,4] z) {
      a = Relu (x) y = Neg (a) b = Relu (x) z = Abs (b)
    }"""
    model = parse(text)
    prepare(model, observe(model))
    relu, neg, again, absolute = list(model.graph)
    assert signature(region([relu], relu.outputs)) == signature(region([again], again.outputs))
    assert signature(region([neg], neg.outputs)) != signature(region([absolute], absolute.outputs))


@pytest.mark.parametrize(("batch", "longest", "fill"), [(32, 256, 0.26), (8, 128, 0.5), (64, 512, 0.1), (4, 16, 1.0)])
def test_ragged_lengths_have_the_share_that_was_asked_for(batch: int, longest: int, fill: float) -> None:
    lengths = ragged_lengths(batch, longest, fill)
    assert lengths.shape == (batch,)
    assert lengths.min() >= 1
    assert lengths.max() == longest
    assert abs(lengths.mean() / longest - fill) < 0.05
    assert ragged_lengths(batch, longest, fill).tolist() == lengths.tolist()


def test_requests_follow_the_workload(tmp_path: Path) -> None:
    import onnx

    from onnxopt.imports import load_onnx

    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20]>
    g (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask) => (int64[batch,sequence] y) {
      y = Mul (input_ids, attention_mask)
    }""")
    onnx.save(model, tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    workload = fit_workload(Workload.parse("2x8,32x256@0.26,2x8"), loaded)
    assert workload.shapes == ({"batch": 2, "sequence": 8}, {"batch": 32, "sequence": 256})
    assert workload.fills == (1.0, 0.26)
    full, ragged = requests_of(loaded, workload)
    assert full.feeds["attention_mask"].all()
    assert abs(ragged.feeds["attention_mask"].mean() - 0.26) < 0.05
    assert workload.label(1) == "batch 32 sequence 256, 26% real tokens"
