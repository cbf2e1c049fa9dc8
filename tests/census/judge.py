"""Compare an artifact with transformers' own model, called plainly, on inputs that the export did not see."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.census.checkpoint import ORDINARY, auto_class, end_of, tensors_of, words_of
from tests.census.heads import Pair

SIZES: tuple[tuple[int, int], ...] = ((1, 5), (2, 17), (3, 40))  # rows and tokens
STEPS = 6  # tokens that a decoder behind an encoder is given
BOX = 1000  # corners of boxes lie below

Arrays = dict[str, Any]  # by name, NumPy arrays of any dtype


class NotComparedError(Exception):
    """What the artifact takes or gives is not known here."""


@dataclass(frozen=True)
class Judgement:
    """What the comparison found.

    Attributes:
        worst: the largest error of any output at any size, relative to the output's largest number.
        where: the output and the size of it.
        compared: outputs that both have.
        attention: attentions that torch computed in one call.
        fused: attentions of the artifact that are one operator.
        total: those and the ones still spelled out.
    """

    worst: float
    where: str
    compared: tuple[str, ...]
    attention: int = 0
    fused: int = 0
    total: int = 0


@dataclass
class Errors:
    """The worst error so far, and what was compared."""

    worst: float = 0.0
    where: str = ""
    compared: set[str] = field(default_factory=set)

    def add(self, name: str, found: Any, wanted: Any, at: str) -> None:
        """Compare one output."""
        self.compared.add(name)
        error = relative_error(found, wanted)
        if not error <= self.worst:
            self.worst, self.where = error, f"{name} at {at}"


def relative_error(found: Any, wanted: Any) -> float:
    """Return the largest difference relative to the largest number wanted; infinite for other shapes or NaN."""
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    left, right = found.astype(np.float64), wanted.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    difference = float(np.max(np.abs(np.where(same, 0.0, left) - np.where(same, 0.0, right))))
    scale = float(np.max(np.abs(right[np.isfinite(right)]), initial=0.0)) or 1.0
    return difference / scale if np.isfinite(difference) else float("inf")


def judge(pair: Pair, checkpoint: Path, artifact: Path, shapes: Mapping[str, Sequence[int]]) -> Judgement:
    """Compare the artifact of a checkpoint with torch.

    Args:
        pair: what was made.
        checkpoint: its folder.
        artifact: what optimizing it wrote.
        shapes: of inputs that torch was called with when the checkpoint was made, for axes without a name known here.

    Raises:
        NotComparedError: the two have no output in common, or an input is not known.
    """
    network = auto_class(pair).from_pretrained(checkpoint, dtype="float32").eval()
    io = json.loads((artifact / "io.json").read_text(encoding="utf-8"))
    drawer = Drawer(words_of(network.config), _pad(network.config), end_of(network.config), shapes)
    graphs = io.get("graphs") or {"model": {**io, "file": io.get("file", "model.onnx")}}
    errors, attention = Errors(), 0
    for seed, (rows, tokens) in enumerate(SIZES):
        asked = Asked(artifact, network, drawer.at(rows, tokens, seed), errors)
        if set(graphs) == {"encoder", "decoder"}:
            attention = _paired(asked, graphs, io["decoding"])
        elif any(spec["meaning"] == "past" for spec in graphs.get("model", {}).get("inputs", ())):
            attention = _cached(asked, graphs["model"])
        else:
            attention = _plain(asked, graphs)
    if not errors.compared:
        raise NotComparedError("the artifact has no output that transformers names alike")
    fused, total = blocks_of(artifact)
    return Judgement(errors.worst, errors.where, tuple(sorted(errors.compared)), attention, fused, total)


def blocks_of(artifact: Path) -> tuple[int, int]:
    """Return how many attentions of an artifact are one operator, and of how many."""
    import onnx_ir as ir

    from onnxopt.graph.blocks import count_blocks

    counts = [count_blocks(ir.load(path))["attention"] for path in sorted(artifact.glob("*.onnx"))]
    return sum(one.fused for one in counts), sum(one.total for one in counts)


def _pad(config: Any) -> int:
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(inner, "pad_token_id", None) or 0)


@dataclass(frozen=True)
class Drawer:
    """Makes inputs.

    Attributes:
        words: ids of words are below.
        pad: the id at places that a mask leaves out.
        end: the id of the last place of a text; None where texts do not end with a mark.
        shapes: of inputs as torch was called with them before.
        rows: of the batch.
        tokens: of a text.
        seed: of what is drawn.
        padded: rows behind the first end earlier, where there is a mask.
    """

    words: int
    pad: int
    end: int | None
    shapes: Mapping[str, Sequence[int]]
    rows: int = 1
    tokens: int = 1
    seed: int = 0

    def at(self, rows: int, tokens: int, seed: int) -> Drawer:
        """Return one for a size."""
        return Drawer(self.words, self.pad, self.end, self.shapes, rows, tokens, seed)

    def draw(self, inputs: Sequence[Mapping[str, Any]], sizes: Mapping[str, Any], *, padded: bool) -> Arrays:
        """Return an array for every input of a graph; the rows of a padded text end earlier one after the other.

        Raises:
            NotComparedError: for an input whose numbers mean something that is not known here.
        """
        rng = np.random.default_rng(11 + self.seed)
        made: Arrays = {}
        mask = self._mask(padded=padded and any(one["meaning"] == "mask" for one in inputs))
        for one in inputs:
            shape = tuple(self._size(one, axis, place, sizes) for place, axis in enumerate(one["axes"]))
            made[one["name"]] = self._values(one, shape, mask, rng).astype(one["dtype"])
        return made

    def _mask(self, *, padded: bool) -> Any:
        mask = np.ones((self.rows, self.tokens), np.int64)
        for row in range(1, self.rows if padded else 1):
            mask[row, max(1, self.tokens - 2 * row - 1) :] = 0
        return mask

    def _size(self, one: Mapping[str, Any], axis: Any, place: int, sizes: Mapping[str, Any]) -> int:
        """Return the size of an axis: rows, tokens, the one it was called with, or the least that is promised."""
        if isinstance(axis, int):
            return axis
        if axis in ("batch", "batch_size"):
            return self.rows
        if axis in ("sequence", "total_sequence"):
            return self.tokens
        if axis == "past_sequence":
            return 0
        known = self.shapes.get(one["name"], ())
        least, most = (int(sizes.get(axis, {}).get(key) or 0) for key in ("least", "most"))
        wanted = int(known[place]) if place < len(known) else max(least, 4)
        if axis in ("samples", "time", "frames") and (not most or wanted * 2 <= most):
            wanted += wanted * self.seed // 2
        return max(least, min(wanted, most) if most else wanted)

    def _values(self, one: Mapping[str, Any], shape: tuple[int, ...], mask: Any, rng: np.random.Generator) -> Any:
        name, meaning = one["name"], one["meaning"]
        fits = shape[-1:] == mask.shape[1:] and shape[:1] == mask.shape[:1]
        if meaning == "mask" or name.endswith("mask"):
            flat = mask if fits else np.ones((shape[0], shape[-1]))
            return np.broadcast_to(flat.reshape(shape[0], *[1] * (len(shape) - 2), shape[-1]), shape)
        if name.endswith("input_ids"):
            ids = rng.integers(ORDINARY, self.words, shape)
            if self.end is not None and not name.startswith("decoder"):
                lasts = mask.sum(-1) - 1 if fits else np.full(shape[0], shape[-1] - 1)
                ids[np.arange(shape[0]), ..., lasts] = self.end
            kept = mask.reshape(shape[0], *[1] * (len(shape) - 2), shape[-1]) if fits else 1
            return np.where(kept, ids, self.pad)
        if name == "position_ids":
            return np.broadcast_to(np.arange(shape[-1]), shape)
        if name == "bbox":
            first, second = rng.integers(0, BOX // 2, (*shape[:-1], 2)), rng.integers(BOX // 2, BOX, (*shape[:-1], 2))
            return np.concatenate([first, second], -1) * (mask[..., None] if shape[:2] == mask.shape else 1)
        if "float" in one["dtype"]:
            return rng.standard_normal(shape)
        if meaning == "types" or name == "token_type_ids":
            types = np.zeros(shape, np.int64)
            types[..., shape[-1] // 2 :] = 1
            return types * (mask.reshape(shape[0], *[1] * (len(shape) - 2), -1) if fits else 1)
        if one["dtype"] == "bool":
            return np.ones(shape)
        raise NotComparedError(f"nothing is known of the input {name}")


@dataclass(frozen=True)
class Asked:
    """What is asked at one size.

    Attributes:
        artifact: the folder.
        network: torch's own model.
        drawer: makes the inputs.
        errors: takes what is found.
    """

    artifact: Path
    network: Any
    drawer: Drawer
    errors: Errors


def _session(artifact: Path, graph: Mapping[str, Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(artifact / graph["file"]), options, providers=["CPUExecutionProvider"])


def _run(artifact: Path, graph: Mapping[str, Any], feeds: Arrays) -> Arrays:
    session = _session(artifact, graph)
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _answer(network: Any, feeds: Mapping[str, Any], **more: Any) -> tuple[Arrays, int]:
    """Call torch; return its answer, and how many attentions it computed."""
    import torch
    from torch.overrides import TorchFunctionMode

    counted: list[None] = []

    class Counting(TorchFunctionMode):
        """Counts attentions: the operator itself, or a softmax over pairs of places."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.scaled_dot_product_attention:
                counted.append(None)
                with torch._C.DisableTorchFunction():
                    return function(*args, **(kwargs or {}))
            if getattr(function, "__name__", "") == "softmax" and args and args[0].ndim >= 4:
                counted.append(None)
            return function(*args, **(kwargs or {}))

    accepted = inspect.signature(network.forward).parameters
    given = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items() if name in accepted}
    fixed = {"use_cache": False} if "use_cache" in accepted else {}
    with torch.no_grad(), Counting():
        answer = network(**given, **more, **fixed)
    return {name: value.float().numpy() for name, value in tensors_of(answer).items()}, len(counted)


