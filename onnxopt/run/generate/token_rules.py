"""What a checkpoint says of its answers whatever the logits are: tokens that are forced, forbidden, or not repeated.

As transformers' logits processors of the same names: `forced_bos_token_id`, `forced_eos_token_id`, `suppress_tokens`,
`begin_suppress_tokens`, `no_repeat_ngram_size`, `min_length` and `min_new_tokens` of generation_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxopt.errors import InputError

Logits = npt.NDArray[Any]


@dataclass(frozen=True)
class TokenRules:
    """Rules for one checkpoint.

    Attributes:
        first: the first new token; None leaves it open.
        last: the token where the number of tokens that was asked for is reached; None leaves it open.
        never: tokens that are not written.
        not_first: tokens that are not written first.
        ngram: n, when no n tokens may occur in a row twice; 0 for no such rule.
        ends: tokens that end a text, which `shortest` puts off.
        shortest: tokens that a text has at least, those that it starts with among them.
        shortest_new: tokens that are written at least.
    """

    first: int | None = None
    last: int | None = None
    never: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()
    ngram: int = 0
    ends: tuple[int, ...] = ()
    shortest: int = 0
    shortest_new: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any], ends: Sequence[int] = ()) -> TokenRules:
        """Read the rules of a checkpoint.

        Args:
            settings: content of generation_config.json.
            ends: tokens that end a text.
        """
        lasts = _ids(settings.get("forced_eos_token_id"))
        return cls(
            first=next(iter(_ids(settings.get("forced_bos_token_id"))), None),
            last=next(iter(lasts), None),
            never=_ids(settings.get("suppress_tokens")),
            not_first=_ids(settings.get("begin_suppress_tokens")),
            ngram=_count(settings.get("no_repeat_ngram_size")),
            ends=tuple(ends),
            shortest=_count(settings.get("min_length")),
            shortest_new=_count(settings.get("min_new_tokens")),
        )

    def apply(self, logits: Logits, start: Sequence[int], written: Sequence[int], most: int) -> Logits:
        """Return the logits with what is forbidden at minus infinity; the given array stays as it is.

        Args:
            logits: float [vocabulary].
            start: tokens before the first new one.
            written: new tokens so far.
            most: how many may be written.
        """
        if self == TokenRules(ends=self.ends):
            return logits
        forced = self.first if not written else None
        if self.last is not None and len(written) == most - 1:
            forced = self.last
        if forced is not None:
            if forced >= len(logits):
                what = f"it forces the token {forced}, and the model has {len(logits)}"
                raise InputError(what, where="generation_config.json", hint="mend the file, or copy it again")
            alone = np.full_like(logits, -np.inf)
            alone[forced] = 0.0
            return alone
        banned = [*self.never, *(() if written else self.not_first)]
        if len(start) + len(written) < self.shortest or len(written) < self.shortest_new:
            banned += self.ends
        if self.ngram:
            banned += _repeats([*start, *written], self.ngram)
        scores = logits.copy()
        scores[[token for token in banned if 0 <= token < len(scores)]] = -np.inf
        return scores


def _repeats(tokens: Sequence[int], n: int) -> list[int]:
    """Return the tokens that would end an n-gram that is there already."""
    if len(tokens) < n:
        return []
    tail = list(tokens[len(tokens) - n + 1 :])
    return [tokens[i + n - 1] for i in range(len(tokens) - n + 1) if list(tokens[i : i + n - 1]) == tail]


def _ids(value: object) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(one for one in listed if isinstance(one, int) and not isinstance(one, bool) and one >= 0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
