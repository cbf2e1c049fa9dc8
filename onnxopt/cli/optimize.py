"""`onnxopt optimize`: the whole road."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onnxopt.cli.shared import (
    AxisOption,
    ExporterName,
    FeedsOption,
    JsonOption,
    LogitsName,
    PaddingName,
    PassOption,
    QuietOption,
    TargetName,
    TargetOption,
    ValueOption,
    VerboseOption,
    WeightsName,
    WorkloadOption,
    app,
    configure_logging,
    err_console,
    out_console,
    print_json,
)


@app.command(
    epilog="Examples: `onnxopt optimize minilm` · `onnxopt optimize ./my-bert -o out/my-bert` · "
    "`onnxopt optimize model.onnx -t portable` · `onnxopt optimize model.onnx --pass my_rules.py` · "
    '`onnxopt optimize minilm --precision int8 --budget "cosine>=0.995"` · '
    "`onnxopt optimize minilm -t cuda -p fp16`"
)
def optimize(
    source: Annotated[
        str, typer.Argument(help="Sample or recipe name, Hub id, local checkpoint folder, or .onnx file.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; build/<name> when not given.")
    ] = None,
    target: TargetOption = TargetName.cpu,
    workload: WorkloadOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Largest relative error of any output, such as 1e-4; with --precision how far the task's metric may "
            'fall: "perplexity<=+2%", "cosine>=0.995" or "agreement>=99%".',
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            "-p",
            help="fp32, auto, mixed, int8, int8-dynamic, int8-weights[:block], int4-weights[:block[:asymmetric]]; for "
            "cuda and tensorrt fp16 (auto) or bf16, with :io for inputs and outputs in it, too.",
        ),
    ] = "fp32",
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            help="Samples for int8: builtin, self (a language model writes its own), a .txt, .json, "
            ".jsonl, .ndjson or .npz file, a folder of images or .npz, or hf:dataset.",
        ),
    ] = "builtin",
    calibration_samples: Annotated[
        int | None, typer.Option("--calibration-samples", help="The most samples to use; 256 when not given.")
    ] = None,
    calibrator: Annotated[
        str, typer.Option("--calibrator", help="auto, min-max, moving-average, percentile, entropy or mse.")
    ] = "auto",
    keep: Annotated[
        str, typer.Option("--keep", help='Layers that stay in float: "layer.0|lm_head", "*dense", "/regex/".')
    ] = "",
    padding: Annotated[
        PaddingName,
        typer.Option("--padding", help="For cuda: right promises an encoder that no row is padded elsewhere; faster."),
    ] = PaddingName.any,
    force_calibration: Annotated[
        bool, typer.Option("--force-calibration", help="Accept calibration data that says nothing; marks the result.")
    ] = False,
    task: Annotated[
        str | None, typer.Option("--task", help="transformers task, such as feature-extraction; found when not given.")
    ] = None,
    weights: Annotated[
        WeightsName, typer.Option("--weights", help="random builds the architecture with made-up weights.")
    ] = WeightsName.pretrained,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub branch, tag or commit.")] = None,
    with_pooling: Annotated[
        bool, typer.Option("--with-pooling/--no-pooling", help="Add the sentence embedding as an output.")
    ] = True,
    without: Annotated[
        str,
        typer.Option(
            "--without",
            help="Inputs of a checkpoint to leave out though its answer may depend on them: bbox,pixel_values.",
        ),
    ] = "",
    with_cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Let a language model keep keys and values of what it has seen.")
    ] = True,
    logits: Annotated[
        LogitsName, typer.Option("--logits", help="With a cache: logits of the last position, or of all.")
    ] = LogitsName.last,
    exporter: Annotated[
        ExporterName, typer.Option("--exporter", help="dynamo, TorchScript, or dynamo first.")
    ] = ExporterName.auto,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="Time the model: kernels, and before and after; what is slower than the original is not shipped.",
        ),
    ] = True,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune/--no-tune",
            help="Choose kernels by measuring them in this model, at most a minute; skipped where it is known.",
        ),
    ] = True,
    retune: Annotated[bool, typer.Option("--retune", help="Measure kernels anew, whatever is known.")] = False,
    prune: Annotated[
        str | None,
        typer.Option("--prune", help="Make it smaller first: ffn=25%,heads=2,layers=2,vocab=keep:texts.txt."),
    ] = None,
    prune_data: Annotated[str, typer.Option("--prune-data", help="What to calibrate that with.")] = "builtin",
    prune_budget: Annotated[
        str | None, typer.Option("--prune-budget", help="What must be left of the answers, such as cosine>=0.97.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code of the checkpoint run.")
    ] = False,
    own: PassOption = None,
    feeds: FeedsOption = None,
    axis: AxisOption = None,
    value: ValueOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Take a model the whole road: load, canonicalize, fuse, lower, prove, measure, package."""
    configure_logging(verbose=verbose)
    from onnxopt.cli.live import LiveView, print_summary
    from onnxopt.road.optimize import optimize as run

    if trust_remote_code:
        err_console.print("warning: Python code of the checkpoint may run (--trust-remote-code)", style="yellow")
    with LiveView(err_console, enabled=not (quiet or as_json)) as view:
        artifact = run(
            source,
            out=out,
            target=target.value,
            workload=workload,
            budget=budget,
            task=task,
            weights=weights.value,
            revision=revision,
            with_pooling=with_pooling,
            with_cache=with_cache,
            logits=logits.value,
            exporter=exporter.value,
            measure=measure,
            tune=tune,
            retune=retune,
            prune=prune,
            prune_data=prune_data,
            prune_budget=prune_budget,
            precision=precision,
            calibration=calibration,
            calibration_samples=calibration_samples,
            calibrator=calibrator,
            keep=keep,
            padding=padding.value,
            force_calibration=force_calibration,
            without=without,
            trust_remote_code=trust_remote_code,
            passes=own,
            feeds=feeds,
            axes=axis,
            values=value,
            progress=view.show,
        )
    if as_json:
        measurements = artifact.measurements
        print_json(
            {
                "path": str(artifact.path),
                "manifest": json.loads(artifact.manifest.to_json()),
                "measurements": json.loads(measurements.to_json()) if measurements else None,
            }
        )
    elif quiet:
        out_console.print(str(artifact.path), soft_wrap=True)
    else:
        print_summary(out_console, artifact)
