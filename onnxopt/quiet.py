"""Keep other libraries from talking over our own words."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, log lines and progress bars of torch and transformers while the block runs.

    Errors still raise, and log lines at error level are still written.
    """
    from transformers.utils import logging as talk

    before, bars = logging.root.manager.disable, talk.is_progress_bar_enabled()
    logging.disable(max(before, logging.WARNING))
    talk.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if bars:
            talk.enable_progress_bar()
