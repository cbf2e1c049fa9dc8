"""The architectures of the census: tiny configs of transformers' own, and the blocks that each of them has.

Counts are of a model of two layers and come from the papers and from transformers' modules, not from our result: a
block that nobody recognises is missing from `fused` and from `total`, and only a count written down here shows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Inputs = Literal["text", "image", "wave", "frames", "mel"]

VOCABULARY = 200
POSITIONS = 160
HIDDEN = 32

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
ROBERTA: dict[str, Any] = {"pad_token_id": 1, "type_vocab_size": 1}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
PATCHES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 30,
    "patch_size": 10,
}
WAVE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (HIDDEN, HIDDEN),
    "conv_kernel": (3, 2),
    "conv_stride": (1, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 2,
    "apply_spec_augment": False,
    "vocab_size": VOCABULARY,
}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: transformers' model type, or one with a suffix.
        model_type: transformers' model type.
        attention: attentions of the tiny model.
        layer_norm: LayerNorms.
        rms_norm: RMSNorms.
        gelu: GELUs of either form.
        auto: the class of transformers that builds it.
        part: attribute path of the module to export; empty for the whole model.
        inputs: what it takes.
        settings: config entries.
        extra: config entries besides those of `settings`.
        family: for the order of the table.
    """

    name: str
    model_type: str
    attention: int
    layer_norm: int = 0
    rms_norm: int = 0
    gelu: int = 0
    auto: str = "AutoModel"
    part: str = ""
    inputs: Inputs = "text"
    settings: Mapping[str, Any] = field(default_factory=lambda: TEXT)
    extra: Mapping[str, Any] = field(default_factory=dict)
    family: str = "encoder"

    @property
    def expected(self) -> dict[str, int]:
        """The counts by the names of `onnxopt.graph.blocks`."""
        return {
            "attention": self.attention,
            "layer_norm": self.layer_norm,
            "rms_norm": self.rms_norm,
            "gelu": self.gelu,
        }


def _encoder(name: str, layer_norm: int = 5, gelu: int = 2, *, attention: int = 2, **rest: Any) -> Architecture:
    return Architecture(name, rest.pop("model_type", name), attention, layer_norm, gelu=gelu, **rest)


def _decoder(name: str, *counts: int, **rest: Any) -> Architecture:
    """Counts are LayerNorms, RMSNorms, GELUs."""
    layer_norm, rms_norm, gelu = counts
    return Architecture(
        name,
        rest.pop("model_type", name),
        rest.pop("attention", 2),
        layer_norm,
        rms_norm,
        gelu,
        auto="AutoModelForCausalLM",
        family="decoder",
        **rest,
    )


def _vision(name: str, *counts: int, **rest: Any) -> Architecture:
    """Counts are attentions, LayerNorms, GELUs."""
    attention, layer_norm, gelu = counts
    settings = rest.pop("settings", PATCHES)
    kind = rest.pop("model_type", name)
    return Architecture(
        name, kind, attention, layer_norm, gelu=gelu, inputs="image", settings=settings, family="vision", **rest
    )


