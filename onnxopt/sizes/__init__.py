"""Derive, for every size of the open axes, what dimensions and small shape values of a graph are.

What a run shows holds at the sizes that ran. Here nothing runs: `terms` are numbers that follow from sizes, `rules` say
what each operator makes of them, `derive` walks a graph, and `check` decides whether two terms are the same number
at every size. A dimension that none of this reaches is not known, whatever runs have shown.
"""

from __future__ import annotations

from onnxopt.sizes.derive import Derivation
from onnxopt.sizes.facts import Fact
from onnxopt.sizes.terms import Number, Poly

__all__ = ["Derivation", "Fact", "Number", "Poly"]
