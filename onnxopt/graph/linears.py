"""The linear layers of a graph, whatever their spelling, each with a label that a person recognises.

A label is the name of the layer's weight in the checkpoint without `weight` at its end: `encoder.layer.0.output.dense`.
Passes that make a new weight out of others hand the names on (`name_after`), so a packed projection is
`encoder.layer.0.attention.self.query+key+value`. In a graph without such names the node's own name serves.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph.nodes import attribute, is_op
from onnxopt.graph.values import constant, dims, is_constant
from onnxopt.spec import Array

ORIGIN_KEY = "onnxopt.origin"
LABEL_KEY = "onnxopt.label"
TABLE = "#table"
_PREFIXES = ("network.", "model.", "_orig_mod.")
_ANONYMOUS = re.compile(r"^(val|onnx::\w+|t|_v|const|initializer|MatMul|Gemm|weight)?[_:]*\d*$")


@dataclass(frozen=True)
class Linear:
    """One product with a constant matrix: y = x W + b.

    Attributes:
        label: its name for people and plans; unique in the graph.
        node: the MatMul or Gemm.
        root: the node that gives y: the Add of the bias, or `node`.
        x: its input [..., in].
        weight: the initializer.
        transposed: the initializer is stored [out, in].
        bias: float [out], None without one.
        rows: in.
        columns: out.
    """

    label: str
    node: ir.Node
    root: ir.Node
    x: ir.Value
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None
    rows: int
    columns: int

    def matrix(self) -> Array:
        """Return the weight as [in, out]."""
        found = constant(self.weight)
        if found is None:
            raise ValueError(f"{self.label}: the weight is not constant")
        return found.T if self.transposed else found


def find_linears(model: ir.Model) -> list[Linear]:
    """Return the linear layers of the main graph in order, float32 only."""
    found = [linear for node in model.graph if (linear := linear_of(node)) is not None]
    times: dict[str, int] = {}
    unique = []
    for linear in found:
        if LABEL_KEY in linear.node.metadata_props:
            unique.append(replace(linear, label=linear.node.metadata_props[LABEL_KEY]))
            continue
        times[linear.label] = times.get(linear.label, 0) + 1
        count = times[linear.label]
        unique.append(linear if count == 1 else replace(linear, label=f"{linear.label}#{count}"))
    return unique


def keep_labels(model: ir.Model) -> list[Linear]:
    """Return the linear layers, and write their labels on them: those of the others stay when one is replaced."""
    found = find_linears(model)
    for linear in found:
        linear.node.metadata_props[LABEL_KEY] = linear.label
    return found


@dataclass(frozen=True)
class Table:
    """A lookup in a constant matrix, as embeddings are.

    Attributes:
        label: the label of its weight with `#table` behind it, since a linear layer may share that weight.
        node: the Gather.
        weight: the initializer, [entries, width].
    """

    label: str
    node: ir.Node
    weight: ir.Value


def find_tables(model: ir.Model) -> list[Table]:
    """Return the lookups of rows in the main graph in order, float32 only."""
    found = []
    for node in model.graph:
        if not is_op(node, "Gather") or attribute(node, "axis") != 0:
            continue
        weight = node.inputs[0]
        if weight is None or not is_constant(weight) or weight.dtype != ir.DataType.FLOAT:
            continue
        if len(dims(weight) or ()) == 2:
            found.append(Table(f"{label_of(weight, node)}{TABLE}", node, weight))
    return found


def linear_of(node: ir.Node) -> Linear | None:
    """Return the linear layer whose product a node is, None when it is none."""
    if is_op(node, "MatMul") and len(node.inputs) == 2:
        transposed = False
    elif is_op(node, "Gemm"):
        if attribute(node, "alpha") != 1.0 or attribute(node, "transA"):
            return None
        transposed = bool(attribute(node, "transB"))
    else:
        return None
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or is_constant(x):
        return None
    turn = weight.producer()
    if turn is not None and is_op(turn, "Transpose") and turn.inputs[0] is not None:
        if list(attribute(turn, "perm") or (1, 0)) != [1, 0]:
            return None
        weight, transposed = turn.inputs[0], not transposed
    shape = dims(weight) or ()
    if not is_constant(weight) or weight.dtype != ir.DataType.FLOAT or len(shape) != 2:
        return None
    rows, columns = (int(d) if isinstance(d, int) else 0 for d in (reversed(shape) if transposed else shape))
    root, bias = _bias(node, columns)
    return Linear(label_of(weight, node), node, root, x, weight, transposed, bias, rows, columns)


def _bias(node: ir.Node, columns: int) -> tuple[ir.Node, ir.Value | None]:
    """Return the node that gives the layer's result, and its bias."""
    if is_op(node, "Gemm"):
        third = node.inputs[2] if len(node.inputs) > 2 else None
        fits = third is not None and is_constant(third) and dims(third) == (columns,) and attribute(node, "beta") == 1.0
        return node, third if fits else None
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and is_op(uses[0].node, "Add"):
        other = uses[0].node.inputs[1 - uses[0].idx]
        if is_constant(other) and dims(other) == (columns,):
            return uses[0].node, other
    return node, None


