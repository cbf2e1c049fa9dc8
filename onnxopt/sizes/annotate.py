"""Write into a graph what is known of its values: types, and the dimensions that hold for every size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxopt.graph import dims, is_op
from onnxopt.probe import dtypes_of
from onnxopt.sizes.derive import FACT_KEY, Derivation
from onnxopt.sizes.facts import Fact

TypesOf = Callable[[ir.Model, Sequence[ir.Value]], Mapping[ir.Value, ir.DataType]]


def annotate(
    model: ir.Model,
    derivation: Derivation,
    *,
    everything: bool = False,
    incomplete: bool = False,
    types_of: TypesOf = dtypes_of,
) -> int:
    """Set dtype and dimensions of the values that lack them; a dimension that is not derived stays unknown.

    Args:
        model: its nodes are in topological order; values get types and shapes, and nothing else changes.
        derivation: what is known so far; extended.
        everything: derive all of it anew, and forget what the file says about inner values.
        incomplete: derive again what was not known before; a pass may have brought it to light.
        types_of: finds types that the graph does not declare.

    Returns:
        How many values were looked at.

    Raises:
        ProbeError: types are missing, and ONNX Runtime cannot open the model.
    """
    _name_types(model, types_of)
    changed = derivation.update(model, anew=everything, incomplete=incomplete)
    for value in changed:
        _describe(value, derivation, keep=not everything)
    return len(changed)


def _name_types(model: ir.Model, types_of: TypesOf) -> None:
    """Give every value of the main graph a type that has none; what an operator does may hang on it."""
    untyped = [value for node in model.graph for value in node.outputs if value.name and value.type is None]
    for value in untyped:
        tensor = ir.convenience.get_const_tensor(value) if is_op(value.producer(), "Constant") else None
        if tensor is not None:
            value.type = ir.TensorType(tensor.dtype)
    untyped = [value for value in untyped if value.type is None]
    if untyped:
        for value, dtype in types_of(model, untyped).items():
            value.type = ir.TensorType(dtype)


def _describe(value: ir.Value, derivation: Derivation, *, keep: bool) -> None:
    """Write the shape of a value; what a pass has said of it stands where nothing is derived.

    An output keeps a name of its own for an axis of which only data tells the size; the name of an input's axis would
    promise that the two are equal.
    """
    fact = derivation.of(value)
    shown = None if fact.dims is None else [derivation.shown(size) for size in fact.dims]
    if keep and value.shape is not None and (shown is None or None in shown):
        said = derivation.fact_of_shape(value.shape)
        if shown is None or len(said.dims or ()) == len(shown):
            value.meta[FACT_KEY] = Fact(said.dims, fact.elements, fact.dtype)
            return
    said_so = dims(value) if value.is_graph_output() else None
    if said_so is not None and (shown is None or len(shown) == len(said_so)):
        own = [dim if isinstance(dim, str) and dim not in derivation.axes else None for dim in said_so]
        shown = [own[place] if dim is None else dim for place, dim in enumerate(shown or [None] * len(own))]
    value.shape = None if shown is None else ir.Shape(shown)


def forget_shape(value: ir.Value) -> None:
    """Drop what is known of a value that has another size now; the next `annotate` derives it again."""
    value.shape = None
    value.meta.pop(FACT_KEY, None)


def hand_over(old: ir.Value, new: ir.Value) -> None:
    """Let a value that takes the place of another have its type, its shape, and what is known of it."""
    new.type, new.shape = old.type, old.shape
    if FACT_KEY in old.meta:
        new.meta[FACT_KEY] = old.meta[FACT_KEY]
    else:
        new.meta.pop(FACT_KEY, None)
