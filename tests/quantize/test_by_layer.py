"""Large decoders are rounded piece by piece: the codes of the usual road, from files, and on from where a run stopped.

Covers: quantize/by_layer.py, quantize/divergence.py, quantize/roundings.py
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import weight_files
from onnxopt.graph.layers import Layers
from onnxopt.graph.weight_files import WeightFile, Widened
from onnxopt.host import kept as kept_module
from onnxopt.host.kept import kept
from onnxopt.host.usercache import cache_root
from onnxopt.probe import pieces as pieces_module
from onnxopt.probe.pieces import Pieces
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.blocks import dequantize
from onnxopt.qmath.precision import Blocked, Precision
from onnxopt.quantize import by_layer
from onnxopt.quantize.by_layer import ROUNDED, ByLayer, Rounded, outputs_of, relative_harms
from onnxopt.quantize.decoder import plan_unseen, roundings_of
from onnxopt.quantize.divergence import LanguageProbe, PiecewiseProbe
from onnxopt.quantize.roundings import Rounding, recorded_seconds
from onnxopt.quantize.weights import SeenInput
from tests.support.residual import Residual

ROOT = Path(__file__).parents[2]
FOUR, EIGHT = Precision("int4-weights", 32), Precision("int8-weights", 16)
ASYMMETRIC = Precision("int4-weights", 16, symmetric=False)
FORM = Residual(width=48, inner=80, blocks=3, words=120)


class StoppedError(Exception):
    """Stands for a run that is killed."""


@dataclass
class Run:
    """One run over a model.

    Attributes:
        form: of the model.
        precisions: that its layers get.
        stop_at: the layer before which it is stopped; 0 for none.
        told: what was said.
    """

    form: Residual = FORM
    precisions: tuple[Precision, ...] = (FOUR, EIGHT)
    stop_at: int = 0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = self.form.model()
        self.layers = Layers.of(self.model)
        random = np.random.default_rng(3)
        self.windows = [{"input_ids": random.integers(0, self.form.words, (2, 40 + n))} for n in range(5)]
        self.pieces = Pieces(self.model, self.model.graph.outputs[0])

    def say(self, words: str) -> None:
        self.told.append(str(words))
        if self.stop_at and words.startswith(f"rounding {self.stop_at} of"):
            raise StoppedError

    @property
    def work(self) -> ByLayer:
        tables = {table.weight for table in self.layers.tables}
        precisions = dict.fromkeys((one.label for one in self.layers.linears), self.precisions)
        return ByLayer(self.pieces, self.layers.linears, tables, precisions, self.windows, "text", "auto", self.say)

    def rounded(self) -> Rounded:
        return self.work.rounded(recorded_seconds)

    def at_once(self) -> dict[str, list[Rounding]]:
        """Return what the road of small models gives: whole statistics, whole weights."""
        runner = GraphRunner(self.model, [one.x for one in self.layers.linears], with_outputs=False)
        rows: dict[ir.Value, list[np.ndarray]] = {}
        for window in self.windows:
            for value, array in runner.run(window)[1].items():
                rows.setdefault(value, []).append(array.reshape(-1, array.shape[-1]))
        found = {}
        for linear in self.layers.linears:
            x = np.concatenate(rows[linear.x]).astype(np.float64)
            whole = any(one.kind == "int4-weights" for one in self.precisions)
            seen = SeenInput(x.T @ x / len(x) if whole else np.square(x).mean(0), x.mean(0))
            tied = linear.weight in {table.weight for table in self.layers.tables}
            found[linear.label] = roundings_of(linear, self.precisions, seen, recorded_seconds, whole=tied)
        return found


def blocks_of(rounded: Rounded, label: str) -> Blocked:
    """Return the codes of a layer in its first precision."""
    blocks = rounded.roundings[label][0].planned.blocks
    assert blocks is not None
    return blocks


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pieces_module, "LEAST_WEIGHT_BYTES", 1 << 10)
    return tmp_path / "cache"


FORMS = {
    "tied": Run(),
    "turned": Run(Residual(width=64, inner=40, blocks=2, words=300, tied=False, turned=True), (ASYMMETRIC,)),
    "8 bits": Run(Residual(width=40, inner=72, blocks=1, words=90, seed=5), (EIGHT,)),
}


@pytest.mark.parametrize("outputs", [16, 2048])
@pytest.mark.parametrize("run", FORMS.values(), ids=FORMS)
def test_codes_are_those_of_the_whole(run: Run, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_layer, "OUTPUTS_AT_ONCE", outputs)
    found, expected = run.rounded(), run.at_once()
    assert list(found.roundings) == list(expected)
    for label, own in expected.items():
        for one, other in zip(found.roundings[label], own, strict=True):
            assert (one.planned.precision, one.seconds) == (other.planned.precision, other.seconds)
            blocks, known = one.planned.blocks, other.planned.blocks
            assert blocks is not None
            assert known is not None
            assert isinstance(blocks.codes, np.memmap)
            assert (blocks.codes != known.codes).mean() < 0.01  # moments are in float32: a tie may fall otherwise
            assert (blocks.zero_points is None) == (known.zero_points is None)
            assert np.abs(dequantize(blocks) - dequantize(known)).mean() < 0.002
            assert (one.planned.bias is None) == (other.planned.bias is None)
            if one.planned.bias is not None and other.planned.bias is not None:
                np.testing.assert_allclose(one.planned.bias, other.planned.bias, atol=5e-3)


def test_harm_is_noise_over_energy_and_a_tied_table_counts_as_table_too() -> None:
    run = Run()
    found, known = run.rounded(), run.at_once()
    slopes = relative_harms(found)
    for label, own in known.items():
        linear = next(one for one in run.layers.linears if one.label == label)
        weight = linear.matrix()
        error = weight - dequantize(blocks_of(found, label))
        harm = slopes[label] * found.roundings[label][0].noise
        as_product = own[0].noise / found.energies[label]
        if label == "table":
            assert harm == pytest.approx(as_product + np.square(error).sum() / np.square(weight).sum(), rel=0.05)
        else:
            assert harm == pytest.approx(as_product, rel=0.05)
        assert 1e-5 < harm < 0.1
        eight = found.roundings[label][1]
        assert slopes[label] * eight.noise < harm / 20


@pytest.mark.parametrize("at", [1, 2, 5, 7])
def test_a_stopped_run_goes_on_where_it_was(at: int, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run().rounded()
    for entry in (own_cache / ROUNDED).iterdir():
        entry.rename(own_cache / entry.name)  # out of the way
    monkeypatch.setattr(kept_module, "_kept", {})
    stopped = Run(stop_at=at)
    with pytest.raises(StoppedError):
        stopped.rounded()
    assert any(words.startswith("the layers rounded so far") for words in kept()) == (at > 2)
    again = Run()
    found = again.rounded()
    resumed = [words for words in again.told if "kept by an earlier run" in words]
    assert len(resumed) == (at - 1) // 2 * 2  # a piece has two layers
    assert len([words for words in again.told if words.startswith("rounding ") and words not in resumed]) == 7 - len(
        resumed
    )
    first = next((words for words in again.told if words.startswith("calibrate: part")), "")
    assert first.startswith(f"calibrate: part {(at + 1) // 2 + 1} of 5")
    for label, own in whole.roundings.items():
        for one, other in zip(found.roundings[label], own, strict=True):
            assert one.noise == other.noise
        np.testing.assert_array_equal(blocks_of(found, label).codes, blocks_of(whole, label).codes)
    assert not list((own_cache / ROUNDED).glob("*-inputs"))  # what crosses has served


def test_a_run_that_is_killed_leaves_what_it_finished_and_nothing_else(own_cache: Path) -> None:
    program = f"""
