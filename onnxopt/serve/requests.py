"""What routes share: the models and limits of the server, the items of a request, and waiting for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Request

from onnxopt.serve.limits import Limits
from onnxopt.serve.problems import Problem
from onnxopt.serve.shelf import Shelf


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
