"""Weights only through the whole pipeline of a real decoder, gpt2-mini.

Covers: pipeline/pipeline.py
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxopt.graph import STANDARD_DOMAINS, initializer_bytes
from onnxopt.graph.layers import Layers
from onnxopt.judge.perplexity import measure_perplexity
from onnxopt.load.entry import load
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from onnxopt.pipeline.orders import carrying_out
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.qmath.precision import Precision
from onnxopt.quantize.weights import plan_weights
from onnxopt.rewrite import Rewrite
from onnxopt.spec import Provider, Target

MODELS = Path(__file__).parents[2] / "models" / "weights" / "gpt2-mini"


@pytest.fixture(scope="module")
def original() -> Loaded:
    return load(resolve("gpt2-mini"), logits="all")


@pytest.mark.parametrize(
    ("provider", "precision", "most"),
    [
        ("cpu", "int8-weights:32", 1.01),
        ("cpu", "int4-weights:32", 1.1),
        ("portable", "int4-weights:64:asymmetric", 1.1),
    ],
)
def test_a_real_decoder_keeps_its_perplexity(
    provider: Provider, precision: str, most: float, original: Loaded, tmp_path: Path
) -> None:
    target = Target(provider)
    before = perplexity(original.model, tmp_path / "before")
    size = initializer_bytes(original.model)
    loaded = replace(original, model=original.model.clone())

    def quantize(model: ir.Model) -> list[Rewrite]:
        return carrying_out(plan_weights(Layers.of(model), Precision.parse(precision)), target)

    ledger = run_pipeline(loaded, target, quantize=quantize)
    assert not [item.reason for entry in ledger.entries for item in entry.rolled_back]
    ops = Counter(node.op_type for node in loaded.model.graph)
    if provider == "cpu":
        assert (ops["MatMulNBits"], ops["GatherBlockQuantized"], ops["MatMul"]) == (25, 2, 0)
        assert ops["GroupQueryAttention"] == 6
        assert initializer_bytes(loaded.model) < size * (0.31 if "8" in precision else 0.25)
    else:
        assert ops["DequantizeLinear"] == 25
        assert {node.domain for node in loaded.model.graph} <= set(STANDARD_DOMAINS)
    assert perplexity(loaded.model, tmp_path / "after") < most * before


def perplexity(model: ir.Model, folder: Path) -> float:
    folder.mkdir()
    ir.save(model.clone(), folder / "model.onnx")
    found = measure_perplexity(folder / "model.onnx", tokenizer=MODELS, max_windows=3).scores[0].perplexity
    assert math.isfinite(found)
    return found
