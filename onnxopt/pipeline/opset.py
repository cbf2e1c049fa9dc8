"""Raise the opset of a graph when a pass needs a newer operator, and only when the answer stays the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.errors import word
from onnxopt.graph import all_nodes, initializer_bytes, opset
from onnxopt.graph.files import MAX_IR_VERSION
from onnxopt.graph.weight_files import LEAST_BYTES
from onnxopt.load.safety.structure import MAX_OPSET
from onnxopt.pipeline.opset_rules import OBSERVED, RULES, Edit, Seen, compatible
from onnxopt.pipeline.orders import AGAIN
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.qmath.compare import worst_error
from onnxopt.rewrite import Rule
from onnxopt.rewrite.blame import blamed
from onnxopt.rewrite.patterns import Miss
from onnxopt.rewrite.registry import Step, get
from onnxopt.spec import Array, Feeds

logger = logging.getLogger(__name__)

MAX_NATIVE_BYTES = 1_500_000_000  # of small weights: onnx's own converter needs those in one message, twice
_SHOWN_BYTES = 1024  # of a weight, the most that onnx's checker is shown
TOLERANCES = {"float16": 5e-3}  # relative; half precision rounds each step at 1e-3
DEFAULT_TOLERANCE = 1e-5


class _NotRaised(Exception):  # noqa: N818 - a reason, not an error of the program
    """The model cannot be raised; carries why."""


def raise_opset(model: ir.Model, target: int, feeds: Sequence[Feeds]) -> tuple[ir.Model, str]:
    """Raise a model's ai.onnx opset.

    The rules of `opset_rules` are tried first; a change they do not know goes to the converters of onnxscript (from
    opset 18 on) and onnx. Whatever converted the graph, the result is checked and run beside the original.

    Args:
        model: not changed; the result shares its weights.
        target: the opset that a pass needs.
        feeds: inputs to compare on, at least one set.

    Returns:
        The raised model and an empty string; or the model as it was and the reason it stayed.
    """
    current = opset(model)
    if current >= target:
        return model, ""
    if target > MAX_OPSET:
        return model, f"opset {target} is beyond the newest supported, {MAX_OPSET}"
    if not feeds:
        return model, "there are no inputs to compare the result on"
    try:
        expected = [GraphRunner(model).run(feed)[0] for feed in feeds]
    except ProbeError as error:
        return model, f"the graph does not run: {word(str(error), 200)}"
    first = ""
    for convert in _converters(current):
        try:
            raised = convert(model, target, feeds[0])
            _check(raised, model, expected[0])
            _compare(raised, feeds, expected)
        except _NotRaised as refusal:
            logger.debug("%s: %s", convert.__name__, refusal)
            first = first or str(refusal)
            continue
        logger.info("opset raised from %d to %d", current, target)
        return raised, ""
    return model, f"opset stays {current} instead of {target}: {first}"


Converter = Callable[[ir.Model, int, Feeds], ir.Model]


def _converters(current: int) -> Iterator[Converter]:
    yield _by_rules
    if current >= 18:  # older changes are unknown to onnxscript's converter, which would pass them by
        yield _by_onnxscript
    yield _by_onnx


# ---------------------------------------------------------------------------------------------------------------- rules


def _by_rules(model: ir.Model, target: int, feed: Feeds) -> ir.Model:
    current = opset(model)
    raised = _inlined(model)
    seen = _observe(raised, feed) if current < 13 else {}
    names = {value.name or "" for value in _values(raised)}
    for version in range(current + 1, target + 1):
        for node in list(all_nodes(raised)):
            if node.domain in ("", "ai.onnx"):
                _step(node, version, names, seen)
    _set_version(raised, target)
    return raised


def _step(node: ir.Node, version: int, names: set[str], seen: Mapping[ir.Value, Seen]) -> None:
    """Bring one node from the opset before `version` to `version`."""
    rule = RULES.get((node.op_type, version))
    if rule is not None:
        reason = rule(Edit(node, names, seen))
        if reason:
            raise _NotRaised(f"node {word(node.name or '')!r} ({node.op_type}) {reason}")
        return
    old, new = _schema(node.op_type, version - 1), _schema(node.op_type, version)
    if old is None or new is None or (old.since_version != new.since_version and not compatible(old, new)):
        raise _NotRaised(f"operator {word(node.op_type)} changed in opset {version} in a way that has no rule")


def _schema(operator: str, version: int) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return None


def _inlined(model: ir.Model) -> ir.Model:
    from onnx_ir.passes.common import InlinePass

    copy = model.clone()
    if copy.functions:
        try:
            copy = InlinePass()(copy).model
        except Exception as error:
            raise _NotRaised(f"its functions cannot be inlined: {word(str(error), 160)}") from error
    return copy


def _observe(model: ir.Model, feed: Feeds) -> dict[ir.Value, Seen]:
    """Return type and rank, from a run, of the values that the rules ask about and the file says nothing of."""
    wanted = {
        node.inputs[0].name: node.inputs[0]
        for node in model.graph
        if node.op_type in OBSERVED and node.inputs[0] is not None and node.inputs[0].producer() is not None
        if node.inputs[0].dtype is None or node.inputs[0].shape is None
    }
    if not wanted:
        return {}
    try:
        _, found = GraphRunner(model, wanted.values()).run(feed)
    except ProbeError as error:
        raise _NotRaised(f"its inner values cannot be read: {word(str(error), 160)}") from error
    return {value: Seen(ir.DataType.from_numpy(array.dtype), array.ndim) for value, array in found.items()}


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _set_version(model: ir.Model, target: int) -> None:
    import onnx

    for graph in model.graphs():
        graph.opset_imports.pop("ai.onnx", None)
        if graph is model.graph or "" in graph.opset_imports:
            graph.opset_imports[""] = target
    for node in all_nodes(model):
        if node.domain in ("", "ai.onnx"):
            node.version = target
    needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", target)], ignore_unknown=True)
    model.ir_version = max(model.ir_version or 0, needed)


# ------------------------------------------------------------------------------------------------------------ libraries


def _by_onnxscript(model: ir.Model, target: int, feed: Feeds) -> ir.Model:  # noqa: ARG001 - all converters look alike
    from onnxscript import version_converter

    raised = model.clone()
    try:
        version_converter.convert_version(raised, target, fallback=False)
    except Exception as error:
        raise _NotRaised(f"onnxscript's converter failed: {word(str(error), 160)}") from error
    _set_version(raised, target)
    return raised


def _by_onnx(model: ir.Model, target: int, feed: Feeds) -> ir.Model:  # noqa: ARG001 - all converters look alike
    import onnx

    copy = model.clone()
    apart = _as_inputs(copy, LEAST_BYTES)
    size = initializer_bytes(copy)
    if size > MAX_NATIVE_BYTES:
        raise _NotRaised(f"its weights of {size} bytes are too large for onnx's converter")
    try:
        ir.external_data.load_to_model(copy)
        converted = onnx.version_converter.convert_version(ir.to_proto(copy), target)
        raised = ir.from_proto(converted)
    except Exception as error:
        raise _NotRaised(f"onnx's converter failed: {word(str(error), 160)}") from error
    if [value.name for value in raised.graph.outputs] != [value.name for value in model.graph.outputs]:
        raise _NotRaised("onnx's converter changed the outputs")
    _put_back(raised, apart)
    weights = set(raised.graph.initializers)
    inputs = [value for value in raised.graph.inputs if value.name not in weights]
    raised.graph.inputs.clear()
    raised.graph.inputs.extend(inputs)
    _set_version(raised, target)
    return raised


def _as_inputs(model: ir.Model, least_bytes: int) -> dict[str, ir.TensorProtocol]:
    """Make inputs of the large weights of a model, for what reads a graph but none of those; return them by name."""
    apart: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < least_bytes or value.is_graph_input() or value.is_graph_output():
            continue
        apart[name] = tensor
        del model.graph.initializers[name]
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        model.graph.inputs.append(value)
    return apart


def _put_back(model: ir.Model, apart: Mapping[str, ir.TensorProtocol]) -> None:
    """Make weights of inputs again; they stay inputs as well."""
    for value in model.graph.inputs:
        tensor = apart.get(value.name or "")
        if tensor is not None:
            value.const_value = tensor
            model.graph.register_initializer(value)


# ---------------------------------------------------------------------------------------------------------------- proof


def _check(raised: ir.Model, model: ir.Model, expected: Mapping[str, Array]) -> None:
    """Let onnx's checker read the graph; large weights are shown to it as inputs, open outputs with their rank."""
    import onnx

    if [value.name for value in raised.graph.inputs] != [value.name for value in model.graph.inputs]:
        raise _NotRaised("the converter changed the inputs")
    light = raised.clone()
    _as_inputs(light, _SHOWN_BYTES + 1)
    for value in light.graph.outputs:
        if value.shape is None:
            value.shape = ir.Shape([None] * expected[value.name or ""].ndim)
    try:
        onnx.checker.check_model(ir.to_proto(light))
    except Exception as error:
        raise _NotRaised(f"the converted graph is not valid: {word(str(error), 200)}") from error


