"""Write a conversation the way a checkpoint was trained to read it: its Jinja chat template, run in a sandbox.

The template is material of the checkpoint, so it runs in Jinja's immutable sandbox: it can compute text from the
messages and call nothing else. What it may use (`messages`, `add_generation_prompt`, special tokens, `tojson`,
`raise_exception`, `strftime_now`, loop controls, `generation` blocks) is what transformers' documentation of chat
templates promises.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnxopt.errors import InputError, said
from onnxopt.host.bounds import allow, bounds
from onnxopt.host.doing import doing
from onnxopt.host.files import regular_size
from onnxopt.texts.tokenizer import read_settings, token_text

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]

TEMPLATE_NAME = "chat_template.jinja"
_MAX_TEMPLATE_BYTES = 1 << 20
_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_WITHOUT = "use --no-chat to give the prompt as it is"


class ChatTemplate:
    """A checkpoint's chat template.

    Args:
        source: the Jinja template.
        specials: text of the special tokens by name, such as `bos_token`.
        where: the file, for errors.

    Raises:
        InputError: when the template is not valid Jinja.
    """

    def __init__(self, source: str, specials: Mapping[str, str], where: str) -> None:
        self._specials = dict(specials)
        self._where = where
        try:
            with _in_time("reading"):
                self._template = _environment().from_string(source)
        except Exception as error:  # a syntax error, or whatever else a broken template provokes
            raise InputError(f"the chat template is broken ({said(error, 200)})", where=where, hint=_WITHOUT) from error

    @classmethod
    def of(cls, folder: Path) -> ChatTemplate | None:
        """Read the chat template of an artifact or checkpoint folder; None when it has none.

        Raises:
            InputError: when a file cannot be read or the template is broken.
        """
        settings = read_settings(folder, "tokenizer_config.json")
        file = folder / TEMPLATE_NAME
        if file.is_file():
            source, where = _read_text(file), str(file)
        else:
            own = read_settings(folder, "chat_template.json").get("chat_template")
            source, where = _default(own or settings.get("chat_template")), str(folder)
        if not source:
            return None
        named = {name: token_text(settings.get(name)) for name in _SPECIALS}
        return cls(source, {name: text for name, text in named.items() if text}, where)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation, up to where the model's answer begins.

        Args:
            messages: each with `role` and `content`.

        Raises:
            InputError: when the template refuses the messages or fails.
        """
        try:
            with _in_time("rendering"):
                return self._template.render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self._specials,
                )
        except InputError:
            raise
        except Exception as error:  # a template can fail in as many ways as a program
            raise InputError(
                f"the chat template fails ({said(error, 200)})", where=self._where, hint=_WITHOUT
            ) from error


def _in_time(step: str) -> AbstractContextManager[None]:
    """Bound what a template of a stranger may take: it is a program, which may count to any number."""
    limits = bounds()
    words = f"{step} the chat template; {_WITHOUT}, or {allow('seconds', '300')}"
    return doing(words, limits.seconds, limits.memory)


def _default(found: object) -> str:
    """Return the template itself; some checkpoints hold a list of named ones, of which one is called default."""
    if isinstance(found, str):
        return found
    entries = found if isinstance(found, list) else []
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, Mapping)}
    chosen = named.get("default")
    return chosen if isinstance(chosen, str) else ""


def _read_text(path: Path) -> str:
    try:
        if regular_size(path) > _MAX_TEMPLATE_BYTES:
            raise InputError(f"is larger than {_MAX_TEMPLATE_BYTES} bytes", where=str(path))
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), hint=_WITHOUT) from error


def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Accept `{% generation %}` blocks, which mark the model's own words for training."""

        tags = {"generation"}  # noqa: RUF012  # as Jinja's base class declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    return environment


def _tojson(value: object, indent: int | None = None, **_: object) -> str:
    """Return JSON as it is, where Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: object) -> NoReturn:
    raise InputError(f"the chat template refuses the conversation: {message}", hint=_WITHOUT)


def _now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)
