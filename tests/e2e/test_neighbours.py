"""Neighbours in a batch never change an answer: every decoder of the census, alone and beside short and long prompts.

Rows are padded on the left, on the right and on both sides, whatever kernel the attentions got; the greedy tokens and
the logits of each step are those of the prompt alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onnxopt.spec import Target
from tests.census.architectures import DECODERS
from tests.support.decoders import CONFIGS, TEXT
from tests.support.neighbours import check_neighbours, check_padding, opened, prompts_of

LENGTHS = (7, 38, 1, 19, 45)  # beyond and short of every window
NEW = 9

NOT_EXPORTED = ("falcon-alibi",)  # with a cache: dynamo takes no multi-query SDPA, TorchScript writes complex numbers
CENSUS: dict[str, tuple[str, Mapping[str, Any]]] = {
    one.name: (one.model_type, {**one.settings, **one.extra}) for one in DECODERS if one.name not in NOT_EXPORTED
}
# heads of another size and layers that share the keys of others; experts; latent keys; tables that hang on the length
CENSUS |= {f"{name}-shared": CONFIGS[name] for name in ("gemma3n_text", "gemma4_text")}
CENSUS |= {name: CONFIGS[name] for name in ("phi3_longrope", "qwen2_moe")}
CENSUS["deepseek_v3"] = (
    "deepseek_v3",
    {
        **TEXT,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
)
# Two packed kernels, one with a window; attention sinks; a mask that counts columns, picked ahead of the attention.
QUICK = ("llama", "mistral", "gpt_oss", "mpt")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CENSUS]


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_and_padding_change_no_answer(name: str, tmp_path: Path) -> None:
    one = opened(*CENSUS[name], tmp_path)
    prompts = prompts_of(one.loaded, LENGTHS)
    check_padding(one, prompts)
    check_neighbours(one, prompts, NEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "mpt", "gemma3n_text-shared", "deepseek_v3"])
def test_standard_operators_answer_alike(name: str, tmp_path: Path) -> None:
    one = opened(*CENSUS[name], tmp_path, target=Target("portable"))
    prompts = prompts_of(one.loaded, LENGTHS, seed=1)
    check_padding(one, prompts)
    check_neighbours(one, prompts, NEW)
