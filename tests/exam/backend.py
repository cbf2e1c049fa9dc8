"""Take ONNX's own backend cases through `optimize` and compare with the answers that they bring.

python -m tests.exam.backend                          # all, for cpu and portable, into tests/exam/results
python -m tests.exam.backend -k lstm -t cpu           # some, to the terminal
python -m tests.exam.backend --log build/exam.jsonl   # the same, and go on from there when it was interrupted
python -m tests.exam.backend --table                  # write the table anew from the record; with --log, both
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import multiprocessing
import platform
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.exam.worker import kind_of, serve

RESULTS = Path(__file__).parent / "results"
RECORD, TABLE = RESULTS / "backend.json", RESULTS / "backend.md"
TARGETS = ("cpu", "portable")
SECONDS = 60.0  # for one case; most take a fifth of a second
START_SECONDS = 120.0
LEAST_ACCEPTED = 0.97


class Examiner:
    """A process that judges cases; a new one takes its place when it hangs or dies."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.names: list[str] = []
        self._seconds = seconds
        self._start()

    def judge(self, name: str, target: str) -> dict[str, Any]:
        """Return the record of one case."""
        started = time.perf_counter()
        try:
            self._connection.send((name, target))
            if self._connection.poll(self._seconds):
                return dict(self._connection.recv())
            what = f"did not finish in {self._seconds:g} seconds"
        except (EOFError, OSError):
            what = f"the process died with code {self._process.exitcode}"
        self.close()
        self._start()
        spent = round(time.perf_counter() - started, 3)
        return {"case": name, "target": target, "outcome": "internal", "reason": what, "seconds": spent}

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(START_SECONDS):
            raise TimeoutError("the cases could not be read")
        self.names = self._connection.recv()


def examine(
    names: Sequence[str] | None,
    targets: Sequence[str],
    match: str = "",
    done: Collection[tuple[str, str]] = (),
) -> Iterator[dict[str, Any]]:
    """Yield one record per case and target.

    Args:
        names: of the cases; None takes all.
        targets: `cpu`, `portable`.
        match: only cases with this in their name.
        done: cases and targets that are passed over.
    """
    examiner = Examiner()
    try:
        for target in targets:
            for name in examiner.names if names is None else names:
                if match in name and (name, target) not in done:
                    yield examiner.judge(name, target)
    finally:
        examiner.close()


def counts_of(records: Sequence[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Return the number of records by target and outcome."""
    found: dict[str, Counter[str]] = {target: Counter() for target in TARGETS}
    for record in records:
        found[record["target"]][record["outcome"]] += 1
    return found


def failed(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is not as it must be: a wrong answer, an internal error, too few accepted."""
    said = [
        f"{one['case']} for {one['target']}: {one['outcome']}: {one.get('reason', '')}"
        for one in records
        if one["outcome"] in ("wrong", "internal")
    ]
    for target, count in counts_of(records).items():
        run = count.total() - count["not run"]
        if run and count["right"] < LEAST_ACCEPTED * run:
            said.append(f"{target}: {count['right']} of {run} accepted, fewer than {LEAST_ACCEPTED:.0%}")
    return said


def table(content: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rows = content["records"]
    where = f"{content['machine']}, onnxruntime {content['onnxruntime']}, {content['date']}"
    lines = [
        f"ONNX's backend cases (onnx {content['onnx']}), {where}, `make exam`.",
        "Counted are the cases that ONNX Runtime itself answers as expected.",
        "",
        "| target | cases | run by ONNX Runtime | accepted and right | refused | wrong | internal errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for target, count in counts_of(rows).items():
        run = count.total() - count["not run"]
        share = f"{count['right'] / run:.1%}" if run else "–"
        lines.append(
            f"| {target} | {count.total()} | {run} | {count['right']} ({share}) | {count['refused']} "
            f"| {count['wrong']} | {count['internal']} |"
        )
    for title, outcome in (("refused because", "refused"), ("wrong", "wrong"), ("internal error", "internal")):
        kinds = Counter(kind_of(one.get("reason", "")) for one in rows if one["outcome"] == outcome)
        if kinds:
            lines += ["", f"| {title} | cases × targets |", "| --- | ---: |"]
            lines += [f"| {kind.replace('|', '/')} | {number} |" for kind, number in kinds.most_common()]
    turned_down = Counter(said.split(":")[0] for one in rows for said in one.get("rolled_back", ()))
    if turned_down:
        lines += ["", "| rewrites that the proof turned down, by pass | |", "| --- | ---: |"]
        lines += [f"| {name} | {number} |" for name, number in turned_down.most_common()]
    raised = sum(1 for one in rows if one.get("opset", (0, 0))[0] > one.get("opset", (0, 0))[1])
    return "\n".join([*lines, "", f"The opset was raised in {raised} files.", ""])


def _lines(path: Path | None) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []


def content_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return records with what they depend on: date, machine and versions."""
    return {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: metadata.version(name) for name in ("onnx", "onnxruntime", "onnx-ir", "numpy")},
        "records": list(records),
    }


def write(content: dict[str, Any]) -> None:
    """Write the record, a line for each case, and the table."""
    RESULTS.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in content["records"])
    head = json.dumps(content | {"records": "RECORDS"}, indent=1, ensure_ascii=False)
    RECORD.write_text(head.replace('"RECORDS"', f"[\n{lines}\n]") + "\n", encoding="utf-8")
    TABLE.write_text(table(content), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Examine, write the record and the table, and tell what is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", dest="match", default="", help="only cases with this in their name; nothing is written")
    parser.add_argument("-t", dest="target", choices=TARGETS, help="one target; nothing is written")
    parser.add_argument("--log", type=Path, help="keep each record here, and pass over what it has already")
    parser.add_argument("--table", action="store_true", help="write the table from the record, or both from the log")
    asked = parser.parse_args(argv)
    records = [json.loads(line) for line in _lines(asked.log)]
    if asked.table:
        write(content_of(records) if records else json.loads(RECORD.read_text(encoding="utf-8")))
        return 0
    done = {(record["case"], record["target"]) for record in records}
    for record in examine(None, (asked.target,) if asked.target else TARGETS, asked.match, done):
        records.append(record)
        if asked.log is not None:
            with asked.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if record["outcome"] not in ("right", "not run") or asked.match:
            print(f"{record['case']} {record['target']}: {record['outcome']} {record.get('reason', '')}", flush=True)
    content = content_of(records)
    print(table(content))
    if not asked.match and not asked.target:
        write(content)
    problems = failed(records)
    print("\n".join(problems) or "as it must be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
