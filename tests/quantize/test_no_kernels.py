"""A runtime that is too old for what quantizing writes is said in a line, whatever it is that it lacks.

Covers: quantize/run.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.probe.program import ProbeError
from onnxopt.quantize import switchboard
from onnxopt.quantize.run import NO_KERNEL
from tests.support.own_text import sentences, text_encoder


def quantized(room: Path) -> None:
    """Quantize an encoder with a few texts."""
    (room / "texts.txt").write_text("\n".join(sentences(40)), encoding="utf-8")
    model = text_encoder(room / "model", layers=1)
    onnxopt.optimize(
        model, out=room / "out", precision="int8", calibration=str(room / "texts.txt"), measure=False, tune=False
    )


@pytest.mark.parametrize("node", ["QuantizeLinear(23) node with name 'a'", "DequantizeLinear(25) node with name 'b'"])
def test_what_the_runtime_lacks_is_said(node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ProbeError(f"{NO_KERNEL} for {node}")

    monkeypatch.setattr(switchboard, "GraphRunner", refuse)
    with pytest.raises(InputError, match=r"--precision: a quantized graph of opset \d+ cannot be run here") as told:
        quantized(tmp_path)
    assert node in str(told.value)
    assert "use int8-dynamic or int8-weights, or a newer onnxruntime" in str(told.value)
    assert not (tmp_path / "out").exists()


def test_what_else_fails_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ProbeError("a graph of ours is broken")

    monkeypatch.setattr(switchboard, "GraphRunner", fail)
    with pytest.raises(ProbeError, match="broken"):
        quantized(tmp_path)
