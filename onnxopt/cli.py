"""The command line: `onnxopt optimize | inspect | passes | explain | verify | bench | run | generate | perplexity`."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from onnxopt.errors import InputError, OnnxoptError, ProofError

if TYPE_CHECKING:
    from onnxopt.road import Event
    from onnxopt.spec import Target

# typer carries its own copy of click, whose base class of usage errors it does not name
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130

EXIT_CODES = (
    "Exit codes: 0 done, 1 a proof failed, 2 bad input or a missing thing, 70 a bug in onnxopt, 130 interrupted."
)

app = typer.Typer(
    name="onnxopt",
    help="Turn a Hugging Face model into a fused, proved ONNX file that ONNX Runtime runs fast.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

out_console = Console(highlight=False)
err_console = Console(stderr=True, highlight=False)


class TargetName(str, Enum):
    """Targets as the command line names them."""

    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"
    portable = "portable"


class WeightsName(str, Enum):
    """Whether to use the real weights."""

    pretrained = "pretrained"
    random = "random"


class LogitsName(str, Enum):
    """Which positions a decoder answers for."""

    last = "last"
    all = "all"


class ExporterName(str, Enum):
    """Which of torch's exporters to use."""

    auto = "auto"
    dynamo = "dynamo"
    torchscript = "torchscript"


TargetOption = Annotated[TargetName, typer.Option("--target", "-t", help="Where the model will run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result and errors.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log every pass, every refusal and every exporter message.")
]
BudgetOption = Annotated[
    float | None, typer.Option("--budget", min=0.0, help="Largest relative error of any output, such as 1e-4.")
]
WorkloadOption = Annotated[
    str | None,
    typer.Option(
        "--workload",
        "-w",
        help="Request shapes, batch x sequence: 1x16,8x128; 32x256@0.26 when 26 % are real tokens; 1x1+256 for a token "
        "behind 256 others.",
    ),
]

ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one operator.")]
TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="Folder of tokenizer.json; beside the model when not given.")
]


