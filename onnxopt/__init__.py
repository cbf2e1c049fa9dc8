"""onnxopt: a Hugging Face model in, the fastest proved ONNX file out.

`import onnxopt` loads neither torch nor onnxruntime; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxopt.batcher import Batcher
    from onnxopt.buckets import FixedShapes
    from onnxopt.continuous import ContinuousBatcher
    from onnxopt.errors import ExportError, InputError, OnnxoptError, ProofError
    from onnxopt.generator import Generator
    from onnxopt.package import Artifact
    from onnxopt.perplexity import measure_perplexity
    from onnxopt.placing import placement
    from onnxopt.road import Event, optimize
    from onnxopt.sampling import Sampling
    from onnxopt.session import Session
    from onnxopt.spec import Budget, Target, Workload
    from onnxopt.verify import compare_models

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "package",
    "Batcher": "batcher",
    "Budget": "spec",
    "ContinuousBatcher": "continuous",
    "Event": "road",
    "ExportError": "errors",
    "FixedShapes": "buckets",
    "Generator": "generator",
    "InputError": "errors",
    "OnnxoptError": "errors",
    "ProofError": "errors",
    "Sampling": "sampling",
    "Session": "session",
    "Target": "spec",
    "Workload": "spec",
    "compare_models": "verify",
    "measure_perplexity": "perplexity",
    "optimize": "road",
    "placement": "placing",
}

__all__ = [  # noqa: RUF022 - the main thing first
    "optimize",
    "Artifact",
    "Batcher",
    "Budget",
    "ContinuousBatcher",
    "Event",
    "ExportError",
    "FixedShapes",
    "Generator",
    "InputError",
    "OnnxoptError",
    "ProofError",
    "Sampling",
    "Session",
    "Target",
    "Workload",
    "compare_models",
    "measure_perplexity",
    "placement",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
