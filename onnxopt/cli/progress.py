"""How far a command is, on standard error: a line that lives in a terminal, a line per stage, or JSON for programs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from onnxopt.cli.shared import ProgressName, err_console
from onnxopt.cli.words import print_list, print_words
from onnxopt.host.failures import SCHEMA_VERSION, json_line
from onnxopt.records.events import Said, Step
from onnxopt.records.pace import Pace, kept_text, share_text

if TYPE_CHECKING:
    from typing_extensions import Self

    from onnxopt.records.events import Event


@dataclass(frozen=True)
class Line:
    """What `--progress json` writes: that a step begins or goes on, or that a stage is over.

    Attributes:
        schema_version: of this schema.
        time: when, ISO 8601 in UTC.
        event: `step`, or `stage` for one that is over.
        stage: such as load, fuse, quantize or measure.
        step: what is done, in words; empty for a stage that is over.
        seconds: since the stage began.
        done: pieces of this step's work that are done; null where they are not counted.
        total: pieces in all; null where they are not counted.
        fraction: the share of them that is done; null where they are not counted.
        seconds_left: for the rest of them, from the pieces so far; null as long as nothing is known.
        kept: rewrites that the pass of this step has kept so far; of a stage that is over, those of all its passes.
    """

    schema_version: Literal[1]
    time: str
    event: Literal["step", "stage"]
    stage: str
    step: str
    seconds: float
    done: int | None = None
    total: int | None = None
    fraction: float | None = None
    seconds_left: float | None = None
    kept: int = 0


class View:
    """Told what happens while a command works; this one shows nothing."""

    def __init__(self) -> None:
        self._stage = ""
        self._started = time.monotonic()
        self._kept: Counter[str] = Counter()
        self._pace = Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_stage()

    def show(self, event: Event) -> None:
        """Show what happens now."""
        self.say(event.stage, event.step, event.count)

    def say(self, stage: str, step: str, count: int = 0) -> None:
        """Show what happens now, for commands that take no road and should start fast.

        Args:
            stage: what all of it is for.
            step: what is done; a `Step` where its pieces are counted.
            count: rewrites kept so far.
        """
        if stage != self._stage:
            self._close_stage()
            self._stage, self._started = stage, time.monotonic()
            self._kept.clear()
            self._pace = Pace()
        if count:
            self._kept[step] = count
        left = self._pace.seconds_left(step, time.monotonic()) if isinstance(step, Step) else None
        self._step(step, count, left)

    def _close_stage(self) -> None:
        if self._stage:
            self._over(self._seconds())
            self._stage = ""

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _step(self, step: str, count: int, left: float | None) -> None:
        """Show a step."""

    def _over(self, seconds: float) -> None:
        """Show that the stage is over, and how long it took."""


class LiveView(View):
    """A line with stage, step and time while work goes on, and one per finished stage; plain without a terminal."""

    def __init__(self, console: Console, *, live: bool = True) -> None:
        super().__init__()
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[stage]:<13}[/] {task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not (live and console.is_terminal),
        )
        self._task = self._progress.add_task("", stage="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        super().__exit__(kind, error, trace)

    def _step(self, step: str, count: int, left: float | None) -> None:
        if isinstance(step, Said):
            print_words(self._console, f"{self._stage:<13} {step}")
            return
        text = kept_text(step, count)
        if isinstance(step, Step) and step.total:
            text = f"{text}  {share_text(step.fraction, left)}"
        self._progress.update(self._task, description=text.replace("[", "\\["), stage=self._stage)

    def _over(self, seconds: float) -> None:
        kept = [f"{name} {count}" for name, count in self._kept.items()]
        print_list(self._console, f"{self._stage:<13} {seconds:6.1f} s  ", kept)


class JsonView(View):
    """A line of JSON for each step, and one for each stage that is over."""

    def _step(self, step: str, count: int, left: float | None) -> None:
        counted = step if isinstance(step, Step) and step.total else None
        self._write(
            Line(
                SCHEMA_VERSION,
                _now(),
                "step",
                self._stage,
                str(step),
                round(self._seconds(), 3),
                done=None if counted is None else counted.done,
                total=None if counted is None else counted.total,
                fraction=None if counted is None else round(counted.fraction, 4),
                seconds_left=None if left is None else round(left, 1),
                kept=count,
            )
        )

    def _over(self, seconds: float) -> None:
        kept = sum(self._kept.values())
        self._write(Line(SCHEMA_VERSION, _now(), "stage", self._stage, "", round(seconds, 3), kept=kept))

    def _write(self, line: Line) -> None:
        sys.stderr.write(json_line(asdict(line)))
        sys.stderr.flush()


def view_of(progress: str, *, quiet: bool) -> View:
    """Return the view that a command was asked for.

    Args:
        progress: what `--progress` says, a `ProgressName` or its word; what is asked for is shown, whatever is quiet.
        quiet: nothing but the result shall be printed, by `--quiet`, by `--json`, or because a text is.
    """
    progress = ProgressName(progress)
    if progress is ProgressName.json:
        return JsonView()
    if progress is ProgressName.none or (progress is ProgressName.auto and quiet):
        return View()
    return LiveView(err_console, live=progress is ProgressName.auto)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
