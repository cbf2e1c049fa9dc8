"""`onnxopt sensitivity`: which linear layers quantization harms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxopt.cli.answers import print_answer
from onnxopt.cli.shared import JsonOption, app, out_console
from onnxopt.cli.tables import print_table
from onnxopt.errors import InputError


@app.command(
    epilog="Examples: `onnxopt sensitivity build/minilm` · `onnxopt sensitivity build/minilm --plot ranking.svg --json`"
)
def sensitivity(
    path: Annotated[Path, typer.Argument(help="An artifact that was made with --precision.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many layers to show.")] = 40,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the ranking as an .svg file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the linear layers by what quantizing each alone costs at the output, and say why."""
    from onnxopt.artifact.drawing import as_file
    from onnxopt.artifact.report_plots import ranking_plot
    from onnxopt.host.folders import write_whole, writing
    from onnxopt.records.manifest import Manifest

    manifest = Manifest.read(path)
    found = manifest.quantization
    if found is None or not found.sensitivities:
        raise InputError(
            "the artifact ranks no layers",
            where=str(path),
            hint="make it with `onnxopt optimize ... --precision int8`, or int4-weights for a language model",
        )
    if plot is not None:
        if plot.suffix != ".svg":
            raise InputError("the plot is written as SVG", where=str(plot), hint="name a file that ends in .svg")
        with writing(plot):
            write_whole(plot, as_file(ranking_plot(manifest)))
    if as_json:
        print_answer({"layers": found.sensitivities})
        return
    shown = found.sensitivities[:limit]
    columns = ("layer", "loss", "smoothed", "weights only", "became" if found.shipped else "tried as", "why")
    rows = [
        [
            one.label,
            f"{one.loss:.2g}",
            "" if one.smoothed is None else f"{one.smoothed:.2g}",
            f"{one.weights:.2g}",
            one.precision,
            one.reason,
        ]
        for one in shown
    ]
    print_table(out_console, columns, rows, whole=("layer",))
    if len(found.sensitivities) > len(shown):
        more = len(found.sensitivities) - len(shown)
        out_console.print(f"... and {more} more; --limit shows them", markup=False, soft_wrap=True)
    for line in found.lines():
        out_console.print(line, markup=False, soft_wrap=True)
