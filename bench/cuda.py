"""BERT-base in fp16 on a GPU, ours beside the peers: `python -m bench.cuda`.

Every graph has the same random weights (speed only) and is converted to fp16 by onnxruntime's own converter, so that
graphs differ in what was fused and nothing else:

* ours: `onnxopt.optimize(target="cuda")` of the modern export;
* exporters: `transformers.exporters` with `ort_fusions="cuda"`;
* classic: the TorchScript export and onnxruntime's transformers optimizer, where that fuses its attentions;
* torch: eager and `torch.compile(mode="reduce-overhead")`, in fp16.

Runtimes are timed with IO binding, plain and with a CUDA graph per shape. Models take turns. `--device cpu` runs all of
this in float32 without CUDA graphs, to try the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers import ROOT

RESULT = ROOT / "bench" / "results" / "cuda.json"
FOLDER = ROOT / "build" / "bench-cuda"
SHAPES = ((1, 128), (8, 128), (32, 128), (8, 512))
ROUNDS, SECONDS, WARM = 5, 1.0, 10
# what accumulates stays in float32 (the norms of the kernels do so inside)
KEEP_FLOAT32 = ("ReduceSum", "ReduceL2", "Softmax", "Pow", "Sqrt")

_NAMES = ("input_ids", "attention_mask", "token_type_ids")

Run = Callable[[], object]


def main() -> int:
    """Make the graphs, time them in turns, write the results."""
    parser = argparse.ArgumentParser(description="Time BERT-base on a GPU beside its peers.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--layers", type=int, default=12, help="fewer to try the script (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each model (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the results go (default: %(default)s)")
    arguments = parser.parse_args()
    graphs, failed = make(arguments.layers, arguments.device)
    result = measure(graphs, arguments.layers, arguments.device, rounds=arguments.rounds, seconds=arguments.seconds)
    result["failed"] |= failed
    print(json.dumps(result["ms"], indent=1))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def make(layers: int, device: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the graphs by name, and why others could not be made."""
    checkpoint = _checkpoint(layers)
    makers = {"ours": _ours, "exporters": _exporters, "classic": _classic}
    graphs: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for name, maker in makers.items():
        out = FOLDER / f"{name}-{layers}"
        out.mkdir(parents=True, exist_ok=True)
        try:
            plain = maker(checkpoint, out, device)
            graphs[name] = plain if device == "cpu" else _half(plain, out / "half.onnx")
        except Exception as error:  # noqa: BLE001 - a peer that fails is a line in the results
            failed[name] = " ".join(str(error).split())[:300]
            print(f"{name}: {failed[name]}", file=sys.stderr)
    return graphs, failed


def _checkpoint(layers: int) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    folder = FOLDER / f"checkpoint-{layers}"
    if not (folder / "config.json").is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            config = BertConfig(num_hidden_layers=layers)
            BertModel(config, add_pooling_layer=False).eval().save_pretrained(folder)
        _tokenizer(folder)
    return folder


