"""A failure as a program reads it: with `--json` one object on standard output, in place of the answer.

Only the standard library is needed here: the others may not be loaded yet, or be what is broken.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from onnxopt.errors import Kind

JSON_OPTION = "--json"
SCHEMA_VERSION: Final = (
    1  # of every object that the command line prints; it rises when a key goes or means something else
)


@dataclass(frozen=True)
class Failure:
    """Why a command failed, part by part.

    Attributes:
        kind: `input`, what was given cannot be used; `limit`, it costs too much; `export`, the model does not become
            ONNX; `proof`, two results differ; `gate`, what was required is not reached; `own-pass`, a pass of the
            user's own fails; `usage`, the command line cannot be read; `died`, the process was killed; `interrupted`;
            `terminated`; `internal`, a bug in onnxopt.
        message: what is wrong, on one line.
        exit_code: of the command.
        where: the file, node, input or option that it concerns; empty where the message says it.
        hint: what to do; empty where nothing is known.
        kept: what a stopped command has finished and left in place.
    """

    kind: Kind
    message: str
    exit_code: int
    where: str = ""
    hint: str = ""
    kept: tuple[str, ...] = ()


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Tell whether a command line asks for JSON, also where it cannot be read: what stands behind `--` is no option."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return JSON_OPTION in before


def write_failure(failure: Failure, found: Mapping[str, Any] | None = None) -> None:
    """Write a failure as one line of JSON to standard output, which may take none any longer.

    Args:
        failure: what is told under `error`.
        found: what the command found all the same, told in the same object.
    """
    answer = {"schema_version": SCHEMA_VERSION, **(found or {}), "error": asdict(failure)}
    with suppress(OSError):
        sys.stdout.write(json_line(answer))
        sys.stdout.flush()


def json_line(data: Mapping[str, Any]) -> str:
    """Return an object as one compact line in ASCII, which every encoding of a pipe has."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n"
