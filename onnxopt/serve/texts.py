"""Texts of requests into tokens, beside the event loop: one long text holds up nobody but its own caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from onnxopt.errors import InputError
from onnxopt.host.threads import step_back
from onnxopt.run.generate.generator import Generator
from onnxopt.serve.encodes import check_tokens
from onnxopt.texts.bounded import read_beginning

INLINE_LETTERS = 4096  # what takes less than handing it to a thread would
_THREADS = 2
_readers = ThreadPoolExecutor(_THREADS, thread_name_prefix="onnxopt-texts", initializer=step_back)

Result = TypeVar("Result")


async def off_loop(work: Callable[[], Result], *, letters: int) -> Result:
    """Do what takes time with each letter: at once for few of them, else on a thread of their own.

    Args:
        work: what to do.
        letters: how many there are.
    """
    if letters <= INLINE_LETTERS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_readers, work)


def read_prompts(generator: Generator, prompts: Sequence[str | Sequence[int]]) -> list[list[int]]:
    """Return the tokens of prompts.

    Args:
        generator: what writes on from them.
        prompts: texts or rows of tokens.

    Raises:
        InputError: when one is empty, longer than the model takes, or has a token that the model does not know.
    """
    return [_of_text(generator, one) if isinstance(one, str) else _of_row(generator, one) for one in prompts]


def read_chat(generator: Generator, conversation: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the tokens of a conversation in the chat template.

    Args:
        generator: what answers, with a template.
        conversation: messages, each with `role` and `content`.

    Raises:
        InputError: when the template refuses it, or it is longer than the model takes.
    """
    template = generator.template
    assert template is not None  # noqa: S101  # whoever asks has looked
    return _bounded(generator, template.render(conversation), specials=False)  # the template writes them itself


def _of_text(generator: Generator, text: str) -> list[int]:
    if not text.strip():
        raise InputError("the prompt is empty", hint="write at least one word")
    return _bounded(generator, text, specials=True)


def _bounded(generator: Generator, text: str, *, specials: bool) -> list[int]:
    context = generator.decoder.context_length
    begun = read_beginning(generator.tokenizer, text, context, specials=specials)
    if context and len(begun.encoding.ids) > context:
        reason = generator.decoder.limit_reason
        raise InputError(f"the prompt has {begun.count} tokens, the model takes {context}{reason}", hint="shorten it")
    return list(begun.encoding.ids)


def _of_row(generator: Generator, row: Sequence[int]) -> list[int]:
    check_tokens(row, generator.decoder.vocabulary)
    return list(row)
