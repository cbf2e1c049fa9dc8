"""Give memory back: the pages of mapped weights, and what the allocator keeps."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import onnx_ir as ir

from onnxopt.graph.weight_files import in_file, stored_bytes

LEAST_PAGED_BYTES = 2**26  # less is not worth a thread
PAGING_SECONDS = 0.03


def release_pages(tensors: Iterable[ir.TensorProtocol | None]) -> None:
    """Let go of the memory behind tensors that are mapped from a file; they are read again when they are used."""
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None:
        return
    for tensor in tensors:
        found = in_file(tensor)
        if found is not None and found.raw is not None:
            found.raw.madvise(advice)


@contextlib.contextmanager
def paging(weights: Iterable[ir.TensorProtocol]) -> Iterator[None]:
    """While a model runs, let go of those weights in files that it has read; they come back from the system's cache."""
    tensors = [tensor for tensor in weights if in_file(tensor) is not None]
    if sum(map(stored_bytes, tensors)) < LEAST_PAGED_BYTES:
        yield
        return
    done = threading.Event()

    def let_go() -> None:
        while not done.wait(PAGING_SECONDS):
            release_pages(tensors)

    thread = threading.Thread(target=let_go, name="onnxopt-paging", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release_pages(tensors)


def release_memory() -> None:
    """Give memory that is free back to the system, where the C library can; it keeps much of it after large runs."""
    trim = _trimmer()
    if trim is not None:
        trim(0)


@functools.cache
def _trimmer() -> Any:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no such thing on Windows
        return None
