"""Where quantized graphs are tried: a folder, who writes them there, what they are timed by, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxopt.pipeline.pipeline import Pipeline
from onnxopt.probe.observe import Observation
from onnxopt.records.measurements import Race
from onnxopt.records.quantization import IN_PROMPTS, NOT_FASTER, QuantizationRecord
from onnxopt.spec import Say
from onnxopt.timing.latency import speedup_of

Save = Callable[[ir.Model, Path], Path]


@dataclass(frozen=True)
class Settled:
    """What another build found out about a graph in fewer bits by measuring.

    Attributes:
        slower: why the float graph was shipped where that was the time; empty otherwise.
        both_ways: the graph has a second way for prompts.
    """

    slower: str = ""
    both_ways: bool = False


def settled_by(record: QuantizationRecord | None) -> Settled:
    """Return what a build found out by measuring, from what its manifest says of quantization."""
    if record is None:
        return Settled()
    both = any(layer.reason.endswith(IN_PROMPTS) for layer in record.layers.values())
    return Settled(record.reason if record.reason.startswith(NOT_FASTER) else "", both)


@dataclass(frozen=True)
class Workplace:
    """Where quantized graphs are tried.

    Attributes:
        scratch: a folder for files.
        save: writes a graph into a new folder, and returns its file.
        requests: the workload; empty to measure no time.
        say: told what is done.
        settled: what another build measured, where that is taken over; `requests` is empty then.
    """

    scratch: Path
    save: Save
    requests: Sequence[Observation]
    say: Say
    settled: Settled | None = None

    def write(self, model: ir.Model, name: str) -> Path:
        """Write a graph into a new folder of that name, and return its file."""
        return self.save(model, self.scratch / name)

    def speedup(self, before: Path, after: Path, made_for: Pipeline) -> Race | None:
        """Time two graphs in turns; None where no time is measured.

        Args:
            before: the .onnx file that is compared with.
            after: the other one.
            made_for: with the target where both run, and the workload.
        """
        if not self.requests:
            return None
        return speedup_of(before, after, self.requests, made_for.target, self.say, workload=made_for.workload)
