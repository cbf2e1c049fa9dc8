"""What stands before everything else: who may ask, a name for each request, and its line in the log."""

from __future__ import annotations

import datetime as dt
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxopt.errors import InputError, word
from onnxopt.serve.problems import Problem, answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})  # of any watchdog
REQUEST_ID = b"x-request-id"
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")  # that a caller may choose: it stands in the log
_SHOWN_PATH = 200
LEAST_KEY = 8  # characters: shorter ones are tried through


@dataclass(frozen=True)
class Access:
    """Who may ask a server, and what is written down of it.

    Attributes:
        api_keys: any of them must come as `Authorization: Bearer KEY`; without any, everyone may ask.
        origins: sites whose pages may ask from a browser, such as `https://example.org`; `*` for all.
        log: told a line for each request; None keeps none.
    """

    api_keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    log: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if any(len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise InputError(
                f"an API key has fewer than {LEAST_KEY} characters or odd ones", hint="openssl rand -hex 24"
            )
        for origin in self.origins:
            if origin != "*" and not re.fullmatch(r"https?://[\w.:\[\]-]+", origin):
                raise InputError(f"{origin!r} is no origin", hint="write https://example.org, without a path, or *")


class Front:
    """Name each request, turn those away that have no key, and write a line for each.

    Args:
        app: what answers.
        access: who may ask.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._keys = [key.encode() for key in access.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(REQUEST_ID, b"")
        name = given if _ID.fullmatch(given) else secrets.token_hex(8).encode()
        started, status = time.perf_counter(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (REQUEST_ID, name)]}
            await send(message)

        try:
            if self._may(scope, headers.get(b"authorization", b"")):
                await self._app(scope, receive, named)
            else:
                refused = Problem(401, "there is no API key, or a wrong one", code="invalid_api_key")
                response = answer(refused, scope["path"])
                response.headers["WWW-Authenticate"] = "Bearer"
                await response(scope, receive, named)
        finally:
            if self._access.log is not None:
                self._access.log(line_of(scope, name, status, time.perf_counter() - started))

    def _may(self, scope: Scope, said: bytes) -> bool:
        if not self._keys or scope["path"] in OPEN_PATHS:
            return True
        kind, _, key = said.partition(b" ")
        # all are compared, each in the same time: how long it takes tells nothing of them
        same = [hmac.compare_digest(key.strip(), one) for one in self._keys]
        return kind.lower() == b"bearer" and any(same)


def line_of(scope: Scope, name: bytes, status: int, seconds: float) -> str:
    """Return the line of a request: when, which, who, what, its answer, and how long that took.

    Args:
        scope: of the request.
        name: of the request.
        status: of HTTP; 0 where the caller went away.
        seconds: until the end of the answer.
    """
    now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    client = scope.get("client")
    path = word(scope["path"], _SHOWN_PATH)
    told = str(status) if status else "gone"
    return (
        f"{now} {name.decode()} {client[0] if client else '-'} {scope['method']} {path} {told} {1000 * seconds:.1f} ms"
    )
