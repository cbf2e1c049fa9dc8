"""Run ONNX Runtime's transformers optimizer on a model; tell how many of each operator it fused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onnxruntime.transformers import optimizer

job = json.loads(sys.argv[1])
optimized = optimizer.optimize_model(
    job["source"], model_type="bert", num_heads=job["heads"], hidden_size=job["hidden"]
)
optimized.save_model_to_file(str(Path(job["out"]) / "model.onnx"))
print(json.dumps({"note": f"{optimized.get_fused_operator_statistics()['Attention']} attentions fused"}))
