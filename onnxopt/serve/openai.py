"""The OpenAI interface: embeddings, completions, chat completions with streaming, models.

Fields that change the answer and are not supported are refused; `user`, `metadata` and the like are accepted and
ignored. Without `temperature` a text is written as the checkpoint's generation_config.json says, else greedily.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from onnxopt.run.generate.continuous import ContinuousBatcher, Writing
from onnxopt.run.generate.sampling import Sampling, choose_sampling
from onnxopt.run.generate.written import Finish, Generated
from onnxopt.serve.limits import Limits
from onnxopt.serve.metrics import Metrics
from onnxopt.serve.problems import Problem, problem_of
from onnxopt.serve.shelf import Encodes, Served, Shelf
from onnxopt.spec import Array

router = APIRouter(prefix="/v1")

_HARMLESS = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
_NEUTRAL: tuple[object, ...] = (None, 0, 0.0, False, [], {}, "text", {"type": "text"})  # values that ask for nothing
_FINISH: Mapping[Finish, str] = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
_DEFAULT_TOKENS = 16  # of /v1/completions, as OpenAI has it

Tokens = list[int]


class _Body(BaseModel):
    """What every request has."""

    model_config = ConfigDict(extra="allow")

    model: str

    def refuse_unknown(self) -> None:
        """Refuse fields that would change the answer."""
        for name, value in (self.model_extra or {}).items():
            if name not in _HARMLESS and value not in _NEUTRAL:
                raise Problem(422, f"{name} is not supported", code="unsupported_parameter", param=name)


class EmbeddingsBody(_Body):
    """Body of /v1/embeddings; `truncate` cuts long texts instead of refusing them."""

    input: str | list[str] | Tokens | list[Tokens]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    truncate: bool = False


class StreamOptions(BaseModel):
    """What comes with a stream."""

    include_usage: bool = False


class _TextBody(_Body):
    """What completions and chats share."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0, le=100.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    seed: int | None = None
    stop: str | list[str] | None = None
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


class CompletionBody(_TextBody):
    """Body of /v1/completions."""

    prompt: str | list[str] | Tokens | list[Tokens]


class ChatPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[ChatPart]

    def plain(self) -> dict[str, str]:
        """Return the message as the template wants it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class ChatBody(_TextBody):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


@router.get("/models")
async def models(request: Request) -> Response:
    """List the models."""
    return JSONResponse({"object": "list", "data": [_card(model) for model in _shelf(request).models.values()]})


@router.get("/models/{name}")
async def model(request: Request, name: str) -> Response:
    """Describe one model."""
    return JSONResponse(_card(_shelf(request).get(name)))


@router.post("/embeddings")
async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
    """Turn texts or tokens into vectors."""
    body.refuse_unknown()
    served = _shelf(request).get(body.model)
    encodes = served.encodes
    if encodes is None:
        raise Problem(422, f"the model {body.model!r} gives no embedding", code="wrong_task", param="model")
    if body.dimensions not in {None, encodes.size}:
        raise Problem(422, f"the model gives {encodes.size} dimensions", code="unsupported_value", param="dimensions")
    inputs = _items(body.input, _limits(request))
    rows = [await _tokens(encodes, one, truncate=body.truncate) for one in inputs]
    pending = [served.run(encodes.text.feeds(*row), [encodes.output]) for row in rows]
    vectors = [found[encodes.output][0] for found in await _all(pending)]
    used = sum(len(ids) for ids, _ in rows)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": used, "total_tokens": used}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


@router.post("/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """Write on from prompts."""
    writes = _writer(request, body)
    prompts = _items(body.prompt, _limits(request))
    return await _write(request, body, writes, prompts, most=body.max_tokens or _DEFAULT_TOKENS, chat=False)


@router.post("/chat/completions")
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Answer a conversation."""
    writes = _writer(request, body)
    if writes.generator.template is None:
        raise Problem(422, f"the model {body.model!r} has no chat template", code="wrong_task", param="model")
    ids = writes.generator.encode_chat([message.plain() for message in body.messages])
    context = writes.generator.decoder.context_length
    most = min(_limits(request).max_new_tokens, max(1, context - len(ids)) if context else 1 << 30)
    return await _write(
        request, body, writes, [ids], most=body.max_completion_tokens or body.max_tokens or most, chat=True
    )


def _shelf(request: Request) -> Shelf:
    shelf: Shelf = request.app.state.shelf
    return shelf


def _limits(request: Request) -> Limits:
    limits: Limits = request.app.state.limits
    return limits


def _writer(request: Request, body: _TextBody) -> ContinuousBatcher:
    body.refuse_unknown()
    writes = _shelf(request).get(body.model).writes
    if writes is None:
        raise Problem(422, f"the model {body.model!r} writes no text", code="wrong_task", param="model")
    return writes


def _card(model: Served) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "onnxopt"}


