"""`onnxopt schema`: what the objects hold that commands print with `--json`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from onnxopt.cli.answers import print_answer
from onnxopt.cli.shared import JsonOption, app, out_console
from onnxopt.errors import InputError, word
from onnxopt.host.failures import json_line


@app.command(
    epilog="Examples: `onnxopt schema` · `onnxopt schema optimize` · `onnxopt schema error` · `onnxopt schema --json`"
)
def schema(
    name: Annotated[str | None, typer.Argument(help="A command, error or progress; without it all are listed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List what there is a JSON Schema of, or print the schema of one: what a command prints with `--json`."""
    from onnxopt.cli.schemas import SCHEMAS, schema_of

    if name is not None:
        if name not in SCHEMAS:
            raise InputError(f"no schema {word(name)!r}", hint=f"use one of {', '.join(SCHEMAS)}")
        found = schema_of(name)
        sys.stdout.write(json_line(found) if as_json else json.dumps(found, indent=2) + "\n")
        return
    if as_json:
        print_answer({"schemas": [{"name": one, "about": about} for one, (about, _) in SCHEMAS.items()]})
        return
    width = max(map(len, SCHEMAS))
    for one, (about, _) in SCHEMAS.items():
        out_console.print(f"{one:<{width}}  {about}", markup=False, soft_wrap=True)
