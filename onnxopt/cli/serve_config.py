"""The settings of a server in a TOML file: the options of `onnxopt serve` by their names, and the models."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from onnxopt.errors import InputError
from onnxopt.host.files import read_toml

MODELS = "models"
_NOT_THERE = ("folders", "config", "help", "help_all", "verbose", "quiet")


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take what a file says for what neither the command line nor the environment does.

    Args:
        context: of the command.
        path: the file; its folders of models are relative to it.

    Raises:
        InputError: it cannot be read, or has what the command does not.
    """
    if path is None:
        return None
    try:
        said = read_toml(path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), hint="name a TOML file") from error
    except ValueError as error:
        raise InputError(f"is no TOML ({error})", where=str(path), hint="write for example port = 9000") from error
    models = said.pop(MODELS, {})
    if not isinstance(models, Mapping) or not all(isinstance(one, str) for one in models.values()):
        raise InputError("[models] names folders", where=str(path), hint='write [models] and name = "folder" in it')
    known = {str(one.name) for one in context.command.params if one.name not in _NOT_THERE}
    found: dict[str, Any] = {}
    for key, value in said.items():
        name = key.replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0].replace('_', '-')}?" if near else f"it takes {', '.join(sorted(known))}"
            raise InputError(f"there is no option {key!r}", where=str(path), hint=hint)
        if isinstance(value, Mapping):
            raise InputError(f"{key!r} is a table", where=str(path), hint=f"write {key} = ... above all tables")
        found[name] = value
    if models:
        found["folders"] = [f"{name}={path.parent / Path(place).expanduser()}" for name, place in models.items()]
    context.default_map = {**(context.default_map or {}), **found}
    return path
