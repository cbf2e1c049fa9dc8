"""Take one case the whole road and judge what came out; runs in a process of its own, which may hang or crash."""

from __future__ import annotations

import re
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import onnx

from tests.exam.cases import BackendCase, backend_cases, difference
from tests.exam.runtime import RuntimeModel

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder in memory, where there is one

Outcome = Literal["not run", "right", "wrong", "refused", "internal"]


@dataclass
class Record:
    """What became of one case for one target.

    Attributes:
        case: its name.
        target: `cpu` or `portable`.
        outcome: `not run` where ONNX Runtime itself does not give the expected answer; `right` and `wrong` are the
            answers of what was made; `refused` with one line for the user; `internal`, a bug of onnxopt.
        reason: why, in one line.
        rolled_back: rewrites that the proof turned down: not wrong, but bugs of passes.
        opset: of the file made, and of the file given.
        seconds: of the road.
    """

    case: str
    target: str
    outcome: Outcome
    reason: str = ""
    rolled_back: list[str] = field(default_factory=list)
    opset: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def runs_right(case: BackendCase) -> str:
    """Return why ONNX Runtime itself does not answer a case as expected, or nothing."""
    try:
        model = RuntimeModel(case.model)
        answers = [(model.run(given), wanted) for given, wanted in case.data]
    except Exception as error:  # noqa: BLE001 - whatever it raises, the case does not run
        return _line(str(error))
    said = (difference(wanted, found, case.rtol, case.atol) for found, wanted in answers)
    return next((f"ONNX Runtime's answer: {reason}" for reason in said if reason), "")


def judge(case: BackendCase, target: str) -> Record:
    """Optimize one case and compare what was made with what the case expects."""
    reason = runs_right(case)
    if reason:
        return Record(case.name, target, "not run", reason)
    with tempfile.TemporaryDirectory() as room:
        file, out = Path(room) / f"{case.name}.onnx", Path(room) / "out"
        onnx.save(case.model, file)
        started = time.perf_counter()
        record = _optimize(case.name, file, out, target)
        record.seconds = round(time.perf_counter() - started, 3)
        if record.outcome != "right":
            return record
        try:
            made = RuntimeModel(out / "model.onnx")
            said = [difference(wanted, made.run(given), case.rtol, case.atol) for given, wanted in case.data]
        except Exception as error:  # noqa: BLE001 - what was shipped must run
            said = [f"does not run: {_line(str(error))}"]
        record.opset = (_opset(onnx.load(out / "model.onnx", load_external_data=False)), _opset(case.model))
        reason = next(filter(None, said), "")
        return record if not reason else Record(case.name, target, "wrong", reason, record.rolled_back, record.opset)


def _optimize(name: str, file: Path, out: Path, target: str) -> Record:
    import onnxopt
    from onnxopt.errors import OnnxoptError
    from onnxopt.spec import Target

    try:
        artifact = onnxopt.optimize(file, out=out, target=Target.parse(target), measure=False)
    except OnnxoptError as error:
        text = str(error)
        if tempfile.gettempdir() in text or "candidate/" in text:
            return Record(name, target, "internal", f"names a temporary file: {_line(text)}")
        return Record(name, target, "refused", _line(text.replace(f"{file.name}: ", "")))
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {Path(place.filename).name}:{place.name}: {error}"
        return Record(name, target, "internal", _line(what))
    turned_down = [f"{entry.name}: {item.reason}" for entry in artifact.manifest.ledger for item in entry.rolled_back]
    return Record(name, target, "right", rolled_back=turned_down)


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def kind_of(reason: str) -> str:
    """Return a reason without the names, numbers and shapes of one case, to count it by."""
    return re.sub(r"\d[\d.e+-]*", "N", re.sub(r"'[^']*'|\[[^\]]*\]", "…", reason))[:120]


def serve(connection: Connection) -> None:
    """Judge the cases that a connection asks for, by name and target, until it sends None."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    _leave_out_what_is_not_examined()
    cases = {case.name: case for case in backend_cases()}
    connection.send(sorted(cases))
    while (asked := connection.recv()) is not None:
        name, target = asked
        connection.send(plain(judge(cases[name], target)))


def _leave_out_what_is_not_examined() -> None:
    """Render no report, look up each installed version once, wait for no disk: all take longer than a small graph."""
    import functools

    from onnxopt.host import machine

    mock.patch("onnxopt.road.write.render_report", lambda *_, **__: b"").start()  # for as long as this process lives
    mock.patch("onnxopt.host.machine._version", functools.cache(machine._version)).start()
    mock.patch("onnxopt.artifact.package.sync", lambda *_: None).start()
    if MEMORY.is_dir():
        tempfile.tempdir = str(MEMORY)


def plain(record: Record) -> dict[str, Any]:
    """Return a record as JSON has it, without what is empty."""
    return {key: value for key, value in asdict(record).items() if value not in ("", [], (0, 0))}
