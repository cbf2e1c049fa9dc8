"""A model whose weights stay in files gives the artifact that it gives from memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

import onnxopt
from onnxopt.graph import weight_files
from onnxopt.graph.weight_files import WeightFile
from onnxopt.host.folders import content_of
from tests.support.decoders import save_decoder
from tests.support.tiny import tiny_checkpoint


def _stored_in(folder: Path, dtype: str) -> Path:
    """Store a checkpoint's weights in another type."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    kind = getattr(torch, dtype)
    save_file(
        {name: tensor.to(kind) for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    return folder


MAKE: dict[str, Callable[[Path], Path]] = {
    "llama": lambda folder: save_decoder("llama", folder),
    "qwen3": lambda folder: save_decoder("qwen3", folder),
    "bert": lambda folder: tiny_checkpoint("bert", folder, hidden=48),
}


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "bfloat16"), ("bert", "float16"), ("qwen3", "float32")])
def test_the_artifact_is_the_same(kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "cache"))
    source = _stored_in(MAKE[kind](tmp_path / "checkpoint"), dtype)
    small = onnxopt.optimize(source, out=tmp_path / "small", measure=False, progress=onnxopt.quiet)
    laid: list[ir.TensorProtocol] = []
    add = WeightFile.add

    def counted(self: WeightFile, *arguments: object) -> ir.TensorProtocol:
        laid.append(add(self, *arguments))  # type: ignore[arg-type]  # as they come
        return laid[-1]

    monkeypatch.setattr(WeightFile, "add", counted)
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    monkeypatch.setattr(weight_files, "LEAST_BYTES", 0)
    large = onnxopt.optimize(source, out=tmp_path / "large", measure=False, progress=onnxopt.quiet)
    assert laid, "nothing was laid down"
    graphs = [
        {name: digest for name, digest in content_of(folder).items() if ".onnx" in name}
        for folder in (tmp_path / "small", tmp_path / "large")
    ]
    assert graphs[0] == graphs[1]
    assert graphs[0]
    assert small.manifest.bytes_before == large.manifest.bytes_before