def _compare(raised: ir.Model, feeds: Sequence[Feeds], expected: Sequence[Mapping[str, Array]]) -> None:
    try:
        runner = GraphRunner(raised)
        found = [runner.run(feed)[0] for feed in feeds]
    except ProbeError as error:
        raise _NotRaised(f"the converted graph does not run: {word(str(error), 200)}") from error
    for new, old in zip(found, expected, strict=True):
        if set(new) != set(old):
            raise _NotRaised("the converted graph gives sequences of other lengths")
        for name, reference in old.items():
            relative, absolute = worst_error(new[name], reference)
            if relative > TOLERANCES.get(reference.dtype.name, DEFAULT_TOLERANCE):
                what = f"output {word(name)!r} moves by {relative:.2g} relative, {absolute:.2g} absolute"
                raise _NotRaised(f"the converted graph gives another answer: {what}")


def raise_opset_for(driver: Driver, names: Iterable[Step]) -> None:
    """Raise the opset as far as the passes that may have something to do here need it, and say so."""
    raise_to(driver, needed_opset(driver.model, names))


def raise_to(driver: Driver, wanted: int) -> None:
    """Raise the opset, and say so; or say why it stays."""
    model, before = driver.model, opset(driver.model)
    if wanted <= before:
        return
    raised, reason = raise_opset(model, wanted, [item.feeds for item in driver.observations])
    if reason:
        driver.ledger.notes.append(f"opset {before} stays, although {wanted} would allow more fusions: {reason}")
        return
    put_model(model, raised)
    driver.forget()
    driver.ledger.notes.append(f"opset raised from {before} to {wanted} for the fused operators")
    prepare(model, driver.derivation)
    for name in AGAIN:
        driver.apply(get(name))


def put_model(model: ir.Model, other: ir.Model) -> None:
    """Let a model have the graph and the functions of another."""
    model.graph = other.graph
    model.opset_imports.update(other.opset_imports)
    model.functions.clear()
    model.functions.update(other.functions)
    model.ir_version = min(other.ir_version, MAX_IR_VERSION)


def needed_opset(model: ir.Model, names: Iterable[Step]) -> int:
    """Return the highest `min_opset` among the rules that match somewhere, in bodies too, whatever their guards say."""
    needed = opset(model)
    for name in names:
        rule = get(name)
        if not isinstance(rule, Rule) or rule.min_opset <= needed:
            continue
        with blamed(rule):
            if _matches(rule, model):
                needed = rule.min_opset
    return needed


def _matches(rule: Rule, model: ir.Model) -> bool:
    """Tell whether a rule matches somewhere, whatever its guard says."""
    patterns, types = rule.compiled(), rule.root_types()
    return any(
        next(iter(rule.find(node, patterns, model, Miss())), None) is not None
        for node in all_nodes(model)
        if node.op_type in types
    )