def _tokenizer(folder: Path) -> None:
    """Write a tokenizer of a few words: onnxopt wants one, the numbers do not depend on it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = [*specials.values(), "the", "a", "of", "and", "to", "in"]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **specials).save_pretrained(folder)


def _ours(checkpoint: Path, out: Path, device: str) -> Path:
    import onnxopt

    artifact = onnxopt.optimize(
        checkpoint, out=out / "artifact", target=device, task="feature-extraction", measure=False
    )
    return artifact.model_path


def _exporters(checkpoint: Path, out: Path, device: str) -> Path:
    import torch
    from transformers import AutoModel
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = AutoModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    sample = {name: torch.ones(2, 11, dtype=torch.int64) for name in _NAMES}
    OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True, ort_fusions=device)).save_pretrained(out)
    return out / "model.onnx"


def _classic(checkpoint: Path, out: Path, _: str) -> Path:
    import torch
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint, add_pooling_layer=False, attn_implementation="eager").eval()

    class Plain(torch.nn.Module):
        """Tensors in, one tensor out, by position."""

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            """Run the model."""
            return model(input_ids=ids, attention_mask=mask, token_type_ids=types, use_cache=False).last_hidden_state

    sample = tuple(torch.ones(2, 11, dtype=torch.int64) for _ in _NAMES)
    axes = {name: {0: "batch", 1: "sequence"} for name in (*_NAMES, "last_hidden_state")}
    torch.onnx.export(
        Plain().eval(),
        sample,
        str(out / "export.onnx"),
        input_names=list(_NAMES),
        output_names=["last_hidden_state"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    options = FusionOptions("bert")
    optimized = optimizer.optimize_model(
        str(out / "export.onnx"), model_type="bert", num_heads=heads, hidden_size=width, optimization_options=options
    )
    fused = optimized.get_fused_operator_statistics()["Attention"]
    if fused < model.config.num_hidden_layers:
        raise ValueError(f"onnxruntime's optimizer fused {fused} of {model.config.num_hidden_layers} attentions")
    optimized.save_model_to_file(str(out / "model.onnx"))
    return out / "model.onnx"


def _half(source: Path, out: Path) -> Path:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(
        onnx.load(source), keep_io_types=False, op_block_list=list(KEEP_FLOAT32), disable_shape_infer=True
    )
    onnx.save(model, out)
    return out


def measure(graphs: Mapping[str, Path], layers: int, device: str, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Return median ms of one request by model and shape."""
    from onnxopt.machine import describe_machine, versions

    failed: dict[str, str] = {}
    times: dict[str, dict[str, list[float]]] = {}
    ways = (False, True) if device == "cuda" else (False,)
    kinds = ("eager", "compiled") if device == "cuda" else ("eager",)
    for batch, length in SHAPES:
        shape = f"{batch}x{length}"
        makers: dict[str, Callable[[], Run]] = {
            f"{name}{' graph' if graph else ''}": partial(bound, path, batch, length, device, graph=graph)
            for name, path in graphs.items()
            for graph in ways
        }
        makers |= {f"torch {kind}": partial(torch_run, layers, batch, length, device, kind) for kind in kinds}
        runs: dict[str, Run] = {}
        for name, maker in makers.items():
            _add(runs, failed, name, maker)
        for _ in range(rounds):
            for name, run in runs.items():
                times.setdefault(name, {}).setdefault(shape, []).append(_median_ms(run, seconds))
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": _device_name(device),
        "machine": describe_machine(),
        "versions": versions(),
        "model": f"BERT-base, {layers} layers, random weights, {'fp16' if device == 'cuda' else 'fp32'}",
        "ms": {
            name: {shape: statistics.median(found) for shape, found in rows.items()} for name, rows in times.items()
        },
        "turns": times,
        "failed": failed,
    }


def _add(runs: dict[str, Run], failed: dict[str, str], name: str, maker: Callable[[], Run]) -> None:
    try:
        runs[name] = maker()
    except Exception as error:  # noqa: BLE001 - as above
        failed[name] = " ".join(str(error).split())[:300]
        print(f"{name}: {failed[name]}", file=sys.stderr)


def bound(path: Path, batch: int, length: int, device: str, *, graph: bool) -> Run:
    """Return one run of a graph on bound buffers: real rows of full length, as a benchmark of the kernels has them."""
    import numpy as np
    import onnxruntime

    from onnxopt.session import Session

    session = Session(path, device=device, cuda_graph=graph)
    rng = np.random.default_rng(0)
    made = {"input_ids": rng.integers(5, 30000, (batch, length)), "attention_mask": np.ones((batch, length), np.int64)}
    binding = session.binding()
    for spec in session.inputs:
        array = made.get(spec.name, np.zeros((batch, length), np.int64)).astype(spec.dtype)
        binding.bind_ortvalue_input(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(array, session.device, 0))
    for spec in session.outputs:
        if not graph:
            binding.bind_output(spec.name, session.device)
            continue
        shape = [
            axis if isinstance(axis, int) else batch if place == 0 else length for place, axis in enumerate(spec.axes)
        ]
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype), session.device, 0)
        binding.bind_ortvalue_output(spec.name, value)

    def run() -> None:
        session.run_bound(binding, graph=1 if graph else None)
        binding.synchronize_outputs()

    return run


def torch_run(layers: int, batch: int, length: int, device: str, kind: str) -> Run:
    """Return one run of torch."""
    import torch
    from transformers import AutoModel

    dtype = torch.float16 if device == "cuda" else torch.float32
    model = AutoModel.from_pretrained(_checkpoint(layers), add_pooling_layer=False, dtype=dtype).eval().to(device)
    network = torch.compile(model, mode="reduce-overhead") if kind == "compiled" else model
    ids = torch.randint(5, 30000, (batch, length), device=device)
    mask = torch.ones_like(ids)

    def run() -> None:
        with torch.inference_mode():
            network(input_ids=ids, attention_mask=mask)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _median_ms(run: Run, seconds: float) -> float:
    for _ in range(WARM):
        run()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        started = time.perf_counter()
        run()
        found.append(1e3 * (time.perf_counter() - started))
    return statistics.median(found)


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(0) if device == "cuda" and torch.cuda.is_available() else device


if __name__ == "__main__":
    sys.exit(main())
