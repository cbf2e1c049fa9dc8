"""Cut a long text into windows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.errors import InputError
from onnxopt.spec import Array
from onnxopt.texts.tokenizer import encoded, prefix_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WINDOW = 512


@dataclass(frozen=True)
class Window:
    """A piece of the text.

    Attributes:
        ids: int64 [tokens].
        first: place of the first token that is predicted here; those before it are context.
    """

    ids: Array
    first: int


def cut(ids: Array, window: int, stride: int, *, prefix: Sequence[int] = ()) -> list[Window]:
    """Cut tokens into windows; the last may be shorter, and one that would predict nothing is left out.

    Args:
        ids: int64 [tokens].
        window: tokens of a window, prefix included.
        stride: how far apart windows begin, prefix not counted.
        prefix: tokens that each window starts with.

    Raises:
        InputError: when window, stride and text do not give a single token to predict.
    """
    size = window - len(prefix)
    least = 1 if prefix else 2
    if size < least:
        raise InputError(f"the window is {window}", hint=f"it must be {least + len(prefix)} or more")
    if not 1 <= stride <= size and stride != window:
        raise InputError(f"the stride is {stride}", hint=f"it must be between 1 and the window, {size}")
    stride = min(stride, size)  # a stride of a whole window means side by side, also behind a prefix
    windows, told = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + size, len(ids))
        first = max(told - begin, 0 if prefix else 1)
        if first < end - begin:
            windows.append(Window(np.concatenate([np.array(prefix, np.int64), ids[begin:end]]), first + len(prefix)))
        told = end
        if end == len(ids):
            break
    if not windows:
        raise InputError(f"the text has {len(ids)} tokens", hint="give a longer one")
    return windows


def cut_text(tokenizer: Tokenizer, text: str, longest: int) -> tuple[int, ...]:
    """Return the ids of a text, marks included, cut to a length."""
    ids = encoded(tokenizer, [text])[0].ids
    if len(ids) > longest:
        tokenizer.enable_truncation(longest)
        ids = encoded(tokenizer, [text])[0].ids
        tokenizer.no_truncation()
    return tuple(ids)


def windows_of(tokenizer: Tokenizer, texts: Sequence[str], window: int, most: int) -> list[tuple[int, ...]]:
    """Join texts and cut them into windows that begin as the tokenizer begins a text."""
    prefix = prefix_ids(tokenizer)
    stream: list[int] = []
    for text in texts:
        stream.extend(encoded(tokenizer, [text + "\n\n"], marks=False)[0].ids)
        if len(stream) >= most * window:
            break
    size = window - len(prefix)
    starts = range(0, max(len(stream) - size + 1, 1), size)
    rows = [(*prefix, *stream[start : start + size]) for start in starts]
    return [row for row in rows if len(row) > len(prefix)][:most]
