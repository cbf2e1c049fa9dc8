"""Load any .onnx file: check it, name its axes, find out how to feed it, and keep it as the reference."""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.cache import unserved
from onnxopt.errors import InputError
from onnxopt.graph_feeder import DEFAULT_SIZES, GraphFeeder, input_kinds, plan_input, role_of
from onnxopt.model import Array, Feeds, Loaded
from onnxopt.runtime import runtime_line
from onnxopt.safety import Checked, check_onnx, hub_repository, inside_hub, word
from onnxopt.spec import AxisRange, Signature, TensorSpec, available_threads

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

PROBE_SECONDS = 60.0  # after this, axes that are not proved yet stay unproved, and a note says so
MAX_LIMIT_PROBE = 1024  # position tables longer than this are believed, not run to their end
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
# Sizes to try when the usual ones do not run: batch, sequence, every other axis (images, then sound).
_FALLBACKS = ((1, 8, 8), (2, 8, 64), (1, 8, 64), (1, 16, 16), (1, 8, 224), (1, 1, 1), (1, 128, 512), (1, 16000, 16000))
_EXCHANGED = frozenset(
    {
        "FLOAT",
        "DOUBLE",
        "FLOAT16",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "BOOL",
        "STRING",
    }
)  # types that NumPy and ONNX Runtime's Python interface share
_POSITION_TABLE = re.compile(r"pos|wpe", re.IGNORECASE)
# What exporters write where they know no name: Paddle, TensorFlow, torch's own outputs.
_NAMELESS = re.compile(r"^(\?|-\d+|none|p2o\.DynamicDimension\.\d+|unk__\d+|dynamic_axes_\d+)$", re.IGNORECASE)
STEPS = (2, 4, 8, 16, 32)  # multiples that networks of images halve their input by


class OrtReference:
    """An .onnx file run by ONNX Runtime with every optimization off.

    Args:
        path: the file, already checked.
        label: how reports call it; the file's name when empty.
    """

    def __init__(self, path: Path, label: str = "") -> None:
        self._path = path
        self._label = label or path.name
        self._session: Any = None

    @property
    def name(self) -> str:
        """What it is, for reports."""
        import onnxruntime as ort

        return f"{self._label} in onnxruntime {ort.__version__}, optimizations off"

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return every output by name.

        Raises:
            InputError: ONNX Runtime cannot open the file or cannot run these inputs.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        options.log_severity_level = 4  # the line comes back in the exception; nothing on stderr
        session = self._open()
        names = [output.name for output in session.get_outputs()]
        try:
            values = session.run(names, dict(feeds), options)
        except Exception as error:  # the binding raises a class of its own per status code
            sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            raise InputError(f"cannot be run with {sizes}: {runtime_line(error)}", where=self._label) from error
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    def _open(self) -> Any:
        import onnxruntime as ort

        if self._session is None:
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = available_threads()
            options.log_severity_level = 4
            try:
                self._session = ort.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
            except Exception as error:
                hint = "check that the file runs where it was made"
                what = f"ONNX Runtime {ort.__version__} cannot open it: {runtime_line(error)}"
                raise InputError(what, where=self._label, hint=hint) from error
        return self._session


def load_onnx(path: Path, *, progress: Progress | None = None) -> Loaded:
    """Load one .onnx file.

    Args:
        path: the file; its external data lies in the same folder.
        progress: called with a word on each step.

    Returns:
        The model with named axes, and the file itself as its reference.

    Raises:
        InputError: the file is unsafe, broken, or cannot be run.
    """
    say = progress or (lambda _: None)
    say("checking the file")
    checked = check_onnx(path)
    model = _deserialize(checked, path)
    notes = list(checked.notes)
    notes += _drop_default_inputs(model, word(path.name))
    said = Signature(
        tuple(_spec(value, "input", word(path.name)) for value in model.graph.inputs),
        tuple(_spec(value, "output", word(path.name)) for value in model.graph.outputs),
    )
    known = unserved(said)
    inputs, outputs = list(known.inputs), list(known.outputs)
    say("running it to learn its inputs")
    named, unnamed = _name_axes(inputs)
    plans = tuple(
        plan_input(value, spec, model.functions) for value, spec in zip(model.graph.inputs, named, strict=True)
    )
    logger.info("inputs of %s: %s", path.name, input_kinds(plans))
    reference = OrtReference(path if path.is_symlink() and hub_repository(path) else checked.path, path.name)
    prober = _Prober(reference, GraphFeeder(plans), say=say)
    prober.start()
    prober.split_axes(unnamed)
    prober.prove_axes()
    prober.find_limits(_position_tables(model))
    signature = Signature(tuple(plan.spec for plan in prober.feeder.plans), tuple(prober.name_outputs(outputs)))
    _write_axes(model, signature)
    return Loaded(
        name=_artifact_name(path),
        model=model,
        signature=signature,
        reference=reference,
        feeder=prober.feeder,
        task="onnx",
        assets=_find_assets(path),
        origin=_origin(checked, path),
        ranges={axis: AxisRange(least=step, step=step) for axis, step in prober.steps.items()},
        notes=notes + prober.notes,
        proved_sizes=tuple(prober.proved),
    )


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
    return model


