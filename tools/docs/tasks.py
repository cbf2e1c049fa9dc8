"""The table of tasks."""

from __future__ import annotations

from onnxopt.tasks.listed import listed
from tools.docs.blocks import code, table


def tasks_table() -> str:
    """Return the tasks as a table: what goes in and what comes out, transformers' classes, where a server answers."""
    rows = [
        [
            code(row.name),
            row.summary,
            " and ".join(row.takes),
            ", ".join(map(code, row.outputs)),
            code(row.endpoint) if row.endpoint else "",
            ", ".join(map(code, row.synonyms)),
        ]
        for row in listed()
    ]
    return table(["task", "gives", "takes", "transformers' class", "served at", "other names"], rows)
