"""A graph that was lowered once, by onnxopt or by ONNX Runtime, can be optimized again for another target."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxopt
from tests.support.tiny import tiny_checkpoint

NAMES = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("bert", tmp_path_factory.mktemp("retarget") / "bert")


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    """A TorchScript export as ONNX Runtime's optimizers know them: eager attention, opset 14."""
    import torch
    import transformers

    class Flat(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(NAMES, tensors, strict=True))).last_hidden_state

    model = transformers.BertModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    ids = torch.arange(5, 19).reshape(2, 7)
    path = checkpoint.parent / "exported.onnx"
    torch.onnx.export(
        Flat(model),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        str(path),
        dynamo=False,
        opset_version=14,
        input_names=list(NAMES),
        output_names=["hidden"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in (*NAMES, "hidden")},
    )
    return path


def domains(path: Path) -> set[str]:
    return {node.domain for node in onnx.load(path).graph.node}


def blocks(artifact: onnxopt.Artifact) -> dict[str, str]:
    return {name: str(count) for name, count in artifact.manifest.blocks.items()}


def undone(artifact: onnxopt.Artifact) -> list[str]:
    return [f"{entry.name}: {item.reason}" for entry in artifact.manifest.ledger for item in entry.rolled_back]


def test_an_artifact_for_the_cpu_becomes_portable_and_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    cpu = onnxopt.optimize(checkpoint, out=tmp_path / "cpu", measure=False)
    assert "com.microsoft" in domains(cpu.model_path)
    portable = onnxopt.optimize(cpu.model_path, out=tmp_path / "portable", target="portable", measure=False)
    assert domains(portable.model_path) <= {"", "ai.onnx"}
    onnx.checker.check_model(onnx.load(portable.model_path), full_check=True)
    assert blocks(portable) == blocks(cpu)
    back = onnxopt.optimize(portable.model_path, out=tmp_path / "back", measure=False)
    for artifact in (portable, back):
        assert undone(artifact) == []
        assert onnxopt.compare_models(cpu.path, artifact.path).equal
    # a file does not say that its mask holds only 0 and 1; its user does
    again = onnxopt.optimize(cpu.model_path, out=tmp_path / "again", measure=False, values=["attention_mask=0,1"])
    counts = [len(onnx.load(artifact.model_path).graph.node) for artifact in (cpu, again, back)]
    assert counts[1] <= counts[0]
    assert blocks(again) == blocks(back) == blocks(cpu)


@pytest.mark.parametrize("level", [0, 99])
@pytest.mark.filterwarnings("ignore")
def test_a_graph_of_the_transformers_optimizer_becomes_portable(
    exported: Path, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.transformers import optimizer

    monkeypatch.setattr(logging.root, "level", logging.CRITICAL)
    found = optimizer.optimize_model(
        str(exported), model_type="bert", num_heads=4, hidden_size=32, opt_level=level, use_gpu=False
    )
    found.save_model_to_file(str(tmp_path / "ort.onnx"))
    kinds = {node.op_type for node in found.model.graph.node}
    assert {"Attention", "SkipLayerNormalization", "BiasGelu", "EmbedLayerNormalization"} <= kinds
    portable = onnxopt.optimize(tmp_path / "ort.onnx", out=tmp_path / "portable", target="portable", measure=False)
    assert domains(portable.model_path) <= {"", "ai.onnx"}
    assert undone(portable) == []
    assert blocks(portable) == {"attention": "2 of 2", "layer_norm": "5 of 5", "gelu": "2 of 2", "linear": "8 of 8"}


def test_a_graph_that_the_session_saved_becomes_portable(exported: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "session.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])
    assert "com.microsoft" in domains(tmp_path / "session.onnx")
    portable = onnxopt.optimize(tmp_path / "session.onnx", out=tmp_path / "portable", target="portable", measure=False)
    assert domains(portable.model_path) <= {"", "ai.onnx"}
    assert undone(portable) == []
    assert blocks(portable) == {"attention": "2 of 2", "layer_norm": "5 of 5", "gelu": "2 of 2", "linear": "8 of 8"}