def _kept(spec: Mapping[str, Any], array: Any, feeds: Arrays, ids_axis: object) -> Any:
    """Return the places of an output that are no padding."""
    mask = feeds.get("attention_mask")
    places = [place for place, axis in enumerate(spec["axes"]) if axis == ids_axis]
    if mask is None or mask.ndim != 2 or len(places) != 1 or array.ndim <= places[0] or mask.all():
        return array
    if array.shape[places[0]] != mask.shape[1] or array.shape[0] != mask.shape[0]:
        return array
    return np.moveaxis(array, places[0], 1)[mask.astype(bool)]


def _plain(asked: Asked, graphs: Mapping[str, Any]) -> int:
    """Compare graphs that answer at once; what one gives another takes by its name."""
    drawer = asked.drawer
    feeds: Arrays = {}
    found: dict[str, tuple[Mapping[str, Any], Any, object]] = {}
    for graph in graphs.values():
        sizes = graph.get("sizes", {})
        wanted = [one for one in graph["inputs"] if one["name"] not in found]
        feeds |= drawer.draw(wanted, sizes, padded=True)
        before = {name: array for name, (_, array, _) in found.items()}
        given = {one["name"]: (before | feeds)[one["name"]] for one in graph["inputs"]}
        ids = next((one["axes"][-1] for one in graph["inputs"] if one["name"].endswith("input_ids")), None)
        outputs = {one["name"]: one for one in graph["outputs"]}
        for name, array in _run(asked.artifact, graph, given).items():
            found[name] = (outputs.get(name, {"axes": []}), array, ids)
    answer, attention = _answer(asked.network, feeds)
    at = f"{drawer.rows}x{drawer.tokens}"
    for name, (spec, array, ids) in found.items():
        if name in answer and array.dtype.kind == "f":
            asked.errors.add(name, _kept(spec, array, feeds, ids), _kept(spec, answer[name], feeds, ids), at)
    return attention


