"""Simplify a model with onnxsim."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import onnxsim

job = json.loads(sys.argv[1])
model, equal = onnxsim.simplify(onnx.load(job["source"]))
if not equal:
    sys.exit("onnxsim's own check failed")
onnx.save(model, str(Path(job["out"]) / "model.onnx"))