def _items(given: str | Sequence[str] | Tokens | Sequence[Tokens], limits: Limits) -> list[str | Tokens]:
    """Return texts or rows of tokens, one or many as they were given."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        items: list[Any] = [given]
    else:
        items = list(given)
    if not items:
        raise Problem(422, "there is nothing in it", code="empty", param="input")
    if len(items) > limits.max_items:
        raise Problem(413, f"{len(items)} texts in one request, at most {limits.max_items}", code="too_many_inputs")
    return items


async def _tokens(encodes: Encodes, one: str | Tokens, *, truncate: bool) -> tuple[list[int], list[int]]:
    if isinstance(one, str):
        return await encodes.ids(one, truncate=truncate)
    if not one or min(one) < 0:
        raise Problem(422, "a row of tokens is empty or has a negative one", code="invalid_value", param="input")
    ids = one[: encodes.text.limit] if truncate and encodes.text.limit else one
    encodes.fits(len(ids))
    return ids, [0] * len(ids)


async def _all(pending: Sequence[Any]) -> list[Any]:
    """Wait for all; when one fails, take the others back."""
    tasks = [asyncio.ensure_future(one) for one in pending]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _written(vector: Array, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    numbers: list[float] = vector.astype(np.float64).tolist()
    return numbers


# Text


class _Form:
    """How answers of one request are spelled: completions and chats differ in names only."""

    def __init__(self, body: _TextBody, *, chat: bool) -> None:
        self.chat = chat
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, choices: Sequence[Generated], usage: Mapping[str, int]) -> dict[str, Any]:
        """Return the whole answer."""
        kind = "chat.completion" if self.chat else "text_completion"
        written = [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": one.text}} if self.chat else {"text": one.text}),
                "logprobs": None,
                "finish_reason": _FINISH[one.finish],
            }
            for index, one in enumerate(choices)
        ]
        return {**self.head, "object": kind, "choices": written, "usage": dict(usage)}

    def piece(self, index: int, text: str | None, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        """Return a piece of a stream."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        content: dict[str, Any] = {"text": text or ""}
        if self.chat:
            delta = {"role": "assistant"} if first else {}
            content = {"delta": delta if text is None else {**delta, "content": text}}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": finish}
        return {**self.head, "object": kind, "choices": [choice]}

    def closing(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """Return the last piece of a stream that was asked for its usage."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": [], "usage": dict(usage)}


def _usage(written: Sequence[Generated], choices: int) -> dict[str, int]:
    read = sum(one.prompt_tokens for one in written[::choices])
    wrote = sum(len(one.tokens) for one in written)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


async def _write(
    request: Request,
    body: _TextBody,
    writes: ContinuousBatcher,
    prompts: Sequence[str | Tokens],
    *,
    most: int,
    chat: bool,
) -> Response:
    limits = _limits(request)
    if most > limits.max_new_tokens:
        raise Problem(
            422, f"{most} new tokens, at most {limits.max_new_tokens}", code="invalid_value", param="max_tokens"
        )
    if len(prompts) * body.n > limits.max_items:
        raise Problem(413, f"more than {limits.max_items} texts in one request", code="too_many_inputs")
    started: list[tuple[Writing, AsyncIterator[str]]] = []
    try:
        for prompt in prompts:
            for index in range(body.n):
                sampling = body.sampling(writes.generator.settings, index)
                started.append(
                    writes.arrive(prompt, max_new_tokens=most, sampling=sampling, stop=body.stops, chat=False)
                )
    except Exception:
        for writing, _ in started:
            writing.cancel()
        raise
    form = _Form(body, chat=chat)
    if body.stream:
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        stream = _stream(form, started, body.n, wants_usage=wants_usage, metrics=request.app.state.metrics)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    try:
        written = await _all([asyncio.wrap_future(writing.future) for writing, _ in started])
    finally:
        for writing, _ in started:
            writing.cancel()
    usage = _usage(written, body.n)
    _count(request.app.state.metrics, body.model, usage)
    return JSONResponse(form.whole(written, usage))


def _count(metrics: Metrics, model: str, usage: Mapping[str, int]) -> None:
    metrics.tokens.labels(model, "prompt").inc(usage["prompt_tokens"])
    metrics.tokens.labels(model, "completion").inc(usage["completion_tokens"])


async def _stream(
    form: _Form,
    started: Sequence[tuple[Writing, AsyncIterator[str]]],
    choices: int,
    *,
    wants_usage: bool,
    metrics: Metrics,
) -> AsyncIterator[bytes]:
    """Yield server-sent events: pieces of all texts as they come, then the end."""
    events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def follow(index: int, writing: Writing, pieces: AsyncIterator[str]) -> None:
        try:
            if form.chat:
                events.put_nowait(form.piece(index, "", None, first=True))
            async for piece in pieces:
                events.put_nowait(form.piece(index, piece, None))
            events.put_nowait(form.piece(index, None, _FINISH[writing.future.result().finish]))
        except Exception as error:  # noqa: BLE001 - the status line is sent; an event is all that is left to say it
            problem = problem_of(error)
            events.put_nowait({"error": {"message": problem.message, "code": problem.code}})
        finally:
            events.put_nowait(None)

    followers = [asyncio.ensure_future(follow(index, *one)) for index, one in enumerate(started)]
    try:
        for _ in started:
            while (event := await events.get()) is not None:
                yield _event(event)
        written = [writing.future.result() for writing, _ in started if writing.future.exception() is None]
        if len(written) == len(started):
            usage = _usage(written, choices)
            _count(metrics, str(form.head["model"]), usage)
            if wants_usage:
                yield _event(form.closing(usage))
        yield b"data: [DONE]\n\n"
    finally:
        for follower in followers:
            follower.cancel()
        for writing, _ in started:
            writing.cancel()


def _event(content: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