def _without_link(tensor: ir.TensorProtocol | None, checked: Checked) -> ir.TensorProtocol | None:
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


def _drop_default_inputs(model: ir.Model, where: str) -> list[str]:
    """Make inputs that carry a default value plain weights, as every file before IR version 4 means them."""
    graph = model.graph
    defaults = [value for value in graph.inputs if value.name in graph.initializers]
    kept = [value for value in graph.inputs if value.name not in graph.initializers]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    if not defaults or (model.ir_version is not None and model.ir_version < 4):
        return []
    logger.info("%s: %d inputs with defaults become weights", where, len(defaults))
    names = ", ".join(word(value.name or "") for value in defaults[:3]) + (", …" if len(defaults) > 3 else "")
    return [f"inputs with a default value became weights ({len(defaults)}): {names}"]


def _spec(value: ir.Value, kind: str, where: str) -> TensorSpec:
    shown = f"{kind} {word(value.name or '')!r}"
    if not isinstance(value.type, ir.TensorType):
        hint = "export it with tensors only (for scikit-learn models: options={'zipmap': False})"
        raise InputError(f"{shown} is not a tensor", where=where, hint=hint)
    dtype = value.type.dtype
    if dtype.name not in _EXCHANGED:
        what = f"{shown} has the type {dtype.name}, which ONNX Runtime cannot exchange with NumPy"
        raise InputError(what, where=where, hint="export it with float32 or float16 inputs and outputs")
    if kind == "input" and value.shape is None:
        raise InputError(f"{shown} has no declared rank", where=where, hint="export it with the rank of each input")
    name = "object" if dtype.is_string() else np.dtype(dtype.numpy()).name
    return TensorSpec(value.name or "", name, _axes(value.shape))


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
            value.shape = ir.Shape(spec.axes)


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


# ----------------------------------------------------------------------------------------------------------------- axes


def _name_axes(inputs: Sequence[TensorSpec]) -> tuple[list[TensorSpec], list[tuple[str, int]]]:
    """Give every open axis the name it most likely deserves; return also where, to be proved."""
    known = [axis for spec in inputs for axis in spec.axes if isinstance(axis, str) and axis]
    usual = {role: next((axis for axis in known if role_of(axis) == role), "") for role in ("batch", "sequence")}
    has_past = any("past" in spec.name.lower() for spec in inputs)
    named, places = [], []
    for spec in inputs:
        axes: list[int | str] = []
        for index, axis in enumerate(spec.axes):
            if axis == "":
                places.append((spec.name, index))
            axes.append(axis if axis != "" else _guess_axis(spec, index, usual, has_past=has_past))
        named.append(replace(spec, axes=tuple(axes)))
    return named, places


def _guess_axis(spec: TensorSpec, index: int, usual: Mapping[str, str], *, has_past: bool) -> str:
    rank, name = len(spec.axes), spec.name.lower()
    if index == 0:
        return usual["batch"] or "batch"
    if rank == 4 and "past" in name:
        return "past_sequence" if index == 2 else f"heads_{index}"
    if rank == 4 and index >= 2:
        return ("height", "width")[index - 2]
    if rank in (2, 3) and index == 1:
        is_total = has_past and "mask" in name
        return "total_sequence" if is_total else usual["sequence"] or "sequence"
    return _own_axis(spec.name, index)


