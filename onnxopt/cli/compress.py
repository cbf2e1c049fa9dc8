"""`onnxopt prune | distill | compress`: make models smaller and teach them what they lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxopt.cli.answers import print_answer
from onnxopt.cli.options import help_of, taking
from onnxopt.cli.shared import (
    JsonOption,
    ProgressName,
    ProgressOption,
    QuietOption,
    VerboseOption,
    app,
    configure_logging,
    out_console,
)
from onnxopt.errors import InputError
from onnxopt.road.described import described
from onnxopt.road.options import PruneOptions

if TYPE_CHECKING:
    from onnxopt.records.record import Record


class ScheduleName(str, Enum):
    """How the learning rate falls."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class MixedName(str, Enum):
    """What to multiply in."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


WHAT = next(one for one in described(PruneOptions) if one.name == "what")


@app.command(
    epilog='Examples: `onnxopt prune minilm "ffn=33%" -o build/minilm-narrow` · '
    '`onnxopt prune smollm2-135m "layers=6" -o build/smollm2-24` · '
    '`onnxopt prune minilm "ffn=auto" --budget "cosine>=0.98" -o build/minilm-fast` · '
    '`onnxopt prune minilm "vocab=keep:texts.txt" -o build/minilm-own-words` · '
    '`onnxopt prune resnet.onnx "channels=25%" --data images/ -o build/resnet-narrow`'
)
@taking(one for one in described(PruneOptions) if one.name != WHAT.name)
def prune(
    source: Annotated[str, typer.Argument(help="Sample or recipe name, Hub id, checkpoint folder, or .onnx file.")],
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help=help_of(WHAT),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write: a checkpoint, or model.onnx.")],
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    **given: Any,
) -> None:
    """Make a model smaller: layers, channels, heads, vocabulary; the rest is refitted, nothing is trained."""
    configure_logging(verbose=verbose)
    from onnxopt.prune.ahead import look_ahead
    from onnxopt.road.asked import left_of, spec_of

    options = PruneOptions(what=what, **given)
    spec, left = spec_of(what, options), left_of(replace(options, budget=options.budget or None))
    look_ahead(source, out, options.data)
    from onnxopt.cli.live import next_of_checkpoint
    from onnxopt.cli.progress import view_of
    from onnxopt.host.sizes import size_text
    from onnxopt.prune.run import prune as run

    with view_of(progress, quiet=quiet or as_json) as view:
        record = run(
            source,
            spec,
            out,
            data=options.data,
            budget=left,
            progress=lambda step: view.say("prune", step),
        )
    share = 1 - record.bytes_after / max(record.bytes_before, 1)
    size = f"{size_text(record.bytes_before)} before, {size_text(record.bytes_after)} after ({share:.0%} smaller)"
    lines = [*record.notes, size, f"written       {out}", f"next          {next_of_checkpoint(out)}"]
    _tell(out, {"pruning": record}, lines, as_json=as_json, quiet=quiet)


@app.command(
    epilog='Examples: `onnxopt distill minilm --student "layers=3" -o build/minilm-3` · '
    '`onnxopt distill gpt2-mini --student "ffn=25%" --steps 200 -o build/gpt2-small` · '
    "`onnxopt distill gpt2-mini --student ./mine --data texts.jsonl -o build/mine`"
)
def distill(
    teacher: Annotated[str, typer.Argument(help="Sample or recipe name, Hub id, or checkpoint folder.")],
    student: Annotated[
        str, typer.Option("--student", help='"layers=6" (how many stay), "ffn=25%" (how much goes), or a folder.')
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Checkpoint folder to write.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Text, .json, .jsonl or .ndjson with text and label, or builtin; repeat."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Weight updates.")] = 200,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of an update, over all processes.")] = 16,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens of a row.")] = 128,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Pieces that an update is cut into.")] = 1,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest one.")] = 5e-4,
    schedule: Annotated[ScheduleName, typer.Option("--schedule", help="How it falls.")] = ScheduleName.cosine,
    loss: Annotated[
        list[str] | None,
        typer.Option("--loss", help="logits, hidden, attention, embedding or task, with a weight: hidden=0.5; repeat."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="Softens the distributions.")] = 2.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Teacher's logits that count one by one; 0: all.")] = 0,
    cache_teacher: Annotated[
        bool, typer.Option("--cache-teacher", help="Ask the teacher once per row and keep its top k on disk.")
    ] = False,
    mixed_precision: Annotated[MixedName, typer.Option("--mixed-precision", help="Multiply in it.")] = MixedName.no,
    evaluate: Annotated[
        str, typer.Option("--evaluate", help="Text to look at: builtin or a file; a share of the rows by default.")
    ] = "",
    evaluate_every: Annotated[int, typer.Option("--evaluate-every", min=0, help="Updates between looks.")] = 0,
    patience: Annotated[int, typer.Option("--patience", min=0, help="Stop after so many looks without gain.")] = 0,
    save_every: Annotated[int, typer.Option("--save-every", min=0, help="Updates between saved states.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last saved state.")] = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes that accelerate starts here.")] = 1,
    job: Annotated[
        Path | None,
        typer.Option("--write-job", help="Write the job for `accelerate launch -m onnxopt.distill.worker` and stop."),
    ] = None,
    task: Annotated[str, typer.Option("--task", help="transformers task; found when not given.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same student.")] = 0,
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Teach a small model what a large one does; the result is a checkpoint for `optimize`."""
    given = dict(locals())  # whatever is named like a setting is that setting
    configure_logging(verbose=verbose)
    from onnxopt.cli.progress import view_of
    from onnxopt.distill.run import distill as run
    from onnxopt.distill.run import write_job
    from onnxopt.distill.settings import Settings

    options: dict[str, Any] = {name: value for name, value in given.items() if name in Settings.model_fields}
    options |= {"data": tuple(data or ("builtin",)), "losses": dict(_weighted(one) for one in loss or ())}
    options |= {"schedule": schedule.value, "mixed_precision": mixed_precision.value}
    del options["teacher"], options["student"]
    if job is not None:
        write_job(Settings.made(teacher=teacher, student=student, **options), out, job)
        _tell(job, {"distillation": None}, [str(job)], as_json=as_json, quiet=quiet)
        return
    with view_of(progress, quiet=quiet or as_json) as view:
        record = run(
            teacher,
            out,
            student=student,
            processes=processes,
            resume=resume,
            progress=lambda step: view.say("distill", step),
            **options,
        )
    from onnxopt.cli.live import next_of_checkpoint

    lines = [*record.lines(), f"checkpoint    {out}", f"next          {next_of_checkpoint(out)}"]
    _tell(out, {"distillation": record}, lines, as_json=as_json, quiet=quiet)


