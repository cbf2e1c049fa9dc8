"""The help page of a command: usage, options in panels, examples; without a terminal one option a line and no boxes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich import box
from rich.console import Console, Group
from rich.highlighter import RegexHighlighter
from rich.panel import Panel
from rich.text import Text
from rich.theme import Theme
from typer.core import TyperCommand, TyperGroup

from onnxopt.cli.panels import HELP, OTHERS, PANELS, is_rare, panel_of

ALL = "--help-all"
WIDEST_NAMES = 30  # of the column of names; longer ones stand on a line of their own
NARROWEST_WORDS = 24  # of the column of words; where that is not left, words stand below the names
_FRAME = 4  # columns that the box of a panel takes
_GAP = "  "
_ORDER = ("Commands", "Arguments", OTHERS, *PANELS, HELP)
# of values, in the words of typer and of older ones
_TYPES = {"str": "TEXT", "text": "TEXT", "int": "N", "integer": "N", "float": "NUMBER", "path": "PATH"}
_UNBROKEN = "\u00a0"
_AT_END = re.compile(r"\[[^\[\]]*\]$")  # the default, which is not parted
_OF_EPILOG = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Row:
    """One entry of a panel.

    Attributes:
        names: what is written, with the word for its value: `-t, --target cpu|cuda`.
        words: what it means, with its default.
    """

    names: str
    words: str


@dataclass(frozen=True)
class Page:
    """A help page.

    Attributes:
        usage: how the command is called.
        about: what it does.
        panels: the rows of each, in order.
        examples: commands to copy.
        closing: what else is to be known.
        unshown: options that `--help-all` would add.
    """

    usage: str
    about: str
    panels: Mapping[str, Sequence[Row]]
    examples: Sequence[str] = ()
    closing: str = ""
    unshown: int = 0

    @property
    def notes(self) -> Sequence[str]:
        """What stands at its end: what else is to be known, and how to see the options that are not shown."""
        more = f"{ALL} shows {self.unshown} more option{'s' * (self.unshown > 1)}." if self.unshown else ""
        return [note for note in (self.closing, more) if note]


class _OptionWords(RegexHighlighter):
    """Marks names of options, and the title of the page."""

    base_style = "help."
    highlights = (r"(?<![\w-])(?P<option>--?[A-Za-z][\w-]*)", r"^(?P<title>Usage:)", r"(?P<default>\[[^\[\]]*\]$)")


THEME = Theme({"help.option": "bold cyan", "help.title": "bold", "help.default": "dim"})


class HelpfulCommand(TyperCommand):
    """A command whose help is a page of this module."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; `--help-all` is `--help` that leaves nothing out."""
        ctx.meta[ALL] = ALL in (args[: args.index("--")] if "--" in args else args)
        return super().parse_args(ctx, ["--help"] if ctx.meta[ALL] else args)

    def get_help(self, ctx: Any) -> str:
        """Return the page as it is shown on standard output."""
        return written(page_of(self, ctx, everything=ctx.meta.get(ALL, False)))


class HelpfulGroup(TyperGroup):
    """The commands, whose help is a page of this module."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; nothing at all asks for help, and is not done by it."""
        if not args and not ctx.resilient_parsing:
            typer.echo(self.get_help(ctx))
            ctx.exit(2)
        return super().parse_args(ctx, ["--help"] if args[:1] == [ALL] else args)

    def get_help(self, ctx: Any) -> str:
        """Return the page as it is shown on standard output."""
        return written(page_of(self, ctx))


def page_of(command: Any, context: Any, *, everything: bool = True) -> Page:
    """Return the help page of a command, or of all commands.

    Args:
        command: of typer's own copy of click, which has no public types.
        context: that it is called in.
        everything: with the options that are rare, too.
    """
    name, params = command.name or "", [one for one in command.get_params(context) if not getattr(one, "hidden", False)]
    arguments = [one for one in params if one.param_type_name == "argument"]
    options = [one for one in params if one.param_type_name == "option"]
    shown = [one for one in options if everything or not is_rare(name, one.name)]
    panels: dict[str, list[Row]] = {panel: [] for panel in _ORDER}
    commands = getattr(command, "commands", {})
    panels["Commands"] = [Row(key, plain(one.help)) for key, one in commands.items() if not one.hidden]
    panels["Arguments"] = [Row(usage_of(one), plain(one.help)) for one in arguments]
    for one in shown:
        panels[panel_of(name, one.name)].append(Row(names_of(one, context), _words(one)))
    if any(is_rare(name, one.name) for one in options):
        panels[HELP].append(Row(ALL, "Show every option and exit."))
    words = [usage_of(one) for one in arguments] or (["COMMAND"] if commands else [])
    examples = examples_of(command.epilog or "")
    return Page(
        usage=" ".join(["Usage:", context.command_path, *words, "[OPTIONS]"]),
        about=plain(command.help),
        panels={panel: rows for panel, rows in panels.items() if rows},
        examples=examples,
        closing="" if examples else plain(command.epilog),
        unshown=len(options) - len(shown),
    )


def usage_of(argument: Any) -> str:
    """Return an argument as a line of usage has it: `PATH`, `TEXTS...`, `[PROMPTS...]`."""
    word = str(argument.metavar or argument.name.upper())
    word += "..." if argument.nargs != 1 and not word.endswith("...") else ""
    return word if argument.required else f"[{word}]"


