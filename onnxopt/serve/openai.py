"""The OpenAI interface: embeddings, completions, chat completions with streaming, models.

What a request may hold, `onnxopt.serve.bodies` says. Without `temperature` a text is written as the checkpoint's
generation_config.json says, else greedily.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from onnxopt.run.generate.continuous import ContinuousBatcher, Writing
from onnxopt.run.generate.written import Finish, Generated
from onnxopt.serve.answers import COPIES, JSON_BYTES, Numbers, hold_answer, with_numbers
from onnxopt.serve.bodies import ChatBody, CompletionBody, EmbeddingsBody, TextBody
from onnxopt.serve.metrics import Metrics
from onnxopt.serve.parsing import ReadRoute
from onnxopt.serve.problems import Json, Problem, problem_of
from onnxopt.serve.requests import gathered, items_of, letters_of, limits_of, run_rows, shelf_of, usage_of
from onnxopt.serve.shelf import Served
from onnxopt.serve.texts import off_loop, read_chat, read_prompts
from onnxopt.spec import Array

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", route_class=ReadRoute)

_FINISH: Mapping[Finish, str] = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
_DEFAULT_TOKENS = 16  # of /v1/completions, as OpenAI has it
_MARK_LETTERS = 16  # what a template writes around a message, about


@router.get("/models")
async def models(request: Request) -> Response:
    """List the models."""
    return Json({"object": "list", "data": [_card(model) for model in shelf_of(request).models.values()]})


@router.get("/models/{name}")
async def model(request: Request, name: str) -> Response:
    """Describe one model."""
    return Json(_card(shelf_of(request).get(name)))


@router.post("/embeddings")
async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
    """Turn texts or tokens into vectors."""
    body.refuse_unknown()
    served = shelf_of(request).get(body.model)
    encodes = served.encodes
    if encodes is None:
        raise Problem(422, f"the model {body.model!r} gives no embedding", code="wrong_task", param="model")
    if body.dimensions not in {None, encodes.size}:
        raise Problem(422, f"the model gives {encodes.size} dimensions", code="unsupported_value", param="dimensions")
    inputs = items_of(body.input, limits_of(request), "input")
    rows = await off_loop(
        lambda: encodes.read(inputs, truncate=body.truncate, prompt=body.prompt_name), letters=letters_of(inputs)
    )
    by_number = JSON_BYTES if body.encoding_format == "float" else 4 * COPIES
    hold_answer(request, len(rows) * encodes.size * by_number)
    vectors = await run_rows(served, encodes, encodes.output, rows, what="an embedding")
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    return await with_numbers({"object": "list", "data": data, "model": body.model, "usage": usage_of(rows)})


@router.post("/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """Write on from prompts."""
    writes = _writer(request, body)
    prompts = items_of(body.prompt, limits_of(request), "prompt")
    rows = await off_loop(lambda: read_prompts(writes.generator, prompts), letters=letters_of(prompts))
    return await _write(request, body, writes, rows, most=body.max_tokens or _DEFAULT_TOKENS, chat=False)


@router.post("/chat/completions")
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Answer a conversation."""
    writes = _writer(request, body)
    if writes.generator.template is None:
        raise Problem(422, f"the model {body.model!r} has no chat template", code="wrong_task", param="model")
    conversation = body.plain()
    letters = sum(_MARK_LETTERS + len(message["content"]) for message in conversation)
    ids = await off_loop(lambda: read_chat(writes.generator, conversation), letters=letters)
    context = writes.generator.decoder.context_length
    rooms = [limits_of(request).max_new_tokens, context - len(ids) if context else None, writes.room_after(len(ids))]
    most = max(1, min(room for room in rooms if room is not None))
    return await _write(
        request, body, writes, [ids], most=body.max_completion_tokens or body.max_tokens or most, chat=True
    )


def _writer(request: Request, body: TextBody) -> ContinuousBatcher:
    body.refuse_unknown()
    writes = shelf_of(request).get(body.model).writes
    if writes is None:
        raise Problem(422, f"the model {body.model!r} writes no text", code="wrong_task", param="model")
    return writes


def _card(model: Served) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "onnxopt"}


def _written(vector: Array, form: str) -> Numbers | str:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return Numbers(vector)


# Text


class _Form:
    """How answers of one request are spelled: completions and chats differ in names only."""

    def __init__(self, body: TextBody, *, chat: bool) -> None:
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
    body: TextBody,
    writes: ContinuousBatcher,
    prompts: Sequence[list[int]],
    *,
    most: int,
    chat: bool,
) -> Response:
    limits = limits_of(request)
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
        written = await gathered([asyncio.wrap_future(writing.future) for writing, _ in started])
    finally:
        for writing, _ in started:
            writing.cancel()
    usage = _usage(written, body.n)
    _count(request.app.state.metrics, body.model, usage)
    return Json(form.whole(written, usage))


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
        except Exception as error:
            problem = problem_of(error)
            if problem.status == 500:
                logger.exception("a fault of the server in a stream")
                metrics.errors.labels("stream").inc()
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
