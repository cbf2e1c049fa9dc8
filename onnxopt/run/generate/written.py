"""What was written, why it ended, and how fast it was."""

from __future__ import annotations

from typing import Literal

from pydantic import computed_field

from onnxopt.records.record import Record

Finish = Literal["end", "stop", "length", "context"]


class Generated(Record):
    """What came after one prompt.

    Attributes:
        prompt: what was given; empty for a prompt of token ids.
        text: the new text, without special tokens and without the stop string.
        tokens: the new tokens, without the end token.
        prompt_tokens: tokens of the prompt as the model got it, chat template included.
        finish: why it ended: `end` token, `stop` string, `length` asked for, or `context` full.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish: Finish


class Speed(Record):
    """How fast it went.

    Attributes:
        prefill_tokens: tokens of all prompts.
        prefill_seconds: reading them and giving the first logits.
        decode_tokens: tokens that were written after the first of each text.
        decode_seconds: writing them: the model, the choice of the token and the text.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def prefill_per_second(self) -> float:
        """Tokens read per second; 0 when there were none."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @computed_field  # type: ignore[prop-decorator]  # same
    @property
    def decode_per_second(self) -> float:
        """Tokens written per second; 0 when there were none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def __str__(self) -> str:
        parts = (
            ("prefill", self.prefill_tokens, self.prefill_per_second),
            ("decode", self.decode_tokens, self.decode_per_second),
        )
        return ", ".join(f"{name} {count} tokens at {speed:.1f}/s" for name, count, speed in parts)


class Generation(Record):
    """The answer to a list of prompts.

    Attributes:
        results: one per prompt, in their order.
        speed: tokens and seconds over all of them.
        seed: with which the same texts come again; None for greedy.
        chat: whether prompts went through the chat template.
        notes: sentences a user should read.
    """

    results: tuple[Generated, ...]
    speed: Speed
    seed: int | None = None
    chat: bool = False
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The new texts."""
        return [result.text for result in self.results]