def names_of(option: Any, context: Any) -> str:
    """Return all names of an option, the short one first, and the word for its value."""
    names = sorted((*option.opts, *option.secondary_opts), key=lambda name: name.startswith("--"))
    return ", ".join(names) + ("" if option.is_flag else f" {_value_word(option, context)}")


def default_of(option: Any) -> str:
    """Return the default of an option as it would be written; empty where there is none to tell."""
    value = getattr(option.default, "value", option.default)
    if isinstance(value, bool):
        return str(option.opts[0] if value else option.secondary_opts[0]) if option.secondary_opts else ""
    return "" if value is None or value == "" or callable(value) else str(value)


def examples_of(epilog: str) -> Sequence[str]:
    """Return the commands that an epilog shows in backticks; none of an epilog that says something else."""
    return _OF_EPILOG.findall(epilog) if epilog.startswith("Example") else ()


def plain(text: str | None) -> str:
    """Return a text of Markdown on one line, without the marks of code."""
    return " ".join((text or "").replace("`", "").split())


def written(page: Page, console: Console | None = None) -> str:
    """Return a page as text for a console, whose width and colours it has; one record a line without a terminal.

    Args:
        page: what to write.
        console: standard output when None.
    """
    console = console or Console(theme=THEME, highlight=False)
    if not console.is_terminal:
        return "\n".join(lines_of(page))
    with console.capture() as got:
        console.print(Group(*_renderables(page, console.width)))
    return got.get().rstrip("\n")


def lines_of(page: Page) -> Iterator[str]:
    """Yield the lines of a page for a pipe: whole records, however long, under the names of their panels."""
    yield page.usage
    yield ""
    yield page.about
    widest = min(WIDEST_NAMES, max((len(row.names) for rows in page.panels.values() for row in rows), default=0))
    for panel, rows in page.panels.items():
        yield from ("", f"{panel}:", *(f"{_GAP}{row.names:<{widest}}{_GAP}{row.words}".rstrip() for row in rows))
    if page.examples:
        yield from ("", "Examples:", *(f"{_GAP}{one}" for one in page.examples))
    for note in page.notes:
        yield from ("", note)


def _renderables(page: Page, width: int) -> Iterator[Text | Panel]:
    """Yield what a terminal of some columns shows."""
    mark = _OptionWords()
    yield Text()
    yield mark(Text(page.usage))
    yield Text()
    yield from (Text(line) for line in textwrap.wrap(page.about, width))
    yield Text()
    for panel, rows in page.panels.items():
        names = (1 + max(len(row.names) for row in rows)) if panel in ("Commands", "Arguments") else WIDEST_NAMES
        lines = [line for row in rows for line in row_lines(row, width - _FRAME, min(names, WIDEST_NAMES))]
        text = Text("\n").join(mark(Text(line)) for line in lines)
        yield Panel(text, title=panel, title_align="left", border_style="dim", box=box.ROUNDED, width=width)
    if page.examples:
        yield Text("\nExamples:", style="bold")
        yield from (Text(f"{_GAP}{one}", no_wrap=True, overflow="ignore") for one in page.examples)
    for note in page.notes:
        yield mark(Text("\n" + textwrap.fill(note, width)))


def row_lines(row: Row, width: int, names: int) -> Iterator[str]:
    """Lay a row out in columns: names and words beside each other where they fit, else below each other.

    Args:
        row: what to lay out.
        width: of the whole, in columns.
        names: columns for the names.
    """
    left = names + len(_GAP)
    if width - left < NARROWEST_WORDS:
        left = 2 * len(_GAP)
    kept = _AT_END.sub(lambda found: found.group().replace(" ", _UNBROKEN), row.words)
    lines = textwrap.wrap(kept, max(width - left, 1), break_on_hyphens=False) or [""]
    words = [line.replace(_UNBROKEN, " ") for line in lines]
    if len(row.names) + len(_GAP) <= left:
        yield f"{row.names:<{left}}{words.pop(0)}".rstrip()
    else:
        yield row.names
    yield from (" " * left + line for line in words)


def _words(option: Any) -> str:
    """Return what an option means, with the numbers that it takes and its default."""
    least, most = getattr(option, "min", None), getattr(option, "max", None)
    bounds = f"at least {least:g}" if least is not None and most is None else ""
    bounds = f"{least:g} to {most:g}" if least is not None and most is not None else bounds
    default = default_of(option)
    known = ("required" if option.required else "", bounds, f"default: {default}" if default else "")
    said = "; ".join(one for one in known if one)
    return f"{plain(option.help)} [{said}]" if said else plain(option.help)


def _value_word(option: Any, context: Any) -> str:
    """Return the word for the value of an option: its choices, or what kind of value it is."""
    if option.metavar:
        return str(option.metavar)
    if hasattr(option, "display_type"):
        shown = option.display_type(context)
    else:  # typer before 0.29
        shown = "|".join(getattr(option.type, "choices", ())) or option.type.name
    word = shown.strip("<>").removeprefix("list[").removesuffix("]").removesuffix(" range")
    return str(_TYPES.get(word, word))
