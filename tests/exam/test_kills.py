"""Commands stopped at a few moments, as the campaign does it, and the record of a campaign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.exam import kills, stopped_jobs
from tests.exam.kills import STOPS, Exam, Trial
from tests.exam.stopped_jobs import JOBS, half

QUICK = [job for job in JOBS if job.name in ("optimize", "package")]


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Exam:
    return Exam(tmp_path_factory.mktemp("kills"))


@pytest.mark.slow
@pytest.mark.parametrize("how", STOPS)
@pytest.mark.parametrize("job", QUICK, ids=lambda job: str(job.name))
def test_a_stopped_command_leaves_nothing_half_and_works_again(exam: Exam, how: str, job: stopped_jobs.Job) -> None:
    stopped(exam, how, job)


@pytest.mark.slow
@pytest.mark.parametrize("how", STOPS)
def test_a_stopped_packager_leaves_nothing_half_and_works_again(exam: Exam, how: str) -> None:
    """One command of those above, which is over soon."""
    stopped(exam, how, QUICK[-1])


def stopped(exam: Exam, how: str, job: stopped_jobs.Job) -> None:
    moment = 0.9 * exam.whole(job).seconds  # about when it writes
    trial = exam.run(Trial(0, job.name, how, moment, older=how == "SIGTERM", warm=False))
    assert (trial.faults, trial.code in (0, STOPS[how])) == ([], True), trial


def test_faults_are_seen(exam: Exam, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that is cut short, a second run that fails and a folder left behind are called what they are."""

    def cut(_: Exam, trial: Trial, __: object, out: Path, ___: Path, temporary: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.onnx").write_bytes(b"half")
        (temporary / "onnxopt-k1lled_0.scratch").mkdir()
        (temporary / "onnxopt-k1lled_0.scratch").rename(temporary / "onnxopt-somebody.else")
        trial.code = 1

    monkeypatch.setattr(Exam, "_stop", cut)
    trial = exam.run(Trial(0, "optimize", "SIGINT", 0.1, older=False, warm=False))
    said = " ".join(trial.faults)
    for word in ("half: ", "neither old nor new", "the second run: ", "other bytes", "left behind: "):
        assert word in said, trial.faults


@pytest.mark.parametrize(
    ("code", "error", "fault"),
    [
        (130, "error: interrupted; nothing was written\n", ""),
        (130, "", "said"),
        (130, "error: interrupted; nothing was written\nerror: more\n", "said"),
        (-2, "Traceback (most recent call last):\nKeyboardInterrupt\n", "exit code -2"),
        (70, "error: internal error\n", "exit code 70"),
        (0, "", ""),
    ],
)
def test_an_end_is_judged_by_code_and_line(exam: Exam, code: int, error: str, fault: str) -> None:
    trial = Trial(0, "optimize", "SIGINT", 0.1, older=False, warm=False, code=code)
    exam._judge_end(trial, error)
    assert bool(trial.faults) == bool(fault)
    assert fault in " ".join(trial.faults)


def test_a_result_is_whole_or_half(exam: Exam, tmp_path: Path) -> None:
    assert half(tmp_path / "nothing") == ""
    assert half(exam.inputs.artifact) == ""
    (tmp_path / "model.onnx").touch()
    assert half(tmp_path) == "a folder without any record"


def test_an_interrupted_campaign_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Told:
        def __init__(self, room: Path) -> None:
            self.room = room

        def drawn(self, seed: int, jobs: list[stopped_jobs.Job]) -> Trial:
            assert jobs == list(JOBS)
            return Trial(seed, "optimize", "SIGKILL", 1.0, older=False, warm=False)

        def run(self, trial: Trial) -> Trial:
            asked.append(trial.seed)
            trial.code, trial.left, trial.faults = -9, "nothing", ["half: x"] if trial.seed == 9 else []
            return trial

    monkeypatch.setattr(kills, "Exam", Told)
    options = ["--seed", "7", "--room", str(tmp_path / "room"), "--results", str(tmp_path / "r.json")]
    assert kills.main(["--trials", "2", *options]) == 0
    with (tmp_path / "room" / kills.JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write('{"seed": 9, "jo')  # cut off by whatever ended the process
    assert kills.main(["--trials", "4", "--resume", *options]) == 1
    assert asked == [7, 8, 9, 10]
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (record["trials"], record["stopped"], len(record["faults"])) == (4, 4, 1)
    page = tmp_path / "page.md"
    page.write_text("<!-- interrupts -->\n<!-- /interrupts -->\n", encoding="utf-8")
    assert kills.main(["--table", str(page), *options]) == 0
    assert "4 trials (optimize 4), 4 of them stopped before their end, 1 with a fault" in page.read_text("utf-8")
