"""Look ahead at what a server is asked for: its models and its address, before anything large is imported."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.run.generate.beside import read_manifest


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """Read the arguments of the command line, each a folder or `name=folder`.

    Raises:
        InputError: when two models have the same name.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, mark, place = text.partition("=")
        path = Path(place) if mark and not Path(text).exists() else Path(text)
        name = name if mark and not Path(text).exists() else path.resolve().name
        if name in found:
            raise InputError(f"two models are named {name}", hint=f"write other-name={path}")
        found[name] = path
    if not found:
        raise InputError("there is no model", hint="name at least one artifact folder")
    return found


def require_models(folders: Iterable[Path]) -> None:
    """Refuse what is no model, without opening one.

    Args:
        folders: of `named_folders`.

    Raises:
        InputError: there is nothing of that name, or it is no artifact and no .onnx file.
    """
    for folder in folders:
        read_manifest(folder)


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that has an address and does not listen yet: nobody else can have it from here on.

    Args:
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        InputError: when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is named; else an answer waits 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen there ({error.strerror})", where=f"{host}:{port}", hint="choose another --port or --host"
        ) from error
    return listener
