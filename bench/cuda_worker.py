"""Time ready-made graphs on a GPU; needs onnxruntime, torch and transformers, and nothing of onnxopt.

A folder of graphs holds `<model>/<name>/model.onnx` with `fills.json` beside it: weights are written here from it (see
`bench.cuda_graphs`), made up, since speed does not depend on their values. `bert` are encoders, timed at several
shapes; `smollm2` are decoders, timed at one step on shared buffers. Everything is timed on bound buffers, plain and as
a CUDA graph; models take turns; the clock stops when the device is idle again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ((1, 128), (8, 128), (32, 128), (8, 512))
HEAD_SIZE = 64  # of SmolLM2
SEEN, ROOM = 300, 1024  # of a decode step: tokens in the cache, places in it
ROUNDS, SECONDS, WARM = 5, 0.3, 10
# SkipLayerNormalization adds up in half precision without it
STRICT_MARK = "strict"  # a file beside a graph whose session asks for it
STRICT = {"enable_skip_layer_norm_strict_mode": "1"}

Run = Callable[[], object]


def main() -> int:
    """Time everything in a folder and write the results."""
    parser = argparse.ArgumentParser(description="Time ready-made graphs on a GPU beside torch.")
    parser.add_argument("--graphs", type=Path, required=True, help="folder of <model>/<name>/model.onnx")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each model (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one turn (default: %(default)s)")
    parser.add_argument("--models", default="bert,smollm2", help="which (default: %(default)s)")
    parser.add_argument("--no-torch", action="store_true", help="leave torch out")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    arguments = parser.parse_args()
    bench = Bench(arguments.device, arguments.rounds, arguments.seconds, with_torch=not arguments.no_torch)
    for model in arguments.models.split(","):
        folders = sorted(path.parent for path in (arguments.graphs / model).glob("*/model.onnx"))
        for folder in folders:
            write_weights(folder)
        for _ in bench.model(model, folders):  # what is done is written: a GPU may be lent for minutes
            arguments.out.write_text(json.dumps(bench.result(), indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"ms": bench.medians(), "failed": bench.failed}, indent=1))
    return 0


def write_weights(folder: Path) -> None:
    """Write the file of weights that a graph reads: numbers of the mean and spread that the real ones have."""
    fills = folder / "fills.json"
    if not fills.is_file() or (folder / "weights.bin").is_file():
        return
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    with (folder / "weights.bin").open("wb") as stream:
        for fill in json.loads(fills.read_text(encoding="utf-8")):
            stream.write(b"\0" * (fill["offset"] - stream.tell()))
            part = (noise * fill["std"] + fill["mean"]).astype(_dtype(fill["dtype"]))
            count = fill["count"]
            for start in range(0, count, part.size):
                stream.write(part[: min(part.size, count - start)].tobytes())


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


class Bench:
    """Times in ms by model, name and shape."""

    def __init__(self, device: str, rounds: int, seconds: float, *, with_torch: bool) -> None:
        self.device, self.rounds, self.seconds, self.with_torch = device, rounds, seconds, with_torch
        self.times: dict[str, dict[str, dict[str, list[float]]]] = {}
        self.apart: dict[str, dict[str, dict[str, float]]] = {}
        self.failed: dict[str, str] = {}

    def model(self, model: str, folders: list[Path]) -> Iterator[str]:
        """Time all graphs of a model, and torch beside them; yield each shape when it is done."""
        ways = (False, True) if self.device == "cuda" else (False,)
        sessions: dict[str, Session] = {}
        for folder in folders:
            for graph in ways:
                name = f"{folder.name}{' graph' if graph else ''}"
                self._try(model, name, partial(Session, folder / "model.onnx", self.device, graph=graph), sessions)
        for index, shape in enumerate(SHAPES if model == "bert" else ((1, 1),)):
            label = f"{shape[0]}x{shape[1]}" if model == "bert" else f"1x1+{SEEN}"
            runs: dict[str, Run] = {}
            for name, session in sessions.items():
                bind = session.encoder if model == "bert" else session.step
                self._try(model, name, partial(bind, *shape, index + 1), runs)
            if self.with_torch:
                for kind in ("eager", "compiled") if self.device == "cuda" else ("eager",):
                    made = torch_encoder if model == "bert" else torch_step
                    self._try(model, f"torch {kind}", partial(made, *shape, self.device, kind), runs)
            self._turns(model, label, runs)
            self._compare(model, label, runs)
            yield label
            print(model, label, {name: round(ms, 3) for name, ms in self._row(model, label).items()}, flush=True)

    def _turns(self, model: str, label: str, runs: dict[str, Run]) -> None:
        for _ in range(self.rounds):
            for name in list(runs):
                try:
                    taken = median_ms(runs[name], self.seconds)
                except Exception as error:  # noqa: BLE001 - a model that fails is a line in the results
                    self._fail(model, name, error)
                    del runs[name]
                    continue
                self.times.setdefault(model, {}).setdefault(name, {}).setdefault(label, []).append(taken)

    def _compare(self, model: str, label: str, runs: dict[str, Run]) -> None:
        """See that a replayed CUDA graph gives what plain runs give."""
        for name, run in runs.items():
            plain = runs.get(name.removesuffix(" graph"))
            if plain is None or plain is run:
                continue
            first, second = (np.asarray(one.first(), np.float64) for one in (plain, run))  # type: ignore[attr-defined]  # set where a run is bound
            scale = float(np.abs(first).max()) or 1.0
            apart = float(np.abs(first - second).max()) / scale
            self.apart.setdefault(model, {}).setdefault(name, {})[label] = apart
            if not apart < 0.02:
                print(f"{model} {name} {label}: a replay differs from a plain run by {apart:.2g}", file=sys.stderr)

    def _try(self, model: str, name: str, maker: Callable[[], Any], into: dict[str, Any]) -> None:
        try:
            into[name] = maker()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(model, name, error)

    def _fail(self, model: str, name: str, error: Exception) -> None:
        self.failed[f"{model} {name}"] = " ".join(str(error).split())[:600]
        print(f"{model} {name}: {self.failed[f'{model} {name}']}", file=sys.stderr, flush=True)
        if not str(error):
            traceback.print_exc()

    def _row(self, model: str, label: str) -> dict[str, float]:
        rows = self.times.get(model, {})
        return {name: statistics.median(found[label]) for name, found in rows.items() if label in found}

    def medians(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the median over turns of the median of one turn."""
        return {
            model: {name: {k: statistics.median(v) for k, v in found.items()} for name, found in rows.items()}
            for model, rows in self.times.items()
        }

    def result(self) -> dict[str, Any]:
        """Return everything that was found out, and where."""
        import onnxruntime
        import torch
        import transformers

        on_gpu = self.device == "cuda"
        cudnn_version: Callable[[], int | None] = torch.backends.cudnn.version  # torch leaves it without types
        return {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
            "versions": {
                "onnxruntime": onnxruntime.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                **({"cuda": torch.version.cuda, "cudnn": cudnn_version()} if on_gpu else {}),
            },
            "ms": self.medians(),
            "turns": self.times,
            "replay_differs_by": self.apart,
            "failed": self.failed,
        }


