"""Write small decoders with a cache as ONNX text, run passes on them, and prove the result as a user would use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxopt.graph import known_dims
from onnxopt.graph.cache import CONTEXT_KEY, LAYOUT_KEY, PACKED
from onnxopt.load.feeds import TextFeeder, Tokens
from onnxopt.load.loaded import Loaded
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.cases import Case, cases_of
from onnxopt.proof.driver import Driver
from onnxopt.proof.observations import generated, observations_of
from onnxopt.proof.prepare import prepare
from onnxopt.proof.whole import prove
from onnxopt.records.ledger import PassEntry
from onnxopt.records.rewrites import ProofRecord
from onnxopt.rewrite.registry import get
from onnxopt.spec import Array, Budget, Feeds, Padding, Signature, TensorSpec
from tests.support.rules import parse

VOCABULARY = 40
LONGEST = 160
_NAME = re.compile(r"(past|present)_(\d+)_(key|value)")  # ONNX text has no dots in names

LENGTHS = (
    "new = Shape<start=1, end=2>(input_ids) total = Shape<start=1, end=2>(attention_mask) past = Sub(total, new)"
    " to = Squeeze(total) since = Squeeze(past)"
)
PLACES = "keys = Range(zero, to, step) seen = Range(since, to, step) queries = Unsqueeze(seen, last)"
REAL = "kept = Cast<to=9>(attention_mask) real = Unsqueeze(kept, middle)"
CAUSAL = f"{PLACES} {REAL} causal = LessOrEqual(keys, queries) mask = And(real, causal)"
WINDOW = (
    f"{PLACES} {REAL} causal = LessOrEqual(keys, queries) from = Sub(queries, window) near = Greater(keys, from)"
    " both = And(causal, near) mask = And(real, both)"
)
ADDED = CAUSAL.replace("mask = And(real, causal)", "allowed = And(real, causal) mask = Where(allowed, nought, lowest)")
COUNTED = (
    "sums = CumSum(attention_mask, step) less = Sub(sums, step) places = Max(less, zero)"
    " positions = Slice(places, past, total, one)"
)
TABLES = (
    "floats = Cast<to=1>(positions) wide = Unsqueeze(floats, last) angles = Mul(wide, frequencies)"
    " cos = Cos(angles) sin = Sin(angles)"
)
LEARNED = "learned = Gather(places_table, positions) x0 = Add(words, learned)"


@dataclass(frozen=True)
class Decoder:
    """A decoder in text.

    Attributes:
        layers: how many attentions.
        heads: of queries, keys and values.
        size: of a head.
        value_size: of a head of values, where it is another.
        mask: nodes that make `mask` of `attention_mask`, `new`, `total`, `past`.
        positions: nodes that make `positions` [batch, sequence]; empty for a decoder without any.
        start: nodes that make `x0` of `words`, and what else the layers need.
        turn: attributes of the rotary embeddings, None for a decoder without.
        attention: attributes.
        joined: Concats join past and new keys, instead of the attention.
        end: nodes that make `rows` of `x`, the last state, for the head.
        outputs: axes of the logits.
        more: further inputs.
        edits: what of the text becomes what.
        tail: further nodes.
        kind: type of keys, values and queries.
        weights: further constants, or others.
    """

    layers: int = 2
    heads: tuple[int, int] = (4, 2)
    size: int = 16
    value_size: int = 0
    mask: str = CAUSAL
    positions: str = COUNTED
    start: str = f"{TABLES} x0 = Identity(words)"
    turn: str | None = ""
    attention: str = "scale=0.3"
    joined: bool = False
    end: str = "rows = Slice(x, minus_one, end, one)"
    outputs: str = f"float[batch,1,{VOCABULARY}] logits"
    more: str = ""
    tail: str = ""
    edits: tuple[tuple[str, str], ...] = ()
    kind: str = "float"
    weights: Mapping[str, Array] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Of a token's state."""
        return self.heads[0] * self.size

    def text(self) -> str:
        """Return the graph."""
        groups, values = self.heads[1], self.value_size or self.size
        past, present = [], []
        for layer in range(self.layers):
            for part, width in (("key", self.size), ("value", values)):
                past.append(f"{self.kind}[batch,{groups},past_sequence,{width}] past_{layer}_{part}")
                present.append(f"{self.kind}[batch,{groups},total_sequence,{width}] present_{layer}_{part}")
        inputs = ["int64[batch,sequence] input_ids", "int64[batch,total_sequence] attention_mask", *past]
        layers = " ".join(self._layer(layer) for layer in range(self.layers))
        text = f"""
        g ({", ".join(inputs)}{self.more}) => ({", ".join([self.outputs, *present])}) {{
          {LENGTHS} {self.mask} {self.positions} words = Gather(words_table, input_ids) {self.start}
          {layers} x = Identity(x{self.layers}) {self.end} logits = MatMul(rows, head) {self.tail}
        }}"""
        for old, new in self.edits:
            assert old in text, old
            text = text.replace(old, new)
        return text

    def _layer(self, n: int) -> str:
        cast = "" if self.kind == "float" else "c"
        nodes = []
        for name in "qkv":
            nodes.append(f"{name}{n}p = MatMul(x{n}, {name}{n}w) {name}{n}s = Reshape({name}{n}p, {name}_split)")
            nodes.append(f"{name}{n}{cast}t = Transpose<perm=[0,2,1,3]>({name}{n}s)")
            if cast:
                nodes.append(f"{name}{n}t = Cast<to=10>({name}{n}ct)")
        for name in "qk":
            turned = f"RotaryEmbedding{f'<{self.turn}>' if self.turn else ''}({name}{n}t, cos, sin)"
            nodes.append(f"{name}{n}h = {turned if self.turn is not None else f'Identity({name}{n}t)'}")
        if self.joined:
            nodes.append(f"present_{n}_key = Concat<axis=2>(past_{n}_key, k{n}h)")
            nodes.append(f"present_{n}_value = Concat<axis=-2>(past_{n}_value, v{n}t)")
            nodes.append(f"a{n} = Attention<{self.attention}>(q{n}h, present_{n}_key, present_{n}_value, mask)")
        else:
            nodes.append(
                f"a{n}, present_{n}_key, present_{n}_value ="
                f" Attention<{self.attention}>(q{n}h, k{n}h, v{n}t, mask, past_{n}_key, past_{n}_value)"
            )
        merged = f"a{n}c" if cast else f"a{n}"
        nodes.append(f"{merged} = Cast<to=1>(a{n})" if cast else "")
        nodes.append(f"a{n}t = Transpose<perm=[0,2,1,3]>({merged}) a{n}r = Reshape(a{n}t, merge)")
        nodes.append(f"o{n} = MatMul(a{n}r, o{n}w) x{n + 1} = Add(x{n}, o{n})")
        return " ".join(nodes)

    def constants(self) -> dict[str, Array]:
        """Return weights and small constants."""
        count, groups, values = *self.heads, self.value_size or self.size
        generator = np.random.default_rng(3)

        def weight(*shape: int, scale: float = 1.0) -> Array:
            return (generator.standard_normal(shape) * scale).astype(np.float32)

        made = {
            "zero": np.array(0),
            "step": np.array(1),
            "one": np.array([1]),
            "two": np.array([2]),
            "last": np.array([-1]),
            "minus_one": np.array([-1]),
            "end": np.array([2**62]),
            "middle": np.array([1, 2]),
            "window": np.array(5),
            "nought": np.array(0, np.float32),
            "lowest": np.array(np.finfo(np.float32).min),
            "merge": np.array([0, 0, -1]),
            "q_split": np.array([0, 0, count, self.size]),
            "k_split": np.array([0, 0, groups, self.size]),
            "v_split": np.array([0, 0, groups, values]),
            "frequencies": (0.5 ** np.arange(self.size // 2)).astype(np.float32),
            "words_table": weight(VOCABULARY, self.width),
            "places_table": weight(LONGEST, self.width),
            "head": weight(self.width, VOCABULARY, scale=self.width**-0.5),
        }
        widths = {"q": count * self.size, "k": groups * self.size, "v": groups * values}
        for layer in range(self.layers):
            for name, width in widths.items():
                made[f"{name}{layer}w"] = weight(self.width, width, scale=self.width**-0.5)
            made[f"o{layer}w"] = weight(count * values, self.width, scale=(count * values) ** -0.5)
        return {**made, **self.weights}

    def model(self, *, opset: int = 23, context: int = LONGEST) -> ir.Model:
        """Return the graph with the cache's own names; `context` positions as its metadata says."""
        model = cached(self.text(), self.constants(), opset=opset)
        if context:
            model.graph.metadata_props[CONTEXT_KEY] = str(context)
        return model


def cached(text: str, weights: Mapping[str, Array], *, opset: int = 23) -> ir.Model:
    """Return the graph of a text, with those of the weights that it names, and the cache's own names."""
    used = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", text)}
    model = parse(text, used, opset=opset)
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        found = _NAME.fullmatch(value.name or "")
        if found is not None:
            kind = {"past": "past_key_values", "present": "present"}[found.group(1)]
            value.name = f"{kind}.{found.group(2)}.{found.group(3)}"
    return model


@dataclass(frozen=True)
class DecoderFeeder:
    """Text with positions counted in the mask, where they are an input."""

    inputs: tuple[TensorSpec, ...]

    def make(self, sizes: Mapping[str, int], padding: Padding = "none", seed: int = 0) -> Feeds:
        """Return one array per input."""
        feeds = TextFeeder(self.inputs, Tokens(VOCABULARY, longest=LONGEST)).make(sizes, padding, seed)
        if "position_ids" in feeds:
            counted = np.maximum(np.cumsum(feeds["attention_mask"], axis=1) - 1, 0)
            feeds["position_ids"] = counted[:, counted.shape[1] - feeds["input_ids"].shape[1] :]
        return feeds


@dataclass
class _Runner:
    """A graph as the reference."""

    model: ir.Model
    name: str = "the original"
    _runner: GraphRunner | None = None

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return every output by name."""
        self._runner = self._runner or GraphRunner(self.model)
        return self._runner.run(feeds)[0]


@dataclass
class Lowered:
    """A decoder that passes worked on.

    Attributes:
        loaded: the result, with the original as its reference.
        entries: one per pass.
    """

    loaded: Loaded
    entries: list[PassEntry]

    @property
    def model(self) -> ir.Model:
        """The result."""
        return self.loaded.model

    @property
    def ops(self) -> list[str]:
        """Operators in order."""
        return [node.op_type for node in self.model.graph]

    @property
    def applied(self) -> list[int]:
        """Changes that each pass made and that its proof let stay."""
        return [entry.applied for entry in self.entries]

    @property
    def rolled_back(self) -> list[str]:
        """What the proof of any pass turned down."""
        return [item.reason for entry in self.entries for item in entry.rolled_back]

    @property
    def reasons(self) -> list[str]:
        """Why passes held back, each once."""
        return list(dict.fromkeys(item.reason for entry in self.entries for item in entry.refused))

    @property
    def packed(self) -> bool:
        """Whether the graph says that its cache is packed."""
        return self.model.graph.metadata_props.get(LAYOUT_KEY) == PACKED

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return the outputs of the result."""
        return GraphRunner(self.model).run(feeds)[0]

    def nodes(self, op_type: str) -> list[ir.Node]:
        """Return the nodes of an operator."""
        return [node for node in self.model.graph if node.op_type == op_type]

    def prove(self, cases: Sequence[Case] | None = None) -> list[ProofRecord]:
        """Compare with the original at sizes that no pass has seen, and token by token, each on its own cache."""
        chosen = cases_of(self.loaded) if cases is None else cases
        return prove(_Runner(self.model).run, self.loaded, Budget(2e-5), chosen, packed=self.packed)


def signature_of(model: ir.Model) -> Signature:
    """Return the inputs and outputs of a graph."""

    def spec(value: ir.Value) -> TensorSpec:
        kind = value.dtype or ir.DataType.FLOAT
        return TensorSpec(value.name or "", kind.numpy().name, known_dims(value) or ())

    return Signature(tuple(map(spec, model.graph.inputs)), tuple(map(spec, model.graph.outputs)))


def lower(model: ir.Model, *steps: str, generating: bool = True) -> Lowered:
    """Run passes with their proof.

    Args:
        model: changed.
        steps: names of passes.
        generating: prove on what generating text asks for; False also on several tokens of a batch behind a past.
    """
    signature = signature_of(model)
    reference = _Runner(model.clone())
    loaded = Loaded("small", model, signature, reference, DecoderFeeder(signature.inputs), "text-generation")
    observations = observations_of(loaded)
    prepare(model)
    driver = Driver(model, generated(loaded) if generating else observations, signature=signature)
    entries = [driver.apply(get(name)) for name in steps]
    loaded.proved_sizes = ({"total_sequence": LONGEST},)
    return Lowered(loaded, entries)
