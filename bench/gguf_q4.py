"""Write a checkpoint of Llama's kind as GGUF in Q4_0, a tensor at a time: `python -m bench.gguf_q4 FOLDER FILE.gguf`.

Made to compare speed and memory: it holds no vocabulary, and heads are left as they lie, where llama.cpp's own
converter turns the rows of queries and keys around for its rotary kernel. What its kernels read and compute is as much.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_OF_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HEAD_BITS_ALIKE = ("token_embd.weight", "output.weight")  # llama.cpp's Q4_0 keeps the head in Q6_K; here in Q8_0


def main() -> None:
    """Write the file."""
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))


def write_gguf(checkpoint: Path, out: Path) -> None:
    """Write the weights of a checkpoint folder.

    Args:
        checkpoint: with `config.json` and safetensors.
        out: the file.
    """
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    kinds = {}
    for name, tensor in _tensors(checkpoint):
        kind = _kind(name, tensor.ndim)
        kinds[name] = kind
        rows = gguf.quant_shape_to_byte_shape(tensor.shape, kind) if tensor.ndim > 1 else tensor.shape
        size = int(np.prod(rows)) * (1 if tensor.ndim > 1 else 4)
        writer.add_tensor_info(name, rows if tensor.ndim > 1 else tensor.shape, _dtype(tensor), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _tensors(checkpoint):
        values = tensor.float().numpy()
        writer.write_tensor_data(values if values.ndim == 1 else gguf.quants.quantize(values, kinds[name]))
    writer.close()


def _dtype(tensor: Any) -> Any:
    return np.dtype(np.uint8) if tensor.ndim > 1 else np.dtype(np.float32)


def _kind(name: str, axes: int) -> Any:
    import gguf

    if axes == 1:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType.Q8_0 if name in _HEAD_BITS_ALIKE else gguf.GGMLQuantizationType.Q4_0


def _tensors(checkpoint: Path) -> Iterator[tuple[str, Any]]:
    """Yield each weight under llama.cpp's name for it, as it lies."""
    from safetensors import safe_open

    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                yield named(name), file.get_tensor(name)


def named(name: str) -> str:
    """Return llama.cpp's name of a weight of transformers' Llama."""
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_OF_LAYER[rest.removesuffix('.weight')]}.weight"


if __name__ == "__main__":
    main()
