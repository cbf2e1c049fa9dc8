"""A loaded model without a source: for tests that only write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxopt.artifact.package import Artifact, write_artifact
from onnxopt.load.loaded import Loaded
from onnxopt.records.manifest import Evidence
from onnxopt.spec import Budget, Feeds, Padding, Signature, Target, Workload


class Nothing:
    """Stands for the reference and the feeder, which writing does not use."""

    name = "nothing"

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        raise AssertionError

    def make(self, sizes: Mapping[str, int], padding: Padding = "none", seed: int = 0) -> Feeds:
        raise AssertionError


def loaded(model: ir.Model, **facts: Any) -> Loaded:
    """Return a loaded model; `facts` are fields of `Loaded`."""
    plain: dict[str, Any] = {"name": "tiny", "task": "onnx", "signature": Signature((), ())}
    return Loaded(model=model, reference=Nothing(), feeder=Nothing(), **(plain | facts))


def write(out: Path, source: Loaded, **facts: Any) -> Artifact:
    """Write an artifact; `facts` are arguments of `write_artifact`."""
    plain: dict[str, Any] = {
        "target": Target("cpu", threads=1),
        "workload": Workload(),
        "budget": Budget(),
        "evidence": Evidence(),
        "golden": [],
    }
    return write_artifact(out, source.model, source, **(plain | facts))
