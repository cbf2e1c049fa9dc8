"""onnxopt: a Hugging Face model in, the fastest proved ONNX file out.

`import onnxopt` loads neither torch nor onnxruntime.
"""

from __future__ import annotations

__version__ = "0.1.0"
