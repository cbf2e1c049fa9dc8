"""Load any .onnx file: check it, name its axes, find out how to feed it, and keep it as the reference."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir

from onnxopt.errors import InputError, word
from onnxopt.graph import constant_value
from onnxopt.graph.cache import Cache, encoded_name
from onnxopt.graph.exchange import CARRIERS, PLAIN, dtype_name
from onnxopt.graph.weight_files import stays_mapped
from onnxopt.host.folders import sha256_of
from onnxopt.load.given import Given
from onnxopt.load.graph_feeder import GraphFeeder, InputPlan, input_kinds, plan_input
from onnxopt.load.learn.axis_names import name_axes
from onnxopt.load.learn.compared import compared_values
from onnxopt.load.learn.prober import Prober
from onnxopt.load.learn.roles import (
    canonical_names,
    find_batch,
    find_mask,
    renamed_axis,
    renamed_feeder,
    structural_roles,
)
from onnxopt.load.loaded import Loaded
from onnxopt.load.reference import OrtReference
from onnxopt.load.safety.check import Checked, check_onnx
from onnxopt.load.safety.files import hub_repository, inside_hub
from onnxopt.probe.apart.session import start_worker
from onnxopt.probe.crossing import crossings_of
from onnxopt.probe.draws import Draws, take_out
from onnxopt.spec import CONTAINERS, Form, Signature, TensorSpec

logger = logging.getLogger(__name__)

_Tensor = TypeVar("_Tensor", ir.TensorProtocol, ir.TensorProtocol | None)
Progress = Callable[[str], None]

ASSETS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
_EXCHANGED = (*PLAIN, *CARRIERS, ir.DataType.STRING)
# Weights listed as inputs are those of a whole network from here on; below, what a user may want to set.
LEAST_NETWORK_BYTES = 2**16
MAX_LIKELY = 4096  # a larger number in a shape is tried as the size of an axis no more
LIKELY_SIZES = 24  # so many are tried at most
_POSITION_TABLE = re.compile(r"pos|wpe", re.IGNORECASE)
# What exporters write where they know no name: Paddle, TensorFlow, torch's own outputs.
_NAMELESS = re.compile(r"^(\?|-\d+|none|p2o\.DynamicDimension\.\d+|unk__\d+|dynamic_axes_\d+)$", re.IGNORECASE)


def load_onnx(path: Path, *, given: Given | None = None, progress: Progress | None = None) -> Loaded:
    """Load one .onnx file.

    Args:
        path: the file; its external data lies in the same folder.
        given: what the user says of axes, values and inputs.
        progress: called with a word on each step.

    Returns:
        The model with named axes, and the file itself as its reference.

    Raises:
        InputError: the file is unsafe, broken, or cannot be run.
    """
    say = progress or (lambda _: None)
    chosen, where = given or Given(), word(path.name)
    say("checking the file")
    start_worker()  # it comes up while the file is read
    checked = check_onnx(path)
    model = _deserialize(checked, path)
    notes = [*checked.notes, *_drop_listed_weights(model, where)]
    named, unnamed = name_axes([_spec(value, "input", where) for value in model.graph.inputs])
    chosen.check(Signature(tuple(named), ()), where)
    inputs = _Inputs.of(model, named, chosen)
    logger.info("inputs of %s: %s", path.name, input_kinds(inputs.plans))
    draws = take_out(model, where)  # behind the plans: what draws also tells what its inputs are
    notes += [] if draws is None else [draws.note]
    outputs = [_spec(value, "output", where) for value in model.graph.outputs]
    say("running it to learn its inputs")
    reference, trial = (_reference(checked, path, model, draws, apart=apart) for apart in (False, True))
    prober = Prober(trial, inputs.feeder(chosen, draws), say=say, given=chosen)
    _probe(prober, model, unnamed)
    mask, prober.feeder = find_mask(prober.runs, prober.feeder)
    signature = Signature(tuple(plan.spec for plan in prober.feeder.plans), tuple(prober.name_outputs(outputs)), mask)
    of_outputs = [axis for spec in signature.outputs for axis in spec.axes]
    names = canonical_names(prober.feeder, find_batch(prober.runs, prober.feeder), mask, of_outputs)
    signature, feeder = _renamed(signature, names), renamed_feeder(prober.feeder, names)
    trial.close()
    reference.open()
    if draws is not None:
        signature = replace(signature, inputs=(*signature.inputs, *draws.specs))
    _write_axes(model, signature)
    notes += _crossing_notes(model, signature)

    def new(axis: str) -> str:
        return str(renamed_axis(axis, names))

    return Loaded(
        name=_artifact_name(path),
        model=model,
        signature=signature,
        reference=reference,
        feeder=feeder,
        task="onnx",
        assets=_find_assets(path),
        origin=_origin(checked, path),
        ranges={new(axis): known for axis, known in prober.ranges.items() if axis not in prober.fixed},
        notes=notes + prober.notes,
        proved_sizes=tuple({new(axis): size for axis, size in sizes.items()} for sizes in prober.proved),
        tied=feeder.tied,
        ones=frozenset(map(new, prober.ones)),
        pinned=frozenset(map(new, prober.pinned)),
        names=feeder.names,
        free=_free_inputs(signature, inputs.flags),
        draws=draws,
    )


def _reference(checked: Checked, path: Path, model: ir.Model, draws: Draws | None, *, apart: bool) -> OrtReference:
    """Return the file as a reference: in this process, or apart in a worker until it has been seen to run."""
    files = {checked.path, *checked.external.values()}
    return OrtReference(
        path if path.is_symlink() and hub_repository(path) else checked.path,
        path.name,
        b"" if draws is None else ir.to_proto(model).SerializeToString(),
        apart=apart,
        weight_bytes=sum(file.stat().st_size for file in files),
        mapped=stays_mapped(model),
    )


@dataclass(frozen=True)
class _Inputs:
    """What a graph says of its inputs, before it has been run.

    Attributes:
        plans: how each is made.
        flags: those of which the user says that they hold 0 and 1, and nothing else.
        values: what an input of few values takes, by its name.
    """

    plans: tuple[InputPlan, ...]
    flags: frozenset[str]
    values: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, model: ir.Model, named: Sequence[TensorSpec], given: Given) -> _Inputs:
        """Read the inputs of a graph, all of whose axes have names.

        Args:
            model: the graph, with whatever it draws at random.
            named: an input each, in the order of the graph.
            given: what the user says of them.
        """
        taken = model.graph.inputs
        plans = tuple(plan_input(value, spec, model.functions) for value, spec in zip(taken, named, strict=True))
        flags = _promised_flags(plans, given)
        values = {
            plan.spec.name: given.typed_values(plan.spec) or compared_values(value, plan.spec, model.functions)
            for value, plan in zip(taken, plans, strict=True)
            if plan.spec.name not in flags
            and (plan.spec.name in given.values or plan.kind in ("integer", "float", "text", "ones"))
        }
        return cls(plans, flags, {name: choices for name, choices in values.items() if choices})

    def feeder(self, given: Given, draws: Draws | None) -> GraphFeeder:
        """Return what makes inputs of any sizes."""
        return GraphFeeder(
            self.plans, roles=structural_roles(self.plans), values=self.values, examples=given.feeds, draws=draws
        )


def _probe(prober: Prober, model: ir.Model, unnamed: Sequence[tuple[str, int]]) -> None:
    """Run a graph to learn its axes: which sizes it takes, and which axes go together."""
    prober.start(_likely_sizes(model))
    prober.split_axes(unnamed)
    prober.learn_axes()
    prober.find_limits(_position_tables(model))
    prober.settle()


def _promised_flags(plans: Sequence[InputPlan], given: Given) -> frozenset[str]:
    """Return the inputs of more than one number of which the user says that they hold 0 and 1, and nothing else.

    That is a promise about each entry, as a padding mask keeps it, and no number to fill the input with.
    """
    return frozenset(
        plan.spec.name for plan in plans if plan.spec.axes and set(given.typed_values(plan.spec)) == {0, 1}
    )


def _free_inputs(signature: Signature, flags: frozenset[str]) -> frozenset[str]:
    """Return the inputs of which nobody has said that they hold 0 and 1 where they are masks (see `is_contract`)."""
    if Cache.of(signature) is not None:
        return frozenset()
    return frozenset(spec.name for spec in signature.inputs if spec.name not in flags)


# ---------------------------------------------------------------------------------------------------------------- graph


def _deserialize(checked: Checked, path: Path) -> ir.Model:
    try:
        model = ir.from_proto(checked.proto)
    except Exception as error:
        hint = "export it again"
        raise InputError(f"cannot be read: {word(str(error), 200)}", where=word(path.name), hint=hint) from error
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        ir.external_data.set_base_dir(graph, checked.folder)
        for inner in (graph, *graph.subgraphs()):
            for value in inner.initializers.values():
                value.const_value = _without_link(value.const_value, checked)
            for node in inner:
                _hold_attributes(node, checked)
    return model


def _hold_attributes(node: ir.Node, checked: Checked) -> None:
    """Move what a Constant keeps in a file to a weight of its graph, and read in what other attributes keep there.

    Only weights are looked for in files later on: an attribute is written as it is into every part that is cut out.
    """
    for name, attribute in list(node.attributes.items()):
        if attribute.type != ir.AttributeType.TENSOR or not isinstance(attribute.value, ir.ExternalTensor):
            continue
        tensor = _without_link(attribute.value, checked)
        made, graph = node.outputs[0], node.graph
        if node.op_type == "Constant" and isinstance(graph, ir.Graph) and not made.is_graph_output():
            weight = constant_value(tensor, made.name or "")
            made.replace_all_uses_with(weight)
            graph.remove(node, safe=True)
            graph.register_initializer(weight)
        else:
            held = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
            node.attributes[name] = ir.Attr(name, ir.AttributeType.TENSOR, held)


def _without_link(tensor: _Tensor, checked: Checked) -> _Tensor:
    """Point a tensor at the blob itself when its file is a link of a Hugging Face cache; onnx_ir follows no links."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    real = checked.external[str(tensor.location)]
    if real == (checked.folder / tensor.location).absolute():
        return tensor
    return ir.ExternalTensor(
        real.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=real.parent,
    )


