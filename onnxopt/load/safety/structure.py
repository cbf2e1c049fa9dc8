"""Check an .onnx file before anything trusts it.

Three layers, outermost first: the bytes (`onnxopt.load.safety.wire`), the tensors and the files they name, the graph.
Every refusal is an `InputError` of one line; nothing is allocated in proportion to a number that the file merely
declares. The cases come from the advisories on onnx (CVE-2024-27318, CVE-2026-27489, CVE-2026-34445, CVE-2026-34446)
and on ONNX Runtime.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from onnxopt.errors import InputError, word
from onnxopt.host.bounds import allow, bounds
from onnxopt.load.safety.files import ExternalFiles

if TYPE_CHECKING:
    import onnx

    class _Body(Protocol):
        """What a graph and a function have in common."""

        node: Any
        name: str


MIN_OPSET, MAX_OPSET = 7, 28
MAX_ELEMENTS = 1 << 36  # of one tensor: 256 GiB of float32, more than any weight in use
MAX_MADE = 1 << 32  # elements that one node may make from a shape written in the file: 16 GiB of float32
MAX_RANK = 64  # NumPy's own limit
EXPANDED = 20_000  # nodes that a graph may have, however often the functions of a small file are called
EXTERNAL_KEYS = ("location", "offset", "length", "checksum")
STANDARD_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
# ONNX Runtime's session keeps these in the standard domain of any opset, where it also saves them.
RUNTIME_STANDARD = ("LayerNormalization", "SimplifiedLayerNormalization")
_TYPED_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")


# ---------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class _Scope:
    """Where a graph stands: versions of the operator sets, and the values visible from outside."""

    opsets: dict[str, int]
    outer: tuple[frozenset[str], ...]
    label: str


class ModelCheck:
    """One check of one parsed model; sorts its nodes when they only stand in the wrong order."""

    def __init__(self, proto: onnx.ModelProto, where: str, files: ExternalFiles) -> None:
        self._proto = proto
        self._where = where
        self._files = files
        self._notes: list[str] = []
        self._functions = {(_domain(f.domain), f.name, f.overload): f for f in proto.functions}
        self._known: dict[tuple[str, str, int], str] = {}
        self._microsoft: set[str] | None = None
        self._shapes: dict[str, int] = {}
        self._sorted = 0

    def run(self) -> list[str]:
        """Check all of it, and return what was noticed; raises InputError at the first thing that is wrong."""
        proto = self._proto
        self._check_header()
        opsets = self._opsets(proto.opset_import, "the model")
        main = _Scope(opsets, (), "the graph")
        self._check_interface(proto.graph)
        self._check_functions()
        self._check_graph(proto.graph, main, is_main=True)
        if self._sorted:
            self._notes.append("nodes that were stored out of order were sorted")
        if proto.training_info:
            del proto.training_info[:]
            self._notes.append("training information in the file was left out")
        return self._notes

    def _check_header(self) -> None:
        import onnx

        proto = self._proto
        if not proto.HasField("graph"):
            raise self._error("has no graph; it is cut short or not an ONNX file", "copy or download it again")
        if not 3 <= proto.ir_version <= onnx.IR_VERSION:
            what = f"has ONNX IR version {proto.ir_version}; this onnxopt reads 3 to {onnx.IR_VERSION}"
            raise self._error(what, "export it again with a current exporter")

    def _opsets(self, imports: Iterable[onnx.OperatorSetIdProto], owner: str) -> dict[str, int]:
        opsets: dict[str, int] = {}
        for entry in imports:
            domain = _domain(entry.domain)
            if opsets.setdefault(domain, entry.version) != entry.version:
                what = f"{owner} asks for two versions of operator set {word(domain) or 'ai.onnx'!r}"
                raise self._error(what, "export it again with one opset")
        version = opsets.get("", MIN_OPSET)
        if not MIN_OPSET <= version <= MAX_OPSET:
            what = f"{owner} uses opset {version}; onnxopt reads opset {MIN_OPSET} to {MAX_OPSET}"
            hint = f"with opset {MIN_OPSET} or later" if version < MIN_OPSET else f"with an opset up to {MAX_OPSET}"
            raise self._error(what, f"export it again {hint}")
        return opsets

    def _check_interface(self, graph: onnx.GraphProto) -> None:
        if not graph.output:
            raise self._error("its graph has no output", "export it again")
        for kind, values in (("input", graph.input), ("output", graph.output)):
            for value in values:
                if value.type.WhichOneof("value") is None:
                    raise self._error(f"{kind} {word(value.name)!r} has no type", "export it again with typed values")
                if not _made_of_tensors(value.type):
                    what = f"{kind} {word(value.name)!r} is neither a tensor nor a sequence of tensors"
                    hint = "export it with tensors only (for scikit-learn models: options={'zipmap': False})"
                    raise self._error(what, hint)

    # functions

    def _check_functions(self) -> None:
        if len(self._functions) != len(self._proto.functions):
            names = [f.name for f in self._proto.functions]
            raise self._error(f"defines function {word(_repeated(names) or names[0])!r} twice", "export it again")
        sizes: dict[tuple[str, str, str], int] = {}
        for key in self._functions:
            self._expanded(key, sizes, ())
        self._check_expanded(self._count(self._proto.graph.node, sizes, ()))
        for (domain, name, _), function in self._functions.items():
            label = f"function {word(name)!r}"
            opsets = self._opsets(function.opset_import, label)
            if domain in STANDARD_DOMAINS and self._reason(domain, name, opsets.get(domain, MAX_OPSET)) == "":
                raise self._error(f"{label} takes the name of a standard operator", "export it again")
            values = frozenset(function.input)
            self._require_unique(function.input, f"{label} has two inputs named")
            self._order(function, _Scope(opsets, (), label), values, function.output)

    def _check_expanded(self, expanded: int) -> None:
        """Refuse functions of a few nodes that call each other until there are very many."""
        limits = bounds()
        if expanded > limits.nodes:
            what = f"its functions expand to {expanded:.3g} nodes, more than {limits.nodes}"
            raise self._error(what, allow("nodes", f"{expanded:.0f},growth={expanded:.0f}"))
        written = self._count(self._proto.graph.node, None, ())
        written += sum(self._count(function.node, None, ()) for function in self._proto.functions)
        if expanded > max(EXPANDED, limits.growth * written):
            what = f"its functions expand to {expanded} nodes, {expanded // written} times those that it has"
            raise self._error(what, allow("growth", str(expanded // written + 1)))

    def _expanded(self, key: tuple[str, str, str], sizes: dict[tuple[str, str, str], int], path: Sequence[Any]) -> int:
        if key in path:
            raise self._error(f"function {word(key[1])!r} calls itself", "no ONNX runtime can run that")
        if len(path) > 200:  # each level is a Python frame here and a native one in a runtime
            raise self._error("its functions call each other more than 200 levels deep", "no real model does")
        if key not in sizes:
            sizes[key] = self._count(self._functions[key].node, sizes, (*path, key))
        return sizes[key]

    def _count(self, nodes: Iterable[onnx.NodeProto], sizes: dict[Any, int] | None, path: Sequence[Any]) -> int:
        """Return how many nodes there are, those of functions at every call; a call is one node without `sizes`."""
        total = 0
        for node in nodes:
            key = (_domain(node.domain), node.op_type, node.overload)
            total += 1 if sizes is None or key not in self._functions else self._expanded(key, sizes, path)
            for attribute in node.attribute:
                for graph in _graphs(attribute):
                    total += self._count(graph.node, sizes, path)
        return total

    # graphs

    def _check_graph(self, graph: onnx.GraphProto, scope: _Scope, *, is_main: bool = False) -> None:
        if graph.sparse_initializer:
            what = f"stores the sparse weight {word(graph.sparse_initializer[0].values.name)!r}"
            raise self._error(what, "sparse weights are not supported; save it dense")
        inputs = [value.name for value in graph.input]
        outputs = [value.name for value in graph.output]
        weights = [tensor.name for tensor in graph.initializer]
        self._require_unique(inputs, f"{scope.label} has two inputs named")
        self._require_unique(outputs, f"{scope.label} has two outputs named")
        self._require_unique(weights, f"{scope.label} has two weights named")
        for tensor in graph.initializer:
            if not tensor.name:
                raise self._error(f"{scope.label} has a weight without a name", "export it again")
            self._check_tensor(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            self._check_type(value.type, value.name, is_input=is_main)
        self._order(graph, scope, frozenset((*inputs, *weights)), outputs)

    def _order(self, body: _Body, scope: _Scope, given: frozenset[str], outputs: Iterable[str]) -> None:
        """Check the nodes of one body and put them into topological order."""
        producers = self._producers(body.node, scope, given)
        self._note_shapes(body)
        visible = frozenset((*given, *producers))
        needs: list[set[int]] = []
        for node in body.node:
            self._check_node(node, scope)
            wanted = {*node.input, *self._captured(node, scope, visible)} - {""}
            for name in wanted:
                if name not in visible and not any(name in names for names in scope.outer):
                    raise self._error(f"{_label(node)} reads {word(name)!r}, which nothing makes", "export it again")
            needs.append({producers[name] for name in wanted if name in producers})
        for name in outputs:
            if name not in visible and not any(name in names for names in scope.outer):
                raise self._error(f"{scope.label} returns {word(name)!r}, which nothing makes", "export it again")
        if all(source < index for index, sources in enumerate(needs) for source in sources):
            return
        nodes = [type(node).FromString(node.SerializeToString()) for node in body.node]
        order = self._sort(needs, nodes, scope)
        del body.node[:]
        body.node.extend(nodes[index] for index in order)
        self._sorted += 1

    def _producers(self, nodes: Iterable[onnx.NodeProto], scope: _Scope, given: frozenset[str]) -> dict[str, int]:
        producers: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for name in node.output:
                if name and (name in producers or name in given):
                    what = f"{_label(node)} makes {word(name)!r}, which {scope.label} already has"
                    raise self._error(what, "value names must be unique; export it again")
                if name:
                    producers[name] = index
        return producers

    def _captured(self, node: onnx.NodeProto, scope: _Scope, visible: frozenset[str]) -> set[str]:
        """Check the subgraphs of a node and return the values that they read from outside."""
        captured: set[str] = set()
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                label = f"subgraph {word(attribute.name)!r} of {_label(node)}"
                self._check_graph(graph, _Scope(scope.opsets, (*scope.outer, visible), label))
                captured |= _free_names(graph)
        return captured

    def _sort(self, needs: list[set[int]], nodes: Sequence[onnx.NodeProto], scope: _Scope) -> list[int]:
        users: list[list[int]] = [[] for _ in needs]
        waiting = [len(sources) for sources in needs]
        for index, sources in enumerate(needs):
            for source in sources:
                users[source].append(index)
        ready = [index for index, count in enumerate(waiting) if count == 0]
        order: list[int] = []
        while ready:
            index = heapq.heappop(ready)
            order.append(index)
            for user in users[index]:
                waiting[user] -= 1
                if waiting[user] == 0:
                    heapq.heappush(ready, user)
        if len(order) == len(needs):
            return order
        stuck = {index for index, count in enumerate(waiting) if count > 0}
        loop = _find_loop({index: needs[index] & stuck for index in stuck})
        names = [_label(nodes[index]) for index in loop]
        shown = " → ".join((*names[:3], "…", names[0]) if len(names) > 3 else (*names, names[0]))
        raise self._error(f"{scope.label} runs in a circle: {shown}", "no ONNX runtime can run that; export it again")

    # nodes

    def _check_node(self, node: onnx.NodeProto, scope: _Scope) -> None:
        domain = _domain(node.domain)
        if (domain, node.op_type, node.overload) not in self._functions:
            self._check_operator(node, domain, scope)
            self._check_made(node)
        self._require_unique([attribute.name for attribute in node.attribute], f"{_label(node)} has two attributes")
        if domain == "" and node.op_type == "Constant" and len(node.attribute) != 1:
            what = f"{_label(node)} has {len(node.attribute)} values, where it must have one"
            raise self._error(what, "export it again")
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                what = f"{_label(node)} holds a sparse tensor"
                raise self._error(what, "sparse tensors are not supported; save it dense")
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                self._check_tensor(tensor, _label(node))

    def _note_shapes(self, body: _Body) -> None:
        """Remember how many elements each small constant asks for when a node reads it as a shape."""
        tensors = [(tensor.name, tensor) for tensor in getattr(body, "initializer", ())]
        for node in body.node:
            tensors += [(node.output[0], entry.t) for entry in node.attribute if entry.HasField("t") and node.output]
            for entry in node.attribute:
                if entry.name == "value_ints" and node.output:
                    self._shapes[node.output[0]] = math.prod(entry.ints)
        for name, tensor in tensors:
            if tensor.data_type == tensor.INT64 and len(tensor.dims) == 1 and 0 < tensor.dims[0] <= 16:
                raw = tensor.raw_data
                sizes = struct.unpack(f"<{len(raw) // 8}q", raw[: len(raw) // 8 * 8]) if raw else tensor.int64_data
                self._shapes[name] = math.prod(sizes)

    def _check_made(self, node: onnx.NodeProto) -> None:
        """Refuse a node of a few bytes that makes a tensor beyond any memory."""
        place = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}.get(node.op_type)
        if place is None or len(node.input) <= place:
            return
        made = self._shapes.get(node.input[place], 0)
        if made > MAX_MADE:
            what = f"{_label(node)} makes a tensor of {made} elements, more than {MAX_MADE}"
            raise self._error(what, "no machine holds that; not opened")

    def _check_operator(self, node: onnx.NodeProto, domain: str, scope: _Scope) -> None:
        if domain not in STANDARD_DOMAINS:
            what = (
                f"{_label(node)} is the operator {word(domain)}::{word(node.op_type)}, which ONNX Runtime does not have"
            )
            raise self._error(what, f"only ai.onnx, {' and '.join(STANDARD_DOMAINS[1:])} are known")
        version = scope.opsets.get(domain)
        if version is None:
            what = f"{_label(node)} uses operator set {domain or 'ai.onnx'!r}, which {scope.label} does not declare"
            raise self._error(what, "export it again")
        reason = self._reason(domain, node.op_type, version)
        if reason:
            raise self._error(f"{_label(node)} is the operator {word(node.op_type)!r}, {reason}", "export it again")

    def _reason(self, domain: str, operator: str, version: int) -> str:
        """Return why the operator is not usable, or nothing."""
        key = (domain, operator, version)
        if key not in self._known:
            self._known[key] = self._look_up(domain, operator, version)
        return self._known[key]

    def _look_up(self, domain: str, operator: str, version: int) -> str:
        import onnx

        if domain == "com.microsoft":
            if self._microsoft is None:
                self._microsoft = _microsoft_operators()
            return "" if operator in self._microsoft else "which the installed ONNX Runtime does not have"
        if domain == "" and operator in RUNTIME_STANDARD:
            return ""
        shown = domain or "ai.onnx"
        try:
            schema = onnx.defs.get_schema(operator, version, domain)
        except onnx.defs.SchemaError:
            return f"which {shown} does not have in opset {version}"
        return f"which {shown} no longer has in opset {version}" if schema.deprecated else ""

    # tensors

    def _check_tensor(self, tensor: onnx.TensorProto, owner: str = "") -> None:
        import onnx_ir as ir

        name = word(tensor.name or (f"of {owner}" if owner else ""))
        count = self._elements(tensor.dims, f"tensor {name!r}")
        if tensor.HasField("segment"):
            raise self._error(f"tensor {name!r} is stored in pieces", "save it again in one piece")
        try:
            dtype = ir.DataType(tensor.data_type)
        except ValueError:
            dtype = ir.DataType.UNDEFINED
        if dtype == ir.DataType.UNDEFINED:
            raise self._error(f"tensor {name!r} has the unknown data type {tensor.data_type}", "export it again")
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            self._check_external(tensor, name, count, dtype)
            return
        typed = [entry for entry in _TYPED_FIELDS if len(getattr(tensor, entry))]
        if len(typed) + bool(tensor.raw_data) > 1:
            raise self._error(f"tensor {name!r} stores its data twice", "save it again")
        if tensor.raw_data:
            found, expected, unit = len(tensor.raw_data), _raw_bytes(dtype, count), "bytes"
        else:
            place, expected = _typed_place(dtype, count)
            found, unit = len(getattr(tensor, place)), "numbers"
            if typed and typed != [place]:
                raise self._error(f"tensor {name!r} of {dtype.name} stores its data in {typed[0]}", "save it again")
        if expected != found:
            what = f"tensor {name!r} with shape {_shape(tensor.dims)} needs {expected} {unit} of data and has {found}"
            raise self._error(what, "copy or export it again")

    def _check_external(self, tensor: onnx.TensorProto, name: str, count: int, dtype: Any) -> None:
        keys = [entry.key for entry in tensor.external_data]
        for key in keys:
            if key not in EXTERNAL_KEYS:
                what = f"tensor {name!r} has the unknown external data key {word(key)!r}"
                raise self._error(what, f"known are {', '.join(EXTERNAL_KEYS)}")
        self._require_unique(keys, f"tensor {name!r} has two external data keys")
        if tensor.data_location != tensor.EXTERNAL or any(
            len(getattr(tensor, f)) for f in (*_TYPED_FIELDS, "raw_data")
        ):
            raise self._error(f"tensor {name!r} has its data both inside and outside the file", "save it again")
        if dtype.is_string():
            raise self._error(f"tensor {name!r} keeps text in external data", "ONNX does not allow that; save it again")
        values = {entry.key: entry.value for entry in tensor.external_data}
        size = self._files.size(values.get("location", ""), name)
        offset = self._number(values.get("offset", "0"), "offset", name)
        expected = _raw_bytes(dtype, count)
        length = self._number(values["length"], "length", name) if "length" in values else expected
        file = word(values["location"])
        if length != expected:
            what = (
                f"tensor {name!r} with shape {_shape(tensor.dims)} needs {expected} bytes; its file entry says {length}"
            )
            raise self._error(what, "save the model again")
        if offset + length > size:
            what = f"tensor {name!r} needs bytes {offset} to {offset + length} of {file!r}, which has {size}"
            raise self._error(what, "the file is cut short or belongs to another model; copy it again")

    def _number(self, text: str, key: str, name: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 18):  # 18 digits stay below 2^63
            raise self._error(f"tensor {name!r} has the {key} {word(text)!r}, not a size in bytes", "save it again")
        return int(text)

    def _elements(self, dims: Iterable[int], owner: str) -> int:
        sizes = list(dims)
        self._check_rank(len(sizes), owner)
        if any(size < 0 for size in sizes):
            raise self._error(f"{owner} has a negative dimension in {_shape(sizes)}", "export it again")
        if math.prod(size for size in sizes if size) > MAX_ELEMENTS:
            what = f"{owner} declares the shape {_shape(sizes)}, more than {MAX_ELEMENTS} elements"
            raise self._error(what, "no machine holds that; not opened")
        return math.prod(sizes)

    def _check_rank(self, rank: int, owner: str) -> None:
        if rank > MAX_RANK:
            raise self._error(f"{owner} has {rank} axes, more than {MAX_RANK}", "no array can have so many")

    def _check_type(self, kind: onnx.TypeProto, name: str, *, is_input: bool) -> None:
        if not kind.HasField("tensor_type"):
            return
        sizes = []
        self._check_rank(len(kind.tensor_type.shape.dim), f"value {word(name)!r}")
        for dim in kind.tensor_type.shape.dim:
            if is_input and dim.HasField("dim_value") and dim.dim_value == -1:  # older exporters write -1 for "any"
                dim.ClearField("dim_value")
            if dim.HasField("dim_value"):
                sizes.append(dim.dim_value)
        self._elements(sizes, f"value {word(name)!r}")

    def _require_unique(self, names: Iterable[str], problem: str) -> None:
        name = _repeated(names)
        if name is not None:
            raise self._error(f"{problem} {word(name)!r}", "names must be unique; export it again")

    def _error(self, what: str, hint: str) -> InputError:
        return InputError(what, where=self._where, hint=hint)


# -------------------------------------------------------------------------------------------------------------- helpers


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _label(node: onnx.NodeProto) -> str:
    name = node.name or next((output for output in node.output if output), "")
    return f"node {word(name)!r} ({word(node.op_type, 40)})"


def _made_of_tensors(kind: onnx.TypeProto) -> bool:
    """Tell whether a type is a tensor, or a sequence or an optional of what is."""
    form = kind.WhichOneof("value")
    if form in ("sequence_type", "optional_type"):
        return _made_of_tensors(getattr(kind, form).elem_type)
    return bool(form == "tensor_type")


def _shape(dims: Iterable[int]) -> str:
    sizes = [str(size) for size in dims]
    return f"[{', '.join(sizes if len(sizes) <= 8 else (*sizes[:8], '…'))}]"


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            return name
        seen.add(name)
    return None


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _free_names(graph: onnx.GraphProto) -> set[str]:
    """Return the values that a subgraph reads and does not make."""
    wanted = {value.name for value in graph.output}
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        wanted.update(node.input)
        made.update(node.output)
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                wanted |= _free_names(inner)
    return wanted - made - {""}


def _find_loop(needs: dict[int, set[int]]) -> list[int]:
    """Return one cycle, in the order data flows, of a graph in which every node needs another one."""
    index = min(needs)
    path: list[int] = []
    seen: dict[int, int] = {}
    while index not in seen:
        seen[index] = len(path)
        path.append(index)
        index = min(needs[index])
    return path[: seen[index] - 1 if seen[index] else None : -1]


def _raw_bytes(dtype: Any, count: int) -> int:
    """Return the size of `count` packed elements; text has no raw form, which no length matches."""
    return -1 if dtype.is_string() else (count * int(dtype.bitwidth) + 7) // 8


def _typed_place(dtype: Any, count: int) -> tuple[str, int]:
    """Return the field of TensorProto that holds `dtype` when it is not raw, and its length (onnx.proto)."""
    places: dict[str, tuple[str, int]] = {
        "FLOAT": ("float_data", count),
        "COMPLEX64": ("float_data", 2 * count),
        "DOUBLE": ("double_data", count),
        "COMPLEX128": ("double_data", 2 * count),
        "INT64": ("int64_data", count),
        "UINT32": ("uint64_data", count),
        "UINT64": ("uint64_data", count),
        "STRING": ("string_data", count),
    }
    bits = 8 if dtype.is_string() else int(dtype.bitwidth)
    per_number = {4: 2, 2: 4}.get(bits, 1)
    return places.get(dtype.name, ("int32_data", -(-count // per_number)))


def _microsoft_operators() -> set[str]:
    from onnxruntime.capi import _pybind_state as state

    return {schema.name for schema in state.get_all_operator_schema() if schema.domain == "com.microsoft"}
