"""Say before a long job what it will take, and refuse what cannot fit: from the headers of a checkpoint, in a moment.

Of small models nothing is said. The numbers are estimates, and are called so; what is refused could not have fitted by
the least of them. Nothing here imports torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from onnxopt.artifact.place import resolved
from onnxopt.calibrate.sources import NONE
from onnxopt.errors import InputError
from onnxopt.graph import weight_files
from onnxopt.host.disk import free_bytes
from onnxopt.host.memory import memory_allowed
from onnxopt.host.sizes import size_text
from onnxopt.load.checkpoint.counted import Counted, count_weights
from onnxopt.load.checkpoint.folder import read_checkpoint
from onnxopt.load.source.source import Source
from onnxopt.records.events import Event, Listener, Said
from onnxopt.road.asked import target_of
from onnxopt.road.options import Options

SERVED_IN_FEWER_BITS = 1_000_000_000  # parameters of a decoder, from which on it is hardly served in float32 on a CPU
SERVED = "int4-weights"  # the precision that is advised, and that a hint tries
# Bytes of a number by precision, in a linear layer and in a table of words, with the scales of its blocks. 4 bits in
# blocks of 64 are 0.5625; some layers keep 8 bits. int8 leaves tables as they are. Seen in the artifacts of SmolLM2.
_BYTES = {
    "fp32": (4.0, 4.0),
    "fp16": (2.0, 2.0),
    "bf16": (2.0, 2.0),
    "int4-weights": (0.65, 1.06),
    "int8-weights": (1.06, 1.06),
}
_BYTES_INT8 = (1.06, 4.0)
_PROCESS_BYTES = 800_000_000  # of Python with torch, transformers and the runtime, without any model
_LEAST_PROCESS_BYTES = 500_000_000
_WEIGHTS_AT_ONCE = 3  # of the largest one as float32: read, changed, and on its way to the file
_SURE = 0.8  # of the bytes of files that are estimated: below, a disk surely has no room for them
# Seconds on two cores for any model, and for 10⁹ parameters more; rounded on samples, or by the weights alone. The
# first two are what `make bench-large` took of half a billion; the others are drawn out from 10⁸, not yet measured.
_START_SECONDS, _FLOAT_SECONDS, _ROUNDED_SECONDS, _ALONE_SECONDS = 30.0, 120.0, 1500.0, 400.0


@dataclass(frozen=True)
class Estimate:
    """What a run will take, about.

    Attributes:
        counted: the weights.
        precision: in which the result is asked for, by the name of its kind.
        measured: whether the original and the result are timed.
        on_samples: whether samples decide how numbers are rounded.
    """

    counted: Counted
    precision: str = "fp32"
    measured: bool = True
    on_samples: bool = True

    @property
    def is_float(self) -> bool:
        """Whether the weights keep the float of the graph."""
        return self.precision == "fp32"

    @property
    def file_bytes(self) -> int:
        """Of the artifact's graph and weights."""
        layer, table = _BYTES.get(self.precision, _BYTES_INT8)
        rest = self.counted.parameters - self.counted.in_tables
        return int(layer * rest + table * self.counted.in_tables)

    @property
    def memory_bytes(self) -> int:
        """At the largest: a session of the original where it is timed, else a few weights and the packed result."""
        return self._memory_with(_PROCESS_BYTES, _WEIGHTS_AT_ONCE)

    @property
    def least_memory_bytes(self) -> int:
        """Below which it surely fails."""
        return self._memory_with(_LEAST_PROCESS_BYTES, 1)

    def _memory_with(self, process_bytes: int, weights: int) -> int:
        worked = weights * 4 * self.counted.largest + (0 if self.is_float else self.file_bytes)
        return process_bytes + max(worked, self.counted.float_bytes if self.measured else 0)

    @property
    def scratch_bytes(self) -> int:
        """Of temporary files: weights as passes lay them down, and the original where it is timed."""
        return self.counted.float_bytes if self.measured else self.counted.stored_bytes

    @property
    def seconds(self) -> float:
        """On two cores, without the time that measuring takes."""
        rate = _ROUNDED_SECONDS if self.on_samples else _ALONE_SECONDS
        rate = _FLOAT_SECONDS if self.precision in ("fp32", "fp16", "bf16") else rate
        return _START_SECONDS + rate * self.counted.parameters / 1e9

    def line(self) -> str:
        """Return all of it in words."""
        return (
            f"{_count_text(self.counted.parameters)} parameters; this takes about {_time_text(self.seconds)} on two "
            f"cores, {size_text(self.memory_bytes)} of memory and {size_text(self.scratch_bytes)} of temporary files, "
            f"for a model of {size_text(self.file_bytes)} in {self.precision}"
        )

    def advice(self) -> str:
        """Return what people serve in place of a float file of this size."""
        less = replace(self, precision=SERVED)
        return (
            f"in float32 this decoder will weigh {size_text(self.file_bytes)}; for a CPU people serve --precision int8 "
            f"or {SERVED}, which comes to about {size_text(less.file_bytes)}"
        )


