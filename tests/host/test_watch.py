"""Runs that take too long are ended; all others are let be."""

from __future__ import annotations

import time
from dataclasses import dataclass

from onnxopt.host.watch import watched


@dataclass
class Options:
    """What a run looks at between two nodes."""

    terminate: bool = False


def wait_for(options: Options, seconds: float) -> float:
    began = time.monotonic()
    while not options.terminate and time.monotonic() - began < seconds:
        time.sleep(0.01)
    return time.monotonic() - began


def test_a_run_without_end_is_ended() -> None:
    options = Options()
    with watched(options, 0.2) as run:
        assert 0.15 < wait_for(options, 20) < 10
    assert run.ended


def test_a_run_that_ends_in_time_is_let_be() -> None:
    options = Options()
    with watched(options, 60) as run:
        pass
    wait_for(options, 0.3)
    assert not run.ended
    assert not options.terminate


def test_a_run_may_take_as_long_as_it_likes() -> None:
    options = Options()
    with watched(options, None) as run:
        wait_for(options, 0.3)
    assert not run.ended


def test_each_of_several_has_its_own_time() -> None:
    slow, quick = Options(), Options()
    with watched(slow, 60) as one, watched(quick, 0.1) as other:
        wait_for(quick, 20)
    assert (one.ended, other.ended) == (False, True)
    assert not slow.terminate
