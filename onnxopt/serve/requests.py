"""What routes share: the models and limits of the server, the items of a request, and running all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request

from onnxopt.serve.encodes import Reads, TokenRow
from onnxopt.serve.limits import Limits
from onnxopt.serve.problems import Problem
from onnxopt.serve.shelf import Served, Shelf
from onnxopt.spec import Array


def shelf_of(request: Request) -> Shelf:
    """Return the models of the server that a request came to."""
    shelf: Shelf = request.app.state.shelf
    return shelf


def limits_of(request: Request) -> Limits:
    """Return what the server takes that a request came to."""
    limits: Limits = request.app.state.limits
    return limits


def items_of(
    given: str | Sequence[str] | list[int] | Sequence[list[int]], limits: Limits, field: str
) -> list[str | list[int]]:
    """Return texts or rows of tokens, one or many as they were given in a field."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        items: list[Any] = [given]
    else:
        items = list(given)
    if not items:
        raise Problem(422, "there is nothing in it", code="empty", param=field)
    if len(items) > limits.max_items:
        raise Problem(
            413,
            f"{len(items)} texts in one request, at most {limits.max_items}",
            code="too_many_inputs",
            param=field,
        )
    return items


def letters_of(items: Sequence[str | Sequence[int]]) -> int:
    """Return how many letters texts have, or tokens rows."""
    return sum(len(one) for one in items)


async def gathered(pending: Sequence[Any]) -> list[Any]:
    """Wait for all; when one fails, take the others back."""
    tasks = [asyncio.ensure_future(one) for one in pending]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def run_rows(served: Served, reads: Reads, output: str, rows: Sequence[TokenRow], *, what: str) -> list[Array]:
    """Run a model on rows of tokens, together with those of others; return one of its outputs for each row.

    Args:
        served: the model.
        reads: what it wants of a row.
        output: name of the output.
        rows: ids and segments.
        what: the output in words, such as `an embedding`.

    Raises:
        Problem: when a number of it is not finite.
    """
    found = await gathered([served.run(reads.text.feeds(*row), [output]) for row in rows])
    values = [one[output][0] for one in found]
    if not all(np.isfinite(value).all() for value in values):
        raise Problem(422, f"{what} is not finite, which JSON cannot hold", code="not_finite")
    return values


def usage_of(rows: Sequence[TokenRow]) -> dict[str, int]:
    """Return how many tokens rows have, as OpenAI counts them."""
    used = sum(len(ids) for ids, _ in rows)
    return {"prompt_tokens": used, "total_tokens": used}
