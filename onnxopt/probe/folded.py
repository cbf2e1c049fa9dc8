"""What a pass has computed at build time, computed anew.

A pass that folds leaves the same expressions but for values that have become constants. To prove it, the runtime makes
those few values again, from constants alone; a run of the whole model on any inputs shows less and costs more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.graph import STANDARD_DOMAINS, has_subgraph, in_groups, is_op
from onnxopt.probe.cut import feedable
from onnxopt.probe.expression import RANDOM
from onnxopt.probe.memory import release_pages
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Array, Feeds

BYTES_AT_A_TIME = 2**25


def became_constants(before: ir.Model, after: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    """Return the values of `before` that depend on no input, with the constant that carries their name in `after`.

    Args:
        before: its values have their types where a run or the file told them.
        after: the same model, folded; values keep their names.
    """
    constants = {value for value in before.graph.initializers.values() if not value.is_graph_input()}
    found = {}
    for node in before.graph:
        if not _is_folded(node) or not all(value in constants for value in _read(node)):
            continue
        constants.update(node.outputs)
        for value in node.outputs:
            kept = after.graph.initializers.get(value.name or "")
            if kept is not None and not kept.is_graph_input() and kept.const_value is not None:
                found[value] = kept.const_value
    return found


def computed(
    model: ir.Model, values: Mapping[ir.Value, ir.TensorProtocol], feeds: Feeds
) -> Iterator[tuple[Array, Array]]:
    """Yield what the runtime makes of values that depend on no input, each with the constant that it has become.

    Args:
        model: the one before folding.
        values: of `became_constants`.
        feeds: some inputs of the model; nothing that is yielded depends on them.

    Raises:
        ProbeError: they cannot be computed.
    """
    types = dict.fromkeys(node.inputs[1] for node in model.graph if is_op(node, "CastLike"))
    given = [value for value in types if value is not None and value.producer() is not None and feedable(value)]
    empty = {value.name or "": np.zeros((), value.dtype.numpy()) for value in given if value.dtype is not None}
    for group in in_groups(values, lambda value: values[value].nbytes, BYTES_AT_A_TIME):
        known = [value for value in given if value not in group]
        runner = GraphRunner(model, group, with_outputs=False, known=known)
        arrays = runner.run(feeds | {value.name or "": empty[value.name or ""] for value in known})[1]
        yield from ((arrays[value], values[value].numpy()) for value in group)
        del arrays
        release_pages(value.const_value for value in model.graph.initializers.values())


def _is_folded(node: ir.Node) -> bool:
    return node.domain in STANDARD_DOMAINS and node.op_type not in RANDOM and not has_subgraph(node)


def _read(node: ir.Node) -> list[ir.Value]:
    """Return the inputs whose data matters: of the second one of a CastLike only the type does."""
    like = node.inputs[1] if is_op(node, "CastLike") else None
    inputs = node.inputs[:1] if like is not None and feedable(like) else node.inputs
    return [value for value in inputs if value is not None]
