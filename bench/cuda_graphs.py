"""Make the graphs that `bench.cuda` times: ours and the peers', with weights left out.

Made on a machine with onnxopt and the peers, small enough to be carried to one with a GPU: a graph refers to a file
`weights.bin` that does not exist yet, and `fills.json` says what to write into it, by mean and spread of each tensor.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.cuda_worker import STRICT_MARK
from bench.peers import ENVIRONMENTS, MAKERS, ROOT

FOLDER = ROOT / "build" / "bench-cuda"
KEPT_BYTES = 4096  # a constant up to this size stays in the graph: shapes, axes, biases of tiny norms
HEADS, WIDTH, LAYERS = 12, 768, 12  # of BERT-base
NAMES = ("input_ids", "attention_mask", "token_type_ids")
SAMPLE = "smollm2-135m"
LIMIT_SECONDS = 3600


def make(out: Path, only: str = "") -> dict[str, str]:
    """Write `<out>/<model>/<name>/model.onnx` for every graph whose name contains `only`; return why others failed."""
    makers: dict[str, Callable[[Path], Path]] = {
        "bert/ours": lambda work: _ours(_bert(), work),
        "bert/exporters": _exporters,
        "bert/classic": _classic,
        "bert/ours, --padding right": lambda work: _form(_bert(), work, padding="right"),
        "bert/ours, float32 outputs": lambda work: _form(_bert(), work, with_io=False),
        "bert/ours, raw mask": lambda work: _form(_bert(), work, ("pack-rows", "as it is")),
        "bert/ours, embeddings apart": lambda work: _form(_bert(), work, ("lower-embed-norm", "as it is")),
        "smollm2/ours": lambda work: _ours(SAMPLE, work),
        "smollm2/genai": _genai,
    }
    failed: dict[str, str] = {}
    for name, maker in makers.items():
        if only not in name:
            continue
        work = FOLDER / name.replace("/", "-").replace(",", "").replace(" ", "-")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            strip(maker(work), out / name)
            if name.endswith("/ours"):  # the same graph in a session of ours, which asks for exact norms
                shutil.copytree(out / name, out / f"{name}, strict norms", dirs_exist_ok=True)
                (out / f"{name}, strict norms" / STRICT_MARK).touch()
            print(f"{name}: made", flush=True)
        except Exception as error:  # noqa: BLE001 - a peer that fails is a line in the results
            failed[name] = " ".join(str(error).split())[-300:]
            print(f"{name}: {failed[name]}", file=sys.stderr)
    return failed


def strip(model: Path, out: Path) -> None:
    """Write a graph without its large weights, and what to fill in for them."""
    import onnx
    from onnx import external_data_helper, numpy_helper

    proto = onnx.load(model)
    out.mkdir(parents=True, exist_ok=True)
    fills, offset = [], 0
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes <= KEPT_BYTES or array.dtype.name not in ("float16", "bfloat16", "float32"):
            continue
        numbers = array.astype(np.float64)
        fill = {"mean": float(numbers.mean()), "std": float(numbers.std()), "dtype": array.dtype.name}
        fills.append({"offset": offset, "count": array.size, **fill})
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.ClearField("int32_data")
        tensor.raw_data = b""
        external_data_helper.set_external_data(tensor, "weights.bin", offset=offset, length=array.nbytes)
        tensor.ClearField("raw_data")
        offset += -(-array.nbytes // 64) * 64
    (out / "model.onnx").write_bytes(proto.SerializeToString())
    (out / "fills.json").write_text(json.dumps(fills), encoding="utf-8")


def _bert() -> Path:
    """Return a checkpoint of BERT-base with random weights."""
    import torch
    from transformers import BertConfig, BertModel

    folder = FOLDER / "checkpoint"
    if not (folder / "config.json").is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            BertModel(BertConfig(), add_pooling_layer=False).eval().save_pretrained(folder)
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


def _ours(source: str | Path, work: Path) -> Path:
    """Take the whole road, with every proof."""
    import onnxopt

    task = "feature-extraction" if isinstance(source, Path) else None
    artifact = onnxopt.optimize(
        source, out=work / "artifact", target="cuda", precision="fp16:io", task=task, with_pooling=False, measure=False
    )
    quantization = artifact.manifest.quantization
    if quantization is None or not quantization.shipped:
        raise ValueError(f"fp16 was not shipped: {quantization.reason if quantization else 'not tried'}")
    return artifact.model_path


def _form(
    source: str | Path,
    work: Path,
    form: tuple[str, str] = ("", ""),
    *,
    padding: str = "any",
    with_io: bool = True,
) -> Path:
    """Lower with one pass in another form, to see what its own one is worth; in 16 bits without the search."""
    import onnx_ir as ir

    from onnxopt.graph.cache import PADDING_KEY
    from onnxopt.load.entry import load
    from onnxopt.load.source.source import resolve
    from onnxopt.passes.quantize.half_precision import HalfPrecision
    from onnxopt.pipeline.pipeline import Pipeline
    from onnxopt.pipeline.profit import Profit
    from onnxopt.qmath.precision import HalfPlan
    from onnxopt.rewrite import Choice
    from onnxopt.spec import Target

    class Given(Profit):
        """Knows the one form that is asked for."""

        def recorded(self, key: tuple[str, str], forms: Sequence[str]) -> Choice | None:
            return Choice(form[1], "measured") if key[0] == form[0] and form[1] in forms else None

    task = "feature-extraction" if isinstance(source, Path) else None
    loaded = load(resolve(str(source)), task=task, with_pooling=False)
    loaded.model.graph.metadata_props[PADDING_KEY] = padding
    target = Target("cuda")
    pipeline = Pipeline(loaded, target, profit=Given(target, (), measure=False))
    pipeline.canonicalize_and_fuse()
    pipeline.lower()
    outputs = frozenset(value.name or "" for value in loaded.model.graph.outputs)
    HalfPrecision(HalfPlan(caches=outputs if with_io else frozenset())).run(loaded.model)
    ir.save(loaded.model, work / "model.onnx")
    return work / "model.onnx"


def _exporters(work: Path) -> Path:
    """Export with transformers' own exporter and its fusions for CUDA."""
    import torch
    from transformers import AutoModel
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = AutoModel.from_pretrained(_bert(), add_pooling_layer=False).eval()
    sample = {name: torch.ones(2, 11, dtype=torch.int64) for name in NAMES}
    OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True, ort_fusions="cuda")).save_pretrained(work)
    return _half(work / "model.onnx", work / "half.onnx")


