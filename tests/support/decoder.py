"""Build tiny decoder graphs with a cache, their artifact folders, and the same decoder in NumPy, without torch.

Four forms of one network with learned positions and grouped heads: `shared` attends with GroupQueryAttention, whose
past and present may be one buffer; `packed` does too, and moves each row's real tokens to the front; `growing` joins
past and new keys with standard operators; `right` wants padding behind the prompts. `bigram` gives logits that depend
on the newest token alone, so that its probabilities are known.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxopt.records.manifest import DecodingRecord, FileRecord, Manifest
from onnxopt.run.session import Session
from onnxopt.spec import Budget, Signature, Target, Workload

Form = Literal["shared", "packed", "growing", "right"]
FORMS: tuple[Form, ...] = ("shared", "packed", "growing")  # those that keep the contract of an artifact
Positions = Literal["last", "all"]
Floats = npt.NDArray[np.float32]

LETTERS = 256  # one token per byte
END, PAD = 256, 257
VOCABULARY = 258
CONTEXT = 48
HEADS, KV_HEADS, SIZE, LAYERS = 4, 2, 8, 2
WIDTH = HEADS * SIZE
HIDDEN = -1e9  # added to the score of a padded key
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class TinyDecoder:
    """Random weights, and what they compute: causal attention over one row without padding."""

    seed: int = 0
    weights: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shapes = {"words": (VOCABULARY, WIDTH), "places": (CONTEXT, WIDTH), "head": (WIDTH, VOCABULARY)}
        for layer in range(LAYERS):
            for name, width in (("q", WIDTH), ("k", KV_HEADS * SIZE), ("v", KV_HEADS * SIZE), ("o", WIDTH)):
                shapes[f"{name}{layer}"] = (WIDTH, width)
        for name, shape in shapes.items():
            scale = 1.0 if name in {"words", "places"} else shape[0] ** -0.5
            self.weights[name] = (rng.standard_normal(shape) * scale).astype(np.float32)

    def logits(self, ids: Sequence[int]) -> Floats:
        """Return float32 [tokens, vocabulary]."""
        w, count = self.weights, len(ids)
        x = w["words"][list(ids)] + w["places"][:count]
        causal = np.triu(np.full((count, count), -np.inf, np.float32), k=1)
        for layer in range(LAYERS):
            q = (x @ w[f"q{layer}"]).reshape(count, HEADS, SIZE).transpose(1, 0, 2)
            k, v = (
                np.repeat((x @ w[f"{name}{layer}"]).reshape(count, KV_HEADS, SIZE), HEADS // KV_HEADS, axis=1)
                .transpose(1, 0, 2)
                for name in "kv"
            )  # fmt: skip
            scores = q @ k.transpose(0, 2, 1) * SIZE**-0.5 + causal
            powers = np.exp(scores - scores.max(-1, keepdims=True))
            seen = (powers / powers.sum(-1, keepdims=True)) @ v
            x = x + seen.transpose(1, 0, 2).reshape(count, WIDTH) @ w[f"o{layer}"]
        return np.asarray(x @ w["head"], np.float32)

    def greedy(self, prompt: Sequence[int], count: int, ends: frozenset[int] = frozenset()) -> list[int]:
        """Return the likeliest tokens after a prompt, the whole row computed afresh for each."""
        ids = list(prompt)
        while len(ids) < len(prompt) + count and len(ids) <= CONTEXT:
            token = int(self.logits(ids)[-1].argmax())
            if token in ends:
                break
            ids.append(token)
        return ids[len(prompt) :]

    def nll(self, ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return float64 [tokens - 1]: the negative log likelihood of each token but the first."""
        rows = self.logits(ids)[:-1].astype(np.float64)
        peak = rows.max(-1)
        total = peak + np.log(np.exp(rows - peak[:, None]).sum(-1))
        return np.asarray(total - rows[np.arange(len(rows)), list(ids[1:])])