def _drop_listed_weights(model: ir.Model, where: str) -> list[str]:
    """Take the weights out of the inputs where the file lists them only because its exporter lists everything.

    Before IR version 4 every weight had to be an input too. Later files that list all of theirs, as many as a network
    has, were written by the same habit. Else an input with a value is one that a user may leave out or set: it stays.

    Returns:
        A sentence for the user when weights are no inputs any more.
    """
    graph = model.graph
    listed = [value for value in graph.inputs if value.name in graph.initializers]
    tensors = [value.const_value for value in graph.initializers.values() if value.const_value is not None]
    old = model.ir_version is not None and model.ir_version < 4
    everything = len(listed) == len(graph.initializers) and sum(one.nbytes for one in tensors) >= LEAST_NETWORK_BYTES
    if not listed or not (old or everything):
        return []
    kept = [value for value in graph.inputs if value.name not in graph.initializers]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    if old:
        return []
    logger.info("%s: %d weights were listed as inputs", where, len(listed))
    names = ", ".join(word(value.name or "") for value in listed[:3]) + (", …" if len(listed) > 3 else "")
    return [f"all weights were listed as inputs and are none any more ({len(listed)}): {names}"]


def _spec(value: ir.Value, kind: str, where: str) -> TensorSpec:
    shown = f"{kind} {word(value.name or '')!r}"
    form = _form(value.type)
    if form is None or value.type is None:
        hint = "export it with tensors only (for scikit-learn models: options={'zipmap': False})"
        raise InputError(f"{shown} is neither a tensor nor a sequence of tensors", where=where, hint=hint)
    dtype = value.type.dtype
    if dtype not in _EXCHANGED or (form and dtype in CARRIERS):
        what = f"{shown} has the type {dtype.name}, which ONNX Runtime cannot exchange with NumPy"
        raise InputError(what, where=where, hint="export it with float32 or float16 inputs and outputs")
    if kind == "input" and value.shape is None and not form:
        raise InputError(f"{shown} has no declared rank", where=where, hint="export it with the rank of each input")
    if kind == "input" and value.is_initializer():
        form = "default"
    return TensorSpec(value.name or "", dtype_name(dtype), _axes(value.shape), form)


