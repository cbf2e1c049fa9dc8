"""Passes from outside of onnxopt, as a user writes them, and a graph to run them on."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from onnxopt.load.onnx_file import load_onnx
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.records.ledger import Ledger, PassEntry
from onnxopt.rewrite import Rewrite
from onnxopt.spec import Target

HEAD = "from onnxopt.rewrite import Builder, Exact, Lossy, Pass, Reassociated, Refusal, Rule, register\n"

# no pass of onnxopt knows this one
GOOD = '''
@register
class LeaveOutNegations(Rule):
    """−(−x)  →  x."""

    name = "leave-out-negations"

    def patterns(self, op, x):
        yield op.Neg(op.Neg(x))

    def rewrite(self, op, x):
        return x
'''
GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[rows, 6] x) => (float[rows, 6] y)
<float[1] shift = {0.25}>
{
    a = Neg (x)
    b = Neg (a)
    c = Cos (b)
    d = Add (c, shift)
    e = Neg (d)
    f = Neg (e)
    y = Sin (f)
}
"""


def rule(method: str, *, facts: str = "") -> str:
    """A rule over Sin with its own methods."""
    lines = ["@register", "class Mine(Rule):", '    name = "mine"', *(f"    {line}" for line in facts.splitlines())]
    return "\n".join([*lines, *(f"    {line}" for line in method.splitlines()), ""])


def line_of(path: Path, text: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def run(own: tuple[type[Rewrite], ...], text: str = GRAPH) -> tuple[ir.Model, Ledger]:
    """Take a graph through the pipeline for the CPU."""
    Path("model.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    loaded = load_onnx(Path("model.onnx"))
    return loaded.model, run_pipeline(loaded, Target("cpu", 1), own=own)


def entry_of(ledger: Ledger, name: str) -> PassEntry:
    return next(entry for entry in ledger.entries if entry.name == name)