import os, signal
from onnxopt.probe import pieces
from tests.quantize.test_by_layer import Run
pieces.LEAST_WEIGHT_BYTES = {pieces_module.LEAST_WEIGHT_BYTES}
run = Run()
def say(words):
    if str(words).startswith("rounding 4 of"):
        os.kill(os.getpid(), signal.SIGKILL)
run.say = say
run.rounded()
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = Run()
    found = again.rounded()
    assert sum("kept by an earlier run" in words for words in again.told) == 2
    known = again.at_once()
    assert list(found.roundings) == list(known)
    assert sorted(path.name for path in (own_cache / ROUNDED).iterdir() if path.name.startswith(".")) == []


def test_a_whole_run_is_not_run_again_and_a_damaged_entry_is() -> None:
    first = Run().rounded()
    again = Run()
    again.rounded()
    assert not [words for words in again.told if words.startswith("calibrate")]
    codes = next(path for path in sorted((cache_root() / ROUNDED).rglob("0-0-codes.npy")))
    content = bytearray(codes.read_bytes())
    content[-1] ^= 1
    del first
    codes.unlink()
    codes.write_bytes(bytes(content))
    mended = Run()
    found, expected = mended.rounded(), Run().at_once()
    assert [words for words in mended.told if words.startswith("calibrate")]
    for label, own in expected.items():
        known = own[0].planned.blocks
        assert known is not None
        assert (blocks_of(found, label).codes != known.codes).mean() < 0.01


