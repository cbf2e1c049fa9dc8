"""Commands under a limit of their memory: what they take is seen, and too much ends them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import limited
from bench.limited import How, Outcome, has_group, numbers_of, run_limited, told_by

MB = 10**6
HOLDS = "import sys, time; held = b'x' * int(sys.argv[1]); time.sleep(0.5)"
PARENT = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]]).returncode)"
TELLS = """
import json, sys, time
for number in range(4):
    print(json.dumps({"event": "step", "stage": "quantize", "step": "layer", "seconds": 0, "fraction": number / 4}),
          file=sys.stderr, flush=True)
    time.sleep(0.15)
print("not a line of progress", file=sys.stderr)
print(json.dumps({"event": "stage", "stage": "quantize", "seconds": 1.5}), file=sys.stderr, flush=True)
"""


def held(size: int, limit_bytes: int | None = None, *, through: str = "") -> Outcome:
    code = [through, HOLDS] if through else [HOLDS]
    return run_limited([sys.executable, "-c", *code, str(size)], limit_bytes)


needs_group = pytest.mark.skipif(not has_group(), reason="no memory cgroup can be made here")


def test_what_a_command_holds_is_seen() -> None:
    outcome = held(120 * MB)
    assert outcome.error == ""
    assert outcome.code == 0
    assert 120 * MB <= outcome.anonymous_bytes < 250 * MB
    assert outcome.peak_bytes >= outcome.anonymous_bytes
    assert 0.5 <= outcome.seconds < 30


def test_memory_of_processes_that_it_starts_counts() -> None:
    assert held(120 * MB, through=PARENT).anonymous_bytes >= 120 * MB


@needs_group
def test_too_much_memory_ends_it() -> None:
    assert held(50 * MB, 200 * MB).error == ""
    outcome = held(300 * MB, 200 * MB)
    assert outcome.error == "out of memory"
    assert outcome.code != 0
    assert outcome.peak_bytes <= 201 * MB


@needs_group
def test_pages_of_files_count_for_the_peak_alone(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(80 * MB))
    limited.forget(tmp_path)
    read = f"data = open({str(path)!r}, 'rb')\nwhile data.read(1 << 20): pass\nimport time; time.sleep(0.3)"
    outcome = run_limited([sys.executable, "-c", read])
    assert outcome.peak_bytes >= 80 * MB > outcome.anonymous_bytes


@pytest.mark.parametrize("how", ["rlimit"])
def test_where_no_group_can_be_made_the_process_limits_its_data(how: How, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def none(_: int | None) -> Iterator[tuple[How, None]]:
        yield how, None

    monkeypatch.setattr(limited, "_room", none)
    assert held(50 * MB, 400 * MB).how == how
    outcome = held(600 * MB, 400 * MB)
    assert "MemoryError" in outcome.error


def test_stages_are_timed_as_the_command_tells_them() -> None:
    outcome = run_limited([sys.executable, "-c", TELLS])
    assert outcome.stages["quantize"]["seconds"] == 1.5
    assert outcome.stages["quantize"]["anonymous_bytes"] > MB
    assert outcome.lines == ["not a line of progress"]


def test_a_command_is_killed_where_the_caller_wants_it() -> None:
    seen: list[float] = []

    def half(told: object) -> bool:
        assert isinstance(told, dict)
        seen.append(told["fraction"])
        return bool(told["fraction"] >= 0.5)

    outcome = run_limited([sys.executable, "-c", TELLS], stop=half)
    assert outcome.stopped
    assert outcome.code == -9
    assert seen[:3] == [0.0, 0.25, 0.5]
    assert "seconds" not in outcome.stages["quantize"]


def test_what_takes_too_long_is_given_up() -> None:
    outcome = run_limited([sys.executable, "-c", "import time; time.sleep(60)"], most_seconds=0.5)
    assert outcome.seconds < 20
    assert outcome.error


@pytest.mark.parametrize(
    "files",
    [
        {"memory.peak": "900\n", "memory.stat": "anon 300\nfile 500\n", "memory.events": "oom 2\noom_kill 1\n"},
        {"memory.current": "900\n", "memory.stat": "anon 300\nfile 500\n", "memory.events": "oom_kill 1\n"},
        {
            "memory.max_usage_in_bytes": "900\n",
            "memory.stat": "rss 1\ntotal_rss 300\ntotal_cache 500\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        },
    ],
    ids=["version 2", "version 2 of old kernels", "version 1"],
)
def test_control_groups_of_both_versions_are_read(files: Mapping[str, str], tmp_path: Path) -> None:
    assert told_by(tmp_path / "gone") == (0, 0, 0)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="ascii")
    assert told_by(tmp_path) == (900, 300, 1)


def test_numbers_of_a_control_group_are_read() -> None:
    assert numbers_of("anon 12\nfile 30\noom_kill_disable 0\nodd line here\nname x\n") == {
        "anon": 12,
        "file": 30,
        "oom_kill_disable": 0,
    }
    assert json.dumps(numbers_of("")) == "{}"
