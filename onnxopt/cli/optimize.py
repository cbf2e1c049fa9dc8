"""`onnxopt optimize`: the whole road."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxopt.cli.answers import print_answer
from onnxopt.cli.options import taking
from onnxopt.cli.shared import (
    JsonOption,
    ProgressName,
    ProgressOption,
    QuietOption,
    VerboseOption,
    app,
    configure_logging,
    err_console,
    out_console,
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
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    **given: Any,
) -> None:
    """Take a model the whole road: load, canonicalize, fuse, lower, prove, measure, package."""
    configure_logging(verbose=verbose)
    from onnxopt.road.ahead import look_ahead

    look_ahead(source, Options.of(**given), out)
    from onnxopt.cli.live import print_summary
    from onnxopt.cli.progress import view_of
    from onnxopt.road.optimize import optimize as run

    if given["trust_remote_code"]:
        err_console.print("warning: Python code of the checkpoint may run (--trust-remote-code)", style="yellow")
    with view_of(progress, quiet=quiet or as_json) as view:
        artifact = run(source, out=out, progress=view.show, **given)
    if as_json:
        found = {"manifest": artifact.manifest, "measurements": artifact.measurements}
        print_answer({"path": str(artifact.path), **found})
    elif quiet:
        out_console.print(str(artifact.path), soft_wrap=True)
    else:
        print_summary(out_console, artifact, verbose=verbose)
