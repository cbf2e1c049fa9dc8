"""The page of the command line, from the commands themselves."""

from __future__ import annotations

from enum import Enum, EnumMeta
from typing import Any

import typer

import onnxopt.cli.main  # noqa: F401 - registers the commands
from onnxopt.cli.help import default_of, examples_of, usage_of
from onnxopt.cli.shared import app
from tools.docs.blocks import cell, code, table
from tools.docs.docstrings import parse


def commands() -> str:
    """Return a section per command: what it does, examples, arguments and options with their defaults."""
    group: Any = typer.main.get_command(app)  # a group of typer's own copy of click, which has no public types
    context = group.context_class(group, info_name=app.info.name)
    return "\n\n".join(_section(name, group.get_command(context, name)) for name in group.list_commands(context))


def _section(name: str, command: Any) -> str:
    documented = parse(command.help or "")
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join(["onnxopt", name, *(usage_of(one) for one in arguments), "[OPTIONS]"])
    parts = [f"## {name}", cell(documented.summary), documented.body]
    parts.append("```text\n" + "\n".join([usage, *examples_of(command.epilog or "")]) + "\n```")
    if arguments:
        rows = [[code(_metavar(one)), cell(one.help or "")] for one in arguments]
        parts.append(table(["argument", "what it is"], rows))
    if options:
        rows = [
            [_names(one), code(default) if (default := default_of(one)) else "", cell(one.help or "")]
            for one in options
        ]
        parts.append(table(["option", "default", "what it does"], rows))
    return "\n\n".join(part for part in parts if part)


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _names(option: Any) -> str:
    shown = [*option.opts, *option.secondary_opts]
    kind = option.type_descriptor.annotation
    choices: dict[str, Enum] = dict(kind.__members__) if isinstance(kind, EnumMeta) else {}
    word = "\\|".join(str(one.value) for one in choices.values())
    return ", ".join(code(name) for name in shown) + (f" {word}" if word else "")
