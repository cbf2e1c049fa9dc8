"""What a server takes before it says no."""

from __future__ import annotations

from dataclasses import dataclass

from onnxopt.errors import InputError

_MAY_BE_ZERO = {"max_wait_ms", "memory_bytes"}


@dataclass(frozen=True)
class Limits:
    """Limits of a server; each has its status code.

    Attributes:
        max_body_bytes: of a request; more is 413.
        max_items: texts or prompts of one request; more is 413.
        max_queue: requests that wait per model; more is 429.
        max_batch: rows that run together.
        max_wait_ms: how long a request waits for others.
        max_new_tokens: the most tokens to write for one prompt; more is 422.
        timeout_s: how long a request may take; longer is 503.
        memory_bytes: that the whole server may use; 0 for a share of what the machine or its cgroup allows.
        max_connections: that are open at the same time; then the one that is idle for the longest ends, else 503.
        head_timeout_s: how long a connection may be open without the whole head of a request.
        send_timeout_s: how long a caller may take nothing of an answer that is sent.
        body_timeout_s: how long the body of a request may take to come; longer is 408.
        grace_s: how long a stopping server goes on with what it has taken.
    """

    max_body_bytes: int = 8 << 20
    max_items: int = 256
    max_queue: int = 1024
    max_batch: int = 32
    max_wait_ms: float = 2.0
    max_new_tokens: int = 4096
    timeout_s: float = 300.0
    memory_bytes: int = 0
    max_connections: int = 1024
    head_timeout_s: float = 10.0
    send_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise InputError(f"the limit {name.replace('_', ' ')} is {value}", hint="it must be above 0")