class Session:
    """A graph in ONNX Runtime, with buffers that stay."""

    def __init__(self, path: Path, device: str, *, graph: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        strict = dict(STRICT) if (path.parent / STRICT_MARK).exists() else {}
        own = ("CUDAExecutionProvider", {**strict, **({"enable_cuda_graph": "1"} if graph else {})})
        chosen = [own] if device == "cuda" else ["CPUExecutionProvider"]
        self.graph, self.device = graph, device
        self.session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
        if device == "cuda" and "CUDAExecutionProvider" not in self.session.get_providers():
            raise RuntimeError("the CUDA provider does not start")
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = {node.name: node for node in self.session.get_outputs()}

    def value(self, array: np.ndarray) -> Any:
        """Return a buffer on the device that holds an array."""
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)

    def encoder(self, batch: int, length: int, number: int) -> Run:
        """Return one run of an encoder: real rows of full length, as a benchmark of kernels has them."""
        rng = np.random.default_rng(0)
        made = {
            "input_ids": rng.integers(5, 30000, (batch, length)),
            "attention_mask": np.ones((batch, length), np.int64),
        }
        zeros = np.zeros((batch, length), np.int64)
        feeds = {name: made.get(name, zeros).astype(dtype_of(node)) for name, node in self.inputs.items()}
        shapes = {
            name: [
                one if isinstance(one, int) else batch if place == 0 else length for place, one in enumerate(n.shape)
            ]
            for name, n in self.outputs.items()
        }
        return self._bound({name: self.value(array) for name, array in feeds.items()}, {}, shapes, number)

    def step(self, batch: int, new: int, number: int) -> Run:
        """Return one step of a decoder: past and present share buffers, the mask is as long as they are."""
        feeds: dict[str, Any] = {}
        shared: dict[str, Any] = {}
        for name, node in self.inputs.items():
            if name.startswith("past_key_values"):
                size = node.shape[3] if isinstance(node.shape[3], int) else HEAD_SIZE
                shape = [batch, node.shape[1], ROOM, size]
                feeds[name] = self.value(np.random.default_rng(0).standard_normal(shape).astype(dtype_of(node)))
                shared[name.replace("past_key_values", "present")] = feeds[name]
            elif "mask" in name:
                mask = (np.arange(ROOM) < SEEN + new)[None].repeat(batch, 0)
                feeds[name] = self.value(mask.astype(dtype_of(node)))
            elif "position" in name:
                feeds[name] = self.value(np.full((batch, new), SEEN).astype(dtype_of(node)))
            else:
                feeds[name] = self.value(np.full((batch, new), 7).astype(dtype_of(node)))
        vocabulary = self.outputs["logits"].shape[-1]
        return self._bound(feeds, shared, {"logits": [batch, new, vocabulary]}, number)

    def _bound(
        self, feeds: Mapping[str, Any], shared: Mapping[str, Any], shapes: Mapping[str, list[int]], number: int
    ) -> Run:
        import onnxruntime

        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        kept = [*feeds.values()]
        for name, node in self.outputs.items():
            value = shared.get(name)
            if value is None:
                value = self.value(np.zeros(shapes[name], dtype_of(node)))
                kept.append(value)
            binding.bind_ortvalue_output(name, value)
        options = onnxruntime.RunOptions()
        if self.graph:
            options.add_run_config_entry("gpu_graph_id", str(number))

        def run() -> None:
            self.session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()

        run.kept = kept  # type: ignore[attr-defined]  # the buffers live as long as the run

        def first() -> Any:
            run()
            return binding.get_outputs()[0].numpy()

        run.first = first  # type: ignore[attr-defined]  # the same
        return run