def estimate_of(source: Source, options: Options) -> Estimate | None:
    """Return what a run will take; None for a small model, one that is pruned first, and one whose weights are unknown.

    Args:
        source: that was found.
        options: as the user wrote them.
    """
    if source.kind == "onnx" or source.weights == "random" or options.prune.what is not None:
        return None
    counted = count_weights(read_checkpoint(source).weights)
    if counted is None or counted.float_bytes <= weight_files.LARGE_BYTES:
        return None
    precision = options.quantize.precision.strip().lower().partition(":")[0]
    if precision == "auto" and target_of(options.package).provider in ("cuda", "tensorrt"):
        precision = "fp16"
    return Estimate(counted, precision, options.tune.measure, str(options.quantize.calibration) != NONE)


def is_served_in_fewer_bits(source: Source, options: Options, estimate: Estimate) -> bool:
    """Tell whether a result is a decoder for the CPU in float32 that is larger than what people serve there.

    Args:
        source: a checkpoint.
        options: as the user wrote them.
        estimate: of `estimate_of`.
    """
    saved = next(iter(read_checkpoint(source).settings.get("architectures") or ()), "")
    task = options.load.task or (source.recipe.task if source.recipe else "")
    writes = task == "text-generation" or (not task and str(saved).endswith(("ForCausalLM", "LMHeadModel")))
    return (
        writes
        and target_of(options.package).provider == "cpu"
        and estimate.is_float
        and estimate.counted.parameters >= SERVED_IN_FEWER_BITS
    )


def say_ahead(source: Source, options: Options, out: Path, say: Listener) -> tuple[str, ...]:
    """Say what a large model will take, refuse what cannot fit, and return what the ledger should say of it.

    Args:
        source: that was found.
        options: as the user wrote them.
        out: the folder to write.
        say: told what there is to know.

    Raises:
        InputError: as `require_fits` does.
    """
    estimate = estimate_of(source, options)
    if estimate is None:
        return ()
    require_fits(estimate, source.text, out)
    say(Event("load", Said(estimate.line())))
    if not is_served_in_fewer_bits(source, options, estimate):
        return ()
    say(Event("load", Said(estimate.advice())))
    return (estimate.advice(),)


def require_fits(estimate: Estimate, where: str, out: Path) -> None:
    """Refuse a run that this process may not use enough memory for, or whose files the disks have no room for.

    Args:
        estimate: what it takes.
        where: how the user named the model.
        out: the folder to write.

    Raises:
        InputError: tells what is there and what is needed, and with which options it would fit.
    """
    reason = _lacking(estimate, out)
    if not reason:
        return
    others = [(words, other) for words, other in _smaller(estimate) if not _lacking(other, out)]
    least = min(other.memory_bytes for _, other in _smaller(estimate))
    wants = f"take a machine with {size_text(least)} of memory and more room on its disk, or a smaller model"
    hint = f"it would fit with {others[0][0]}" if others else wants
    raise InputError(reason, where=where, hint=hint)


def _smaller(estimate: Estimate) -> Iterator[tuple[str, Estimate]]:
    """Yield the options that take less, the nearest first, with what they take."""
    unmeasured = replace(estimate, measured=False)
    if estimate.measured:
        yield "--no-measure", unmeasured
    yield f"--precision {SERVED}", replace(estimate, precision=SERVED)
    yield f"--precision {SERVED} --no-measure", replace(unmeasured, precision=SERVED)


def _lacking(estimate: Estimate, out: Path) -> str:
    """Return what is missing here for a run, in words; empty where nothing is."""
    allowed = memory_allowed()
    if estimate.least_memory_bytes > allowed:
        needed = size_text(estimate.memory_bytes)
        return f"takes about {needed} of memory, and {size_text(allowed)} are allowed here"
    disks: dict[object, int] = {}
    places = ((resolved(out), estimate.file_bytes), (Path(tempfile.gettempdir()), estimate.scratch_bytes))
    for place, needed_bytes in places:
        disk = _disk_of(place)
        disks[disk] = disks.get(disk, 0) + needed_bytes
        free = free_bytes(place)
        if free is not None and free < _SURE * disks[disk]:
            return f"takes about {size_text(disks[disk])} on the disk of {place}, and {size_text(free)} are free there"
    return ""


def _disk_of(place: Path) -> object:
    """Return what tells disks apart, for a folder that need not be there yet."""
    there = next((folder for folder in (place, *place.parents) if folder.exists()), None)
    return place if there is None else there.stat().st_dev


def _count_text(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.0f} million"


def _time_text(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
