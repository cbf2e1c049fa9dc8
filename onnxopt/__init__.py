"""onnxopt: a Hugging Face model in, the fastest proved ONNX file out.

`import onnxopt` loads neither torch nor onnxruntime; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxopt.version import __version__ as __version__

if TYPE_CHECKING:
    from onnxopt.artifact.package import Artifact
    from onnxopt.artifact.placement import placement
    from onnxopt.errors import ExportError, InputError, OnnxoptError, OwnPassError, ProofError
    from onnxopt.judge.perplexity import measure_perplexity
    from onnxopt.proof.compare import compare_models
    from onnxopt.records.events import Event, quiet
    from onnxopt.road.optimize import optimize
    from onnxopt.run.batcher import Batcher
    from onnxopt.run.fixed_shapes import FixedShapes
    from onnxopt.run.generate.continuous import ContinuousBatcher
    from onnxopt.run.generate.generator import Generator
    from onnxopt.run.generate.sampling import Sampling
    from onnxopt.run.model import Model
    from onnxopt.run.session import Session
    from onnxopt.spec import Budget, Target, Workload

_HOMES = {
    "Artifact": "artifact.package",
    "Batcher": "run.batcher",
    "Budget": "spec",
    "ContinuousBatcher": "run.generate.continuous",
    "Event": "records.events",
    "ExportError": "errors",
    "FixedShapes": "run.fixed_shapes",
    "Generator": "run.generate.generator",
    "InputError": "errors",
    "Model": "run.model",
    "OnnxoptError": "errors",
    "OwnPassError": "errors",
    "ProofError": "errors",
    "Sampling": "run.generate.sampling",
    "Session": "run.session",
    "Target": "spec",
    "Workload": "spec",
    "compare_models": "proof.compare",
    "measure_perplexity": "judge.perplexity",
    "optimize": "road.optimize",
    "placement": "artifact.placement",
    "quiet": "records.events",
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
    "Model",
    "OnnxoptError",
    "OwnPassError",
    "ProofError",
    "Sampling",
    "Session",
    "Target",
    "Workload",
    "compare_models",
    "measure_perplexity",
    "placement",
    "quiet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
