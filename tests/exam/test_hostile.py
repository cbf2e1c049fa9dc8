"""Some of the hostile inputs, one of each kind, and the rules by which all are judged."""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.exam.hostile import __main__ as campaign
from tests.exam.hostile.cases import Case
from tests.exam.hostile.run import Outcome, judged, preload

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and signals as Linux has them")

# without what needs a sound artifact, whose making takes longer than all of these
FEW = (
    *("file: empty-file", "file: truncated-file", "file: nested-graph-bomb", "file: function-bomb", "file: flipped 7"),
    *("file: symlinked-external-data", "file: a pipe", "file: a link to a device without end", "file: zeros"),
    *("file: the smallest divided by minus one", "file: two gibibytes", "file: a constant of two values"),
    *("file: three thousand axes", "file: runs an index out of range", "file: runs a shape beyond 64 bits"),
    *("file: named an escape of a terminal", "npz: a shape of 2^60, as inputs", "npz: a pickle, to calibrate"),
    *("checkpoint: architectures is 5", "checkpoint: an index whose map is a list", "checkpoint: pickled weights"),
    *("words: a recipe in a pipe", "words: layers without end"),
)


def of_few(titles: Sequence[str], room: str) -> list[dict[str, Any]]:
    """Judge a few in a process that has imported what commands do, and opened no session."""
    preload()
    known = {case.title: case for case in campaign.all_cases()}
    return [asdict(judged(known[title], Path(room))) for title in titles]


@pytest.mark.parametrize("titles", [FEW[::3], pytest.param(FEW, marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_line_and_an_exit_code_whatever_is_given(titles: Sequence[str], tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        outcomes = pool.submit(of_few, titles, str(tmp_path)).result()
    assert len(outcomes) == len(titles)
    assert [one for one in outcomes if one["faults"]] == []
    codes = [one["code"] for one in outcomes]
    assert codes.count(2) > len(titles) / 2, "most are refused"
    assert 0 in codes, "what is only named oddly is taken"


def judged_as(program: str, room: Path) -> Outcome:
    """What is found of a command that does something else."""

    def build(_: Path) -> list[str]:
        return ["--version"]

    from tests.exam.hostile import run

    case = Case("test", "own", build)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxopt.cli.main.main", functools.partial(_do, program))
        patch.setattr(run, "SECONDS", 0.5)
        patch.setattr(run, "CLOCK_SECONDS", 3.0 if "sleep" in program else 60.0)
        return judged(case, room)


def _do(program: str) -> int:
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102  the programs of this file
    return int(names.get("code", 0))


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("code = 70", "exit code 70"),
        ("import os; os.kill(os.getpid(), 11)", "exit code -11"),
        ("import os; os.write(2, b'error: a\\nb'); code = 2", "not one line"),
        ("import os; os.write(2, b'sorry'); code = 2", "not one line"),
        ("import os; os.write(2, b'note'); code = 0", "says something though all is well"),
        (
            "import os; os.write(2, b'error: \\x1b[31m'); code = 2",
            "writes to the terminal what is not to be printed",
        ),
        ("import os; os.write(2, ('error: ' + os.environ['TMPDIR']).encode()); code = 2", "names a temporary file"),
        ("import os; open(os.environ['TMPDIR'] + '/a', 'w').close()", "left a behind"),
        ("import os; os.mkdir('.onnxopt-x.part')", "left .onnxopt-x.part behind"),
        ("import os; os.mkdir('out'); code = 2", "wrote a result and failed"),
        ("import os; os.mkdir('out'); open('out/manifest.json', 'w').write('{}')", "wrote half a result: "),
        ("import time; time.sleep(60)", "not done in 3 s"),
        ("x = bytearray(1 << 31)", "MiB of memory"),
        ("import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass", "s of processor time"),
        ("import os; os.write(2, b'error: ' + b'a' * 3000); code = 2", "a line of 3007 letters"),
    ],
)
def test_each_fault_is_seen(program: str, fault: str, tmp_path: Path) -> None:
    found = judged_as(program, tmp_path)
    assert any(fault in one for one in found.faults), found


def test_what_is_well_has_no_fault(tmp_path: Path) -> None:
    assert judged_as("code = 0", tmp_path).faults == []
    assert judged_as("import os; os.write(2, b'error: no'); code = 2", tmp_path).faults == []


def test_there_are_hundreds_and_each_is_built(tmp_path: Path) -> None:
    cases = campaign.all_cases()
    assert len(cases) >= 500
    assert {case.title for case in cases} >= set(FEW)
    for number, case in enumerate([one for one in cases if one.group in ("file", "npz")][::5]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert case.build(folder)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def told(case: Case, _: Path) -> Outcome:
        asked.append(case.name)
        return Outcome(case.group, case.name, 2, "error: no", 0.5, 0.6, 1 << 20, [])

    monkeypatch.setattr(campaign, "judged", told)
    monkeypatch.setattr(campaign, "preload", lambda: None)
    cases = [Case("file", name, lambda _: []) for name in ("a", "b", "c")]
    journal = tmp_path / "journal.jsonl"
    campaign.run(cases[:2], journal)
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"group": "file", "na\n')  # cut off by whatever ended the process
    outcomes = campaign.run(cases, journal, resume=True)
    assert asked == ["a", "b", "c"]
    assert [one.name for one in outcomes] == ["a", "b", "c"]
    assert campaign.recorded(outcomes)["groups"]["file"] == {
        "inputs": 3,
        "refused": 3,
        "accepted": 0,
        "faults": 0,
        "seconds": 0.5,
        "memory_mib": 1,
    }
