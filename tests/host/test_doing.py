"""What never ends, or takes all memory, in code that Python cannot interrupt ends the process with a word."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.in_child import IN_CHILD

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="alarms and limits as Linux has them")

PROGRAM = IN_CHILD + "from onnxopt.host.doing import doing\n"


def run(child: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + child], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.strip()


def test_what_never_ends_is_ended_with_a_word() -> None:
    stuck = "with doing('counting sheep', 0.3, 1 << 30):\n    ctypes.CDLL(None).pause()"
    assert run(stuck) == (2, "the process was ended by SIGALRM (it took too long) while counting sheep")


def test_memory_beyond_the_limit_is_not_given() -> None:
    large = """
held = bytearray(1 << 24)
with doing('growing', 30, 1 << 26):
    try:
        more = bytearray(1 << 28)
    except MemoryError:
        print('refused')
more = bytearray(1 << 28)
print('given')
"""
    assert run(large) == (0, "refused\ngiven")


def test_afterwards_there_is_no_limit_and_no_word() -> None:
    after = "with doing('quick', 0.3, 1 << 30):\n    pass\ntime.sleep(0.6)\nimport os, signal\nos.kill(os.getpid(), 11)"
    assert run(after) == (2, "the process was ended by SIGSEGV (a fault in native code)")


def test_without_a_parent_that_watches_there_is_no_limit() -> None:
    begins = "import time\nfrom onnxopt.host.doing import doing\n"
    alone = f"{begins}with doing('waiting', 0.1, 1):\n    time.sleep(0.3)\nprint('done')"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n")
