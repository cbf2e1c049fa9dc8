from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from onnxopt.load.checkpoint.counted import Counted, count_weights


def saved(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / name)
    return folder / name


def test_weights_of_all_files_count_by_what_they_are(tmp_path: Path) -> None:
    first = saved(
        tmp_path,
        "a.safetensors",
        {
            "model.embed_tokens.weight": torch.zeros(50, 8, dtype=torch.bfloat16),
            "model.layers.0.mlp.up_proj.weight": torch.zeros(30, 8, dtype=torch.bfloat16),
            "model.embed_norm.weight": torch.ones(8, dtype=torch.bfloat16),  # a gain is no table
        },
    )
    second = saved(
        tmp_path,
        "b.safetensors",
        {"lm_head.weight": torch.zeros(50, 8), "attn.mask": torch.zeros(99, 9, dtype=torch.uint8)},
    )
    found = count_weights([first, second])
    assert found == Counted(
        parameters=400 + 240 + 8 + 400,
        in_tables=800,
        largest=400,
        stored_bytes=first.stat().st_size + second.stat().st_size,
    )
    assert found.float_bytes == 4 * 1048


def test_what_cannot_be_read_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    assert count_weights([tmp_path / "broken.safetensors"]) is None
    assert count_weights([tmp_path / "none.safetensors"]) is None
    assert count_weights([]) == Counted()
