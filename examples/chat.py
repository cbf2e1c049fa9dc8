"""Talk to a language model: `python examples/chat.py build/smollm2-135m`; every line is a prompt, an empty one ends it.

Pieces of text are written as soon as they are certain. A checkpoint without a chat template writes on from the line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnxopt


def answers(generator: onnxopt.Generator, lines: Iterable[str], sampling: onnxopt.Sampling) -> Iterator[str]:
    """Give the pieces of the answer to each line, and a line break behind it; an empty line ends it."""
    for line in lines:
        if not line.strip():
            return
        yield from generator.stream(line.strip(), max_new_tokens=200, sampling=sampling)
        yield "\n"


def main() -> None:
    """Read lines, write answers."""
    parser = argparse.ArgumentParser(description="Talk to a language model.")
    parser.add_argument("folder", type=Path, help="an artifact of a language model")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: %(default)s)")
    arguments = parser.parse_args()
    sampling = onnxopt.Sampling(temperature=arguments.temperature, seed=arguments.seed)
    for piece in answers(onnxopt.Generator(arguments.folder), sys.stdin, sampling):
        print(piece, end="", flush=True)


if __name__ == "__main__":
    main()
