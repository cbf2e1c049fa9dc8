"""What a person sees: the words and the tables at the end of a command."""

from __future__ import annotations

import shlex
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from onnxopt.cli.tables import print_table
from onnxopt.cli.words import near, print_words
from onnxopt.host.sizes import size_text
from onnxopt.load.export.forward_inputs import LEFT_OUT
from onnxopt.records.notes import is_unproved
from onnxopt.records.quantization import NOT_FASTER
from onnxopt.records.savings import savings
from onnxopt.run.sounds import hears
from onnxopt.run.there import MODEL_NAME
from onnxopt.tasks.listed import command_of
from onnxopt.tasks.table import TASKS

if TYPE_CHECKING:
    from onnxopt.artifact.package import Artifact
    from onnxopt.pipeline.explain import Description, Verdict
    from onnxopt.pipeline.inspection import Inspection
    from onnxopt.proof.compare import Comparison
    from onnxopt.records.manifest import Manifest
    from onnxopt.records.measurements import Latency, Measurements
    from onnxopt.run.generate.written import Generation
    from onnxopt.run.results import TextResult
    from onnxopt.timing.bench import BenchResult, CandidateStats

SHOWN_REFUSALS = 8
_QUOTED = '"..."'


def initializers_text(manifest: Manifest) -> str:
    """Say how many bytes of the weights that came with the model went, and why; an empty text when none did."""
    return ", ".join(f"{size_text(count)} {why}" for why, count in savings(manifest.ledger).items())


def rewrites_text(manifest: Manifest) -> str:
    """Name the passes behind the tidying up whose rewrites were kept, with how many; an empty text when none were."""
    kept: Counter[str] = Counter()
    for entry in manifest.ledger:
        if entry.stage != "canonicalize" and entry.applied:
            kept[entry.name] += entry.applied
    return ", ".join(f"{name} {count}" for name, count in kept.most_common())


