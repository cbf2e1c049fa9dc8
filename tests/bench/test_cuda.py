"""The GPU benchmark's parts that need no GPU: graphs without weights, weights made up again, tables, records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

from bench import cuda
from bench.cuda_graphs import strip
from bench.cuda_worker import Bench, write_weights


def result() -> dict[str, Any]:
    shapes = ("1x128", "8x512")
    ms = {
        "ours": (1.5, 2.4),
        "ours graph": (0.5, 2.2),
        "ours, raw mask": (1.6, 4.9),
        "ours, raw mask graph": (0.49, 4.7),
        "ours, embeddings apart": (1.6, 2.5),
        "ours, embeddings apart graph": (0.51, 2.3),
        "torch compiled": (0.9, 2.8),
    }
    return {
        "created": "2026-11-26T14:00:00+00:00",
        "device": "NVIDIA H100 80GB HBM3",
        "versions": {"onnxruntime": "1.31.1", "torch": "2.11"},
        "ms": {"bert": {name: dict(zip(shapes, times, strict=True)) for name, times in ms.items()}},
        "failed": {"bert classic": "no such | file"},
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_weights_come_back_with_their_mean_and_spread(dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((64, 96)) * 0.3 + 2).astype(dtype)
    kept = np.arange(3, dtype=np.float32)
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, [1])]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    nodes = [
        onnx.helper.make_node("Gather", ["w", "x"], ["g"]),
        onnx.helper.make_node("Cast", ["g"], ["y"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Identity", ["k"], ["z"]),
    ]
    tensors = [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(kept, "k")]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "whole.onnx")
    strip(tmp_path / "whole.onnx", tmp_path / "bare")
    assert (tmp_path / "bare" / "model.onnx").stat().st_size < 1200
    write_weights(tmp_path / "bare")
    session = onnxruntime.InferenceSession(tmp_path / "bare" / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["y"], {"x": np.array([5])})[0]
    assert found.shape == (1, 96)
    assert abs(float(found.mean()) - 2) < 0.15
    assert 0.2 < float(found.std()) < 0.4
    assert len(json.loads((tmp_path / "bare" / "fills.json").read_text(encoding="utf-8"))) == 1


def test_a_model_that_fails_is_a_line_in_the_results(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.onnx").write_bytes(b"no model")
    bench = Bench("cpu", 1, 0.01, with_torch=False)
    assert len(list(bench.model("bert", [tmp_path / "broken"]))) == 4
    assert list(bench.failed) == ["bert broken"]
    assert bench.medians() == {}


def test_the_table_names_the_fastest_of_each_way() -> None:
    text = cuda.render(result())
    lines = text.splitlines()
    ours = next(line for line in lines if line.startswith("| onnxopt --target cuda"))
    assert ours == "| onnxopt --target cuda --precision fp16:io | **1.50** / 0.50 | **2.40** / **2.20** |"
    assert next(line for line in lines if "torch.compile" in line).endswith("| – / 0.90 | – / 2.80 |")
    assert "2026-11-26" in lines[0]
    assert r"no such \| file" in text


def test_the_record_says_which_form_won_and_where_shapes_disagree() -> None:
    record = cuda.profits(result())
    assert (record["provider"], record["onnxruntime"], record["date"]) == ("cuda", "1.31.1", "2026-11-26")
    forms = {choice["pass"]: (choice["form"], choice["disagree"]) for choice in record["choices"]}
    assert forms == {"pack-rows": ("lengths", True), "lower-embed-norm": ("EmbedLayerNormalization", False)}
    assert record["shapes"][1] == [["batch", 8], ["sequence", 512]]


def test_the_passes_have_the_forms_that_are_recorded() -> None:
    from onnxopt.rewrite.registry import get

    for name, (form, _) in cuda.FORMS.items():
        assert form in get(name).forms
