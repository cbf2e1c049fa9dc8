"""`onnxopt inspect | passes | explain | verify`: look into a graph, compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxopt.cli.answers import AnsweredError, print_answer
from onnxopt.cli.shared import (
    AxisOption,
    BudgetOption,
    FeedsOption,
    JsonOption,
    PassOption,
    ProgressName,
    ProgressOption,
    QuietOption,
    TargetName,
    TargetOption,
    ValueOption,
    VerboseOption,
    app,
    configure_logging,
    event_of,
    out_console,
    target_of,
)


@app.command(epilog="Examples: `onnxopt inspect model.onnx` · `onnxopt inspect build/minilm --json`")
def inspect(
    path: Annotated[Path, typer.Argument(help="An .onnx file or an artifact folder.")],
    target: TargetOption = TargetName.cpu,
    own: PassOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what a model takes, gives and is made of, and what would be fused. Nothing is written."""
    configure_logging(verbose=verbose)
    from onnxopt.run.there import model_file

    model_file(path)
    from onnxopt.cli.live import print_inspection
    from onnxopt.cli.progress import view_of
    from onnxopt.pipeline.inspection import inspect_model
    from onnxopt.pipeline.own import own_passes

    loaded = own_passes(own)
    with view_of(progress, quiet=quiet or as_json) as view:
        found = inspect_model(path, target_of(target), lambda stage, step: view.show(event_of(stage, step)), loaded)
    if as_json:
        print_answer(found)
    else:
        print_inspection(out_console, found)


@app.command(epilog="Examples: `onnxopt passes` · `onnxopt passes --pass my_rules.py` · `onnxopt passes --json`")
def passes(own: PassOption = None, as_json: JsonOption = False) -> None:
    """List the passes: name, stage, before → after, numerics, source; yours behind those of onnxopt."""
    from onnxopt.cli.live import print_catalogue
    from onnxopt.pipeline.explain import describe_pass
    from onnxopt.pipeline.own import own_passes
    from onnxopt.rewrite.registry import catalogue

    rows = [describe_pass(step) for step in (*catalogue().values(), *own_passes(own))]
    if as_json:
        print_answer({"passes": rows})
    else:
        print_catalogue(out_console, rows)


@app.command(
    epilog="Examples: `onnxopt explain model.onnx fuse-attention` · `onnxopt explain build/minilm fuse-gelu --json` · "
    "`onnxopt explain model.onnx my-rule --pass my_rules.py`"
)
def explain(
    path: Annotated[Path, typer.Argument(help="An .onnx file or an artifact folder.")],
    name: Annotated[str, typer.Argument(metavar="PASS", help="A name from `onnxopt passes`.")],
    target: TargetOption = TargetName.cpu,
    own: PassOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many misses to show.")] = 20,
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say why a pass fires on a graph or not: node by node, the nearest miss first."""
    configure_logging(verbose=verbose)
    from onnxopt.run.there import model_file

    if not own:  # a pass of one's own is read first: what it lacks is said before anything else
        model_file(path)
    from onnxopt.cli.live import print_verdicts
    from onnxopt.cli.progress import view_of
    from onnxopt.load.onnx_file import load_onnx
    from onnxopt.pipeline.explain import explain as run
    from onnxopt.pipeline.own import own_passes
    from onnxopt.rewrite.registry import get

    yours = own_passes(own)
    if name not in {kind.name for kind in yours}:
        get(name)
    file = model_file(path)
    with view_of(progress, quiet=quiet or as_json) as view:
        loaded = load_onnx(file, progress=lambda step: view.show(event_of("load", step)))
        verdicts = run(loaded, name, target_of(target), lambda step: view.show(event_of("before it", step)), yours)
    if as_json:
        print_answer({"pass": name, "candidates": verdicts})
    else:
        print_verdicts(out_console, name, verdicts, limit)


@app.command(
    epilog="Examples: `onnxopt verify original.onnx build/minilm` · `onnxopt verify a.onnx b.onnx --budget 1e-5 --json`"
)
def verify(
    reference: Annotated[Path, typer.Argument(help="The model that is right: .onnx file or artifact.")],
    candidate: Annotated[Path, typer.Argument(help="The model to check: .onnx file or artifact.")],
    budget: BudgetOption = None,
    target: TargetOption = TargetName.cpu,
    feeds: FeedsOption = None,
    axis: AxisOption = None,
    value: ValueOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare two models with the same inputs and outputs; exit 1 when they differ, with the first tensor that does."""
    configure_logging(verbose=verbose)
    from onnxopt.load.given import Given
    from onnxopt.run.there import model_file

    for path in (reference, candidate):
        model_file(path)
    given = Given.parse(feeds, axis, value)
    from onnxopt.cli.live import print_comparison
    from onnxopt.cli.progress import view_of
    from onnxopt.proof.compare import compare_models
    from onnxopt.spec import Budget

    limit = Budget() if budget is None else Budget(budget)
    with view_of(progress, quiet=quiet or as_json) as view:
        found = compare_models(
            reference,
            candidate,
            budget=limit,
            target=target_of(target),
            given=given,
            progress=lambda step: view.show(event_of("verify", step)),
        )
    if as_json and found.equal:
        print_answer(found)
    elif not (as_json or quiet):
        print_comparison(out_console, found)
    if not found.equal:
        what = f"{found.failed_case} is beyond the budget {limit.relative_error:g}; first: {found.first_difference}"
        raise AnsweredError(what, where=str(candidate), answer=found)
