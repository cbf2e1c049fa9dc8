"""One text that is being written."""

from __future__ import annotations

import dataclasses

from onnxopt.run.generate.encoder_decoder import Given
from onnxopt.run.generate.sampling import Sampler
from onnxopt.run.generate.text_stream import TextStream
from onnxopt.run.generate.token_rules import TokenRules
from onnxopt.run.generate.written import Finish
from onnxopt.spec import Array


@dataclasses.dataclass
class Row:
    """A text on its way: it begins with `prompt`, which for an encoder-decoder is not what it was given as `source`."""

    number: int
    source: Given
    prompt: list[int]
    sampler: Sampler
    rules: TokenRules
    stream: TextStream
    ends: frozenset[int]
    most: int
    context: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    finish: Finish | None = None

    def grow(self, logits: Array) -> tuple[int, str]:
        """Choose the next token and return it with the text that is certain now.

        Args:
            logits: float [vocabulary].
        """
        token = self.sampler.next_id(self.rules.apply(logits, self.prompt, self.tokens, self.most))
        return token, self.take(token)

    def take(self, token: int) -> str:
        """Add a token and return the text that is certain now."""
        piece = ""
        if token in self.ends:
            self.finish = "end"
        else:
            self.tokens.append(token)
            piece = self.stream.push(token)
            if len(self.tokens) >= self.most:
                self.finish = "length"
            elif self.context and len(self.prompt) + len(self.tokens) > self.context:
                self.finish = "context"
        if self.finish is not None:
            piece += self.stream.finish()
        if self.stream.stopped:
            self.finish = "stop"
        self.text += piece
        return piece
