"""Slim a model with OnnxSlim."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxslim

job = json.loads(sys.argv[1])
onnxslim.slim(job["source"], str(Path(job["out"]) / "model.onnx"))
