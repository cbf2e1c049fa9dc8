"""What ONNX Runtime raises, and what it says, in words for a user."""

from __future__ import annotations

import re

LONGEST_LINE = 240
LONGEST_READ = 4000  # of what it says, which may hold a name of megabytes

_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_STATUS_MESSAGE = re.compile(r".*?Status Message: ")
_SOURCE = re.compile(r"\S*/onnxruntime/core/\S+ \S.*?\) ")  # file and function of the runtime's own code


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that onnxruntime raises; they share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoaded",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    own = tuple(getattr(state, name) for name in names if hasattr(state, name))
    return (*own, RuntimeError, ValueError)  # the last two come from its bindings


def runtime_line(error: BaseException) -> str:
    """Return what ONNX Runtime says is wrong, on one line, without its status codes and the paths of its sources."""
    text = " ".join(str(error)[:LONGEST_READ].split()) or type(error).__name__
    text = _SOURCE.sub("", _STATUS_MESSAGE.sub("", _STATUS.sub("", text), count=1))
    text = "".join(letter if letter.isprintable() else "?" for letter in text).rstrip(".")
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 3]}..."
