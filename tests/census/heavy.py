"""Load what every child of the census needs; the server that children are forked from imports this module once."""

import importlib

import torch

for name in ("transformers", "onnxscript", "onnxruntime.transformers.optimizer", "torch.onnx", "tests.census.model"):
    importlib.import_module(name)

torch.set_num_threads(1)
torch.set_num_interop_threads(1)
