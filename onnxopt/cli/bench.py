"""`onnxopt bench`: time models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxopt.cli.answers import print_answer
from onnxopt.cli.shared import (
    JsonOption,
    ProgressName,
    ProgressOption,
    QuietOption,
    TargetName,
    TargetOption,
    VerboseOption,
    WorkloadOption,
    app,
    configure_logging,
    event_of,
    out_console,
    target_of,
)


@app.command(epilog="Examples: `onnxopt bench original.onnx build/minilm` · `onnxopt bench model.onnx -w 1x128,32x128`")
def bench(
    paths: Annotated[
        list[Path], typer.Argument(help=".onnx files or artifact folders; the first is the one to compare with.")
    ],
    workload: WorkloadOption = None,
    target: TargetOption = TargetName.cpu,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one operator.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often every model gets its turn.")] = 5,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time to spend in all.")] = 20.0,
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Time models side by side: a process each, in turns, p50, p90 and p99 per shape, peak memory."""
    configure_logging(verbose=verbose)
    from onnxopt.run.there import model_file

    for path in paths:
        model_file(path)
    from onnxopt.cli.live import print_bench
    from onnxopt.cli.progress import view_of
    from onnxopt.spec import Workload
    from onnxopt.timing.bench import bench as run

    wanted = Workload.parse(workload) if workload else Workload()
    with view_of(progress, quiet=quiet or as_json) as view:
        result = run(
            paths,
            shapes=wanted.shapes,
            target=target_of(target),
            threads=threads,
            rounds=rounds,
            seconds=seconds,
            progress=lambda step: view.show(event_of("measure", step)),
        )
    if as_json:
        print_answer(result)
    else:
        print_bench(out_console, result)
