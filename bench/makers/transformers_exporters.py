"""Export with the exporters of transformers 5, fused for ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import torch
from transformers import AutoModel
from transformers.exporters import OnnxConfig, OnnxExporter

job = json.loads(sys.argv[1])
out = Path(job["out"])
model = AutoModel.from_pretrained(job["checkpoint"], add_pooling_layer=False).eval()
names = ("input_ids", "attention_mask", "token_type_ids")
sample = {name: torch.ones(2, 11, dtype=torch.int64) for name in names}
exported = OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True, ort_fusions="cpu"))
exported.save_pretrained(out)
onnx.checker.check_model(str(out / "model.onnx"))