def _cached(asked: Asked, graph: Mapping[str, Any]) -> int:
    """Compare a decoder: all tokens but the last, then that one behind the cache, with torch on all at once."""
    drawer, inputs = asked.drawer, graph["inputs"]
    whole = drawer.draw([one for one in inputs if one["meaning"] != "past"], graph.get("sizes", {}), padded=False)
    answer, attention = _answer(asked.network, whole)
    past = drawer.draw([one for one in inputs if one["meaning"] == "past"], graph.get("sizes", {}), padded=False)
    past = {name: np.zeros_like(value) for name, value in past.items()}
    end = drawer.tokens
    for start, stop in ((0, end - 1), (end - 1, end)):
        feeds = {name: value[..., start:stop] for name, value in whole.items()} | past
        if "attention_mask" in whole:
            feeds["attention_mask"] = whole["attention_mask"][:, :stop]
        found = _run(asked.artifact, graph, feeds)
        past = _next_past(past, found)
        logits = found["logits"]
        asked.errors.add("logits", logits, answer["logits"][:, stop - logits.shape[1] : stop], f"{drawer.rows}x{stop}")
    return attention


def _next_past(past: Arrays, found: Arrays) -> Arrays:
    """Return the past of the next step.

    Raises:
        NotComparedError: an output for one of them is missing.
    """
    made = {}
    for name in past:
        present = name.replace("past_key_values", "present", 1)
        if present not in found:
            raise NotComparedError(f"no output is the next {name}")
        made[name] = found[present]
    return made


