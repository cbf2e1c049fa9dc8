"""Write into a graph what is known of its values: types, and the dimensions that hold for every size."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxopt.graph import dims, is_op
from onnxopt.probe.runners import dtypes_of
from onnxopt.sizes.derive import FACT_KEY, Derivation
from onnxopt.sizes.facts import Fact
from onnxopt.spec import Signature, TensorSpec

UNTRUSTED = "onnxopt.untrusted"  # in a value's meta: its shape is what the file says
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
    if everything:
        _distrust(model)
    _name_types(model, types_of)
    changed = derivation.update(model, anew=everything, incomplete=incomplete)
    for value in changed:
        _describe(value, derivation, keep=not everything)
    return len(changed)


def _distrust(model: ir.Model) -> None:
    """Mark what the file itself says of values in branches and functions, should a pass bring them into the graph."""
    inner = [function.graph for function in model.functions.values()]
    for graph in (model.graph, *inner):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if node.graph is not model.graph:
                for value in node.outputs:
                    value.meta[UNTRUSTED] = True


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
    """Write the shape of a value; what a pass has said of it stands where nothing is derived."""
    fact = derivation.of(value)
    shown = None if fact.dims is None else [derivation.shown(size) for size in fact.dims]
    if keep and value.shape is not None and not value.meta.get(UNTRUSTED, False) and (shown is None or None in shown):
        said = derivation.fact_of_shape(value.shape)
        if shown is None or len(said.dims or ()) == len(shown):
            value.meta[FACT_KEY] = Fact(said.dims, fact.elements, fact.dtype)
            return
    value.shape = None if shown is None else ir.Shape(shown)


def declared(signature: Signature, model: ir.Model, derivation: Derivation) -> Signature:
    """Return a signature whose outputs promise no more than what is derived.

    An axis of an output that is called as no axis of an input keeps its name, which promises nothing. A size, or the
    name of an input's axis, is kept where that is what the axis has for every size; otherwise the axis is called by
    what it has, or by a name of its own.

    Args:
        signature: as the model was loaded.
        model: its outputs have facts.
        derivation: what is known of them.
    """
    taken = {axis for spec in signature.inputs for axis in spec.axes if isinstance(axis, str)}
    facts = {value.name: derivation.of(value) for value in model.graph.outputs}

    def axes_of(spec: TensorSpec) -> tuple[int | str, ...]:
        sizes = facts[spec.name].dims if spec.name in facts else None
        if sizes is None or len(sizes) != len(spec.axes):
            shown: list[int | str | None] = [None] * len(spec.axes)
        else:
            shown = [derivation.shown(size) for size in sizes]
        return tuple(name(spec, place, dim) for place, dim in enumerate(shown))

    def name(spec: TensorSpec, place: int, dim: int | str | None) -> int | str:
        said = spec.axes[place]
        if isinstance(said, str) and said and said not in taken:
            return said
        return dim if dim is not None else f"{re.sub(r'[^A-Za-z0-9_]', '_', spec.name)}_dim{place}"

    return replace(signature, outputs=tuple(replace(spec, axes=axes_of(spec)) for spec in signature.outputs))


def name_outputs(model: ir.Model, signature: Signature) -> None:
    """Write the names of outputs' axes where the graph says nothing of them, since only data tells their size.

    Args:
        model: its outputs get names.
        signature: from `declared`.
    """
    said = {spec.name: spec.axes for spec in signature.outputs}
    for value in model.graph.outputs:
        axes, found = said.get(value.name or "", ()), dims(value)
        if found is not None and None in found and len(axes) == len(found):
            named = (
                name if dim is None and isinstance(name, str) else dim for dim, name in zip(found, axes, strict=True)
            )
            value.shape = ir.Shape(list(named))


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
