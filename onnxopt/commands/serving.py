"""`onnxopt placement`: where an artifact runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxopt.commands.shared import JsonOption, VerboseOption, app, configure_logging, out_console

DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        "-d",
        help="auto (what the artifact was made for, else the CPU), cpu, cuda, tensorrt, openvino or tensorrt-rtx.",
    ),
]


@app.command(
    epilog="Examples: `onnxopt placement build/minilm` · `onnxopt placement build/minilm --device cuda --json`"
)
def placement(
    path: Annotated[Path, typer.Argument(help="An artifact folder or an .onnx file.")],
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell which provider runs how many nodes, what is copied between devices, and which kernels take the time."""
    configure_logging(verbose=verbose)
    from onnxopt.placement import placement as run

    found = run(path, device=device)
    if as_json:
        out_console.print_json(found.to_json())
    else:
        for line in found.lines():
            out_console.print(line, markup=False, soft_wrap=True)
