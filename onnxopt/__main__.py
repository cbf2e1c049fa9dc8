"""The command `onnxopt`, and `python -m onnxopt`: whatever stops it from its first line on is said in a line."""

from __future__ import annotations

import sys

from onnxopt.host.stops import Terminated, hear_nothing, hear_stops, say, stopped


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        hear_stops()
        from onnxopt.cli.main import main  # loads for a while

        code = main()
    except (KeyboardInterrupt, Terminated) as stop:
        line, code = stopped(stop)
        say(line, code)
    hear_nothing()
    return code


if __name__ == "__main__":
    sys.exit(run())