@app.command(
    epilog="Examples: `onnxopt optimize minilm` · `onnxopt optimize ./my-bert -o out/my-bert` · "
    "`onnxopt optimize model.onnx -t portable`"
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
    budget: BudgetOption = None,
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
    with_cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Let a language model keep keys and values of what it has seen.")
    ] = True,
    logits: Annotated[
        LogitsName, typer.Option("--logits", help="With a cache: logits of the last position, or of all.")
    ] = LogitsName.last,
    exporter: Annotated[
        ExporterName, typer.Option("--exporter", help="dynamo, TorchScript, or dynamo first.")
    ] = ExporterName.auto,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Time the model before and after.")] = True,
    tune: Annotated[
        bool, typer.Option("--tune/--no-tune", help="Measure alternative kernels on this machine, about a minute.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code of the checkpoint run.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Take a model the whole road: load, canonicalize, fuse, lower, prove, measure, package."""
    _configure_logging(verbose=verbose)
    from onnxopt.live import LiveView, print_summary
    from onnxopt.road import optimize as run

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
            trust_remote_code=trust_remote_code,
            progress=view.show,
        )
    if as_json:
        measurements = artifact.measurements
        _print_json(
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


@app.command(epilog="Examples: `onnxopt inspect model.onnx` · `onnxopt inspect build/minilm --json`")
def inspect(
    path: Annotated[Path, typer.Argument(help="An .onnx file or an artifact folder.")],
    target: TargetOption = TargetName.cpu,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what a model takes, gives and is made of, and what would be fused. Nothing is written."""
    _configure_logging(verbose=verbose)
    from onnxopt.inspection import inspect_model
    from onnxopt.live import LiveView, print_inspection

    with LiveView(err_console, enabled=not (quiet or as_json)) as view:
        found = inspect_model(path, _target(target), lambda stage, step: view.show(_event(stage, step)))
    if as_json:
        _print_json(asdict(found))
    else:
        print_inspection(out_console, found)


@app.command(epilog="Examples: `onnxopt passes` · `onnxopt passes --json`")
def passes(as_json: JsonOption = False) -> None:
    """List the passes: name, stage, before → after, numerics, source."""
    from onnxopt.explain import describe_pass
    from onnxopt.live import print_catalogue
    from onnxopt.registry import catalogue

    rows = [describe_pass(step) for step in catalogue().values()]
    if as_json:
        _print_json([asdict(row) for row in rows])
    else:
        print_catalogue(out_console, rows)


@app.command(
    epilog="Examples: `onnxopt explain model.onnx fuse-attention` · `onnxopt explain build/minilm fuse-gelu --json`"
)
def explain(
    path: Annotated[Path, typer.Argument(help="An .onnx file or an artifact folder.")],
    name: Annotated[str, typer.Argument(metavar="PASS", help="A name from `onnxopt passes`.")],
    target: TargetOption = TargetName.cpu,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many misses to show.")] = 20,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say why a pass fires on a graph or not: node by node, the nearest miss first."""
    _configure_logging(verbose=verbose)
    from onnxopt.explain import explain as run
    from onnxopt.imports import load_onnx
    from onnxopt.live import LiveView, print_verdicts
    from onnxopt.registry import get
    from onnxopt.session import model_file

    get(name)
    with LiveView(err_console, enabled=not (quiet or as_json)) as view:
        loaded = load_onnx(model_file(path), progress=lambda step: view.show(_event("load", step)))
        verdicts = run(loaded, name, _target(target), lambda step: view.show(_event("before it", step)))
    if as_json:
        _print_json({"pass": name, "candidates": [asdict(verdict) for verdict in verdicts]})
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
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare two models with the same inputs and outputs; exit 1 when they differ, with the first tensor that does."""
    _configure_logging(verbose=verbose)
    from onnxopt.live import LiveView, print_comparison
    from onnxopt.spec import Budget
    from onnxopt.verify import compare_models

    limit = Budget() if budget is None else Budget(budget)
    with LiveView(err_console, enabled=not (quiet or as_json)) as view:
        found = compare_models(
            reference,
            candidate,
            budget=limit,
            target=_target(target),
            progress=lambda step: view.show(_event("verify", step)),
        )
    if as_json:
        _print_json(asdict(found))
    elif not quiet:
        print_comparison(out_console, found)
    if not found.equal:
        raise ProofError(
            f"{found.failed_case} is beyond the budget {limit.relative_error:g}; first: {found.first_difference}",
            where=str(candidate),
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
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Time models side by side: a process each, in turns, p50, p90 and p99 per shape, peak memory."""
    _configure_logging(verbose=verbose)
    from onnxopt.bench import bench as run
    from onnxopt.live import LiveView, print_bench
    from onnxopt.spec import Workload

    wanted = Workload.parse(workload) if workload else Workload()
    with LiveView(err_console, enabled=not (quiet or as_json)) as view:
        result = run(
            paths,
            shapes=wanted.shapes,
            target=_target(target),
            threads=threads,
            rounds=rounds,
            seconds=seconds,
            progress=lambda step: view.show(_event("measure", step)),
        )
    if as_json:
        out_console.print_json(result.to_json())
    else:
        print_bench(out_console, result)


@app.command(
    epilog='Examples: `onnxopt run build/minilm "a cat" "a dog"` · `onnxopt run build/distilbert-sst2 "great!" --json`'
)
def run(
    path: Annotated[Path, typer.Argument(help="An artifact folder.")],
    texts: Annotated[list[str], typer.Argument(help="Texts (or paths of images for an image model).")],
    context: Annotated[str | None, typer.Option("--context", help="The passage that a question is about.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="How far to continue a text.")] = 20,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Try an artifact by hand: text in, embedding, label or tokens out."""
    _configure_logging(verbose=verbose)
    from onnxopt.live import print_run
    from onnxopt.textrun import run_text

    result = run_text(path, texts, context=context, max_new_tokens=max_new_tokens)
    if as_json:
        out_console.print_json(result.to_json())
    else:
        print_run(out_console, result)


@app.command(
    epilog='Examples: `onnxopt generate build/smollm2-135m "Name three rivers."` · '
    '`onnxopt generate build/gpt2 "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1` · '
    "`onnxopt generate build/gpt2 --prompts prompts.jsonl --batch 16 --json`"
)
def generate(
    path: Annotated[Path, typer.Argument(help="An artifact folder, or the .onnx file of a decoder.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="What to continue or answer.")] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", help='One prompt per line, or .jsonl with {"prompt": "..."}; - is standard input.'),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="The most tokens to write.")] = 128,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens with the checkpoint's own settings; greedy without it.")
    ] = False,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Draw tokens; 0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Draw from the likeliest share of tokens.")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", help="Least chance, as a share of the likeliest's.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Above 1: make tokens of the text less likely.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End a text before this; may be repeated.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the chat template; on when there is one.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the system says first, in a chat.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="How many prompts run together.")] = 8,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write on from prompts: text as it comes, greedy or sampled; tokens per second on standard error."""
    _configure_logging(verbose=verbose)
    from onnxopt.generator import Generator, choose_sampling, gather_prompts
    from onnxopt.live import LiveView, TextView, print_generation

    asked = gather_prompts(prompts or (), prompts_file)
    generator = Generator(path, tokenizer=tokenizer, threads=threads)
    sampling = choose_sampling(
        generator.settings,
        sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    alone = len(asked) == 1 and not as_json
    text = TextView(sys.stdout) if alone else None
    with LiveView(err_console, enabled=not (quiet or as_json or alone)) as view:
        result = generator.generate(
            asked,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop or (),
            chat=chat,
            system=system,
            max_batch=batch,
            on_text=text.show if text else None,
            progress=lambda step: view.say("generate", step),
        )
    if as_json:
        out_console.print_json(result.to_json())
    else:
        print_generation(out_console, err_console, result, streamed=alone, quiet=quiet)


@app.command(
    epilog="Examples: `onnxopt perplexity build/gpt2-mini --original` · "
    "`onnxopt perplexity build/smollm2-135m --text wiki.txt --window 512 --json`"
)
def perplexity(
    path: Annotated[Path, typer.Argument(help="An artifact folder, or an .onnx file of a language model.")],
    text: Annotated[str, typer.Option("--text", help="A text file, or builtin: help texts of CPython.")] = "builtin",
    window: Annotated[
        int | None, typer.Option("--window", help="Tokens of a window; 512, or what the model takes if less.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="How far apart windows begin; side by side when not given.")
    ] = None,
    max_windows: Annotated[
        int | None, typer.Option("--max-windows", help="Use the first ones only; 64 of the builtin text, else all.")
    ] = None,
    original: Annotated[
        bool, typer.Option("--original", help="Run the model it was made from too, in torch, on the same tokens.")
    ] = False,
    batch: Annotated[int | None, typer.Option("--batch", help="How many windows run together; by memory.")] = None,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the perplexity of a language model on a text, with an interval over its windows."""
    _configure_logging(verbose=verbose)
    from onnxopt.live import LiveView
    from onnxopt.perplexity import measure_perplexity

    with LiveView(err_console, enabled=not (quiet or as_json)) as view:
        result = measure_perplexity(
            path,
            text=text,
            window=window,
            stride=stride,
            max_windows=max_windows,
            original=original,
            tokenizer=tokenizer,
            batch=batch,
            threads=threads,
            progress=lambda step: view.say("perplexity", step),
        )
    if as_json:
        out_console.print_json(result.to_json())
    elif quiet:
        out_console.print(f"{result.scores[0].perplexity:.6f}")
    else:
        for line in result.lines():
            out_console.print(line, markup=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from onnxopt import __version__

        out_console.print(f"onnxopt {__version__}")
        raise typer.Exit


def _target(name: TargetName) -> Target:
    from onnxopt.spec import Target

    return Target.parse(name.value)


def _event(stage: str, step: str) -> Event:
    from onnxopt.road import Event

    return Event(stage, step)


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, default=str) + "\n")


def _configure_logging(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("onnxopt").setLevel(logging.DEBUG if verbose else logging.ERROR)
    if not verbose:
        warnings.simplefilter("ignore")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure a user can cause is one line on standard error."""
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    started = time.perf_counter()
    try:
        code = command.main(args=given, prog_name="onnxopt", standalone_mode=False)
    except OnnxoptError as error:
        return _fail(str(error), error.exit_code)
    except UsageError as error:
        return _fail(str(getattr(error, "format_message", error.__str__)()), InputError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing was written", INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is said in one line too
        if {"-v", "--verbose"} & set(given):
            traceback.print_exc()
        hint = "run it again with --verbose for the traceback and report it"
        return _fail(
            f"internal error after {time.perf_counter() - started:.0f} s: {type(error).__name__}: {error}; {hint}",
            BUG_EXIT_CODE,
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    err_console.print(f"error: {' '.join(message.split())}", style="red", markup=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
