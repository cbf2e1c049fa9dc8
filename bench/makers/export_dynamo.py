"""Make the default export: what `torch.onnx.export` gives a user who sets nothing but the dynamic axes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel


class Hidden(torch.nn.Module):
    """The encoder with tensors in and one tensor out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        """Return the last hidden state."""
        return self.model(input_ids, attention_mask, token_type_ids).last_hidden_state


job = json.loads(sys.argv[1])
model = Hidden(AutoModel.from_pretrained(job["checkpoint"], add_pooling_layer=False).eval())
names = ["input_ids", "attention_mask", "token_type_ids"]
axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
torch.onnx.export(
    model,
    tuple(torch.ones(2, 11, dtype=torch.int64) for _ in names),
    str(Path(job["out"]) / "model.onnx"),
    input_names=names,
    output_names=["last_hidden_state"],
    dynamic_shapes=tuple(axes for _ in names),
    dynamo=True,
    external_data=False,
)
