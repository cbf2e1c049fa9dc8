"""Prepare a graph for its passes: what is known of its sizes before anyone looks at it."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, OutputFixPass, TopologicalSortPass

from onnxopt.errors import InputError
from onnxopt.graph.cache import SEQUENCE, Cache
from onnxopt.graph.files import MAX_IR_VERSION
from onnxopt.load.loaded import Loaded
from onnxopt.probe.annotate import annotate
from onnxopt.probe.program import ProbeError
from onnxopt.sizes import Derivation
from onnxopt.spec import AxisRange


def prepare(model: ir.Model, derivation: Derivation | None = None) -> None:
    """Give every value a unique name, a dtype, and the dimensions that hold for every size; sort the nodes.

    Args:
        model: changed in place.
        derivation: extended by what is known of the model's sizes.

    Raises:
        InputError: types are missing, and ONNX Runtime cannot open the model.
    """
    NameFixPass()(model)
    if len(set(model.graph.outputs)) < len(model.graph.outputs):
        OutputFixPass()(model)  # it would also rename an input that is an output as it is, which runtimes take
    TopologicalSortPass()(model)
    for graph in model.graph.subgraphs():  # files say it once, for all that is inside
        graph.opset_imports.update(model.opset_imports)
    model.ir_version = min(max(model.ir_version, 8), MAX_IR_VERSION)
    try:
        annotate(model, derivation or Derivation(), everything=True)
    except ProbeError as error:
        raise InputError(f"ONNX Runtime cannot open the model: {error}", hint="export it again") from error


def derivation_of(loaded: Loaded) -> Derivation:
    """Return what is known of a loaded model's sizes before its graph is looked at."""
    # what is broadcast at 1 has no other size for certain
    ranges = {axis: known for axis, known in loaded.ranges.items() if axis not in loaded.ones}
    if Cache.of(loaded.signature) is not None:  # a step reads one new position at least
        ranges[SEQUENCE] = replace(ranges.get(SEQUENCE, AxisRange()), least=max(1, loaded.range_of(SEQUENCE).least))
    return Derivation(ranges, int(loaded.origin.get("context_length", 0) or 0))