def _own_axis(name: str, index: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_dim{index}"


@dataclass
class _Prober:
    """Learns about a model by running it.

    Attributes:
        reference: the model.
        feeder: what is known so far; replaced as more is learned.
        say: told of each step.
        notes: what the user should know.
        proved: the sizes at which the model ran.
        steps: of axes that run only at multiples of something.
    """

    reference: OrtReference
    feeder: GraphFeeder
    say: Progress
    notes: list[str] = field(default_factory=list)
    proved: list[dict[str, int]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    _outputs: list[tuple[dict[str, int], Feeds]] = field(default_factory=list)
    _deadline: float = field(default_factory=lambda: time.monotonic() + PROBE_SECONDS)

    def start(self) -> None:
        """Find sizes at which the model runs; raises InputError with the first reason when there are none."""
        first: InputError | None = None
        for sizes in self._attempts():
            feeder = replace(self.feeder, defaults=sizes)
            try:
                outputs = self.reference.run(feeder.make({}))
            except InputError as error:
                first = first or error
                if not self.feeder.axes or "cannot open" in error.what:
                    break
                continue
            self.feeder = replace(feeder, defaults=feeder.resolve({}))
            self._keep(self.feeder.resolve({}), outputs)
            return
        raise first or InputError("cannot be run")

    def _attempts(self) -> Iterator[dict[str, int]]:
        yield {axis: DEFAULT_SIZES[role_of(axis)] for axis in self._free_axes()} | self._image_sizes()
        for batch, sequence, other in _FALLBACKS:
            sizes = {"batch": batch, "sequence": sequence, "total": sequence, "past": DEFAULT_SIZES["past"]}
            yield {axis: sizes.get(role_of(axis), other) for axis in self._free_axes()}

    def _free_axes(self) -> tuple[str, ...]:
        """Return the axes that do not follow from others."""
        sized = any(role_of(axis) == "sequence" for axis in self.feeder.axes)
        return tuple(axis for axis in self.feeder.axes if "+" not in axis and not (sized and role_of(axis) == "total"))

    def _image_sizes(self) -> dict[str, int]:
        images = [plan.spec for plan in self.feeder.plans if plan.kind == "float" and len(plan.spec.axes) == 4]
        return {
            axis: 64 for spec in images for axis in spec.axes[2:] if isinstance(axis, str) and role_of(axis) == "other"
        }

    def split_axes(self, places: Sequence[tuple[str, int]]) -> None:
        """Keep one name for several open axes only where the model refuses different sizes for them."""
        for name, index in places:
            plan = next(plan for plan in self.feeder.plans if plan.spec.name == name)
            axis = plan.spec.axes[index]
            users = [other for other in self.feeder.plans if axis in other.spec.axes]
            if not isinstance(axis, str) or len(users) < 2 or self.feeder.defaults.get(axis, 1) < 2 or self._late():
                continue
            own = _own_axis(name, index)
            axes = tuple(own if place == index else other for place, other in enumerate(plan.spec.axes))
            changed = replace(plan, spec=replace(plan.spec, axes=axes))
            plans = tuple(changed if other is plan else other for other in self.feeder.plans)
            base = self.feeder.defaults
            feeder = replace(self.feeder, plans=plans, defaults={**base, own: base[axis] + 1})
            if self._runs(feeder, {}) is not None:
                self.feeder = replace(feeder, defaults={**base, own: base[axis]})

    def prove_axes(self) -> None:
        """Run other sizes of each axis; note the axes that turn out to be fixed or tied to each other."""
        base = self.feeder.defaults
        stuck: list[str] = []
        for axis in self._free_axes():
            if self._late():
                self.notes.append(f"axis '{axis}' was not tried at other sizes: the model is slow to run")
                continue
            self.say(f"trying other sizes of '{axis}'")
            ran = [
                size for size in (base[axis] + 3, 2 * base[axis], 1) if size != base[axis] and self._try({axis: size})
            ]
            if not ran:
                stuck.append(axis)
            elif axis in self._image_sizes() and base[axis] + 3 not in ran and 2 * base[axis] in ran:
                self._find_step(axis)
        tied = {size: [axis for axis in stuck if base[axis] == size] for size in {base[axis] for axis in stuck}}
        for size, axes in sorted(tied.items()):
            if len(axes) > 1 and self._try(dict.fromkeys(axes, size + 3)):
                self.notes.append(f"axes {_quoted(axes)} only run at equal sizes")
                continue
            self.notes += [f"axis '{axis}' is declared dynamic but only size {size} was seen to run" for axis in axes]

    def _find_step(self, axis: str) -> None:
        """Find out of what an axis must be a multiple, when it runs at some sizes only."""
        base = self.feeder.defaults[axis]
        for step in STEPS:
            if base % step == 0 and not self._late() and self._try({axis: base + step}):
                self.steps[axis] = step
                self.notes.append(f"axis '{axis}' runs at multiples of {step} only")
                return

    def find_limits(self, tables: Sequence[int]) -> None:
        """Find the longest sequence when a table of positions gives a size to try."""
        axis = next((axis for axis in self._free_axes() if role_of(axis) == "sequence"), None)
        if axis is None or any(role_of(other) == "past" for other in self.feeder.axes):
            return
        ones = {other: 1 for other in self._free_axes() if role_of(other) == "batch"}
        for rows in tables:
            for limit in (rows, rows - 2):  # RoBERTa and OPT leave the first two rows of their table unused
                if not 1 < limit <= MAX_LIMIT_PROBE or self._late():
                    continue
                if self._runs(self.feeder, {**ones, axis: limit}) and not self._runs(
                    self.feeder, {**ones, axis: limit + 1}
                ):
                    self.feeder = replace(self.feeder, limits={axis: limit})
                    return

    def name_outputs(self, outputs: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
        """Yield the outputs with each axis as the file names it, or as the runs show it."""
        self._run_distinct()
        for spec in outputs:
            shapes = [(sizes, found[spec.name].shape) for sizes, found in self._outputs if self._usual(sizes)]
            rank = len(shapes[0][1])
            declared: Sequence[int | str] = spec.axes if len(spec.axes) == rank else ("",) * rank
            axes = tuple(
                self._output_axis(spec.name, index, axis, [(sizes, shape[index]) for sizes, shape in shapes])
                for index, axis in enumerate(declared)
            )
            yield replace(spec, axes=axes)

    def _usual(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether sizes are multiples of what they must be: a side of 1 may run all the same, by broadcasting."""
        return all(sizes[axis] % step == 0 for axis, step in self.steps.items())

    def _output_axis(
        self, name: str, index: int, declared: int | str, seen: Sequence[tuple[Mapping[str, int], int]]
    ) -> int | str:
        found = {size for _, size in seen}
        if declared != "":
            expected = [sizes.get(declared, size) if isinstance(declared, str) else declared for sizes, size in seen]
            if expected == [size for _, size in seen]:
                return declared
            shown = ", ".join(str(size) for size in sorted(found))
            self.notes.append(f"output '{word(name)}' declares axis {index} as {declared}; runs gave {shown}")
        equal = [axis for axis in seen[0][0] if all(sizes[axis] == size for sizes, size in seen)]
        if equal and len(seen) > 1:
            return equal[0]
        return found.pop() if len(found) == 1 else _own_axis(name, index)

    def _run_distinct(self) -> None:
        """Run once more with a size of its own for each axis, so that an output axis can be told apart."""
        free = self._free_axes()
        primes = itertools.cycle((3, 11, 5, 13, 7, 17))
        image = {axis: 32 * (3 + place) for place, axis in enumerate(self._image_sizes())}
        self._try({axis: image.get(axis) or next(primes) for axis in free})

    def _try(self, sizes: Mapping[str, int]) -> bool:
        outputs = self._runs(self.feeder, sizes)
        if outputs is None:
            return False
        self._keep(self.feeder.resolve(sizes), outputs)
        return True

    def _runs(self, feeder: GraphFeeder, sizes: Mapping[str, int]) -> Feeds | None:
        try:
            return self.reference.run(feeder.make(sizes))
        except InputError as error:
            logger.debug("sizes %s do not run: %s", dict(sizes), error)
            return None

    def _keep(self, sizes: dict[str, int], outputs: Feeds) -> None:
        if sizes not in self.proved:
            self.proved.append(sizes)
            # shapes are all that is looked at later; a broadcast zero keeps none of the memory
            shapes = {name: np.broadcast_to(np.zeros(()), value.shape) for name, value in outputs.items()}
            self._outputs.append((sizes, shapes))

    def _late(self) -> bool:
        return time.monotonic() > self._deadline


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


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
        "sha256": _sha256(checked.path),
        "external_sha256": {location: _sha256(file) for location, file in sorted(checked.external.items())},
        "producer": " ".join(part for part in (proto.producer_name, proto.producer_version) if part),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "ir_version": proto.ir_version,
        "onnxruntime": ort.__version__,
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
