"""A GGUF file becomes an ordinary checkpoint, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.graph import weight_files
from onnxopt.graph.linears import find_linears
from onnxopt.load.export.export import export
from onnxopt.load.source.gguf import convert_gguf, gguf_behind
from onnxopt.load.source.recipe import all_recipes
from onnxopt.load.source.source import resolve
from onnxopt.load.source.streamed import WeightStream
from onnxopt.qmath.blocks import dequantize
from onnxopt.quantize.checkpoint_grids import known_grids
from tests.support.damage import flip_bit
from tests.support.fused import fuse

WIDTH, WORDS, INNER, LAYERS = 32, 200, 64, 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "cache"))


def write_gguf(path: Path) -> Path:
    """Write a tiny Llama whose matrices are Q8_0, with a byte-pair tokenizer of one merge."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(WORDS)
    words = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 127)), "to"]
    words += [f"word{index}" for index in range(WORDS - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_merges(["t o"])
    writer.add_token_types([3, 3, 3, *([1] * (WORDS - 3))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (WORDS, WIDTH),
        "output": (WORDS, WIDTH),
        "output_norm": (WIDTH,),
    }
    for layer in range(LAYERS):
        block = {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH // 2, WIDTH),
            "attn_v": (WIDTH // 2, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        values = rng.normal(1.0 if len(shape) == 1 else 0.0, 0.2, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_file_is_exported_like_a_checkpoint(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    source = resolve(str(path))
    assert (source.kind, source.name) == ("folder", "tiny")
    assert source.notes == ("the weights of tiny.gguf were dequantized to float32",)
    loaded = export(source, exporter="torchscript")
    assert loaded.task == "text-generation"
    assert loaded.notes == list(source.notes)
    assert {"config.json", "tokenizer.json"} <= {path.name for path in loaded.assets}
    ids = loaded.feeder.make({"batch": 1, "sequence": 12})["input_ids"]
    assert np.all((ids > 2) & (ids < 98))  # letters and the one merge, no made-up ids
    assert len(loaded.proved_sizes) == 10  # batches and lengths, in front of and behind a past


def test_the_grids_of_the_file_are_found_behind_the_checkpoint(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    loaded = export(resolve(str(path)), exporter="torchscript")
    assert gguf_behind(loaded.assets) == path
    assert gguf_behind([asset for asset in loaded.assets if asset.name != "config.json"]) is None
    fuse(loaded)
    linears = find_linears(loaded.model)
    grids = known_grids(path, linears)
    assert len(grids) == len(linears) == 7 * LAYERS + 1
    for linear in linears:
        assert grids[linear.label].exact
        np.testing.assert_array_equal(dequantize(grids[linear.label].blocks), linear.matrix())
    path.write_bytes(path.read_bytes() + b" ")
    assert gguf_behind(loaded.assets) is None
    path.unlink()
    assert gguf_behind(loaded.assets) is None


def _weights(path: Path) -> dict[str, list[int]]:
    """Return the bits of the weights of a converted file, as float32."""
    from safetensors import safe_open

    with safe_open(convert_gguf(path) / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name).astype(np.float32).view(np.uint32).tolist() for name in sorted(file.keys())}


@pytest.mark.parametrize("works", [True, False])
def test_the_weights_are_those_that_transformers_reads(
    *, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    path = write_gguf(tmp_path / "tiny.gguf")
    taken: list[int] = []
    take = WeightStream._take

    def told(self: WeightStream, parameter: torch.nn.Parameter) -> object:
        made = take(self, parameter)
        if made is not None:
            taken.append(parameter.numel())
        if taken and not works:
            raise RuntimeError("no")
        return made

    monkeypatch.setattr(WeightStream, "_take", told)
    monkeypatch.setattr(weight_files, "LEAST_BYTES", WIDTH * WIDTH * 4)
    found = _weights(path)
    assert len(taken) == (2 + 5 * LAYERS if works else 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    expected = {name: one.numpy().view(np.uint32).tolist() for name, one in model.state_dict().items()}
    assert found == expected


def test_gguf_is_converted_once_and_again_when_damaged(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    said: list[str] = []
    folder = convert_gguf(path, progress=said.append)
    assert convert_gguf(path, progress=said.append) == folder
    assert said == ["dequantizing tiny.gguf to float32"]
    before = (folder / "model.safetensors").read_bytes()
    flip_bit(folder / "model.safetensors")
    convert_gguf(path, progress=said.append)
    assert len(said) == 2
    assert (folder / "model.safetensors").read_bytes() == before
    assert (folder / "model.safetensors").stat().st_size > 1000


def test_files_that_are_no_gguf_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello", encoding="utf-8")
    with pytest.raises(InputError, match=r"text\.gguf: is no GGUF file"):
        resolve(str(tmp_path / "text.gguf"))
    content = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:200])
    with pytest.raises(InputError, match=r"cut\.gguf: transformers cannot read it") as caught:
        resolve(str(tmp_path / "cut.gguf"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_smollm2_sample_is_fetched_converted_and_exported() -> None:
    recipe = all_recipes()["smollm2-135m"]
    loaded = export(resolve(recipe.name))
    assert loaded.task == recipe.task
    attentions = sum(node.op_type == "Attention" for node in loaded.model.graph)
    assert attentions == recipe.expected["attention"]
    assert {"config.json", "tokenizer.json"} <= {path.name for path in loaded.assets}
