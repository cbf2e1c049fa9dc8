"""`onnxopt optimize`: the whole road."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxopt.cli.options import taking
from onnxopt.cli.shared import (
    JsonOption,
    QuietOption,
    VerboseOption,
    app,
    configure_logging,
    err_console,
    out_console,
    print_json,
)
from onnxopt.road.described import keywords
from onnxopt.road.options import Options


@app.command(
    epilog="Examples: `onnxopt optimize minilm` · `onnxopt optimize ./my-bert -o out/my-bert` · "
    "`onnxopt optimize model.onnx -t portable` · `onnxopt optimize model.onnx --pass my_rules.py` · "
    '`onnxopt optimize minilm --precision int8 --budget "cosine>=0.995"` · '
    "`onnxopt optimize minilm -t cuda -p fp16`"
)
@taking(keywords())
def optimize(
    source: Annotated[
        str, typer.Argument(help="Sample or recipe name, Hub id, local checkpoint folder, or .onnx file.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; build/<name> when not given.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    **given: Any,
) -> None:
    """Take a model the whole road: load, canonicalize, fuse, lower, prove, measure, package."""
    configure_logging(verbose=verbose)
    from onnxopt.road.ahead import look_ahead

    look_ahead(source, Options.of(**given), out)
    from onnxopt.cli.live import LiveView, print_summary
    from onnxopt.road.optimize import optimize as run

    if given["trust_remote_code"]:
        err_console.print("warning: Python code of the checkpoint may run (--trust-remote-code)", style="yellow")
    with LiveView(err_console, enabled=not (quiet or as_json)) as view:
        artifact = run(source, out=out, progress=view.show, **given)
    if as_json:
        measurements = artifact.measurements
        print_json(
            {
                "path": str(artifact.path),
                "manifest": json.loads(artifact.manifest.to_json()),
                "measurements": json.loads(measurements.to_json()) if measurements else None,
            }
        )
    elif quiet:
        out_console.print(str(artifact.path), soft_wrap=True)
    else:
        print_summary(out_console, artifact)
