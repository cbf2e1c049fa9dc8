"""The frozen pieces that records are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxopt.errors import InputError
from onnxopt.host.files import regular_size

REMAKE = "make the artifact again with `onnxopt optimize`"


class Record(BaseModel):
    """A frozen piece of a record; unknown keys are an error, so that a typing slip is seen."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def to_json(self) -> str:
        """Return the record as indented JSON that ends with a newline."""
        return self.model_dump_json(indent=2) + "\n"


class ProvedRange(Record):
    """Between which sizes of an axis a result was compared with its reference.

    Attributes:
        least: the smallest size that was compared.
        most: the largest size that was compared.
        step: the model runs at multiples of it.
        promised: the largest size that the model takes, 0 where it names none.
    """

    least: int = Field(ge=0)
    most: int = Field(ge=0)
    step: int = Field(default=1, ge=1)
    promised: int = Field(default=0, ge=0)


_R = TypeVar("_R", bound=Record)


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: a file of an artifact.

    Raises:
        InputError: it is missing, unreadable or something else.
    """
    try:
        regular_size(path, hint=REMAKE)
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no {path.name}: not an artifact", where=str(path.parent), hint=REMAKE) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", where=str(path), hint=REMAKE) from error
    if not isinstance(data, dict):
        raise InputError("holds no JSON object", where=str(path), hint=REMAKE)
    return data


def validated(kind: type[_R], data: Mapping[str, Any], path: Path) -> _R:
    """Return a record of its JSON.

    Args:
        kind: which record.
        data: the object.
        path: where it was read, for the message.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = problems[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"malformed at {place}: {first['msg']}{more}", where=str(path), hint=REMAKE) from error
