"""Look ahead: what can be refused at once is refused before anything large is imported, fetched, loaded or run."""

from __future__ import annotations

from pathlib import Path

from onnxopt.artifact.place import check_output_folder
from onnxopt.calibrate.sources import require_there
from onnxopt.errors import InputError
from onnxopt.load.given import Given
from onnxopt.load.source.source import Source, require_known
from onnxopt.road.asked import left_of, precision_of, shard_bytes_of, spec_of, target_of
from onnxopt.road.options import Options
from onnxopt.spec import Target, Workload
from onnxopt.tasks.table import parse_task
from onnxopt.texts.files import BUILTIN


def look_ahead(source: str | Source, options: Options, out: Path | None) -> Given:
    """Refuse what cannot come to a result, by names and words alone.

    Args:
        source: as `optimize` takes it, or what was found.
        options: of all stages.
        out: the folder to write; None for one below `build`.

    Returns:
        What is said of the inputs of an .onnx file, read.

    Raises:
        InputError: names the option, or what is not there.
    """
    require_readable(options, target_of(options.package))
    given = Given.parse(options.load.feeds, options.load.axes, options.load.values)
    if out is not None:
        check_output_folder(out)
    if isinstance(source, str):
        require_known(source, options.source.weights)
    return given


def require_readable(options: Options, target: Target) -> None:
    """Refuse options that cannot be read, and files in them that are not there, without any look at a source.

    Args:
        options: as the user wrote them.
        target: of `onnxopt.road.asked.target_of`.

    Raises:
        InputError: names the option, or the file.
    """
    require_measurable(options)
    _, quantize, half = precision_of(options.quantize, target)
    if quantize is not None or half is not None:
        require_there(options.quantize.calibration, options.quantize.calibration_samples)
    if isinstance(options.package.workload, str):
        Workload.parse(options.package.workload)
    shard_bytes_of(options.package)
    prune = options.prune
    if prune.what is not None:
        spec_of(prune.what, prune)
        left_of(prune)
        if prune.data != BUILTIN:
            require_there(prune.data)
    if options.load.task is not None:
        parse_task(options.load.task)


def require_measurable(options: Options) -> None:
    """Refuse gates that cannot be told from what is asked for.

    Raises:
        InputError: no time is measured, nothing in fewer bits is asked for, or the number is none of a speed-up.
    """
    wanted = options.tune.require_speedup
    if wanted is not None and not 0 < wanted < float("inf"):
        raise InputError(f"{wanted:g} is no speed-up", where="--require-speedup", hint="write for example 1.0 or 1.5")
    if wanted is not None and not options.tune.measure:
        raise InputError("no time is measured", where="--require-speedup", hint="drop --no-measure")
    if options.quantize.require_precision and options.quantize.precision.strip().lower() == "fp32":
        raise InputError("the precision is fp32", where="--require-precision", hint="add --precision int8, or drop it")
