"""What every test leaves as it found it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """Give the package's logger its level back: a command that a test ran in this process has set it."""
    logger = logging.getLogger("onnxopt")
    level = logger.level
    yield
    logger.setLevel(level)
