"""Quantize a model with onnxruntime's quantize_dynamic: weights int8, activations at run time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

job = json.loads(sys.argv[1])
quantize_dynamic(
    job["source"],
    str(Path(job["out"]) / "model.onnx"),
    weight_type=QuantType.QInt8,
    # shape inference stops at the contrib operators of a fused graph; without a default type quantizing fails there
    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
)
