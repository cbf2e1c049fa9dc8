"""The proof of the whole: errors are relative, padded rows do not count, and every padding is a case of its own.

Covers: qmath/compare.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.errors import InputError, ProofError
from onnxopt.graph import weight_files
from onnxopt.graph.kept_rows import ending_last, rows_that_matter
from onnxopt.load.entry import load as load_source
from onnxopt.load.onnx_file import load_onnx
from onnxopt.load.source.source import resolve
from onnxopt.proof.cases import cases_of
from onnxopt.proof.compare import compare_models
from onnxopt.proof.whole import prove
from onnxopt.qmath.compare import worst_error
from onnxopt.spec import Array, Budget, Feeds

MASKED = """
<ir_version: 10, opset_import: ["" : 20]>
g (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask)
  => (float[batch,sequence,4] hidden, float[batch,4] pooled) <int64[1] one = {1}> {
  row = Gather (table, input_ids)
  hidden = MatMul (row, weight)
  wide = Unsqueeze (attention_mask, last)
  kept = Cast <to = 1> (wide)
  product = Mul (hidden, kept)
  pooled = ReduceSum <keepdims = 0> (product, one)
}"""


def masked_model(path: Path, factor: float = 1.0) -> Path:
    model = onnx.parser.parse_model(MASKED)
    generator = np.random.default_rng(0)
    weights = {
        "table": generator.standard_normal((20, 4)).astype(np.float32),
        "weight": generator.standard_normal((4, 4)).astype(np.float32) * np.float32(factor),
        "last": np.array([2], np.int64),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, path)
    return path


def test_an_error_is_relative_to_the_largest_magnitude() -> None:
    reference = np.array([[100.0, 1e-9]], np.float32)
    relative, absolute = worst_error(reference + np.float32(1e-3), reference)
    assert relative == pytest.approx(1e-5, rel=0.01)
    assert absolute == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)),
        (np.array([np.nan], np.float32), np.array([1.0], np.float32)),
        (np.array([np.inf], np.float32), np.array([-np.inf], np.float32)),
        (np.array([1], np.int64), np.array([2], np.int64)),
        (np.array([1.0], np.float32), np.array([1], np.int64)),
    ],
)
def test_what_cannot_be_compared_is_infinitely_wrong(candidate: np.ndarray, reference: np.ndarray) -> None:
    assert worst_error(candidate, reference) == (math.inf, math.inf)


def test_padded_rows_do_not_matter_and_others_do(tmp_path: Path) -> None:
    loaded = load_onnx(masked_model(tmp_path / "model.onnx"))
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    feeds = {"attention_mask": mask, "input_ids": mask}
    hidden = np.zeros((2, 3, 4), np.float32)
    rows = rows_that_matter(loaded.signature, feeds, "hidden", hidden)
    assert rows is not None
    assert rows.tolist() == (mask != 0).tolist()
    assert rows_that_matter(loaded.signature, feeds, "pooled", np.zeros((2, 4), np.float32)) is None


def test_a_candidate_that_is_wrong_in_one_padding_only_is_refuted(tmp_path: Path) -> None:
    loaded = load_onnx(masked_model(tmp_path / "model.onnx"))

    def right_padding_only(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        lengths = feeds["attention_mask"].sum(axis=1)
        mask = (np.arange(feeds["attention_mask"].shape[1]) < lengths[:, None]).astype(np.int64)
        return loaded.reference.run({**feeds, "attention_mask": mask})

    cases = cases_of(loaded)
    assert {padding for _, padding in cases} == {"none", "right", "left", "holes"}
    with pytest.raises(ProofError, match="left padding"):
        prove(right_padding_only, loaded, Budget(), [case for case in cases if case[1] != "holes"])
    assert prove(loaded.reference.run, loaded, Budget(0.0), cases)


def test_two_equal_models_are_equal_and_a_scaled_one_is_not(tmp_path: Path) -> None:
    first, second = masked_model(tmp_path / "a.onnx"), masked_model(tmp_path / "b.onnx", factor=1.01)
    assert compare_models(first, first).equal
    found = compare_models(first, second)
    assert not found.equal
    assert found.first_difference.startswith("hidden (made by MatMul)")
    assert found.outputs[0].cosine > 0.9999
    assert found.outputs[0].relative_error == pytest.approx(0.01, rel=0.1)


def test_models_with_other_signatures_are_not_compared(tmp_path: Path) -> None:
    other = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20]> g (float[batch,4] x) => (float[batch,4] y) { y = Relu (x) }""")
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(InputError, match="input_ids"):
        compare_models(masked_model(tmp_path / "a.onnx"), tmp_path / "other.onnx")


class Recorded:
    """One side of a proof, which writes down when it runs."""

    name = "recorded"

    def __init__(self, letter: str, runs: list[str], run: Callable[[Mapping[str, Array]], Feeds]) -> None:
        self.letter, self.runs, self._run = letter, runs, run

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        self.runs.append(self.letter)
        return self._run(feeds)


@pytest.mark.parametrize("large", [False, True])
def test_of_a_large_model_one_side_runs_behind_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, large: bool
) -> None:
    loaded = load_source(resolve("gpt2-mini"))
    torch, runs = loaded.reference, list[str]()

    def answer(feeds: Mapping[str, Array]) -> Feeds:  # of arrays that torch may write to, for each row's last token
        own = {name: np.array(array) for name, array in feeds.items()}
        moved = ending_last(loaded.signature, own)
        return torch.run(own) | ({} if moved is None else {"logits": torch.run(moved)["logits"]})

    loaded.reference = Recorded("reference ", runs, torch.run)
    candidate = Recorded("result ", runs, answer)
    if large:
        monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
        monkeypatch.setattr(weight_files, "LEAST_BYTES", 1 << 10)
    with weight_files.weights_in_file(weight_files.WeightFile(tmp_path / "weights") if large else None):
        records = prove(candidate.run, loaded, Budget(), cases_of(loaded))
        order = list(runs)
        wrong = Recorded("result ", [], lambda feeds: _last_step_off(answer(feeds), feeds))
        with pytest.raises(ProofError, match="output logits differs"):
            prove(wrong.run, loaded, Budget(), cases_of(loaded))
    assert {record.worst_relative_error for record in records} == {0.0}
    assert ("reference " in order[order.index("result ") :]) != large
    assert (tmp_path / "weights").is_file() == large


def _last_step_off(answers: Feeds, feeds: Mapping[str, Array]) -> Feeds:
    """Move the logits behind twelve tokens, which only the steps reach."""
    off = 1.0 if feeds["attention_mask"].shape[1] == 12 and feeds["input_ids"].shape[1] == 1 else 0.0
    return {**answers, "logits": answers["logits"] + np.float32(off) * np.abs(answers["logits"]).max()}