class _Graph:
    """Collects nodes; each method returns the name of what it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, value: object, dtype: Any = np.int64) -> str:
        name = f"constant{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, array: Floats) -> str:
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:
        given = list(outputs) or [f"made{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), given, domain=domain, **attributes))
        return given[0]


def decoder_model(tiny: TinyDecoder, form: Form = "shared", logits: Positions = "last") -> onnx.ModelProto:
    """Return the network as a graph with a cache."""
    g, w = _Graph(), tiny.weights
    new = g.op("Shape", "input_ids", start=1, end=2)
    total = g.op("Shape", "attention_mask", start=1, end=2)
    past = g.op("Sub", total, new)
    counted = g.op("Sub", g.op("CumSum", "attention_mask", g.constant(1)), g.constant(1))
    every = g.op("Max", counted, g.constant(0))
    places, ids = g.op("Slice", every, past, total, g.constant([1])), "input_ids"
    fresh = g.op("Slice", "attention_mask", past, total, g.constant([1]))
    if form == "packed":
        order = _real_first(g, fresh, new)
        places, ids = (g.op("GatherElements", one, order, axis=1) for one in (places, ids))
    x = g.op(
        "Add",
        g.op("Gather", g.weight("words", w["words"]), ids),
        g.op("Gather", g.weight("places", w["places"]), places),
    )
    bias = "" if form in {"packed", "right"} else _bias(g, form, past, new, total)
    for layer in range(LAYERS):
        q, k, v, o = (g.weight(f"{name}{layer}", w[f"{name}{layer}"]) for name in "qkvo")
        projected = [g.op("MatMul", x, one) for one in (q, k, v)]
        attend = _joined if form == "growing" else _grouped
        x = g.op("Add", x, g.op("MatMul", attend(g, layer, projected, bias, total), o))
    if form == "packed":  # each position fetches what its token has become
        place = g.op("Max", g.op("Sub", g.op("CumSum", fresh, g.constant(1)), g.constant(1)), g.constant(0))
        x = g.op("GatherND", x, g.op("Unsqueeze", place, g.constant([2])), batch_dims=1)
    if logits == "last":
        x = g.op("Slice", x, g.constant([-1]), g.constant([2**31]), g.constant([1]))
    g.op("MatMul", x, g.weight("head", w["head"]), outputs=["logits"])
    return _model(g, "sequence" if logits == "all" else 1)


def _real_first(g: _Graph, fresh: str, new: str) -> str:
    """Return int64 [batch, sequence]: the places of the real tokens in their order, then the others."""
    count = g.op("Squeeze", new, g.constant([0]))
    column = g.op("Range", g.constant(0), count, g.constant(1))
    rank = g.op("Sub", g.op("Mul", fresh, count), column)
    g.op("TopK", rank, new, outputs=[f"{rank}_values", f"{rank}_order"], axis=1)
    return f"{rank}_order"


def _bias(g: _Graph, form: Form, past: str, new: str, total: str) -> str:
    """Return float32 [batch, 1, sequence, total]: what is added to the scores."""
    seen = g.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = g.op("Mul", g.op("Sub", g.constant(1.0, np.float32), seen), g.constant(HIDDEN, np.float32))
    padding = g.op("Unsqueeze", hidden, g.constant([1, 2]))
    if form == "shared":  # the kernel is causal by itself, and wants a row per query
        one = g.constant([1])
        return g.op("Expand", padding, g.op("Concat", one, one, new, one, axis=0))
    squeeze = g.constant([0])
    first, last = g.op("Squeeze", past, squeeze), g.op("Squeeze", total, squeeze)
    rows = g.op("Unsqueeze", g.op("Range", first, last, g.constant(1)), g.constant([1]))
    columns = g.op("Range", g.constant(0), last, g.constant(1))
    later = g.op("Cast", g.op("Greater", columns, rows), to=TensorProto.FLOAT)
    return g.op("Add", padding, g.op("Mul", later, g.constant(HIDDEN, np.float32)))


def _grouped(g: _Graph, layer: int, projected: list[str], bias: str, total: str) -> str:
    count = g.op("Cast", g.op("Squeeze", total, g.constant([0])), to=TensorProto.INT32)
    rows = g.op("Shape", "input_ids", start=0, end=1)
    tokens = g.op("ReduceSum", "attention_mask", g.constant([1]), keepdims=0)
    lengths = g.op("Expand", count, rows) if bias else g.op("Cast", tokens, to=TensorProto.INT32)
    newest = g.op("Max", g.op("Sub", lengths, g.constant(1, np.int32)), g.constant(0, np.int32))  # an empty row
    return g.op(
        "GroupQueryAttention",
        *projected,
        *(f"past_key_values.{layer}.{part}" for part in ("key", "value")),
        newest,
        count,
        *(("", "", "", bias) if bias else ()),
        outputs=[f"attended{layer}", f"present.{layer}.key", f"present.{layer}.value"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=0,
    )


def _joined(g: _Graph, layer: int, projected: list[str], bias: str, total: str) -> str:
    heads = []
    for name, count in zip(projected, (HEADS, KV_HEADS, KV_HEADS), strict=True):
        split = g.op("Reshape", name, g.constant([0, 0, count, SIZE]))
        heads.append(g.op("Transpose", split, perm=[0, 2, 1, 3]))
    both = []
    for part, fresh in zip(("key", "value"), heads[1:], strict=True):
        past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
        g.op("Concat", past, fresh, outputs=[present], axis=2)
        grouped = g.op("Unsqueeze", present, g.constant([2]))
        spread = g.op("Expand", grouped, g.constant([1, 1, HEADS // KV_HEADS, 1, 1]))
        both.append(g.op("Reshape", spread, g.constant([0, HEADS, -1, SIZE])))
    scores = g.op("MatMul", heads[0], g.op("Transpose", both[0], perm=[0, 1, 3, 2]))
    scaled = g.op("Add", g.op("Mul", scores, g.constant(SIZE**-0.5, np.float32)), bias)
    seen = g.op("MatMul", g.op("Softmax", scaled, axis=-1), both[1])
    return g.op("Reshape", g.op("Transpose", seen, perm=[0, 2, 1, 3]), g.constant([0, 0, WIDTH]))


def bigram_model(table: Floats, logits: Positions = "all", *, cached: bool = True) -> onnx.ModelProto:
    """Return a graph whose logits are a row of `table` [vocabulary, vocabulary] by the newest token."""
    g = _Graph()
    found = g.op("Gather", g.weight("table", table), "input_ids")
    if logits == "last":
        found = g.op("Slice", found, g.constant([-1]), g.constant([2**31]), g.constant([1]))
    zero = g.op("Cast", g.op("ReduceSum", "attention_mask", keepdims=0), to=TensorProto.FLOAT)
    g.op("Add", found, g.op("Mul", zero, g.constant(0.0, np.float32)), outputs=["logits"])
    if cached:
        ids = g.op("Cast", g.op("Unsqueeze", "input_ids", g.constant([1, 3])), to=TensorProto.FLOAT)
        for part in ("key", "value"):
            g.op("Concat", f"past_key_values.0.{part}", ids, outputs=[f"present.0.{part}"], axis=2)
    return _model(g, "sequence" if logits == "all" else 1, layers=1 if cached else 0, heads=1, size=1, width=len(table))


def _model(
    g: _Graph,
    positions: str | int,
    *,
    layers: int = LAYERS,
    heads: int = KV_HEADS,
    size: int = SIZE,
    width: int = VOCABULARY,
) -> onnx.ModelProto:
    def of(name: str, kind: int, *axes: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, list(axes))

    names = [(f"past_key_values.{n}.{part}", f"present.{n}.{part}") for n in range(layers) for part in ("key", "value")]
    mask_axis = "total_sequence" if layers else "sequence"
    inputs = [
        of("input_ids", TensorProto.INT64, "batch", "sequence"),
        of("attention_mask", TensorProto.INT64, "batch", mask_axis),
        *(of(past, TensorProto.FLOAT, "batch", heads, "past_sequence", size) for past, _ in names),
    ]
    outputs = [
        of("logits", TensorProto.FLOAT, "batch", positions, width),
        *(of(present, TensorProto.FLOAT, "batch", heads, "total_sequence", size) for _, present in names),
    ]
    graph = helper.make_graph(g.nodes, "decoder", inputs, outputs, g.tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def byte_tokenizer(folder: Path) -> Path:
    """Write a byte-level tokenizer without merges: a token per byte, `<end>` and `<pad>` behind them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<pad>", special=True)])
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    return folder


