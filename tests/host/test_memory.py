"""What a process may use of memory, and what it does.

Covers: host/cgroups.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.host.memory import cgroup_limits, memory_allowed, peak_bytes, resident_bytes, told_bytes


def test_the_limits_of_a_cgroup_and_of_those_above_it_count(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("3000\n")
    (tmp_path / "a" / "memory.max").write_text("2000\n")
    (tmp_path / "memory.max").write_text("max\n")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    assert cgroup_limits(tmp_path, membership) == [3000, 2000]


def test_cgroups_of_version_1_are_read(tmp_path: Path) -> None:
    (tmp_path / "memory" / "x").mkdir(parents=True)
    (tmp_path / "memory" / "x" / "memory.limit_in_bytes").write_text("5000\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # none
    membership = tmp_path / "cgroup"
    membership.write_text("9:cpu:/y\n5:memory:/x\n")
    assert cgroup_limits(tmp_path, membership) == [5000]
    assert cgroup_limits(tmp_path, tmp_path / "none") == []


def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (123_456, 123_456))
    assert memory_allowed() == 123_456


@pytest.mark.parametrize("told", ["the system", "nobody"])
def test_the_peak_of_what_is_done_is_seen(told: str) -> None:
    """In a process of its own: what earlier tests left and the collector gives back meanwhile is no growth."""
    alone = f"""
import time
import numpy as np
from onnxopt.host import memory
memory.few_arenas()
if {told!r} == "nobody":
    memory._reset_peak = lambda: False  # as where the system does not
def work():
    held = np.ones(10_000_000)  # 80 MB
    time.sleep(0.2)
    assert held[-1] == 1
print(memory.peak_of(work), memory.resident_bytes())
"""
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, timeout=60, check=True)
    found, resident = map(int, done.stdout.split())
    assert 70e6 < found < 200e6
    assert resident > 1e6


def test_the_peak_is_this_processes_own() -> None:
    assert peak_bytes() >= resident_bytes() * 0.99 > 0
    assert peak_bytes() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.skipif(told_bytes("RssAnon") is None, reason="the system does not tell")
def test_pages_of_files_are_not_its_own(tmp_path: Path) -> None:
    """In a process of its own: elsewhere a new array may lie in memory that an earlier test left resident."""
    path = tmp_path / "large"
    path.write_bytes(bytes(64 << 20))
    alone = f"""
import numpy as np
from onnxopt.host.memory import own_bytes, resident_bytes
resident = resident_bytes()
mapped = np.memmap({str(path)!r}, np.uint8, "r")
assert int(mapped.sum()) == 0  # each page is read
before = own_bytes()
print(resident_bytes() - resident)
held = np.ones(64 << 20, np.uint8)
print(own_bytes() - before)
"""
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, timeout=60, check=True)
    mapped, held = map(int, done.stdout.split())
    assert 60 << 20 < mapped < 90 << 20
    assert 60 << 20 < held < 90 << 20
