"""A pass of your own: `python examples/own_pass.py build/own-pass` optimizes a small graph with the rule below.

On the command line the same for any graph is `onnxopt optimize model.onnx --pass examples/own_pass.py`.

Before::

    x ─ Exp ─ ReduceSum(axes) ─ Log ─ y

After::

    x ─ ReduceLogSumExp(axes) ─ y

Meets: losses and scores written by hand, `torch.log(torch.exp(x).sum(-1))`.
Numerics: reassociated. The kernel takes the maximum out of the sum, so that large x do not overflow.
Source: Blanchard, Higham & Higham 2021, doi:10.1093/imanum/draa038; ONNX operator ReduceLogSumExp-18.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import onnx.parser
import onnx_ir as ir

import onnxopt
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.vocabulary import FLOATS, constant

SCORES = """
<ir_version: 8, opset_import: ["" : 17]>
scores (float[rows, classes] x) => (float[rows, 1] y)
<int64[1] last = {-1}>
{
    powers = Exp (x)
    total = ReduceSum (powers, last)
    y = Log (total)
}
"""


@register
class FuseLogSumExp(Rule):
    """log Σ exp(x)  →  ReduceLogSumExp(x)."""

    name = "fuse-log-sum-exp"
    min_opset = 18
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """One pattern per spelling of the root; the node of the sum is bound for `rewrite`."""
        yield op.Log(op.ReduceSum(op.Exp(x), constant("axes"), _name="total"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """Hold back, with a reason for the user, where the identity does not hold."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; ReduceLogSumExp is for floats here", x)
        match.require(match.array("axes").size, "no axes, which may mean all or none", match.named["total"])

    def rewrite(self, op: Builder, match: Match, x: ir.Value, axes: ir.Value) -> ir.Value:
        """Build what stands there instead; it is compared with what was there before it stays."""
        keeps = match.named["total"].attributes.get_int("keepdims", 1)
        return op.ReduceLogSumExp(x, axes, keepdims=keeps)


def optimize(out: Path) -> list[str]:
    """Optimize the graph and return what the rule did to it.

    Args:
        out: a folder, made here: the graph, and the artifact beside it.
    """
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.parser.parse_model(SCORES), out / "scores.onnx")
    artifact = onnxopt.optimize(out / "scores.onnx", out=out / "artifact", passes=[FuseLogSumExp], measure=False)
    own = next(entry for entry in artifact.manifest.ledger if entry.origin is not None)
    operators = [node.op_type for node in onnx.load(artifact.model_path).graph.node]
    return [
        f"rule   {own.name} of {own.origin}: {own.applied} applied",
        f"graph  {', '.join(operators)}",
        f"error  {artifact.manifest.worst_relative_error:.1g} relative at most",
    ]


def main() -> None:
    """Optimize the graph into one folder."""
    parser = argparse.ArgumentParser(description="Optimize a small graph with a rule of your own.")
    parser.add_argument("out", type=Path, help="folder to write")
    print("\n".join(optimize(parser.parse_args().out)))


if __name__ == "__main__":
    main()
