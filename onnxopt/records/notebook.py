"""How far a call is, in a notebook: a line below its cell that is written anew in place, and stays with the times.

Nothing is imported for it: where nobody has imported IPython, this is no notebook.
"""

from __future__ import annotations

import html
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onnxopt.records.events import Event, Listener, Step, quiet
from onnxopt.records.pace import Pace, kept_text, share_text

if TYPE_CHECKING:
    from typing_extensions import Self

_KERNEL_SHELL = "ZMQInteractiveShell"  # that of Jupyter's kernels; others, as Colab's, are classes below it
_EVERY_S = 0.1  # a step may last microseconds, and each line is a message to the browser
# Only what the page itself says of colours, so that it can be read on a light and on a dark one.
_STYLE = "white-space: nowrap; overflow: hidden; text-overflow: ellipsis; font-variant-numeric: tabular-nums"


@contextmanager
def shown(progress: Listener | None) -> Iterator[Listener]:
    """Yield whom to tell what happens: who was named, else a line in a notebook, else nobody.

    Args:
        progress: whom the caller named; `onnxopt.quiet` for nobody, in a notebook too.
    """
    if progress is not None or not in_notebook():
        yield progress or quiet
        return
    with NotebookLine() as line:
        yield line.show


@contextmanager
def steps_shown(stage: str, progress: Callable[[str], None] | None) -> Iterator[Callable[[str], None]]:
    """Yield whom to tell the steps of work that is a single stage, as `shown` does.

    Args:
        stage: its name.
        progress: whom the caller named.
    """
    with shown(None if progress is None else lambda event: progress(event.step)) as say:
        yield lambda step: say(Event(stage, step))


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook, which has a page to show things on."""
    known = sys.modules.get("IPython")
    shell = known.get_ipython() if known is not None else None
    return any(kind.__name__ == _KERNEL_SHELL for kind in type(shell).__mro__)


class NotebookLine:
    """A line with stage, step, share and time left; at the end with the seconds of each stage."""

    def __init__(self) -> None:
        self._display: Callable[..., Any] = importlib.import_module("IPython.display").display
        self._handle: Any = None
        self._stage = self._work = ""
        self._seconds: dict[str, float] = {}
        self._began = self._entered = time.monotonic()
        self._drawn = -_EVERY_S
        self._pace = Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._stage:  # nothing was told: then nothing is below the cell
            return
        stage, now = self._stage, time.monotonic()
        self._close_stage(now)
        total = f"{now - self._entered:.1f} s"
        times = " · ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
        self._draw(f"{times} · {total} in all" if kind is None else f"stopped in {stage} after {total}: {times}")

    def show(self, event: Event) -> None:
        """Show what happens now; pieces of one work that follow each other faster than can be read are left out."""
        now, step = time.monotonic(), event.step
        work = step.work if isinstance(step, Step) else step
        is_new = (event.stage, work) != (self._stage, self._work)
        self._work = work
        if event.stage != self._stage:
            self._close_stage(now)
            self._stage, self._began, self._pace = event.stage, now, Pace()
        left = self._pace.seconds_left(step, now) if isinstance(step, Step) and step.total else None
        if is_new or now - self._drawn >= _EVERY_S:
            self._drawn = now
            self._draw(*_told(event, left))

    def _close_stage(self, now: float) -> None:
        """Count the seconds of the stage that is over; a stage that comes back goes on counting."""
        if self._stage:
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._began
            self._stage = ""

    def _draw(self, text: str, markup: str = "") -> None:
        """Write the line, in place of what it was.

        Args:
            text: for pages that show no HTML.
            markup: for those that do; the text where empty.
        """
        body = f'<div style="{_STYLE}">{markup or html.escape(text)}</div>'
        shown_as = {"text/plain": text, "text/html": body}
        if self._handle is None:
            self._handle = self._display(shown_as, raw=True, display_id=True)
        else:
            self._handle.update(shown_as, raw=True)


def _told(event: Event, left: float | None) -> tuple[str, str]:
    """Return an event as a text and as HTML.

    Args:
        event: what happens.
        left: seconds that its work still takes; None where that is not known.
    """
    step = kept_text(event.step, event.count)
    bar, share = "", ""
    if event.fraction is not None:
        share = share_text(event.fraction, left)
        bar = f'<progress max="1" value="{event.fraction:.4f}" style="vertical-align: middle"></progress> '
    markup = f"<b>{html.escape(event.stage)}</b> {bar}{share} {html.escape(step)}"
    return "  ".join(part for part in (event.stage, share, step) if part), markup