def _form(kind: ir.TypeProtocol | None) -> Form | None:
    """Return what a type is made of; None for what is neither tensors nor made of them."""
    if isinstance(kind, ir.TensorType):
        return ""
    if isinstance(kind, ir.SequenceType):
        return "sequence" if isinstance(kind.elem_type, ir.TensorType) else None
    if isinstance(kind, ir.OptionalType):
        inner = _form(kind.elem_type)
        return "optional" if inner == "" else "optional sequence" if inner == "sequence" else None
    return None


def _axes(shape: ir.Shape | None) -> tuple[int | str, ...]:
    """Return sizes and names; an empty name where the file says nothing."""
    if shape is None:
        return ()
    return tuple(_named(dim) for dim in shape)


def _named(dim: int | ir.SymbolicDim) -> int | str:
    """Return a size, or a name that tells something; an empty one otherwise."""
    if isinstance(dim, int):
        return dim if dim >= 0 else ""
    name = str(dim.value or "")
    return "" if _NAMELESS.match(name) else name


def _write_axes(model: ir.Model, signature: Signature) -> None:
    """Name in the graph the axes that the file left open; what the file says stays."""
    for values, specs in ((model.graph.inputs, signature.inputs), (model.graph.outputs, signature.outputs)):
        for value, spec in zip(values, specs, strict=True):
            if spec.form not in CONTAINERS:
                value.shape = None if spec.form == "any rank" else ir.Shape(spec.axes)