@app.command(epilog="Examples: `onnxopt compress recipe.toml -o build/small` · `onnxopt compress recipe.toml --json`")
def compress(
    recipe: Annotated[Path, typer.Argument(help="A TOML file with the tables prune, distill, quantize and package.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; build/<name> by default.")] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Time the model after each step.")] = True,
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Prune, distil, quantize and package by a recipe, with size, speed and accuracy after each step."""
    configure_logging(verbose=verbose)
    from onnxopt.compress.ahead import look_ahead
    from onnxopt.compress.recipe import CompressRecipe

    folder = out if out is not None else Path("build") / recipe.stem
    wanted = CompressRecipe.read(recipe)
    look_ahead(wanted, folder)
    from onnxopt.cli.live import next_steps, print_rows
    from onnxopt.cli.progress import view_of
    from onnxopt.cli.words import near
    from onnxopt.compress.run import compress as run
    from onnxopt.records.manifest import Manifest

    with view_of(progress, quiet=quiet or as_json) as view:
        found = run(wanted, folder, measure=measure, progress=view.show)
    if not (as_json or quiet):
        print_rows(out_console, f"{found.source} compressed", found.table())
    lines = [f"artifact      {folder}", f"next          {next_steps(Manifest.read(folder).task, near(folder))}"]
    _tell(folder, {"compression": found}, lines, as_json=as_json, quiet=quiet)


def _tell(
    path: Path, records: Mapping[str, Record | None], lines: Sequence[str], *, as_json: bool, quiet: bool
) -> None:
    """Print what was written: as one JSON object, as its path alone, or in lines."""
    if as_json:
        print_answer({"path": str(path), **records})
        return
    for line in [str(path)] if quiet else lines:
        out_console.print(line, markup=False, soft_wrap=True)


def _weighted(text: str) -> tuple[str, float]:
    name, mark, weight = text.partition("=")
    try:
        return name.strip(), float(weight) if mark else 1.0
    except ValueError as error:
        raise InputError(f"cannot read {text!r}", where="--loss", hint="write hidden or hidden=0.5") from error
