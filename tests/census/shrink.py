"""Make a config small by what its entries are called: widths, heads, layers, words, positions, pictures, sound.

Two ways of it. `named` gives every kind of entry a number of its own, which suits nearly all that is a plain
transformer. `scaled` divides all widths by the same number and leaves heads alone, so that what an architecture demands
of its widths (stages that double, channels that are split) stays true. Nested configs are made small alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Way = Literal["named", "scaled", "shallow"]
WAYS: tuple[Way, ...] = ("named", "scaled", "shallow")

VOCABULARY = 200
POSITIONS = 160
HIDDEN, HEADS, HEAD, INNER = 64, 4, 16, 128
SCALE = 4  # by which widths are divided
IMAGE = 64  # of pictures, in pixels, where patches fit
FIRST_PLACEHOLDER = 199  # ids that stand for pictures and sounds count down from here
SPECIAL = {"pad": 0, "unk": 1, "bos": 2, "cls": 2, "eos": 3, "sep": 3, "mask": 4}  # ids as the tokenizer has them

_LAYERS = re.compile(
    r"(^|_)(n_)?(num_)?(hidden_|encoder_|decoder_|attention_)?(layers?|blocks|depth)$|^(depth|layers_block_size)$"
)
_NOT_LAYERS = re.compile(r"feature|feat_extract|_per_|adapter|postnet|conv|iou_head|inner")
_HEADS = re.compile(r"(heads?|n_head|num_heads)$")
_KV = re.compile(r"(key_value|kv|k_v)_(attention_)?heads$|^num_kv_heads$|^linear_num_key_heads$")
_INNER = re.compile(
    r"(intermediate_size|ffn_dim|ffn_size|d_ff|n_inner|mlp_dim|feedforward|feed_forward_size|ffn_hidden_size"
    r"|ffn_embed_dim|hidden_dim)$"
)
_WIDTH = re.compile(
    r"(hidden_size|d_model|(^|_)dim|n_embd|embed_dim|embedding_size|proj(ection)?_(dim|size)|_units|width|"
    r"hidden_channels|embed_size|emb_size|_dim_out|d_latents|encoder_dim|decoder_dim|output_dim|conv_channels"
    r"|filter_channels|out_channels|num_filters|num_channels_latents|initial_channel|in_dim)$"
)
_WIDTHS = re.compile(r"(sizes?|dims?|channels|widths|filters|planes|hidden_sizes)$")
_VOCABULARY = re.compile(r"vocab_size$|^tgt_vocab_size$|num_words$")
_POSITIONS = re.compile(
    r"(max_position_embeddings|n_positions|max_seq_len|max_sequence_length|n_ctx|max_target_positions"
    r"|max_length_of_text|max_text_positions|max_encoder_position_embeddings|max_decoder_position_embeddings)$"
)
_EXPERTS = re.compile(r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_local_experts)$")
_CHOSEN = re.compile(r"(experts_per_tok(en)?|moe_top_?k|moe_k)$")
_TOKEN = re.compile(r"(token_id|token_index|_token)$")
_DERIVED = re.compile(
    r"^(out_features|out_indices|stage_names|_.*|transformers_version|architectures|torch_dtype|dtype|model_type|"
    r"id2label|label2id|num_labels|attribute_map|_out_.*)$"
)
_FIXED: Mapping[str, int] = {
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "num_queries": 9,
    "num_detection_tokens": 9,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "kv_lora_rank": HEAD,
    "q_lora_rank": HEAD,
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": 8,
    "qk_head_dim": HEAD + 8,
    "query_pre_attn_scalar": HEAD,
    "rotary_dim": 8,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_landmarks": 8,
    "segment_means_seq_len": 8,
    "attention_window": 16,
    "sliding_window": 16,
    "local_attention": 16,
    "window_size": 4,
    "position_buckets": 16,
    "entity_vocab_size": 50,
    "num_random_blocks": 1,
    "embedding_rank": HEAD,
    "vision_feature_layer": -1,
    "state_size": 8,
    "time_step_rank": 8,
    "n_groups": 1,
    "xvector_output_dim": 32,
    "max_2d_position_embeddings": 1024,
    "num_latents": 16,
    "speaker_embedding_dim": 16,
    "codebook_size": 32,
    "pretraining_tp": 1,
    "num_kv_shared_layers": 0,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "mpt": {"n_heads": HEADS},
    "reformer": {
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "lsh"],
        "max_position_embeddings": 256,
        "attention_head_size": HEAD,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "is_decoder": False,
    },
    "reformer/causal-lm": {"is_decoder": True},
    "led": {"attention_window": [8, 8]},
    "longformer": {"attention_window": [8, 8]},
    "xlm": {"emb_dim": HIDDEN, "n_layers": 2, "n_heads": HEADS, "n_langs": 1},
    "flaubert": {"emb_dim": HIDDEN, "n_layers": 2, "n_heads": HEADS},
    "funnel": {
        "block_sizes": [1, 1],
        "block_repeats": [1, 1],
        "d_head": HEAD,
        "n_head": HEADS,
        "num_decoder_layers": 1,
    },
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
    "fnet": {"use_tpu_fourier_optimizations": False},
    "squeezebert": {"embedding_size": HIDDEN},
    "bert-generation": {"is_decoder": False},
    "canine": {"num_hash_buckets": 64, "downsampling_rate": 4, "local_transformer_stride": 8},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "big_bird": {"block_size": 4},
    "bigbird_pegasus": {"block_size": 4},
}


def small(model_type: str, whole: Mapping[str, Any], way: Way, head: str = "") -> dict[str, Any]:
    """Return the entries of a small config.

    Args:
        model_type: transformers' word for the architecture.
        whole: the entries of the config as transformers has them by itself.
        way: how widths are made small; `shallow` leaves them.
        head: the head, for what an architecture wants of one only.
    """
    made = _part(whole, way)
    made |= OVERRIDES.get(model_type, {}) | OVERRIDES.get(f"{model_type}/{head}", {})
    return made


def _part(whole: Mapping[str, Any], way: Way) -> dict[str, Any]:
    """Return a config, or one inside another, made small."""
    staged = any(isinstance(value, (list, tuple)) and key in _STAGES for key, value in whole.items())
    scaled: Way = "scaled" if staged and way == "named" else way
    layers = _layer_count(whole)
    before = max((value for key, value in whole.items() if _is_layers(key) and _is_number(value)), default=0)
    made: dict[str, Any] = {}
    placeholders = iter(range(FIRST_PLACEHOLDER, 0, -1))
    for key, value in whole.items():
        if isinstance(value, Mapping):
            if key in ("rope_parameters", "rope_scaling"):
                made[key] = _rope(value)
            elif key == "per_layer_config":
                made[key] = {layer: one for layer, one in value.items() if int(layer) < layers}
            elif key not in ("id2label", "label2id") and value:
                made[key] = _part(value, way) | ({"model_type": value["model_type"]} if "model_type" in value else {})
        elif _DERIVED.match(key) or value is None:
            continue
        elif isinstance(value, (list, tuple)):
            made[key] = _listed(key, list(value), scaled, layers, before)
        elif _TOKEN.search(key) and _is_number(value):
            made[key] = _token(key, value, placeholders)
        elif _is_number(value):
            made[key] = _number(key, value, scaled, layers, whole)
        else:
            made[key] = value
    if "pad_token_id" in whole and whole["pad_token_id"] is None:
        made["pad_token_id"] = SPECIAL["pad"]
    return made


_STAGES = (
    "depths",
    "hidden_sizes",
    "embed_dims",
    "num_blocks_per_stage",
    "stage_out_channels",
    "encoder_hidden_sizes",
    "neck_hidden_sizes",
    "in_channels",
    "block_sizes",
    "layer_depths",
    "num_stages_list",
)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_layers(key: str) -> bool:
    return bool(_LAYERS.search(key)) and not _NOT_LAYERS.search(key)


def _layer_count(whole: Mapping[str, Any]) -> int:
    """Return how many layers show every kind of layer, and every one that others read from."""
    count = 2
    for key, value in whole.items():
        if isinstance(value, (list, tuple)) and value:
            if "layer_types" in key or key == "layers_block_type":
                count = max(count, len(set(map(str, value))))
            elif "indices" in key or "indexes" in key:
                count = max(count, len(value))
    return min(count, 6)


def _listed(key: str, value: list[Any], way: Way, layers: int, before: int) -> list[Any]:
    """Return a list made small: one entry per layer or stage, or sizes."""
    if not value:
        return value
    if "layer_types" in key or key == "layers_block_type" or (before > 4 and len(value) == before):
        kinds = list(dict.fromkeys(map(repr, value)))
        chosen = [next(one for one in value if repr(one) == kind) for kind in kinds][-layers:]
        chosen = chosen + [chosen[-1]] * (layers - len(chosen))
        return [_number(key, one, way, layers, {}) if _is_number(one) else one for one in chosen]
    if not all(map(_is_number, value)):
        return [_part(one, way) if isinstance(one, Mapping) else one for one in value]
    if "indices" in key or "indexes" in key:
        return [min(index, layers - 1) for index in range(len(value))]
    if key in ("depths", "num_blocks_per_stage", "stage_num_blocks", "layer_depths", "num_block_repeats"):
        return [min(one, 2) for one in value]  # windows that are shifted come second
    if key == "image_size":
        return [IMAGE] * len(value)
    if key in ("conv_dim", "tdnn_dim"):
        return [32] * len(value)
    if way == "scaled" and _WIDTHS.search(key) and min(value) >= 16 and "patch" not in key:
        return [max(8, one // SCALE) for one in value]
    return value


def _token(key: str, value: int, placeholders: Any) -> int:
    """Return an id below the number of words: those of the tokenizer by their names, others each its own."""
    for name, number in SPECIAL.items():
        if key in (f"{name}_token_id", f"{name}_token_index"):
            return number
    if key in ("decoder_start_token_id", "forced_bos_token_id"):
        return SPECIAL["bos"]
    if key == "forced_eos_token_id":
        return SPECIAL["eos"]
    return value if value < 0 else next(placeholders)


def _number(key: str, value: int, way: Way, layers: int, whole: Mapping[str, Any]) -> int:
    """Return a number of a config made small, itself where its name says nothing."""
    if key in {"image_size", "img_size"}:
        return _image(whole) * (2 if _is_number(whole.get("window_size")) and "depths" in whole else 1)
    if key == "patch_size":
        return min(value, 16)
    if _is_layers(key):
        return min(value, layers) if value else value
    for pattern, most in ((_VOCABULARY, VOCABULARY), (_POSITIONS, POSITIONS), (_EXPERTS, 4), (_CHOSEN, 2)):
        if pattern.search(key) and "type_vocab" not in key:
            return min(value, most)
    return value if way == "shallow" else _WAYS[way](key, value, whole)


def _named(key: str, value: int, whole: Mapping[str, Any]) -> int:
    """Return what every entry of its kind gets."""
    if key in _FIXED:
        return min(value, _FIXED[key])
    if _KV.search(key):
        heads = max((one for name, one in whole.items() if _HEADS.search(name) and _is_number(one)), default=value)
        return HEADS if value >= heads else min(value, 2)
    if re.search(r"(head_dim|d_kv|head_size|d_head|v_head_dim|headdim)$", key):
        return min(value, HEAD)
    if _HEADS.search(key):
        return min(value, HEADS)
    if _INNER.search(key) and not (key == "hidden_dim" and "intermediate_size" in whole):
        return min(value, INNER)
    if _WIDTH.search(key) and value > HIDDEN // 2:
        return min(value, HIDDEN)
    return value


def _scaled(key: str, value: int, whole: Mapping[str, Any]) -> int:
    """Return a width divided by `SCALE`."""
    if key in ("num_mel_bins", "max_source_positions", "num_queries", "num_detection_tokens", "window_size"):
        return min(value, _FIXED[key])
    is_width = _WIDTH.search(key) or _INNER.search(key) or re.search(r"(head_dim|d_kv|rank|channels|classes)$", key)
    return value // SCALE if is_width and value >= 32 and value % SCALE == 0 else value


_WAYS: dict[Way, Callable[[str, int, Mapping[str, Any]], int]] = {"named": _named, "scaled": _scaled}


def _image(whole: Mapping[str, Any]) -> int:
    """Return the side of a picture that patches fill."""
    patch = whole.get("patch_size")
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    if not _is_number(patch) or not patch or IMAGE % min(patch, 16) == 0:
        return IMAGE
    return int(patch) * max(1, IMAGE // int(patch))


def _rope(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of rotary positions for short heads."""
    made: dict[str, Any] = {}
    for key, value in whole.items():
        if isinstance(value, Mapping):
            made[key] = _rope(value)
        elif key == "original_max_position_embeddings":
            made[key] = POSITIONS
        elif key == "mrope_section" and isinstance(value, Sequence):
            made[key] = [HEAD // 4, HEAD // 8, HEAD // 8][: len(value)]
        elif key in ("short_factor", "long_factor") and isinstance(value, Sequence):
            made[key] = list(value)[: HEAD // 2]
        else:
            made[key] = value
    return made
