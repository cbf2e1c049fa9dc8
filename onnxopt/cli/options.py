"""Options of the command line out of the classes of options: what is written down of each there is its help here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from onnxopt.cli.shared import (
    AllocationName,
    CalibratorName,
    ExporterName,
    ImportanceName,
    LogitsName,
    PaddingName,
    TargetName,
    WeightsName,
)
from onnxopt.road.described import Described

Command = Callable[..., None]

# What the command line takes for types that it cannot read off; the words of choices are those of the options.
TYPES: Mapping[str, Any] = {
    "target": TargetName,
    "calibrator": CalibratorName,
    "weights": WeightsName,
    "logits": LogitsName,
    "exporter": ExporterName,
    "padding": PaddingName,
    "importance": ImportanceName,
    "allocation": AllocationName,
    "feeds": Path,
    "axes": list[str],
    "values": list[str],
    "passes": list[str],
}
_PLAIN: Mapping[str, type] = {"bool": bool, "int": int, "int | None": int, "float | None": float}
# How an option is written where that is not its name; what may be repeated is in the singular.
FLAGS: Mapping[str, tuple[str, ...]] = {
    "target": ("--target", "-t"),
    "workload": ("--workload", "-w"),
    "precision": ("--precision", "-p"),
    "with_pooling": ("--with-pooling/--no-pooling",),
    "with_cache": ("--cache/--no-cache",),
    "axes": ("--axis",),
    "values": ("--value",),
    "passes": ("--pass",),
}
_LEAST: Mapping[str, int] = {"align": 1}
_FIRST_OF_ALL = "as_json"  # of what every command takes: it stands behind what a command has of its own


def taking(options: Iterable[Described]) -> Callable[[Command], Command]:
    """Give a command that takes `**given` an option for each of some options, and hand over what the user wrote.

    Args:
        options: in the order of the help page.
    """
    added = [_parameter(one) for one in options]

    def decorate(command: Command) -> Command:
        # typing.get_type_hints of Python 3.10 would hide what stands in Annotated where the default is None
        own = inspect.signature(command, eval_str=True)
        named = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in own.parameters.values()
            if one.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        at = next(place for place, one in enumerate(named) if one.name == _FIRST_OF_ALL)

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(**{name: value.value if isinstance(value, Enum) else value for name, value in given.items()})

        run.__signature__ = own.replace(parameters=[*named[:at], *added, *named[at:]])  # type: ignore[attr-defined]  # takes any
        return run

    return decorate


def help_of(option: Described) -> str:
    """Return what is written down of an option as a sentence."""
    return option.words[:1].upper() + option.words[1:]


def _parameter(option: Described) -> inspect.Parameter:
    """Return an option as a parameter that typer reads."""
    kind = TYPES.get(option.name, _PLAIN.get(option.annotation, str))
    repeatable = "; repeatable." if get_args(kind) else "."
    default = kind(option.default) if isinstance(kind, type) and issubclass(kind, Enum) else option.default
    info = typer.Option(
        *_flags(option), help=help_of(option).removesuffix(".") + repeatable, min=_LEAST.get(option.name)
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind if default is not None else kind | None, info],
    )


def _flags(option: Described) -> tuple[str, ...]:
    flag = option.name.replace("_", "-")
    plain = f"--{flag}/--no-{flag}" if option.default is True else f"--{flag}"
    return FLAGS.get(option.name, (plain,))
