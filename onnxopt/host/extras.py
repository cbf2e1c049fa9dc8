"""What is installed beside the core: the extras of the package, what each is for, and a line where one is missing.

The core runs, serves and optimizes what is an .onnx file already; making one out of a checkpoint takes torch and
transformers, ten times as large. So who needs an extra asks for it here, before any work.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from onnxopt.errors import InputError


@dataclass(frozen=True)
class Extra:
    """One extra of the package, as `pip install 'onnxopt[name]'` takes it.

    Attributes:
        purpose: what it is for.
        packages: what it brings: the module that is imported, by the name under which it is installed.
        also: other extras that it brings.
    """

    purpose: str
    packages: Mapping[str, str]
    also: tuple[str, ...] = ()


EXTRAS: Mapping[str, Extra] = {
    "hf": Extra(
        "optimizing, pruning and distilling checkpoints of transformers",
        {
            "torch": "torch",
            "transformers": "transformers",
            "huggingface-hub": "huggingface_hub",
            "optimum": "optimum",
            "safetensors": "safetensors",
            "accelerate": "accelerate",
        },
    ),
    "gguf": Extra("reading checkpoints in GGUF", {"gguf": "gguf"}, also=("hf",)),
    "image": Extra("reading pictures", {"pillow": "PIL"}),
    "serve": Extra(
        "onnxopt serve", {"fastapi": "fastapi", "prometheus-client": "prometheus_client", "uvicorn": "uvicorn"}
    ),
}


def install_line(name: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'onnxopt[{name}]'"


def missing(name: str) -> tuple[str, ...]:
    """Return the packages of an extra, and of those that it brings, that are not installed; nothing is imported."""
    extra = EXTRAS[name]
    own = tuple(package for package, module in extra.packages.items() if not _is_there(module))
    return (*own, *(package for other in extra.also for package in missing(other)))


def require(name: str, task: str, *, where: str = "", instead: str = "") -> None:
    """Refuse what needs an extra where that is not installed; call it before long work.

    Args:
        name: of the extra.
        task: what needs it, such as `exporting a checkpoint`.
        where: what that was asked of.
        instead: what helps besides installing it, such as `give its .onnx file`.

    Raises:
        InputError: a package of it is not installed.
    """
    if gone := missing(name):
        raise lacking(name, f"{task} needs {gone[0]}, which is not installed", where=where, instead=instead)


def lacking(name: str, what: str, *, where: str = "", instead: str = "") -> InputError:
    """Return the error for what an extra would help with.

    Args:
        name: of the extra.
        what: what is the matter, in plain words.
        where: what it concerns.
        instead: what helps besides installing it.
    """
    line = install_line(name)
    return InputError(what, where=where, hint=f"{line}, or {instead}" if instead else line)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # something keeps it from being found
        return False
