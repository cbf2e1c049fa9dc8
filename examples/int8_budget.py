"""Quantize inside a budget and tell what it cost: `python examples/int8_budget.py minilm --budget "cosine>=0.995"`.

What does not fit the budget, or is not faster on this machine, is not shipped: the float graph is, and the record says
why.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxopt


def quantize(source: str, budget: str, out: Path, *, measure: bool = True) -> list[str]:
    """Write an artifact in int8 and return what its manifest says of it, line by line.

    Args:
        source: as for `onnxopt.optimize`.
        budget: how far the metric of the task may fall.
        out: the folder to write.
        measure: ship it only where it is faster than the float graph.
    """
    artifact = onnxopt.optimize(source, precision="int8", budget=budget, out=out, measure=measure)
    record = artifact.manifest.quantization
    assert record is not None  # a precision was asked for
    kept = [
        f"float         {label}: {layer.reason}" for label, layer in record.layers.items() if "fp32" in layer.precision
    ]
    return [*record.lines(), *kept]


def main() -> None:
    """Quantize one source."""
    parser = argparse.ArgumentParser(description="Quantize inside a budget.")
    parser.add_argument("source", help="a sample, a Hub id, a checkpoint folder or an .onnx file")
    parser.add_argument("--budget", default="cosine>=0.995", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/int8"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    try:
        lines = quantize(arguments.source, arguments.budget, arguments.out)
    except onnxopt.OnnxoptError as error:
        raise SystemExit(f"error: {error}") from error
    print("\n".join(lines))


if __name__ == "__main__":
    main()