def test_other_text_weights_or_precisions_are_other_entries() -> None:
    Run().rounded()
    for other in (Run(replace(FORM, seed=1)), Run(precisions=(FOUR,)), Run(replace(FORM, inner=81))):
        other.rounded()
        assert not [words for words in other.told if "kept" in words]


@pytest.mark.parametrize("turned", [False, True])
def test_outputs_of_a_weight_in_16_bits_are_widened_alone(turned: bool, tmp_path: Path) -> None:  # noqa: FBT001
    run = Run(Residual(width=40, inner=56, turned=turned))
    linear = next(one for one in run.layers.linears if one.label == "layers.1.up")
    assert linear.transposed == turned
    weight = linear.matrix().astype(ml_dtypes.bfloat16).astype(np.float32)
    exact = np.ascontiguousarray(weight.T if turned else weight)
    tensor = WeightFile(tmp_path / "weights").add(exact, "w")
    assert isinstance(tensor, Widened)
    linear.weight.const_value = tensor
    expected = linear.matrix()[:, 7:30]
    found = outputs_of(linear, 7, 30)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    assert found.T.flags.c_contiguous


def test_both_probes_measure_one_divergence() -> None:
    run = Run(Residual(width=48, inner=64, blocks=2, words=200))
    rounded = run.rounded()
    blocks = {label: own[0].planned.blocks for label, own in rounded.roundings.items()}
    some = {label: one for label, one in blocks.items() if one is not None and label != "layers.0.up"}
    piecewise, whole = PiecewiseProbe(run.pieces, run.layers, run.windows), LanguageProbe(run.layers, run.windows)
    assert piecewise.diverged({}) < 1e-7
    for chosen in ({"table": some["table"]}, some):  # a tied table is replaced where it is looked up, too
        assert piecewise.diverged(chosen) == pytest.approx(whole.diverged(chosen), rel=1e-3)
        assert piecewise.diverged(chosen) > 1e-4


@pytest.mark.parametrize("form", [FORM, Residual(width=64, inner=40, blocks=2, words=600, tied=False, turned=True)])
def test_without_samples_a_large_model_gets_the_plan_of_a_small_one(
    form: Residual, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = Layers.of(form.model())
    precision, keep = Precision.parse("int4-weights:32"), {"layers.1.down"}
    expected = plan_unseen(layers, precision, keep=keep)
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 1)
    found = plan_unseen(layers, precision, keep=keep)
    assert dict(found).keys() == dict(expected).keys()
    for label, one in expected:
        made = found.linears[label]
        assert (made.precision, made.reason) == (one.precision, one.reason)
        if one.blocks is not None:
            assert made.blocks is not None
            np.testing.assert_array_equal(made.blocks.codes, one.blocks.codes)
            np.testing.assert_array_equal(made.blocks.scales, one.blocks.scales)
    assert found.linears["layers.1.down"].blocks is None
    first = found.linears["layers.0.up"].blocks
    assert first is not None
    assert isinstance(first.codes, np.memmap)
    told: list[str] = []
    plan_unseen(layers, precision, keep=keep, progress=told.append)
    assert told
    assert all("kept by an earlier run" in words for words in told)