def _classic(work: Path) -> Path:
    """Export by TorchScript with transformers 4 and fuse with onnxruntime's optimizer: the classic contrib graph."""
    python = ENVIRONMENTS / "transformers4" / "bin" / "python"
    job = {"checkpoint": str(_bert()), "out": str(work), "source": str(work / "export.onnx")}
    _run([str(python), str(MAKERS / "export_torchscript.py"), json.dumps(job)])
    (work / "model.onnx").rename(work / "export.onnx")
    _run([str(python), str(MAKERS / "ort_optimizer.py"), json.dumps(job | {"heads": HEADS, "hidden": WIDTH})])
    import onnx

    proto = onnx.load(work / "model.onnx", load_external_data=False)
    fused = sum(node.op_type == "Attention" for node in proto.graph.node)
    if fused < LAYERS:
        raise ValueError(f"onnxruntime's optimizer fused {fused} of {LAYERS} attentions")
    return _half(work / "model.onnx", work / "half.onnx")


def _half(source: Path, out: Path) -> Path:
    """Convert a peer's graph with onnxruntime's own converter; what sums up stays in float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    wide = ["ReduceSum", "ReduceL2", "Softmax", "Pow", "Sqrt"]
    model = convert_float_to_float16(
        onnx.load(source), keep_io_types=False, op_block_list=wide, disable_shape_infer=True
    )
    onnx.save(model, out)
    return out


def _genai(work: Path) -> Path:
    """Build SmolLM2 with onnxruntime-genai's builder for CUDA, from the same weights as ours."""
    from onnxopt.load.checkpoint.folder import read_checkpoint
    from onnxopt.load.source.source import resolve

    weights = read_checkpoint(resolve(SAMPLE)).folder
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp16", "-e", "cuda"]
    _run([*builder, "-i", str(weights), "-o", str(work / "built"), "-c", str(work / "cache")])
    return work / "built" / "model.onnx"


def _run(command: list[str]) -> Any:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, cwd=ROOT, env=os.environ
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
