"""What callers send to the OpenAI interface, field by field.

Fields that change the answer and are not supported are refused; `user`, `metadata` and the like are accepted and
ignored, and so is what asks for nothing, such as `null` or `false`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from onnxopt.run.generate.sampling import Sampling, choose_sampling
from onnxopt.serve.problems import Problem

MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_STOP_LETTERS = 1000
_SEED_BITS = 63

_HARMLESS = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
_NEUTRAL: tuple[object, ...] = (None, 0, 0.0, False, [], {}, "text", {"type": "text"})  # values that ask for nothing
_SHOWN_LETTERS = 60

# a list ends at its first wrong entry: one line is said of it, and of 100,000 wrong ones no more than that
Texts = Annotated[list[str], Field(fail_fast=True)]
Tokens = Annotated[list[int], Field(fail_fast=True)]
Rows = Annotated[list[Tokens], Field(fail_fast=True)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LETTERS)]


class _Open(BaseModel):
    """What may come with further fields, as long as they ask for nothing."""

    model_config = ConfigDict(extra="allow")

    def refuse_unknown(self, harmless: frozenset[str] = _HARMLESS, place: str = "") -> None:
        """Refuse fields that would change the answer.

        Args:
            harmless: fields that change nothing, whatever is in them.
            place: what stands before the name of a field when it is said, such as `messages.0.`.

        Raises:
            Problem: for the first of them.
        """
        for name, value in (self.model_extra or {}).items():
            if name not in harmless and value not in _NEUTRAL:
                said = place + (name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}…")
                raise Problem(422, f"{said} is not supported", code="unsupported_parameter", param=said)


class _Body(_Open):
    """What every request has."""

    model: str


class EmbeddingsBody(_Body):
    """Body of /v1/embeddings; `truncate` cuts long texts instead of refusing them.

    `prompt_name` names a prompt of the checkpoint that goes in front of each text, as text-embeddings-inference has it;
    the checkpoint's default when it is left out, none at all when it is empty.
    """

    input: str | Texts | Tokens | Rows
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    truncate: bool = False
    prompt_name: str | None = None


Pair = tuple[str, str]


class ClassifyBody(_Body):
    """Body of /v1/classify: texts, or pairs of them for a model that reads two; `truncate` cuts long ones.

    With `candidate_labels` a model of entailment chooses from them for each text, as transformers' pipeline does, whose
    names `hypothesis_template` and `multi_label` are.
    """

    input: str | Texts | None = None
    pairs: Annotated[list[Pair], Field(fail_fast=True)] | None = None
    truncate: bool = False
    candidate_labels: Texts | None = None
    hypothesis_template: str | None = None
    multi_label: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> ClassifyBody:
        if (self.input is None) == (self.pairs is None):
            raise ValueError("send either input or pairs")
        if self.candidate_labels is not None and self.pairs is not None:
            raise ValueError("candidate_labels are chosen for input, not for pairs")
        return self


class RerankBody(_Body):
    """Body of /v1/rerank, as Cohere and Jina have it; long documents are cut."""

    query: str
    documents: Texts
    top_n: Count | None = None
    return_documents: bool = False
    truncate: bool = True


class ScoreBody(_Body):
    """Body of /v1/score, as vLLM has it: one text and one or several, or as many as many; `truncate` cuts long ones."""

    text_1: str | Texts
    text_2: str | Texts
    truncate: bool = True

    def pairs(self) -> list[Pair]:
        """Return the texts that belong together.

        Raises:
            Problem: there are several of both, and not as many.
        """
        first = [self.text_1] if isinstance(self.text_1, str) else list(self.text_1)
        second = [self.text_2] if isinstance(self.text_2, str) else list(self.text_2)
        if len(first) == 1:
            first *= len(second)
        if len(first) != len(second):
            raise Problem(400, f"text_1 has {len(first)} texts, text_2 has {len(second)}", param="text_2")
        return list(zip(first, second, strict=True))


class LabelsBody(_Body):
    """Body of /v1/ner: texts whose words are labelled; `truncate` cuts long ones."""

    input: str | Texts
    truncate: bool = False


class StreamOptions(BaseModel):
    """What comes with a stream."""

    include_usage: bool = False


class TextBody(_Body):
    """What completions and chats share."""

    max_tokens: Count | None = None
    temperature: Real | None = Field(default=None, ge=0.0, le=100.0)
    top_p: Real | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0, lt=1 << _SEED_BITS)
    min_p: Real | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: Real | None = Field(default=None, ge=1e-6, le=1e6)
    seed: int | None = Field(default=None, ge=-(1 << _SEED_BITS), lt=1 << _SEED_BITS)
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    n: int = Field(default=1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """Strings that end a text."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling(self, settings: Mapping[str, Any], index: int) -> Sampling:
        """Return how tokens of the index-th choice are drawn."""
        sample = self.temperature != 0 and (settings.get("do_sample") is True or self.temperature is not None)
        seed = None if self.seed is None else abs(self.seed) + index
        if not sample:
            return choose_sampling(
                settings, sample=False, temperature=0.0, repetition_penalty=self.repetition_penalty, seed=seed
            )
        return Sampling.from_settings(
            settings,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbelow(2**32) if seed is None else seed,
        )


class CompletionBody(TextBody):
    """Body of /v1/completions."""

    prompt: str | Texts | Tokens | Rows


class ChatPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class ChatMessage(_Open):
    """A message of a conversation; `content` is null only where an assistant's message says nothing."""

    role: str
    content: str | Annotated[list[ChatPart], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing or null, which only a message of the assistant's may have")
        return self

    def plain(self) -> dict[str, str]:
        """Return the message as the template wants it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content}


class ChatBody(TextBody):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Count | None = None

    def plain(self) -> list[dict[str, str]]:
        """Return the conversation as the template wants it.

        Raises:
            Problem: when a message has a field that would change the answer.
        """
        for number, message in enumerate(self.messages):
            message.refuse_unknown(frozenset({"name"}), f"messages.{number}.")
        return [message.plain() for message in self.messages]
