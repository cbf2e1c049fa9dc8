"""Load what every child of the census needs; the server that children are forked from imports this module once."""

import onnxruntime.transformers.optimizer
import onnxscript
import torch
import torch.onnx
import transformers  # noqa: F401 - loaded ahead of the forks

import tests.census.model  # noqa: F401 - same

torch.set_num_threads(1)
torch.set_num_interop_threads(1)
