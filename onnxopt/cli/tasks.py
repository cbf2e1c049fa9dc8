"""`onnxopt tasks`: what models can be asked to do."""

from __future__ import annotations

from onnxopt.cli.answers import print_answer
from onnxopt.cli.shared import JsonOption, app, out_console
from onnxopt.cli.tables import print_table


@app.command(epilog="Examples: `onnxopt tasks` · `onnxopt tasks --json`")
def tasks(as_json: JsonOption = False) -> None:
    """List the tasks: what goes in, what comes out, transformers' class for it, and how it is tried."""
    from onnxopt.tasks.listed import listed

    rows = listed()
    if as_json:
        print_answer({"tasks": [row.model_dump() for row in rows]})
        return
    tried = [f"onnxopt {row.command} FOLDER {row.example}" for row in rows]
    print_table(
        out_console,
        ("task", "gives", "takes", "try it"),
        [(row.name, row.summary, " and ".join(row.takes), how) for row, how in zip(rows, tried, strict=True)],
        whole=("task",),
    )