def label_of(weight: ir.Value, node: ir.Node | None = None) -> str:
    """Return the label of the layer that a weight belongs to.

    Args:
        weight: the initializer.
        node: its reader, whose name serves when the weight has none of its own.
    """
    name = origin(weight)
    if _ANONYMOUS.match(name) and node is not None and node.name:
        return node.name
    return _plain(name)


def origin(value: ir.Value) -> str:
    """Return the name in the checkpoint of the data of a constant."""
    return value.metadata_props.get(ORIGIN_KEY) or value.name or ""


def name_after(new: ir.Value, sources: Sequence[ir.Value]) -> None:
    """Remember that a new constant was made out of others."""
    names = [origin(value) for value in sources]
    new.metadata_props[ORIGIN_KEY] = names[0] if len(names) == 1 else _joined([_plain(name) for name in names])


def _joined(names: Sequence[str]) -> str:
    """Write `a.query`, `a.key`, `a.value` as `a.query+key+value`."""
    parts = [name.split(".") for name in names]
    common = 0
    while all(len(part) > common + 1 and part[common] == parts[0][common] for part in parts):
        common += 1
    tails = [".".join(part[common:]) for part in parts]
    return ".".join([*parts[0][:common], "+".join(tails)])


def parts_of(label: str) -> list[str]:
    """Return the labels of the layers that a packed one was made of: `a.q`, `a.k` and `a.v` of `a.q+k+v`."""
    first, *rest = label.split("+")
    head, dot, _ = first.rpartition(".")
    return [first, *(f"{head}{dot}{tail}" for tail in rest)]


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name.removesuffix(".weight")


class Selector:
    """Chooses linears by what a user writes: globs, regular expressions or substrings, separated by `|` or commas.

    `layers.0.*` and `*dense` are globs over the whole label; `/down_proj$/` is a regular expression; `lm_head` and
    `layer.0` match labels that contain them as whole parts; `first` and `last` are the first and last linear.
    """

    def __init__(self, text: str) -> None:
        self.parts = [part.strip() for part in re.split(r"[|,](?![^/]*/(?:[|,]|$))", text) if part.strip()]
        if not self.parts:
            raise InputError("the selector is empty", hint='write for example --keep "layer.0|lm_head"')
        self._tests = {part: _test(part) for part in self.parts}

    def choose(self, labels: Iterable[str], tables: Iterable[str] = ()) -> set[str]:
        """Return the chosen labels; tables are neither first nor last.

        Raises:
            InputError: a part of the selector matches none.
        """
        layers = list(labels)
        known = [*layers, *tables]
        chosen: set[str] = set()
        for part, test in self._tests.items():
            ends = {"first": layers[:1], "last": layers[-1:]}
            found = ends[part] if part in ends else [label for label in known if test.search(label)]
            if not found:
                near = next(_nearest(part, known), "")
                raise InputError(
                    f"the selector {part!r} matches no linear layer",
                    hint=f"labels look like {near or 'none: the model has no linear layer'}",
                )
            chosen.update(found)
        return chosen


def _nearest(part: str, known: Sequence[str]) -> Iterator[str]:
    import difflib

    yield from difflib.get_close_matches(part, known, n=1, cutoff=0.1)
    yield from known[:1]


def _test(part: str) -> re.Pattern[str]:
    if len(part) > 2 and part.startswith("/") and part.endswith("/"):
        try:
            return re.compile(part[1:-1])
        except re.error as error:
            raise InputError(f"{part} is no regular expression ({error})", hint="mend it, or write a glob") from error
    if any(sign in part for sign in "*?["):
        return re.compile(fnmatch.translate(part))
    return re.compile(rf"(^|[.+#/_]){re.escape(part)}($|[.+#/_])")
