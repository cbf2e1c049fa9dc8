"""Run the census: every architecture by every exporter through the pipeline, and write what was fused.

python -m tests.census.run                            # everything, into bench/results/census.json
python -m tests.census.run bert llama -e dynamo-23    # some
python -m tests.census.run --table docs/census.md     # write the table from the results
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.census.architectures import ARCHITECTURES, Architecture

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "census.json"
CACHE = ROOT / "build" / "census"
ONNXSLIM = ROOT / ".venv-peers" / "simplifiers" / "bin" / "onnxslim"  # made by `make peers`
EXPORTERS = ("dynamo-23", "dynamo-18", "torchscript-17")
KINDS = ("attention", "layer_norm", "rms_norm", "gelu")
FUSERS = {
    "attention": "fuse-attention",
    "layer_norm": "fuse-layer-norm",
    "rms_norm": "fuse-rms-norm",
    "gelu": "fuse-gelu",
}
HEAVY = "tests.census.heavy"  # what every child needs, loaded once by the server that they are forked from
SECONDS = 240
BYTES = 12 * 2**30  # of address space; torch alone maps five
MARKS = ("<!-- census -->", "<!-- /census -->")


@dataclass
class Record:
    """What became of one architecture by one exporter.

    Attributes:
        architecture: its name in `ARCHITECTURES`.
        exporter: `dynamo-23`, `dynamo-18` or `torchscript-17`.
        slim: the file went through onnxslim before.
        failed: stage and reason when it did not come through.
        unproved: why the export's axes are not proved; empty when they are.
        expected: blocks that the architecture has.
        fused: blocks that are one operator.
        total: those and the ones still spelled out.
        missed: first node of each block still spelled out, with what the fusing pass said about it.
        rolled_back: rewrites that the proof turned down.
        worst_error: worst relative error of any output against the file before.
        peer: blocks that ONNX Runtime's own optimizer fused.
        peer_failed: why it did not come through.
        exporters: blocks in what transformers.exporters writes for ONNX Runtime on the CPU, of an architecture's first
            record.
        exporters_failed: why it wrote nothing.
        nodes: before and after.
        export_seconds: export and proof of the axes; 0 when taken from an earlier run.
        seconds: the pipeline.
    """

    architecture: str
    exporter: str
    slim: bool = False
    failed: str = ""
    unproved: str = ""
    expected: dict[str, int] = field(default_factory=dict)
    fused: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)
    missed: dict[str, list[str]] = field(default_factory=dict)
    rolled_back: list[str] = field(default_factory=list)
    worst_error: float | None = None
    peer: dict[str, int] = field(default_factory=dict)
    peer_failed: str = ""
    exporters: dict[str, int] = field(default_factory=dict)
    exporters_failed: str = ""
    nodes: tuple[int, int] = (0, 0)
    export_seconds: float = 0.0
    seconds: float = 0.0

    def complete(self) -> bool:
        """Tell whether every expected block is one operator and nothing was wrong."""
        return (
            not self.failed
            and not self.rolled_back
            and all(self.fused.get(kind, 0) == self.expected[kind] == self.total.get(kind, 0) for kind in KINDS)
        )


def census_of(one: Architecture, exporter: str, *, slim: bool = False, peer: bool = False) -> Record:
    """Export, optimize, compare; failures are in the record."""
    record = Record(one.name, exporter, slim, expected=one.expected)
    stage = "export"
    try:
        from tests.census.model import export, load

        started = time.perf_counter()
        exported = export(one, exporter, CACHE)
        record.export_seconds = time.perf_counter() - started
        record.unproved = _short(exported.unproved)
        if exported.unproved:  # the road would take another exporter
            record.failed = f"proof of the axes: {_short(exported.unproved)}"
            return record
        with tempfile.TemporaryDirectory() as room:
            path = None
            if slim:
                stage, path = "onnxslim", Path(room) / "slim.onnx"
                _run([str(ONNXSLIM), str(exported.path), str(path)])
                _require_runs(path, load(one, exported))
            if peer:
                record.peer, record.peer_failed = _peer(exported.path, one)
            stage = "optimize"
            _optimize(load(one, exported, path), record)
    except Exception as error:  # noqa: BLE001  the table says why
        record.failed = f"{stage}: {_short(str(error)) or type(error).__name__}"
        if os.environ.get("CENSUS_TRACE"):
            traceback.print_exc()
    return record


def _short(reason: str) -> str:
    """Return a message in one line, without where this checkout lies."""
    return " ".join(reason.replace(f"{ROOT}/", "").split())[:300]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-300:])


def _require_runs(path: Path, loaded: Any) -> None:
    """Raise when ONNX Runtime does not run what onnxslim wrote on what it runs the file before on."""
    from onnxopt.load.reference import OrtReference
    from onnxopt.proof.observations import observations_of

    slim = OrtReference(path)
    try:
        for observation in observations_of(loaded):
            slim.run(observation.feeds)
    except Exception as error:
        raise RuntimeError(f"its own output does not run: {error}") from error


def _exporters(one: Architecture) -> tuple[dict[str, int], str]:
    """Count the blocks in what transformers.exporters makes of a model; or return how it failed."""
    import onnx_ir as ir

    from onnxopt.graph.blocks import count_blocks
    from tests.census.model import by_transformers

    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as room:
            counts = count_blocks(ir.load(by_transformers(one, Path(room))))
    except Exception as error:  # noqa: BLE001  the table says why
        return dict.fromkeys(KINDS, 0), _short(f"{type(error).__name__}: {error}")[:200]
    finally:
        logging.disable(logging.NOTSET)
    return {name: counts[name].fused for name in KINDS}, ""


def _optimize(loaded: Any, record: Record) -> None:
    from onnxopt.errors import InputError
    from onnxopt.graph import all_nodes
    from onnxopt.graph.blocks import count_blocks
    from onnxopt.graph.kept_rows import rows_that_matter
    from onnxopt.pipeline.pipeline import run_pipeline
    from onnxopt.probe.runners import GraphRunner
    from onnxopt.proof.cases import cases_of
    from onnxopt.qmath.compare import worst_error
    from onnxopt.spec import Target

    before = sum(1 for _ in all_nodes(loaded.model))
    started = time.perf_counter()
    ledger = run_pipeline(loaded, Target("cpu"))
    record.seconds = time.perf_counter() - started
    record.nodes = before, sum(1 for _ in all_nodes(loaded.model))
    record.rolled_back = [f"{name}: {item.node}: {item.reason}" for name, item in ledger.rolled_back()]
    counts = count_blocks(loaded.model)
    for kind in KINDS:
        count = counts[kind]
        record.fused[kind], record.total[kind] = count.fused, count.total
        reasons = _nearest(loaded, kind, len(count.missed)) if count.missed else []
        pairs = itertools.zip_longest(count.missed, reasons, fillvalue="")
        record.missed[kind] = [f"{node}: {reason}" if reason else node for node, reason in pairs]
    runner = GraphRunner(loaded.model)
    record.worst_error = 0.0
    for index, (sizes, padding) in enumerate(_cases(loaded, cases_of(loaded))):
        try:
            feeds = loaded.feeder.make(sizes, padding, seed=100 + index)
        except InputError:  # the size behind the longest one that the model takes
            continue
        expected, found = loaded.reference.run(feeds), runner.run(feeds)[0]
        for name, array in expected.items():
            rows = rows_that_matter(loaded.signature, feeds, name, array)
            record.worst_error = max(record.worst_error, worst_error(found[name], array, rows)[0])


def _nearest(loaded: Any, kind: str, count: int) -> list[str]:
    """Return what the fusing pass says of its nearest misses in the finished graph: the first node that differed."""
    from onnxopt.pipeline.explain import judge
    from onnxopt.proof.driver import Driver
    from onnxopt.proof.observations import observations_of
    from tests.support.rules import rule_of

    verdicts = judge(rule_of(FUSERS[kind]), Driver(loaded.model, observations_of(loaded)))
    misses = sorted((one for one in verdicts if not one.fires), key=lambda one: -one.depth)
    return [f"{one.where}: {one.reason}" if one.where else one.reason for one in misses[:count]]


def _cases(loaded: Any, cases: Iterable[Any]) -> Iterable[Any]:
    """Sound needs more samples than a batch of pictures needs of anything."""
    for sizes, padding in cases:
        yield {axis: size if axis in ("batch", "sequence") else 29 + 2 * size for axis, size in sizes.items()}, padding


def _peer(path: Path, one: Architecture) -> tuple[dict[str, int], str]:
    """Count what onnxruntime.transformers fuses, told heads and width, which we are not; or return how it failed."""
    import onnx_ir as ir
    from onnxruntime.transformers import optimizer

    from onnxopt.graph.blocks import count_blocks

    kind = "gpt2" if one.family == "decoder" else "vit" if one.family == "vision" else "bert"
    logging.disable(logging.CRITICAL)
    try:
        fused = optimizer.optimize_model(str(path), model_type=kind, num_heads=4, hidden_size=32, opt_level=0)
        counts = count_blocks(ir.from_proto(fused.model))
    except Exception as error:  # noqa: BLE001  the table says why
        return dict.fromkeys(KINDS, 0), f"{type(error).__name__}: {error}"[:200]
    finally:
        logging.disable(logging.NOTSET)
    return {name: counts[name].fused for name in KINDS}, ""


# One child per architecture: what a model does to memory, time or the interpreter stays its own.


def _child(pipe: Connection, one: Architecture, exporters: Sequence[str], options: dict[str, bool]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    if not os.environ.get("CENSUS_TRACE"):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    for index, exporter in enumerate(exporters):
        signal.alarm(SECONDS)
        for slim in (False, True) if options["slim"] else (False,):
            record = census_of(one, exporter, slim=slim, peer=options["peer"] and not slim)
            if options["exporters"] and index == 0 and not slim:
                record.exporters, record.exporters_failed = _exporters(one)
            pipe.send(asdict(record))
    pipe.close()


def census(
    names: Sequence[str],
    exporters: Sequence[str],
    *,
    slim: bool = False,
    peer: bool = False,
    exporters_too: bool = False,
    jobs: int = 2,
    say: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """Run in children; a child that dies leaves a record that says so.

    Args:
        names: architectures.
        exporters: exporters.
        slim: each file also after onnxslim.
        peer: also count what ONNX Runtime's own optimizer fuses.
        exporters_too: also count what transformers.exporters writes.
        jobs: children at a time.
        say: told a line per record.
    """
    context = multiprocessing.get_context("forkserver")  # a fork of this process would take over what others left here
    context.set_forkserver_preload([HEAVY])

    def run(name: str) -> list[Record]:
        started = time.perf_counter()
        here, there = context.Pipe(duplex=False)
        options = {"slim": slim, "peer": peer, "exporters": exporters_too}
        child = context.Process(target=_child, args=(there, ARCHITECTURES[name], exporters, options))
        child.start()
        there.close()
        found: list[Record] = []
        try:
            while True:
                content = here.recv()
                content["nodes"] = tuple(content["nodes"])
                found.append(Record(**content))
                say(_line(found[-1]))
        except EOFError:
            pass
        child.join()
        seen = {record.exporter for record in found}
        if child.exitcode:
            reason = f"died: exit code {child.exitcode} after {time.perf_counter() - started:.0f} s"
            for exporter in exporters:
                if exporter not in seen:
                    record = Record(name, exporter, failed=reason, expected=ARCHITECTURES[name].expected)
                    found.append(record)
                    say(_line(record))
                    reason = "not reached"
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return [record for found in pool.map(run, names) for record in found]


def _line(record: Record) -> str:
    if record.failed:
        return f"{record.architecture:28} {record.exporter:15} {record.failed[:150]}"
    cells = []
    for kind in KINDS:
        fused, total, expected = (record.fused[kind], record.total[kind], record.expected[kind])
        cells.append(f"{kind[:4]} {fused}/{total}" + ("" if total == expected else f"(≠{expected})"))
    mark = "ok " if record.complete() else "   "
    more = f" rolled back {len(record.rolled_back)}" if record.rolled_back else ""
    more += " UNPROVED" if record.unproved else ""
    slim = "+slim" if record.slim else ""
    seconds = f"{record.export_seconds:.1f}+{record.seconds:.1f} s"
    error = f"{record.worst_error:.1e}"
    name = f"{record.architecture:28} {record.exporter + slim:15}"
    return f"{mark}{name} {'  '.join(cells)}  {error} {record.nodes[0]}→{record.nodes[1]} {seconds}{more}"


# Results and table


def write_results(records: Sequence[Record], path: Path) -> None:
    """Merge records into the results file; those of other architectures and exporters stay."""
    old = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else []
    fresh = {(r.architecture, r.exporter, r.slim): asdict(r) for r in records}
    merged = {(r["architecture"], r["exporter"], r["slim"]): r for r in old if r["architecture"] in ARCHITECTURES}
    merged.update(fresh)
    order = {name: index for index, name in enumerate(ARCHITECTURES)}
    ordered = sorted(
        merged.values(), key=lambda r: (order[r["architecture"]], EXPORTERS.index(r["exporter"]), r["slim"])
    )
    content = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "onnxruntime", "onnxscript")},
        "records": ordered,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


def read_results(path: Path = RESULTS) -> tuple[list[Record], dict[str, Any]]:
    """Return the records and what they were made with."""
    content = json.loads(path.read_text(encoding="utf-8"))
    records = [Record(**{**item, "nodes": tuple(item["nodes"])}) for item in content.pop("records")]
    return records, content


def table(path: Path = RESULTS) -> str:
    """Return the table in Markdown: one row per architecture, one column per exporter."""
    records, made = read_results(path)
    columns = [(exporter, slim) for exporter in EXPORTERS for slim in (False, True)]
    columns = [column for column in columns if any((r.exporter, r.slim) == column for r in records)]
    cells = {(r.architecture, r.exporter, r.slim): r for r in records}
    names = list(dict.fromkeys(r.architecture for r in records))
    titles = [f"{exporter}{' + onnxslim' if slim else ''}" for exporter, slim in columns]
    lines = [
        f"Fused of expected: attention · LayerNorm · RMSNorm · GELU. {_summary(records)} {_circumstances(made)}",
        "",
        "| architecture | "
        + " | ".join(titles)
        + " | ORT optimizer | transformers.exporters | worst error | seconds |",
        "|---" * (len(columns) + 5) + "|",
    ]
    notes: list[str] = []
    for name in names:
        row = [cells.get((name, *column)) for column in columns]
        errors = [r.worst_error for r in row if r is not None and r.worst_error is not None]
        seconds = sum(r.seconds for r in row if r is not None)
        shown = [_cell(r) for r in row]
        own = [r for r in records if r.architecture == name and not r.slim]
        shown += [_best_of_peer(own), _of_exporters(own)]
        worst = f"{max(errors):.0e}" if errors else "–"
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {worst} | {seconds:.1f} |")
        notes.extend(_notes(r) for r in row if r is not None)
    missing = [note for note in notes if note]
    if missing:
        lines += [
            "",
            '<details markdown="1">',
            "<summary>What is missing, and why</summary>",
            "",
            *missing,
            "",
            "</details>",
        ]
    return "\n".join(lines)


def _circumstances(made: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"Random weights, two layers; {versions}; {made['date']}."


def _summary(records: Sequence[Record]) -> str:
    parts = []
    for kind in KINDS:
        good = [r for r in records if not r.failed]
        fused = sum(min(r.fused[kind], r.expected[kind]) for r in good)
        parts.append(f"{kind} {fused} of {sum(r.expected[kind] for r in good)}")
    exported = sum(not r.failed.startswith(("export", "proof", "died", "not reached")) for r in records)
    names = {r.architecture for r in records}
    text = f"{len(names)} architectures, {exported} of {len(records)} exports; {', '.join(parts)}."
    told = [r for r in records if r.peer]
    if told:
        theirs = ", ".join(
            f"{kind} {sum(min(r.peer[kind], r.expected[kind]) for r in told)} of {sum(r.expected[kind] for r in told)}"
            for kind in KINDS
        )
        broken = sum(bool(r.peer_failed) for r in told)
        text += f" ONNX Runtime's own optimizer, told heads and width: {theirs}"
        text += f"; it failed on {broken}." if broken else "."
    written = [r for r in records if r.exporters]
    if written:
        theirs = ", ".join(
            f"{kind} {sum(min(r.exporters[kind], r.expected[kind]) for r in written)} of "
            f"{sum(r.expected[kind] for r in written)}"
            for kind in KINDS
        )
        broken = sum(bool(r.exporters_failed) for r in written)
        text += f" transformers.exporters for the CPU: {theirs}; it wrote nothing for {broken} of {len(written)}."
    return text


def _cell(record: Record | None) -> str:
    if record is None:
        return "–"
    if record.failed:
        return f"✗ {record.failed.split(':', 1)[0]}"
    parts = [
        f"{record.fused[kind]}/{max(record.expected[kind], record.total[kind])}"
        if max(record.expected[kind], record.total[kind])
        else "–"
        for kind in KINDS
    ]
    return ("" if record.complete() else "**") + " · ".join(parts) + ("" if record.complete() else "**")


def _counts(found: Mapping[str, int], expected: Mapping[str, int]) -> str:
    return " · ".join(
        f"{min(found[kind], expected[kind])}/{expected[kind]}" if expected[kind] else "–" for kind in KINDS
    )


def _best_of_peer(records: Sequence[Record]) -> str:
    """Show ONNX Runtime's optimizer on the export that it makes most of."""
    told = [r for r in records if r.peer]
    if not told:
        return "–"
    best = max(told, key=lambda r: sum(min(r.peer[kind], r.expected[kind]) for kind in KINDS))
    return "✗" if all(r.peer_failed for r in told) else _counts(best.peer, best.expected)


