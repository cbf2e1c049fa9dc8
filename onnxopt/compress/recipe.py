"""What `onnxopt compress` reads: a TOML file with a table per step.

::

    source = "gpt2-mini"                # sample, recipe, Hub id or checkpoint folder
    data = "builtin"                    # what to calibrate and teach with: builtin, or a file of text or JSON entries
    evaluate = "held-out.txt"           # what to judge on; a part of `data` that nothing else sees, when not given

    [prune]                             # what `onnxopt prune` takes
    what = "ffn=25%"
    importance = "error"
    budget = "perplexity<=+20%"         # needed for ffn=auto

    [distill]                           # what `onnxopt distill` takes; leave the table out to teach nothing
    steps = 200

    [quantize]                          # precision, budget, calibration, ...; leave the table out to stay in float32
    precision = "int8"

    [package]                           # where the artifact will run and what will be asked of it
    target = "cpu"
    workload = "1x16,8x128"

    [load]                              # how the source becomes a graph
    task = "text-generation"

    [tune]                              # measure kernels for the last artifact; leave the table out to measure none

The options of a table are those of Python and of the command line, under their names in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.host.files import read_toml
from onnxopt.road.options import LoadOptions, PackageOptions, PrecisionOptions, PruneOptions, TuneOptions
from onnxopt.road.tables import of_table

# What holds in a table that is there and does not say otherwise.
_IN_RECIPES: Mapping[str, Mapping[str, Any]] = {"prune": {"data": ""}, "quantize": {"precision": "int8"}}


@dataclass(frozen=True)
class CompressRecipe:
    """A recipe.

    Attributes:
        source: what to compress.
        data: `builtin`, or a file of text or JSON entries.
        evaluate: a file of the same kinds; empty for a part of `data`.
        load: how the source, and what each step leaves of it, becomes a graph.
        prune: what to take out, or nothing; it is calibrated with `data` where it has none of its own.
        distill: options of `onnxopt distill`, or nothing.
        quantize: precision, or nothing.
        tune: what may be measured for the last artifact; nothing where there is no such table.
        package: target and workload.
    """

    source: str
    data: str = "builtin"
    evaluate: str = ""
    load: LoadOptions = field(default_factory=LoadOptions)
    prune: PruneOptions | None = None
    distill: dict[str, Any] | None = None
    quantize: PrecisionOptions | None = None
    tune: TuneOptions | None = None
    package: PackageOptions = field(default_factory=PackageOptions)

    @classmethod
    def read(cls, path: Path) -> CompressRecipe:
        """Read a recipe; raises InputError in one line."""
        try:
            content = read_toml(path)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
        except ValueError as error:
            raise InputError(f"is not TOML ({error})", where=str(path)) from error
        for table, options in _IN_RECIPES.items():
            if isinstance(content.get(table), dict):
                content[table] = {**options, **content[table]}
        recipe = of_table(cls, content, where=str(path))
        if recipe.prune is not None and recipe.prune.what is None:
            raise InputError("[prune] names no what", where=str(path), hint='write what = "ffn=25%"')
        return recipe
