"""What a pass is, for people who write one.

A `Rule` finds a small region by pattern, decides in `guard`, and builds the replacement in `rewrite`. A `Pass` changes
the graph as a whole in `run`. Both declare a numerics contract that the driver proves, match by match or for the whole
graph. Patterns and their words are in `onnxopt.rewrite.patterns` and `onnxopt.rewrite.vocabulary`.
"""

from onnxopt.rewrite.builder import ALLOWS_ZERO, READS_A_PART, Builder
from onnxopt.rewrite.forms import AS_IS, Choice, Forms, Key, Source
from onnxopt.rewrite.match import Match, Refusal
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.rule import BROADCASTING, Pass, Rewrite, Rule, call
from onnxopt.spec import Exact, Lossy, Numerics, Reassociated

__all__ = [
    "ALLOWS_ZERO",
    "AS_IS",
    "BROADCASTING",
    "READS_A_PART",
    "Builder",
    "Choice",
    "Exact",
    "Forms",
    "Key",
    "Lossy",
    "Match",
    "Numerics",
    "Pass",
    "Reassociated",
    "Refusal",
    "Rewrite",
    "Rule",
    "Source",
    "call",
    "register",
]
