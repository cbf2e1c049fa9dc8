"""What every command shares: the application, its two consoles, the options that recur, and how results are printed."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from onnxopt.cli.help import HelpfulCommand, HelpfulGroup
from onnxopt.host.quiet import NOTES

if TYPE_CHECKING:
    from onnxopt.records.events import Event
    from onnxopt.spec import Target

_Command = TypeVar("_Command", bound=Callable[..., Any])

EXIT_CODES = (
    "Exit codes: 0 done, 1 a proof failed or a gate (--require-...) is not passed, 2 bad input or a missing thing, "
    "70 a bug in onnxopt, 130 interrupted, 141 nobody reads on, 143 terminated. "
    "What an input may cost: `ONNXOPT_LIMITS=nodes=200000,seconds=10,memory=1GiB`, and more where a line says so."
)


class _Application(typer.Typer):
    """Commands whose help is a page of `onnxopt.cli.help`."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_Command], _Command]:
        """Register a command; the settings are typer's."""
        return super().command(name, **{"cls": HelpfulCommand, **settings})


app = _Application(
    name="onnxopt",
    cls=HelpfulGroup,
    help="Turn a Hugging Face model into a fused, proved ONNX file that ONNX Runtime runs fast.",
    epilog=EXIT_CODES,
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


class PaddingName(str, Enum):
    """Where an encoder's rows may be padded."""

    any = "any"
    right = "right"


class ExporterName(str, Enum):
    """Which of torch's exporters to use."""

    auto = "auto"
    dynamo = "dynamo"
    torchscript = "torchscript"


class ImportanceName(str, Enum):
    """How what goes is chosen."""

    error = "error"
    activation = "activation"
    magnitude = "magnitude"


class AllocationName(str, Enum):
    """How much each layer loses."""

    uniform = "uniform"
    sensitivity = "sensitivity"


class CalibratorName(str, Enum):
    """How ranges are found."""

    auto = "auto"
    min_max = "min-max"
    moving_average = "moving-average"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


class ProgressName(str, Enum):
    """How progress is shown on standard error."""

    auto = "auto"
    plain = "plain"
    json = "json"
    none = "none"


TargetOption = Annotated[TargetName, typer.Option("--target", "-t", help="Where the model will run.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on one line instead of text, and an error as one, too.")
]
ProgressOption = Annotated[
    ProgressName,
    typer.Option(
        "--progress",
        help="On standard error: auto, live in a terminal and a line per stage elsewhere, nothing with --quiet or "
        "--json; plain, a line per stage; json, an object per step; none.",
    ),
]
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

FeedsOption = Annotated[
    Path | None,
    typer.Option(
        "--feeds", help="Inputs of an .onnx file that run: an .npz with an array per input, or a folder of them."
    ),
]
AxisOption = Annotated[
    list[str] | None,
    typer.Option(
        "--axis", help="Sizes of an axis of an .onnx file: name=8..4096, name=8..4096:8 or name=16; repeatable."
    ),
]
ValueOption = Annotated[
    list[str] | None,
    typer.Option("--value", help="What an input of an .onnx file takes: sr=16000,8000; repeatable."),
]
PassOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pass",
        help="Passes of your own: a .py file, a module, or what an installed package offers by that name; their code "
        "runs. Repeatable.",
    ),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one operator.")]
TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="Folder of tokenizer.json; beside the model when not given.")
]


def target_of(name: TargetName) -> Target:
    """Return the target of a name."""
    from onnxopt.spec import Target

    return Target.parse(name.value)


def event_of(stage: str, step: str) -> Event:
    """Return an event for the live view."""
    from onnxopt.records.events import Event

    return Event(stage, step)


class _Notes(logging.Handler):
    """Tells a user what is noted, whatever is shown at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        err_console.print(f"note: {record.getMessage()}", markup=False, soft_wrap=True)


def configure_logging(*, verbose: bool) -> None:
    """Send log records to standard error; without `verbose` only errors, and notes in words of their own."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("onnxopt").setLevel(logging.DEBUG if verbose else logging.ERROR)
    notes = logging.getLogger(NOTES)
    notes.setLevel(logging.WARNING)
    notes.handlers, notes.propagate = [_Notes()], False
    if not verbose:
        warnings.simplefilter("ignore")
