"""Build one tiny model of the census, export it by one exporter, and hand it to the pipeline."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxopt.host.quiet import quiet
from onnxopt.load.export import trace
from onnxopt.load.export.axes import prove_axes
from onnxopt.load.export.torch_model import TorchModel, TorchReference
from onnxopt.load.feeds import ImageFeeder, TextFeeder, Tokens
from onnxopt.load.loaded import Feeder, Loaded
from onnxopt.load.reference import OrtReference
from onnxopt.spec import AxisRange, Signature, TensorSpec
from tests.census.architectures import POSITIONS, VOCABULARY, Architecture
from tests.support.tiny import spread_weights

FORMAT = 1  # of the kept exports; a change of how models are built or traced makes it one more
EXPORTERS: dict[str, tuple[trace.Road, int]] = {
    "dynamo-23": ("dynamo", 23),
    "dynamo-18": ("dynamo", 18),
    "torchscript-17": ("torchscript", 17),
}
_MAIN = {
    "text": "input_ids",
    "image": "pixel_values",
    "wave": "input_values",
    "frames": "input_values",
    "mel": "input_features",
}


@dataclass(frozen=True)
class Exported:
    """An exported file with what is needed to feed it.

    Attributes:
        path: the file.
        signature: its inputs and outputs.
        example: the sizes it was traced with.
        longest: the longest sequence; 0 for no limit.
        proved_sizes: where it was equal to torch.
        unproved: why its axes are not proved; empty when they are.
    """

    path: Path
    signature: Signature
    example: dict[str, int]
    longest: int
    proved_sizes: tuple[dict[str, int], ...]
    unproved: str


def build(one: Architecture) -> TorchModel:
    """Make the tiny model with wide random weights, behind a flat face of tensors."""
    network, config = _network(one)
    inputs = _inputs(one, network, config)
    flat, outputs = _flatten(one, network, inputs)
    longest = POSITIONS - 2 if one.inputs == "text" else 0
    return TorchModel(flat, f"torch {one.name}", inputs, outputs, longest, (), config)


def by_transformers(one: Architecture, folder: Path) -> Path:
    """Export by transformers.exporters, fused for ONNX Runtime on the CPU.

    Raises:
        Exception: whatever the model or the exporter raises.
    """
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    network, config = _network(one)
    sizes = {"batch": 2, "sequence": 11, "samples": 400}
    sample = {}
    for spec in _inputs(one, network, config):
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
        sample[spec.name] = torch.ones(shape, dtype=torch.int64 if spec.dtype == "int64" else torch.float32)
    with quiet():
        OnnxExporter().export(network, sample, config=OnnxConfig(dynamic=True, ort_fusions="cpu")).save_pretrained(
            folder
        )
    return folder / "model.onnx"


def _network(one: Architecture) -> tuple[Any, Any]:
    import torch
    import transformers

    kind = getattr(transformers, one.auto)
    config = transformers.AutoConfig.for_model(one.model_type, **{**one.settings, **one.extra})
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
        # the grouped product of experts has no ONNX form; the batched one is the same sums
        experts = {"experts_implementation": "batched_mm"} if "num_local_experts" in one.extra else {}
        network = make(config, **experts)
        network = network.get_submodule(one.part) if one.part else network
        network = network.eval()
        spread_weights(network)
    return network, config


def _inputs(one: Architecture, network: Any, config: Any) -> tuple[TensorSpec, ...]:
    accepted = inspect.signature(network.forward).parameters
    main = _MAIN[one.inputs]
    if one.inputs == "text":
        names = [main, *(["attention_mask"] if "attention_mask" in accepted else [])]
        names += ["token_type_ids"] if "token_type_ids" in accepted and _types(config) > 1 else []
        return tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in names)
    axes: tuple[int | str, ...]
    if one.inputs == "image":
        size = (
            int(config.image_size if isinstance(config.image_size, int) else config.image_size[0])
            if hasattr(config, "image_size")
            else 32
        )
        axes = ("batch", 3, size, size)
    elif one.inputs == "wave":
        axes = ("batch", "samples")
    elif one.inputs == "frames":
        axes = ("batch", config.max_length, config.num_mel_bins)
    else:
        axes = ("batch", config.num_mel_bins, 2 * config.max_source_positions)
    return (TensorSpec(main, "float32", axes),)


def _types(config: Any) -> int:
    return int(getattr(config, "type_vocab_size", 0) or 0)


def _flatten(one: Architecture, network: Any, inputs: tuple[TensorSpec, ...]) -> tuple[Any, tuple[str, ...]]:
    import torch

    names = tuple(spec.name for spec in inputs)
    accepted = inspect.signature(network.forward).parameters
    output = "logits" if one.auto == "AutoModelForCausalLM" else "last_hidden_state"
    counts_positions = output == "logits" and "position_ids" in accepted and "attention_mask" in names
    fixed: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}

    class Flat(torch.nn.Module):
        """The network behind positional tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            feeds: dict[str, Any] = dict(zip(names, tensors, strict=True))
            if counts_positions:
                feeds["position_ids"] = (feeds["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            return (self.network(**feeds, **fixed, return_dict=True)[output],)

    return Flat().eval(), (output,)


def feeder_of(one: Architecture, signature: Signature, example: dict[str, int]) -> Feeder:
    """Return what makes inputs of any size."""
    if one.inputs == "text":
        config = {**one.settings, **one.extra}
        special = tuple(sorted({v for k, v in config.items() if k.endswith("_token_id")}))
        tokens = Tokens(VOCABULARY, config.get("pad_token_id", 0), special=special, types=2, longest=POSITIONS - 2)
        return TextFeeder(signature.inputs, tokens)
    return ImageFeeder(signature.inputs, {axis: size for axis, size in example.items() if axis != "batch"})


def export(one: Architecture, exporter: str, cache: Path) -> Exported:
    """Export a model, or take the export of an earlier run of the census with the same versions.

    Raises:
        Exception: whatever the model or the exporter raises.
    """
    folder = cache / f"{one.name}-{exporter}-{_key(one)}"
    record = folder / "record.json"
    if record.exists():
        return _read(folder, json.loads(record.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    model = build(one)
    road, opset = EXPORTERS[exporter]
    trace.DYNAMO_OPSET = opset
    traced = trace.trace(model, road, folder / "model.onnx")
    feeder = feeder_of(one, traced.signature, dict(traced.example))
    reference = TorchReference(model.title, lambda: model)
    unproved = ""
    sizes: tuple[dict[str, int], ...] = ()
    try:
        sizes = prove_axes(
            folder / "model.onnx",
            traced.signature,
            reference,
            feeder,
            example=traced.example,
            longest=model.longest,
        )
    except Exception as error:  # noqa: BLE001  the table says why
        unproved = str(error)
    content = {
        "inputs": [asdict(spec) for spec in traced.signature.inputs],
        "outputs": [asdict(spec) for spec in traced.signature.outputs],
        "example": dict(traced.example),
        "longest": model.longest,
        "proved_sizes": list(sizes),
        "unproved": unproved,
    }
    record.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return _read(folder, content)


def _key(one: Architecture) -> str:
    import torch
    import transformers

    made_of = [one.model_type, one.auto, one.part, one.inputs, dict(one.settings), dict(one.extra)]
    text = json.dumps([FORMAT, made_of, torch.__version__, transformers.__version__], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(folder: Path, content: dict[str, Any]) -> Exported:
    inputs, outputs = (
        tuple(TensorSpec(item["name"], item["dtype"], tuple(item["axes"])) for item in content[kind])
        for kind in ("inputs", "outputs")
    )
    return Exported(
        folder / "model.onnx",
        Signature(inputs, outputs),
        content["example"],
        content["longest"],
        tuple(content["proved_sizes"]),
        content["unproved"],
    )


def load(one: Architecture, exported: Exported, path: Path | None = None) -> Loaded:
    """Return the exported file, or another spelling of it at `path`, as the pipeline takes it."""
    file = path or exported.path
    model = ir.load(file)
    return Loaded(
        name=one.name,
        model=model,
        signature=exported.signature,
        reference=OrtReference(exported.path),
        feeder=feeder_of(one, exported.signature, exported.example),
        task="census",
        proved_sizes=exported.proved_sizes,
        ranges=ranges_of(one),
    )


def ranges_of(one: Architecture) -> dict[str, AxisRange]:
    """Return the sizes that a model takes, which the road learns by running a file: a sound fills every window."""
    if one.inputs != "wave":
        return {}
    least = 1
    for kernel, stride in reversed(list(zip(one.settings["conv_kernel"], one.settings["conv_stride"], strict=True))):
        least = (least - 1) * stride + kernel
    return {"samples": AxisRange(least=least)}