def decoder_artifact(
    folder: Path,
    model: onnx.ModelProto,
    *,
    shared: bool,
    logits: Positions = "last",
    context: int = CONTEXT,
    chat: str | None = None,
    tokenizer: bool = True,
    ends: Sequence[int] = (END,),
    origin: dict[str, Any] | None = None,
    decoding: bool = True,
    crossings: tuple[int, ...] = (),
) -> Path:
    """Write a folder as `onnxopt optimize` would: model, tokenizer, configs, manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    if tokenizer:
        byte_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": list(ends)}))
    settings = {"eos_token": "<end>" if ends else None, "chat_template": chat}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": list(ends), "do_sample": True, "temperature": 0.5, "top_k": 5})
    )
    session = Session(folder, target=Target(), threads=1)
    files = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
    manifest = Manifest(
        name=folder.name,
        origin=origin or {},
        task="text-generation",
        signature=Signature(session.inputs, session.outputs),
        decoding=DecodingRecord(
            shared_buffers=shared, logits=logits, context_length=context, vocabulary=VOCABULARY, crossings=crossings
        )
        if decoding
        else None,
        target=Target(),
        workload=Workload(),
        budget=Budget(),
        files={
            path.name: FileRecord(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size_bytes=path.stat().st_size)
            for path in files
        },
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


def folder_of(root: Path, form: Form, logits: Positions = "last", **options: Any) -> Path:
    """Write the artifact of `TinyDecoder()` in one form, and return its folder."""
    model = decoder_model(TinyDecoder(), form, logits)
    return decoder_artifact(root / f"{form}-{logits}", model, shared=form != "growing", logits=logits, **options)


def file_of(root: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    """Write a model file and return it."""
    path = Path(os.fspath(root)) / name
    onnx.save(model, str(path))
    return path
