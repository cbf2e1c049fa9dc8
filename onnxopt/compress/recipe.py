"""What `onnxopt compress` reads: a TOML file with a table per step.

::

    source = "gpt2-mini"                # sample, recipe, Hub id or checkpoint folder
    data = "builtin"                    # what to calibrate and teach with: builtin, or a file of text or JSON entries
    evaluate = "held-out.txt"           # what to judge on; a part of `data` that nothing else sees, when not given

    [prune]
    what = "ffn=25%"                    # as in `onnxopt prune`
    importance = "error"
    budget = "perplexity<=+20%"         # what must be left; needed for ffn=auto

    [distill]
    steps = 200                         # any option of `onnxopt distill`; leave the table out to teach nothing

    [quantize]
    precision = "int8"                  # leave the table out to stay in float32

    [package]
    target = "cpu"
    workload = "1x16,8x128"
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from onnxopt.errors import InputError
from onnxopt.records.record import Record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 1 << 20


class PruneTable(Record):
    """`[prune]`: as the options of `onnxopt prune`."""

    what: str
    importance: str = "error"
    compensate: bool = True
    align: int = Field(default=16, ge=1)
    allocation: str = "uniform"
    seed: int = 0
    budget: str = ""


class QuantizeTable(Record):
    """`[quantize]`: a precision, and how far the metric may fall by it."""

    precision: str = "int8"
    budget: str = ""


class PackageTable(Record):
    """`[package]`: where the artifact will run and what will be asked of it."""

    target: str = "cpu"
    workload: str = ""


class CompressRecipe(Record):
    """A recipe.

    Attributes:
        source: what to compress.
        data: `builtin`, or a file of text or JSON entries.
        evaluate: a file of the same kinds; empty for a part of `data`.
        prune: what to take out.
        distill: options of `onnxopt distill`, or nothing.
        quantize: precision, or nothing.
        package: target and workload.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    data: str = "builtin"
    evaluate: str = ""
    prune: PruneTable | None = None
    distill: dict[str, Any] | None = None
    quantize: QuantizeTable | None = None
    package: PackageTable = PackageTable()

    @classmethod
    def read(cls, path: Path) -> CompressRecipe:
        """Read a recipe; raises InputError in one line."""
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise InputError(f"is larger than {_MAX_BYTES} bytes", where=str(path))
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not TOML ({error})", where=str(path)) from error
        try:
            return cls(**content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{place}: {first['msg']}", where=str(path)) from error
