"""One graph out of two that give the same: one for prompts, one for single tokens, chosen by the length of the input.

A prompt has many rows and is limited by arithmetic, a single token reads every weight once and is limited by memory.
The kernels that are fast for one are slow for the other. Both graphs stand in the branches of an `If`; tensors that are
equal, the table of words above all, are stored once, outside.
"""

from __future__ import annotations

import onnx_ir as ir

IDS = "input_ids"
PROMPT, STEP = "prompt", "step"


def by_length(prompt: ir.Model, step: ir.Model, *, longest_step: int) -> ir.Model:
    """Return one graph that takes inputs of more columns than `longest_step` through `prompt`, others through `step`.

    Args:
        prompt: with the input `input_ids` [batch, sequence]; consumed.
        step: with the same inputs and outputs by name; consumed.
        longest_step: of the step graph, in tokens.

    Raises:
        ValueError: inputs or outputs differ.
    """
    for part in ("inputs", "outputs"):
        names = [[value.name for value in getattr(model.graph, part)] for model in (prompt, step)]
        if names[0] != names[1]:
            raise ValueError(f"the two graphs have other {part}: {names[0]} and {names[1]}")
    model = ir.Model(_whole(prompt, step, longest_step), ir_version=max(prompt.ir_version, step.ir_version))
    for source in (prompt, step):
        for domain, version in source.opset_imports.items():
            if model.opset_imports.setdefault(domain, version) != version:
                raise ValueError(f"the two graphs use {domain or 'ai.onnx'} of other versions")
        for key, function in source.functions.items():
            model.functions.setdefault(key, function)
    model.metadata_props.update(prompt.metadata_props)
    model.graph.metadata_props.update(prompt.graph.metadata_props)
    return model


def _whole(prompt: ir.Model, step: ir.Model, longest_step: int) -> ir.Graph:
    inputs = [ir.Value(name=one.name, shape=one.shape, type=one.type) for one in prompt.graph.inputs]
    signature = [(one.name, one.shape, one.type) for one in prompt.graph.outputs]
    initializers: list[ir.Value] = []
    stored: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    branches = []
    for mark, model in ((PROMPT, prompt), (STEP, step)):
        for old, new in zip(list(model.graph.inputs), inputs, strict=True):
            old.replace_all_uses_with(new)
        initializers += _move_out(model.graph, mark, stored)
        branches.append(_branch(model.graph, mark))
    ids = next(value for value in inputs if value.name == IDS)
    names = [str(one.name) for one in initializers]
    length = ir.node("Shape", [ids], {"start": 1, "end": 2}, name="by_length/length")
    limit = ir.Value(
        name="by_length/longest_step",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([1]),
        const_value=ir.tensor([longest_step], dtype=ir.DataType.INT64, name="by_length/longest_step"),
    )
    test = ir.node("Greater", [length.outputs[0], limit], name="by_length/is_prompt")
    attributes = {"then_branch": branches[0], "else_branch": branches[1]}
    choice = ir.node("If", [test.outputs[0]], attributes, num_outputs=len(signature), name="by_length")
    for value, (name, shape, kind) in zip(choice.outputs, signature, strict=True):
        value.name, value.shape, value.type = name, shape, kind
    if len(set(names)) != len(names):
        raise ValueError("two tensors have one name")
    return ir.Graph(
        inputs,
        choice.outputs,
        nodes=[length, test, choice],
        initializers=[*initializers, limit],
        opset_imports=dict(prompt.graph.opset_imports),
        name="by_length",
    )


def _move_out(graph: ir.Graph, mark: str, stored: dict[tuple[str, tuple[int, ...], bytes], ir.Value]) -> list[ir.Value]:
    """Take the initializers out of a graph; of equal ones only the first is kept, for both graphs."""
    taken = []
    for name in list(graph.initializers):
        value = graph.initializers.pop(name)
        tensor = value.const_value
        if tensor is None:
            raise ValueError(f"{name} has no value")
        key = (str(tensor.dtype), tuple(tensor.shape.numpy()), _fingerprint(tensor))
        if key in stored:
            value.replace_all_uses_with(stored[key], replace_graph_outputs=True)
            continue
        stored[key] = value
        value.name = f"{name}~{mark}"
        taken.append(value)
    return taken


def _fingerprint(tensor: ir.TensorProtocol) -> bytes:
    import hashlib

    return hashlib.sha256(tensor.tobytes()).digest()


def _branch(graph: ir.Graph, mark: str) -> ir.Graph:
    """Return a graph without inputs that holds the nodes; names get a mark, those of the outputs too."""
    outputs = list(graph.outputs)
    graph.outputs.clear()
    nodes = list(graph)
    graph.remove(nodes)
    for node in nodes:
        node.name = f"{node.name}~{mark}" if node.name else node.name
        for value in node.outputs:
            value.name = f"{value.name}~{mark}" if value.name else value.name
    for place, value in enumerate(outputs):
        if value.producer() not in set(nodes) or outputs.index(value) < place:  # handed on, or given twice
            keep = ir.node("Identity", [value], name=f"{value.name}~{mark}{place}")
            keep.outputs[0].name, keep.outputs[0].type = f"{value.name}~{mark}{place}", value.type
            nodes.append(keep)
            outputs[place] = keep.outputs[0]
    return ir.Graph((), outputs, nodes=nodes, name=mark)