def print_rows(console: Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first row is its header; all columns but the first hold numbers."""
    header = list(rows[0])
    print_table(console, header, rows[1:], title=title, numbers=header[1:])


def shipped_lines(manifest: Manifest, measurements: Measurements | None) -> list[str]:
    """Say what is shipped where that is not what one would think, and what else was tried."""
    parts = {name: part.shipped for name, part in manifest.parts.items()} or {"": manifest.shipped}
    races = measurements.races if measurements else ()
    lines = []
    for part, shipped in parts.items():
        if shipped is None or not shipped.reason:
            continue
        of = f" of the {part}" if part else ""
        lines.append(f"shipped       the {shipped.form} graph{of}: {shipped.reason}")
        for race in races:
            if race.part == part:
                word = "tried" if race.form in shipped.tried else "measured"
                lines.append(f"{word:<13} the {race.form} graph{of}: {race} over the workload")
    return lines


def speed_lines(manifest: Manifest, measurements: Measurements) -> list[str]:
    """Say what the times of what is shipped do not show."""
    lines = []
    parts = {name: part.shipped for name, part in manifest.parts.items()} or {"": manifest.shipped}
    for race in measurements.races:
        shipped = parts.get(race.part)
        if shipped is not None and race.form == shipped.form and race.verdict == "no difference":
            lines.append(f"speed         {race} over the workload")
        if shipped is not None and race.form == shipped.form and race.verdict != "slower":
            lines += [f"slower        {shape.label}: {shape}; the workload as a whole is not" for shape in race.slower]
    return lines


def notices(manifest: Manifest, measurements: Measurements | None) -> list[str]:
    """Say what a user must notice: that the result is not what one would think, or worth less than it seems.

    That is what is shipped in place of what was asked for, times of a busy machine, made-up weights, inputs that were
    left out, and axes, values and branches that are not proved.
    """
    lines = []
    if manifest.random_weights:
        lines.append("weights       made up: the structure and the speed are real, the answers mean nothing")
    lines += shipped_lines(manifest, measurements)
    found = manifest.quantization
    if found is not None and not found.shipped:
        hint = "; --allow-slower ships the smaller file" if found.reason.startswith(NOT_FASTER) else ""
        lines.append(f"{found.lines()[0]}{hint}")
    troubles = dict.fromkeys(race.trouble for race in (measurements.races if measurements else ()) if race.trouble)
    lines += [f"busy          {trouble}: the times are worth less for it" for trouble in troubles]
    lines += [f"not proved    {note}" for note in manifest.notes if is_unproved(note)]
    return lines + [f"note          {note}" for note in manifest.notes if note.startswith(LEFT_OUT)]


def print_summary(console: Console, artifact: Artifact, *, verbose: bool = False) -> None:
    """Print what `optimize` did, what must be noticed first of all and coloured.

    Args:
        console: where to.
        artifact: what was made.
        verbose: say why each kernel was chosen, too, as the report does.
    """
    manifest, measurements = artifact.manifest, artifact.measurements
    say = partial(print_words, console)

    for line in notices(manifest, measurements):
        say(line, "bold yellow")
    _print_before_and_after(console, manifest, measurements.latency if measurements else ())
    for line in speed_lines(manifest, measurements) if measurements else ():
        say(line, "yellow")
    for line in done_lines(manifest):
        say(line)
    for entry in manifest.ledger:
        for item in entry.rolled_back:
            say(f"rolled back   {entry.name} at {item.node}: {item.reason}", "yellow")
    reasons = Counter(
        (entry.name, item.reason)
        for entry in manifest.ledger
        if entry.stage != "canonicalize"
        for item in entry.refused
    )
    for (name, reason), count in reasons.most_common(SHOWN_REFUSALS):
        say(f"refused       {name}, {count} x: {reason}", "dim")
    kernels = forms_of(manifest)
    if kernels and not verbose:
        say(f"kernels       {', '.join(dict.fromkeys(kernels.values()))} (why: --verbose, or the report)")
    for note in manifest.notes:
        is_said = is_unproved(note) or note.startswith(LEFT_OUT) or (note.startswith(tuple(kernels)) and not verbose)
        if not is_said:
            say(f"note          {note}")
    say(f"artifact      {near(artifact.path)}")
    heard = hears(manifest.signature.inputs) and not manifest.parts
    say(f"next          {next_steps(manifest.task, near(artifact.path), writes=not heard)}")


def forms_of(manifest: Manifest) -> dict[str, str]:
    """Return the forms that were chosen for kernels, by how the notes that say why begin."""
    recorded = [manifest.forms, *(part.forms for part in manifest.parts.values())]
    return {
        f"{one.name}: {f'{one.kind}: ' if one.kind else ''}{one.form} (": f"{one.name} {one.form}"
        for forms in recorded
        for one in forms or ()
    }


def next_steps(task: str, path: Path, *, writes: bool = True) -> str:
    """Say what to do with an artifact: try it, where its task tells how, and read its report.

    Args:
        task: in the words of transformers; `onnx` for an imported file.
        path: its folder.
        writes: it writes token by token where its task is to write; else it answers at once, as a network of CTC does.
    """
    folder, report = _typed(path), f"read {path / 'report.html'}"
    if task == "onnx":
        return report
    known = TASKS.get(task)
    given = known.example if known else _QUOTED
    command = command_of(known) if known and writes else "run"
    return f"onnxopt {command} {folder} {given}; {report}"


def next_of_checkpoint(folder: Path) -> str:
    """Say what to do with a folder that a checkpoint, or a model.onnx, was written to: optimize it."""
    file = folder / MODEL_NAME
    return f"onnxopt optimize {_typed(near(file if file.is_file() else folder))}"


def _typed(path: Path) -> str:
    """Return a path as it is typed behind a command."""
    return subprocess.list2cmdline([str(path)]) if sys.platform == "win32" else shlex.quote(str(path))


def _print_before_and_after(console: Console, manifest: Manifest, latency: Sequence[Latency]) -> None:
    """Print nodes, size and times beside each other, each speed-up with the interval that it lies in."""
    columns = ("", "before", "after", *(("times faster", " ") if latency else ()))
    rows = [
        ["nodes", str(manifest.nodes_before), str(manifest.nodes_after)],
        ["size", size_text(manifest.bytes_before), size_text(manifest.bytes_after)],
    ]
    for one in latency:
        number, _, said = str(one).partition(": ")
        said = "the original" if one.after_ms == one.before_ms else said
        rows.append([f"latency, {one.label}", f"{one.before_ms:.2f} ms", f"{one.after_ms:.2f} ms", number, said])
    full = [row + [""] * (len(columns) - len(row)) for row in rows]
    title = f"{manifest.name} for {manifest.target.provider}"
    print_table(console, columns, full, title=title, numbers=columns[1:4])


def done_lines(manifest: Manifest) -> list[str]:
    """Say what was rewritten, what became of the weights, how far answers moved, and how the result was quantized.

    Where the graph is shipped as it was loaded, nothing of that is in it, and the rewrites are what was tried.
    """
    lines = []
    is_original = manifest.shipped is not None and manifest.shipped.form == "original"
    blocks = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in manifest.blocks.items())
    rewrites, gone = rewrites_text(manifest), initializers_text(manifest)
    if blocks or not rewrites:
        lines.append(f"fused         {blocks or 'nothing to fuse'}")
    if rewrites:
        lines.append(f"{'tried' if is_original else 'rewritten':<13} {rewrites}")
    origins = dict.fromkeys(f"{entry.name} from {entry.origin}" for entry in manifest.ledger if entry.origin)
    lines += [f"own passes    {origin}" for origin in origins]
    if gone and not is_original:
        lines.append(f"initializers  {gone}")
    if manifest.sizes.derived:
        lines.append(f"sizes         {manifest.sizes}")
    worst, found = manifest.worst_relative_error, manifest.quantization
    if worst is not None:
        before = ", of the float graph that it was made from" if found is not None and found.shipped else ""
        lines.append(
            f"worst error   {worst:.2g} relative over {len(manifest.proof)} comparisons "
            f"(budget {manifest.budget.relative_error:g}){before}"
        )
    if found is not None:  # that it is not shipped is noticed above
        lines += found.lines() if found.shipped else found.lines()[1:]
    return lines


def print_inspection(console: Console, found: Inspection) -> None:
    """Print what `inspect` saw."""

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    def listed(counts: Mapping[str, object], none: str) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items()) or none

    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(found.opsets.items()))
    say(
        f"{found.path}: {found.nodes} nodes, {size_text(found.size_bytes)}, {opsets}, IR {found.ir_version}, "
        f"by {found.producer}"
    )
    signature = [
        [kind, spec.name, spec.dtype, " x ".join(str(axis) for axis in spec.axes) or "scalar"]
        for kind, specs in (("input", found.signature.inputs), ("output", found.signature.outputs))
        for spec in specs
    ]
    print_table(console, ("", "name", "dtype", "axes"), signature, title="signature")
    operators = [
        [name, str(count), size_text(found.bytes_by_operator.get(name.split("::")[-1], 0))]
        for name, count in found.operators.items()
    ]
    columns = ("operator", "nodes", "weights")
    print_table(console, columns, operators, title="operators", numbers=columns[1:])
    say(f"blocks fused  {listed(found.blocks, 'none recognised')}")
    say(f"would become  {listed(found.blocks_after, 'none')}")
    say(f"nodes         {found.nodes} -> {found.nodes_after}")
    say(f"rewrites      {listed(found.would_apply, 'none')}")
    for note in found.notes:
        say(f"note          {note}")


def print_catalogue(console: Console, rows: Sequence[Description]) -> None:
    """Print the passes; where they come from in a terminal only, where it is no record among records."""
    columns = ("name", "stage", "before → after", "numerics", "opset")
    cells = [
        [row.name, row.stage, row.identity, row.numerics, str(row.min_opset) if row.min_opset > 1 else "any"]
        for row in rows
    ]
    print_table(console, columns, cells, numbers=("opset",), whole=("name",))
    for row in rows:
        if row.origin:
            console.print(f"{row.name}: from {row.origin}", markup=False, soft_wrap=True)
    if console.is_terminal:
        console.print("sources: onnxopt passes --json", style="dim")


def print_verdicts(console: Console, name: str, verdicts: Sequence[Verdict], limit: int) -> None:
    """Print why a pass fires or not."""
    fires = [verdict for verdict in verdicts if verdict.fires]
    console.print(f"{name}: fires at {len(fires)} of {len(verdicts)} candidates", markup=False, soft_wrap=True)
    for verdict in fires[:limit]:
        console.print(f"  fires    {verdict.node} ({verdict.depth} nodes)", markup=False, soft_wrap=True)
    misses = [verdict for verdict in verdicts if not verdict.fires]
    for verdict in misses[:limit]:
        place = f" at {verdict.where}" if verdict.where else ""
        console.print(
            f"  misses   {verdict.node}: {verdict.depth} nodes matched, then{place}: {verdict.reason}",
            markup=False,
            soft_wrap=True,
        )
    if len(misses) > limit:
        console.print(f"  ... and {len(misses) - limit} more; --limit shows them", markup=False, soft_wrap=True)


def print_comparison(console: Console, found: Comparison) -> None:
    """Print how two models compare."""
    columns = ("output", "relative error", "absolute error", "lowest cosine", "top-1 agreement")
    rows = [
        [
            item.name,
            f"{item.relative_error:.2g}",
            f"{item.absolute_error:.2g}",
            f"{item.cosine:.6f}",
            f"{item.top1_agreement:.2%}",
        ]
        for item in found.outputs
    ]
    title = f"{'equal within the budget' if found.equal else 'different'}, {found.cases} cases"
    print_table(console, columns, rows, title=title, numbers=columns[1:])


def print_bench(console: Console, result: BenchResult) -> None:
    """Print latencies side by side."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items() if name.startswith("onnx"))
    console.print(
        f"{machine.get('cpu', 'unknown machine')}, {result.threads} threads, {versions}, {result.created}",
        markup=False,
        soft_wrap=True,
    )
    columns = ("model", "shape", "p50 ms", "p90 ms", "p99 ms", "rounds ms", "times faster", "peak memory")
    rows = [
        [
            candidate.name,
            " ".join(f"{axis} {size}" for axis, size in stats.sizes.items()),
            f"{stats.p50_ms:.2f}",
            f"{stats.p90_ms:.2f}",
            f"{stats.p99_ms:.2f}",
            f"{stats.round_low_ms:.2f}-{stats.round_high_ms:.2f}",
            f"{stats.speedup:.2f} ({stats.speedup_low:.2f}-{stats.speedup_high:.2f})",
            size_text(candidate.peak_bytes),
        ]
        for candidate in result.candidates
        for stats in candidate.shapes
    ]
    title = f"{result.provider}, {result.rounds} rounds in turns"
    print_table(console, columns, rows, title=title, numbers=columns[2:])
    titles = ("model", "file", "opening", "holds", "of the file", "without files")
    sessions = [_session_row(candidate) for candidate in result.candidates]
    print_table(console, titles, sessions, title="a session", numbers=titles[1:])


def _session_row(candidate: CandidateStats) -> list[str]:
    """Return what a session takes: its file, the time to open it, what it holds once it has answered."""
    return [
        candidate.name,
        size_text(candidate.size_bytes),
        f"{candidate.load_ms / 1000:.2f} s",
        size_text(candidate.held_bytes),
        f"{candidate.held_bytes / candidate.size_bytes:.2f}x" if candidate.size_bytes else "",
        "" if candidate.own_bytes is None else size_text(candidate.own_bytes),
    ]


def print_run(console: Console, result: TextResult) -> None:
    """Print what a model answered."""
    for line in result.lines():
        print_words(console, harmless(line) if console.is_terminal else line, indent=2)


class TextView:
    """Text that is shown while it is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, _: int, piece: str) -> None:
        """Write the next piece at once."""
        encoding = self._stream.encoding or "utf-8"
        shown = harmless(piece) if self._stream.isatty() else piece
        self._stream.write(shown.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def harmless(text: str) -> str:
    """Return a text without the control characters by which a model could steer the reader's terminal."""
    return "".join(" " if unicodedata.category(letter) == "Cc" and letter not in "\n\t" else letter for letter in text)


def print_generation(console: Console, errors: Console, result: Generation, *, streamed: bool, quiet: bool) -> None:
    """Print what a model wrote, and how fast on standard error.

    Args:
        console: where the texts go.
        errors: where the rest goes.
        result: texts and speed.
        streamed: the text has been shown already.
        quiet: the texts only.
    """
    if streamed:
        console.print()
    for found in () if streamed else result.results:
        shown = harmless(found.text) if console.is_terminal else found.text
        if not quiet:
            console.print(f"> {found.prompt}", style="bold", markup=False, emoji=False, soft_wrap=True)
        console.print(shown, markup=False, emoji=False, soft_wrap=True)
        if not quiet:
            console.print()
    if quiet:
        return
    seed = "" if result.seed is None else f"; seed {result.seed}"
    errors.print(f"{result.speed}{seed}", style="dim", markup=False, soft_wrap=True)
    for note in result.notes:
        errors.print(f"note: {note}", markup=False, soft_wrap=True)