def dtype_of(node: Any) -> np.dtype[Any]:
    """Return the NumPy type of an input or output."""
    names = {"float": "float32", "double": "float64"}
    inner = str(node.type)[len("tensor(") : -1]
    return np.dtype(names.get(inner, inner))


def torch_encoder(batch: int, length: int, device: str, kind: str) -> Run:
    """Return one run of BERT-base in torch."""
    import torch
    from transformers import BertConfig, BertModel

    dtype = torch.float16 if device == "cuda" else torch.float32
    model = BertModel(BertConfig(), add_pooling_layer=False).to(dtype).eval().to(device)
    network = torch.compile(model, mode="reduce-overhead", dynamic=False) if kind == "compiled" else model
    ids = torch.randint(5, 30000, (batch, length), device=device)
    mask = torch.ones_like(ids)

    def run() -> None:
        with torch.inference_mode():
            network(input_ids=ids, attention_mask=mask)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def torch_step(batch: int, new: int, device: str, kind: str) -> Run:
    """Return one step of a decoder of SmolLM2-135M's shape in torch, with a static cache."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    dtype = torch.float16 if device == "cuda" else torch.float32
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    model = LlamaForCausalLM(config).to(dtype).eval().to(device)
    cache = StaticCache(config=config, max_cache_len=ROOM)
    seen = torch.ones((batch, SEEN), dtype=torch.int64, device=device)
    with torch.no_grad():
        model(input_ids=seen, past_key_values=cache, use_cache=True)
    forward = (
        torch.compile(model.forward, mode="reduce-overhead", fullgraph=True, dynamic=False)
        if kind == "compiled"
        else model
    )
    ids = torch.full((batch, new), 7, device=device)
    positions = torch.full((batch, new), SEEN, device=device)
    steps = 0

    def run() -> None:
        nonlocal steps
        with torch.no_grad():
            forward(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
            steps += 1
            if steps % (ROOM - SEEN - 1) == 0:  # the cache counts its tokens; it must not be full
                for layer in cache.layers:
                    layer.cumulative_length.fill_(SEEN)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def median_ms(run: Run, seconds: float) -> float:
    """Return the median time of one run in ms, after some to warm up."""
    for _ in range(WARM):
        run()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        started = time.perf_counter()
        run()
        found.append(1e3 * (time.perf_counter() - started))
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