def _renamed(signature: Signature, names: Mapping[str, str]) -> Signature:
    """Return a signature whose axes have other names."""

    def renamed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, axes=tuple(renamed_axis(axis, names) for axis in spec.axes)) for spec in specs)

    return replace(signature, inputs=renamed(signature.inputs), outputs=renamed(signature.outputs))


def _crossing_notes(model: ir.Model, signature: Signature) -> list[str]:
    """Say where the rotary tables of a decoder change with the length of a text."""
    names = {spec.name for spec in signature.inputs}
    is_decoder = any(name.startswith("past_key_values.") for name in names) and not any(map(encoded_name, names))
    note = crossings_of(model).note() if is_decoder and {"input_ids", "attention_mask"} <= names else ""
    return [note] if note else []


def _likely_sizes(model: ir.Model) -> list[int]:
    """Return the numbers of the graph that sizes may be baked in as: what shapes are made of, smallest first."""
    found: set[int] = set()
    for node in model.graph:
        if node.op_type not in ("Reshape", "Resize", "Expand", "Slice"):
            continue
        for value in node.inputs[1:]:
            tensor = None if value is None else value.const_value or ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.dtype == ir.DataType.INT64 and tensor.size <= 8:
                found.update(int(size) for size in tensor.numpy().reshape(-1) if 1 < size <= MAX_LIKELY)
    return sorted(found)[:LIKELY_SIZES]


def _position_tables(model: ir.Model) -> list[int]:
    """Return the rows of the tables that look like learned positions, by the name of the table."""
    tables = []
    for node in model.graph:
        table = node.inputs[0] if node.op_type == "Gather" and node.inputs else None
        tensor = table.const_value if table is not None else None
        if tensor is None or len(tensor.shape) != 2 or not _POSITION_TABLE.search(tensor.name or ""):
            continue
        tables.append(int(tensor.shape.numpy()[0]))
    return sorted(set(tables))


# ---------------------------------------------------------------------------------------------------------------- files


def _artifact_name(path: Path) -> str:
    stem = path.stem if path.stem.lower() != "model" else (path.absolute().parent.name or "model")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"


def _find_assets(path: Path) -> tuple[Path, ...]:
    """Return tokenizer and config files beside the model, or one folder up when it lies in `onnx/`, as on the Hub."""
    folder = path.absolute().parent
    folders = (folder, folder.parent) if folder.name == "onnx" else (folder,)
    found: dict[str, Path] = {}
    for place in folders:
        for name in ASSETS:
            file = place / name
            if file.is_file() and (not file.is_symlink() or inside_hub(file)):
                found.setdefault(name, file)
    return tuple(found.values())


def _origin(checked: Checked, path: Path) -> dict[str, Any]:
    import onnxruntime as ort

    proto = checked.proto
    return {
        "source": path.name,
        "sha256": sha256_of(checked.path),
        "external_sha256": {location: sha256_of(file) for location, file in sorted(checked.external.items())},
        "producer": " ".join(part for part in (proto.producer_name, proto.producer_version) if part),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "ir_version": proto.ir_version,
        "onnxruntime": ort.__version__,
    }
