"""Type what a new user types in the first ten minutes, and write down what the terminal shows.

`python -m tools.docs.transcript` runs every command below in an empty folder, at 80 columns, at 120 and into a pipe,
and fills the blocks of `docs/start/ten-minutes.md`. Times in it are those of the machine it ran on.
"""

from __future__ import annotations

import fcntl
import os
import platform
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.docs.blocks import fill

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "start" / "ten-minutes.md"
WIDE = 200  # columns, where a pipe's long lines are shown
TALL = 4000  # lines of the terminal, so that nothing leaves it at the top
MOST_SECONDS = 900


@dataclass(frozen=True)
class Typed:
    """A command as somebody types it.

    Attributes:
        command: for the shell.
        columns: of the terminal.
        most: lines that are shown, from the first on; 0 shows all.
        code: that it ends with.
    """

    command: str
    columns: int = 80
    most: int = 0
    code: int = 0


BLOCKS: Mapping[str, Sequence[Typed]] = {
    "look around": (Typed("onnxopt --help"), Typed("onnxopt optimize --help", most=48)),
    "optimize": (Typed("onnxopt optimize minilm"),),
    "run": (
        Typed('onnxopt run build/minilm "A cat sits outside." "A kitten is in the garden." "Shares fell on Monday."'),
    ),
    "mistakes": (
        Typed("onnxopt optimize minlm", code=2),
        Typed("onnxopt optimize minilm --precision int9", code=2),
        Typed("onnxopt run build/minlm hello", code=2),
    ),
    "wide": (
        Typed("onnxopt optimize --help", columns=120, most=40),
        Typed("onnxopt optimize minilm --no-measure -o build/again", columns=120),
    ),
    "pipes": (
        Typed("onnxopt passes | grep gelu", columns=WIDE),
        Typed("onnxopt optimize minilm --no-measure --json -o build/third 2>/dev/null | cut -c1-160", columns=WIDE),
        Typed("onnxopt run build/minilm --json 'A cat sits outside.' | cut -c1-160", columns=WIDE),
    ),
    "package": (Typed("onnxopt package build/minilm --for node"), Typed("onnxopt doctor")),
}


def shown(typed: Typed, folder: Path) -> str:
    """Run a command in a terminal of its own and return what stands there in the end.

    Args:
        typed: what to type.
        folder: to type it in.

    Raises:
        RuntimeError: it ends otherwise than it should.
    """
    import pyte

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 48, typed.columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(  # noqa: S603  the commands stand above
        ["bash", "-c", f"set -o pipefail; {typed.command}"],  # noqa: S607
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=env,
    ) as running:
        os.close(theirs)
        screen = pyte.Screen(typed.columns, TALL)
        screen.set_mode(pyte.modes.LNM)
        stream = pyte.ByteStream(screen)
        while True:
            try:
                heard = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not heard:
                break
            stream.feed(heard)
        os.close(ours)
        code = running.wait(timeout=MOST_SECONDS)
    text = "\n".join(line.rstrip() for line in screen.display).rstrip()
    if code != typed.code:
        raise RuntimeError(f"{typed.command} ends with {code}: {text[-400:]}")
    return text


def block_of(typed: Sequence[Typed], folder: Path) -> str:
    """Return commands with what they show, each as a block of text for a page."""
    parts = []
    for one in typed:
        lines = shown(one, folder).replace(str(folder), "/home/you").replace(platform.release(), "6").splitlines()
        cut = ["..."] if one.most and len(lines) > one.most else []
        kept = lines[: one.most] if one.most else lines
        parts.append("\n".join(["```text", f"$ {one.command}", *kept, *cut, "```"]))
    return "\n\n".join(parts)


def main() -> int:
    """Type all of it and write the page."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-user-") as name:
        page = PAGE.read_text(encoding="utf-8")
        for block, typed in BLOCKS.items():
            page = fill(page, block, block_of(typed, Path(name)))
            sys.stdout.write(f"{block}\n")
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
