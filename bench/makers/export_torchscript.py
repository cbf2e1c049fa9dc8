"""Export by TorchScript with transformers 4, the spelling that ONNX Runtime's optimizer was written for."""

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
# the fuser knows the eager spelling of attention
encoder = AutoModel.from_pretrained(job["checkpoint"], add_pooling_layer=False, attn_implementation="eager").eval()
names = ["input_ids", "attention_mask", "token_type_ids"]
with torch.no_grad():
    torch.onnx.export(
        Hidden(encoder),
        tuple(torch.ones(2, 11, dtype=torch.int64) for _ in names),
        str(Path(job["out"]) / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in (*names, "last_hidden_state")},
        opset_version=17,
        dynamo=False,
    )
