"""What a command prints with `--json`: one object on one line of standard output, with the version of its schema.

What its keys mean, `onnxopt.cli.schemas` has, which loads far more than a command needs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from onnxopt.errors import ProofError
from onnxopt.host.failures import SCHEMA_VERSION, json_line


class AnsweredError(ProofError):
    """Two things differ, which is what the command was asked to find out: its answer and the failure are one object.

    Args:
        what: as of any error.
        where: as of any error.
        answer: what was found.
    """

    def __init__(self, what: str, *, where: str = "", answer: Any) -> None:
        super().__init__(what, where=where)
        self.answer = answer


def print_answer(data: Any) -> None:
    """Write the answer of a command to standard output.

    Args:
        data: a record, a dataclass or a mapping; its keys stand beside `schema_version`.
    """
    sys.stdout.write(json_line({"schema_version": SCHEMA_VERSION, **plain(data)}))


def plain(data: Any) -> dict[str, Any]:
    """Return an answer as what JSON has; numbers that it cannot spell become `Infinity`, `-Infinity` and `NaN`."""
    from pydantic_core import to_jsonable_python

    return {name: _spelled(value) for name, value in to_jsonable_python(data, fallback=str).items()}


def _spelled(value: Any) -> Any:
    """Return a value with the words of `onnxopt.records.record` for numbers that are none."""
    if isinstance(value, Mapping):
        return {name: _spelled(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_spelled(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