def _paired(asked: Asked, graphs: Mapping[str, Any], decoding: Mapping[str, Any]) -> int:
    """Compare an encoder with the decoder behind it, token by token at the end, with torch on all at once."""
    encoder, decoder, drawer = graphs["encoder"], graphs["decoder"], asked.drawer
    first = drawer.draw(encoder["inputs"], encoder.get("sizes", {}), padded=True)
    seen = _run(asked.artifact, encoder, first)
    rng = np.random.default_rng(drawer.seed)
    tokens = rng.integers(ORDINARY, drawer.words, (drawer.rows, STEPS))
    answer, attention = _answer(asked.network, first | {"decoder_input_ids": tokens})
    given: Arrays = {}
    past: Arrays = {}
    for one in decoder["inputs"]:
        name = one["name"]
        if name in decoding.get("from_encoder", {}):
            given[name] = seen[decoding["from_encoder"][name]]
        elif name == decoding.get("mask"):
            given[name] = first["attention_mask"]
        elif one["meaning"] == "past":
            shape = [drawer.rows if axis in ("batch", "batch_size") else axis for axis in one["axes"]]
            past[name] = np.zeros([axis if isinstance(axis, int) else 0 for axis in shape], one["dtype"])
    for start, stop in ((0, STEPS - 1), (STEPS - 1, STEPS)):
        feeds: Arrays = {"input_ids": tokens[:, start:stop], **given, **past}
        if any(one["name"] == "attention_mask" for one in decoder["inputs"]):
            feeds["attention_mask"] = np.ones((drawer.rows, stop), np.int64)
        found = _run(asked.artifact, decoder, feeds)
        past = _next_past(past, found)
        logits = found["logits"]
        at = f"{drawer.rows}x{drawer.tokens}, {stop} behind"
        asked.errors.add("logits", logits, answer["logits"][:, stop - logits.shape[1] : stop], at)
    return attention
