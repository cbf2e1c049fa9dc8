"""Ask an application as a server would, in this process: no socket, no port, no thread."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: of HTTP.
        headers: by lower-case name.
        body: its bytes.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def said(self) -> str:
        """The line of an error, in either protocol."""
        error = self.json["error"]
        return str(error if isinstance(error, str) else error["message"])


class Caller:
    """Calls an application from code that is not asynchronous; one loop for all calls, as a server has."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()

    def close(self) -> None:
        """Close the models and the loop."""
        self.app.state.shelf.close()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def ask(self, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str) -> Answer:
        """Send a GET, or a POST where there is a body.

        Args:
            path: of the request.
            body: becomes JSON.
            raw: bytes in its place.
            headers: further ones, with _ for -.
        """
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        fields = {"content-type": "application/json", **{key.replace("_", "-"): said for key, said in headers.items()}}
        return self.loop.run_until_complete(call(self.app, path, data, fields))


async def call(app: FastAPI, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
    """Send one request and return its answer."""
    sent = False
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # a caller who stays
        sent = True
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    await app(scope, receive, send)
    start = next(message for message in messages if message["type"] == "http.response.start")
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    parts = (message.get("body", b"") for message in messages if message["type"] == "http.response.body")
    return Answer(start["status"], found, b"".join(parts))
