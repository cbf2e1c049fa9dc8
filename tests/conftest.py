"""What every test leaves as it found it."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
from collections.abc import Iterator

import pytest

from onnxopt.host.quiet import NOTES


def pytest_configure() -> None:
    """Keep each of several workers on a core of its own: runtimes that spin for the same cores slow each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


_LOGGERS = [(one, one.level, one.handlers, one.propagate) for one in map(logging.getLogger, ("onnxopt", NOTES))]


@pytest.fixture(autouse=True)
def _own_loggers() -> None:
    """Give loggers what they had at first: a command that ran in this process has set them for its console."""
    for logger, level, handlers, propagate in _LOGGERS:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


@pytest.fixture(autouse=True)
def _own_limits() -> Iterator[None]:
    """See that no test limits the process that the next ones run in."""
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)
    before = [resource.getrlimit(kind) for kind in kinds]
    yield
    assert [resource.getrlimit(kind) for kind in kinds] == before
    assert gc.isenabled()


@pytest.fixture
def interrupts_are_heard() -> Iterator[None]:
    """A process in the background of a shell is deaf to interrupts, and so is what it starts: let them be heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