ENCODERS = (
    _encoder("bert"),
    _encoder("distilbert", extra={"dim": HIDDEN, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    _encoder("roberta", extra=ROBERTA),
    _encoder("xlm-roberta", extra=ROBERTA),
    _encoder("camembert", extra=ROBERTA),
    _encoder("data2vec-text", extra=ROBERTA),
    _encoder("electra", extra={"embedding_size": 16}),
    _encoder("albert", extra={"embedding_size": 16, "hidden_act": "gelu_new"}),
    _encoder("mpnet", extra={"pad_token_id": 1}),
    _encoder("deberta", 5, extra={"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}),
    _encoder(
        "deberta-v2",
        6,
        extra={
            "relative_attention": True,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    _encoder(
        "mobilebert",
        0,
        0,
        extra={"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    ),
    _encoder("squeezebert", extra={"embedding_size": HIDDEN, "q_groups": 2, "k_groups": 2, "v_groups": 2}),
    _encoder("convbert", extra={"embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3}),
    _encoder("roformer", extra={"embedding_size": HIDDEN}),
    _encoder("nomic_bert", extra={"hidden_act": "gelu"}),
    _encoder(
        "modernbert",
        5,
        extra={"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    _encoder("ernie"),
    _encoder("layoutlm"),
    _encoder("megatron-bert"),
    _encoder("rembert", extra={"input_embedding_size": 16}),
    _encoder("nystromformer", 5, extra={"num_landmarks": 8, "segment_means_seq_len": 8}),
    _encoder("ibert", extra=ROBERTA),
    _encoder("fnet", attention=0, extra={"use_tpu_fourier_optimizations": False}),
    _encoder("splinter"),
    Architecture("eurobert", "eurobert", 2, rms_norm=5, extra=GROUPED),
    _encoder("jina_embeddings_v3", extra=ROBERTA),
)

DECODERS = (
    _decoder("gpt2", 5, 0, 2, settings=GPT),
    _decoder(
        "gpt_neo",
        5,
        0,
        2,
        extra={"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    ),
    _decoder("gptj", 3, 0, 2, settings=GPT, extra={"rotary_dim": 4}),
    _decoder("gpt_neox", 5, 0, 2),
    _decoder("opt", 5, 0, 0, extra={"ffn_dim": 64, "word_embed_proj_dim": HIDDEN}),
    _decoder("bloom", 6, 0, 2, extra={"n_layer": 2, "n_head": 4}),
    _decoder("falcon", 3, 0, 2, extra={"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}),
    _decoder("falcon-alibi", 3, 0, 2, model_type="falcon", extra={"alibi": True}),
    _decoder("mpt", 5, 0, 2, extra={"d_model": HIDDEN, "n_heads": 4, "n_layers": 2, "max_seq_len": POSITIONS}),
    _decoder("gpt_bigcode", 5, 0, 2, settings=GPT),
    _decoder("codegen", 3, 0, 2, settings=GPT, extra={"rotary_dim": 4}),
    _decoder("biogpt", 5, 0, 2),
    _decoder("xglm", 5, 0, 2, extra={"d_model": HIDDEN, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}),
    _decoder("phi", 3, 0, 2),
    _decoder("phi3", 0, 5, 0, extra={"num_key_value_heads": 2}),
    _decoder("llama", 0, 5, 0, extra=GROUPED),
    _decoder("llama-mha", 0, 5, 0, model_type="llama", extra={"num_key_value_heads": 4}),
    _decoder("mistral", 0, 5, 0, extra={**GROUPED, "sliding_window": 16}),
    _decoder("mixtral", 0, 5, 0, extra={**GROUPED, "num_local_experts": 4}),
    _decoder("qwen2", 0, 5, 0, extra={"num_key_value_heads": 2}),
    _decoder("qwen3", 0, 9, 0, extra=GROUPED),
    _decoder("gemma", 0, 5, 2, extra=GROUPED),
    _decoder("gemma2", 0, 9, 2, extra={**GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 8}),
    _decoder("gemma3_text", 0, 13, 2, extra={**GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 8}),
    _decoder("olmo", 5, 0, 0, extra={"num_key_value_heads": 4}),
    _decoder("olmo2", 0, 9, 0, extra={"num_key_value_heads": 4}),
    _decoder("starcoder2", 5, 0, 2, extra={"num_key_value_heads": 2}),
    _decoder("smollm3", 0, 5, 0, extra=GROUPED),
    _decoder("granite", 0, 5, 0, extra={"num_key_value_heads": 2}),
    _decoder("stablelm", 5, 0, 0, extra={"num_key_value_heads": 2}),
    _decoder("cohere", 3, 0, 0, extra={"num_key_value_heads": 2}),
    _decoder("glm", 0, 5, 0, extra=GROUPED),
    _decoder("nemotron", 5, 0, 0, extra=GROUPED),
    _decoder("persimmon", 9, 0, 0),
    _decoder("helium", 0, 5, 0, extra=GROUPED),
    _decoder("ernie4_5", 0, 5, 0, extra=GROUPED),
    _decoder("seed_oss", 0, 5, 0, extra=GROUPED),
    _decoder("exaone4", 0, 9, 0, extra={**GROUPED, "sliding_window": 16}),
    _decoder(
        "gpt_oss", 0, 5, 0, extra={**GROUPED, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
)

_PAIRS: tuple[tuple[str, tuple[int, int, int], Inputs, dict[str, Any], dict[str, Any]], ...] = (
    ("t5", (0, 5, 0), "text", T5, {}),
    ("mt5", (0, 5, 2), "text", T5, {}),
    ("bart", (5, 0, 2), "text", ENCODER_DECODER, {}),
    ("mbart", (6, 0, 2), "text", ENCODER_DECODER, {}),
    ("pegasus", (5, 0, 2), "text", ENCODER_DECODER, {}),
    ("marian", (4, 0, 2), "text", ENCODER_DECODER, {"activation_function": "gelu"}),
    ("whisper", (5, 0, 4), "mel", ENCODER_DECODER, {"num_mel_bins": 8, "max_source_positions": 10}),
)
ENCODERS_OF_PAIRS = tuple(
    Architecture(
        f"{name}-encoder",
        name,
        2,
        *counts,
        part="encoder",
        family="pair",
        inputs=inputs,
        settings=settings,
        extra=extra,
    )
    for name, counts, inputs, settings, extra in _PAIRS
)

VISION = (
    _vision("vit", 2, 5, 2),
    _vision("deit", 2, 5, 2),
    _vision("beit", 2, 4, 2),
    _vision("data2vec-vision", 2, 4, 2),
    _vision("dinov2", 2, 5, 2),
    _vision("dinov3_vit", 2, 5, 2),
    _vision("clip_vision_model", 2, 5, 0),
    _vision("siglip_vision_model", 2, 5, 2),
    _vision(
        "swin",
        2,
        7,
        2,
        settings={
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    _vision(
        "segformer",
        2,
        9,
        2,
        settings={
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "num_attention_heads": [2, 4],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "mlp_ratios": [2, 2],
            "image_size": 32,
            "decoder_hidden_size": 32,
        },
    ),
    _vision(
        "convnext",
        0,
        4,
        2,
        settings={"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 4, "image_size": 32},
    ),
    _vision(
        "resnet",
        0,
        0,
        0,
        settings={
            "embedding_size": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "layer_type": "basic",
            "image_size": 32,
        },
    ),
    _vision(
        "mobilevit",
        9,
        21,
        0,
        settings={
            "image_size": 32,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
            "num_attention_heads": 2,
        },
    ),
)

TOWERS = (
    _encoder("clip_text_model", 5, 0),
    _encoder("siglip_text_model", 5, 2, auto="SiglipTextModel"),
)

AUDIO = (
    Architecture("wav2vec2", "wav2vec2", 2, 6, gelu=5, inputs="wave", settings=WAVE, family="audio"),
    Architecture("hubert", "hubert", 2, 6, gelu=5, inputs="wave", settings=WAVE, family="audio"),
    Architecture("wavlm", "wavlm", 2, 6, gelu=5, inputs="wave", settings=WAVE, family="audio"),
    Architecture("unispeech", "unispeech", 2, 6, gelu=5, inputs="wave", settings=WAVE, family="audio"),
    Architecture(
        "audio-spectrogram-transformer",
        "audio-spectrogram-transformer",
        2,
        5,
        gelu=2,
        inputs="frames",
        settings={
            **PATCHES,
            "patch_size": 8,
            "num_mel_bins": 16,
            "max_length": 32,
            "frequency_stride": 8,
            "time_stride": 8,
        },
        family="audio",
    ),
)

ARCHITECTURES: dict[str, Architecture] = {
    one.name: one for one in (*ENCODERS, *TOWERS, *DECODERS, *ENCODERS_OF_PAIRS, *VISION, *AUDIO)
}
