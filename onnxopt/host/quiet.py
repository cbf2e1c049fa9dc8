"""Keep other libraries from talking over our own words."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOTES = "onnxopt.note"  # the logger of what a user should know though nothing failed


class _Depth:
    """How many blocks keep log lines back, over all threads, and what was kept back before the first of them."""

    lock = threading.Lock()
    blocks = 0
    before = logging.NOTSET


@contextmanager
def without_log_lines() -> Iterator[None]:
    """Keep back log lines below error level while any block runs, in whatever thread and order they end."""
    with _Depth.lock:
        if not _Depth.blocks:
            _Depth.before = logging.root.manager.disable
        _Depth.blocks += 1
        logging.disable(max(_Depth.before, logging.WARNING))
    try:
        yield
    finally:
        with _Depth.lock:
            _Depth.blocks -= 1
            if not _Depth.blocks:
                logging.disable(_Depth.before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, log lines and progress bars of torch and transformers while the block runs.

    Errors still raise, and log lines at error level are still written.
    """
    from transformers.utils import logging as talk

    bars = talk.is_progress_bar_enabled()
    talk.disable_progress_bar()
    try:
        with without_log_lines(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            talk.enable_progress_bar()
