"""Capture a model's graph in the operators that torch's ONNX exporter translates, without tracing it again.

`torch.onnx.export` captures a model and then decomposes it, which traces the whole graph twice more: two thirds of the
time for a decoder of 30 layers. Most models need none of it, since the exporter translates the operators that they are
captured in. The few that stand in the way are put right here, one node at a time; a graph with any other is left to
the exporter's own way.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

from onnxopt.errors import ExportError
from onnxopt.spec import Signature

logger = logging.getLogger(__name__)

# Terms in the expression of one size, such as "the height, in patches, filled up to windows, halved, filled up again".
# Networks that halve an image five times have up to 200; with windows in each of four stages they pass 1,000, and torch
# computes with them for minutes.
MAX_TERMS = 640


def capture(module: Any, signature: Signature, tensors: tuple[Any, ...]) -> Any:
    """Return a `torch.export.ExportedProgram` that needs no decomposition, None when there is none.

    Args:
        module: takes the tensors.
        signature: named axes are dynamic.
        tensors: example inputs.

    Raises:
        ExportError: a size of the model is too long an expression of the sizes of its inputs.
    """
    import torch

    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {index: dynamic for index, axis in enumerate(spec.axes) if isinstance(axis, str)} for spec in signature.inputs
    )
    try:
        with torch.no_grad(), short_expressions():
            program = torch.export.export(module, tensors, dynamic_shapes=(shapes,), strict=False)
        left = _left_over(program)
    except ExportError:
        raise
    except Exception as error:  # noqa: BLE001  whatever torch raises, there is the other way
        logger.info("the model cannot be captured ahead of the exporter: %s", error)
        return None
    if left:
        logger.info("operators that need decomposition: %s", ", ".join(sorted(left)))
        return None
    program.run_decompositions = lambda *_, **__: program  # there is nothing to decompose
    return program


@contextlib.contextmanager
def short_expressions(most: int = MAX_TERMS) -> Iterator[None]:
    """While a model is captured, give up as soon as torch asks about a size that is too long an expression.

    Args:
        most: terms that an expression may have.

    Raises:
        ExportError: there is a longer one.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    plain = ShapeEnv.evaluate_expr

    @functools.wraps(plain)
    def evaluate(self: Any, expression: Any, *arguments: Any, **options: Any) -> Any:
        if _terms(expression) > most:
            raise ExportError(f"a size in it is an expression of more than {most} terms in the sizes of its inputs")
        return plain(self, expression, *arguments, **options)

    ShapeEnv.evaluate_expr = evaluate  # type: ignore[method-assign, assignment]  # for as long as this lasts
    try:
        yield
    finally:
        ShapeEnv.evaluate_expr = plain  # type: ignore[method-assign]  # as it was


@functools.lru_cache(maxsize=4096)
def _terms(expression: Any) -> int:
    """Return how many numbers, sizes and operations an expression of sympy has."""
    parts = getattr(expression, "args", ())
    return 1 + sum(_terms(part) for part in parts)


@contextlib.contextmanager
def types_as_captured() -> Iterator[None]:
    """While it lasts, let the exporter look for mixed types in what the capture has written at each node.

    Its pass that inserts casts runs every node of the graph again on tensors without elements, a fifth of the time of
    a deep decoder's export, to learn types that are known. A node that it changes is run, and so is what reads one.
    """
    from torch import fx
    from torch.onnx._internal.fx.passes import type_promotion

    kind = getattr(type_promotion, "_TypePromotionInterpreter", None)
    rule_of = getattr(type_promotion, "get_type_promotion_rule", None)
    if kind is None or rule_of is None or not hasattr(kind, "_maybe_promote_node"):
        logger.info("this torch looks for mixed types in a way of its own")
        yield
        return
    plain = kind.run_node
    changed: set[Any] = set()

    def run_node(self: Any, node: Any) -> Any:
        if node.op == "call_function" and "val" in node.meta:
            before = (node.target, node.args, node.kwargs)
            with self._set_current_node(node):
                if rule := rule_of(node, self.type_promotion_table):
                    self._maybe_promote_node(node, rule)
            if before == (node.target, node.args, node.kwargs) and not changed & set(node.all_input_nodes):
                return node.meta["val"]
            changed.add(node)
        return fx.Interpreter.run_node(self, node)

    kind.run_node = run_node
    try:
        yield
    finally:
        kind.run_node = plain


def _left_over(program: Any) -> set[str]:
    """Put right what can be, and return the names of operators that the exporter does not translate."""
    import operator

    translated = _translated()
    left: set[str] = set()
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        if graph is None:
            continue
        for node in list(graph.nodes):
            if node.op == "call_function":
                _put_right(graph, node)
        for node in graph.nodes:
            if node.op != "call_function" or node.target is operator.getitem:
                continue
            schema = getattr(node.target, "_schema", None)
            if node.target not in translated or (schema is not None and schema.is_mutable):
                left.add(str(node.target))
        graph.lint()
        module.recompile()
    _name_outputs(program)
    return left


def _name_outputs(program: Any) -> None:
    """Tell the program's signature which nodes its outputs are now."""
    ends = next(node for node in program.graph.nodes if node.op == "output").args[0]
    for spec, end in zip(program.graph_signature.output_specs, ends, strict=True):
        if hasattr(spec.arg, "name") and hasattr(end, "name"):
            spec.arg.name = end.name


def _translated() -> set[Any]:
    """Return the operators that the exporter has a translation for."""
    from torch.onnx._internal.exporter import _decomp, _registration

    return set(_decomp.get_onnx_implemented_overloads(_registration.ONNXRegistry.from_torchlib()))


def _put_right(graph: Any, node: Any) -> None:
    """Replace a node by one that means the same and is translated, where such a one is known."""
    import torch

    aten = torch.ops.aten
    checks = {
        aten._assert_tensor_metadata.default,  # noqa: SLF001  the name of an operator
        aten._assert_scalar.default,  # noqa: SLF001  the same
        aten._assert_async.msg,  # noqa: SLF001  the same
        aten.sym_constrain_range_for_size.default,
    }
    plain = {aten.__and__.Tensor: aten.bitwise_and.Tensor, aten.__or__.Tensor: aten.bitwise_or.Tensor}
    same = {aten.detach_.default, aten.detach.default, aten.contiguous.default, aten.alias.default}
    casts = {aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default}
    if node.target in checks and not node.users:
        graph.erase_node(node)
    elif node.target in plain:
        node.target = plain[node.target]
    elif node.target in same:
        _replace(graph, node, node.args[0])
    elif node.target in casts:
        _cast(graph, node)


def _cast(graph: Any, node: Any) -> None:
    """Replace one of torch's many casts by the plain one, or by nothing."""
    import torch

    source = node.args[0]
    wanted, given = node.meta["val"].dtype, source.meta["val"].dtype
    if wanted == given:
        _replace(graph, node, source)
        return
    with graph.inserting_before(node):
        copy = torch.ops.aten._to_copy.default  # noqa: SLF001  the name of an operator
        made = graph.call_function(copy, (source,), {"dtype": wanted})
    made.meta.update(node.meta)
    _replace(graph, node, made)


def _replace(graph: Any, node: Any, other: Any) -> None:
    node.replace_all_uses_with(other)
    graph.erase_node(node)