def _of_exporters(records: Sequence[Record]) -> str:
    told = next((r for r in records if r.exporters), None)
    if told is None:
        return "–"
    return "✗" if told.exporters_failed else _counts(told.exporters, told.expected)


def _notes(record: Record) -> str:
    parts = [record.failed] if record.failed else []
    parts += [f"{kind}: {record.missed[kind][0]}" for kind in KINDS if record.missed.get(kind)]
    parts += [f"rolled back: {item[:160]}" for item in record.rolled_back[:1]]
    parts += [f"transformers.exporters: {record.exporters_failed}"] if record.exporters_failed else []
    slim = " + onnxslim" if record.slim else ""
    return f"- {record.architecture}, {record.exporter}{slim}: {'; '.join(parts)}" if parts else ""


def write_table(readme: Path, path: Path = RESULTS) -> None:
    """Put the table between its two marks; raises ValueError when the marks are not there."""
    text = readme.read_text(encoding="utf-8")
    start, end = text.find(MARKS[0]), text.find(MARKS[1])
    if start < 0 or end < start:
        raise ValueError(f"{readme} has no {MARKS[0]} … {MARKS[1]}")
    fresh = f"{text[: start + len(MARKS[0])]}\n{table(path)}\n{text[end:]}"
    aside = readme.with_suffix(".tmp")
    aside.write_text(fresh, encoding="utf-8")
    aside.replace(readme)


def _print(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.census.run", description="Run the census.")
    parser.add_argument("names", nargs="*", help="architectures; all when none is named")
    parser.add_argument("-e", "--exporter", action="append", choices=EXPORTERS)
    parser.add_argument("--slim", action="store_true", help="also after onnxslim, when .venv-peers has it")
    parser.add_argument("--peer", action="store_true", help="count what ONNX Runtime's own optimizer fuses")
    parser.add_argument("--exporters", action="store_true", help="count what transformers.exporters writes")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path, help="write the table into this file and run nothing")
    options = parser.parse_args(arguments)
    if options.table:
        write_table(options.table, options.results)
        return 0
    unknown = [name for name in options.names if name not in ARCHITECTURES]
    if unknown:
        parser.error(f"no architecture {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}")
    slim = options.slim and ONNXSLIM.exists()
    records = census(
        options.names or list(ARCHITECTURES),
        options.exporter or EXPORTERS,
        slim=slim,
        peer=options.peer,
        exporters_too=options.exporters,
        jobs=options.jobs,
        say=_print,
    )
    write_results(records, options.results)
    _print(_summary(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
