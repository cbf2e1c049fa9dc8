"""Each way of pooling gives what its definition says, whatever is padded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxopt.load.checkpoint.pooling import Pooling, build_head, read_pooling
from tests.support.tiny import write_pooling

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]])


def expected(mode: str, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the vector of one row, written for one row."""
    kept = hidden[mask == 1]
    places = np.flatnonzero(mask) + 1.0
    vectors: dict[str, np.ndarray] = {
        "cls": hidden[0],
        "max": kept.max(0),
        "mean": kept.mean(0),
        "mean_sqrt_len": kept.sum(0) / np.sqrt(len(kept)),
        "weightedmean": (kept * places[:, None]).sum(0) / places.sum(),
        "lasttoken": kept[-1],
    }
    return vectors[mode]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "modes", [("cls",), ("max",), ("mean",), ("mean_sqrt_len",), ("weightedmean",), ("lasttoken",), ("cls", "mean")]
)
def test_pooling_follows_its_definition(modes: tuple[str, ...], *, normalize: bool) -> None:
    import torch

    hidden = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    head = build_head(Pooling(modes, normalize=normalize))
    found = head(torch.from_numpy(hidden), torch.from_numpy(MASK)).numpy()
    rows = [
        np.concatenate([expected(mode, one, mask) for mode in modes]) for one, mask in zip(hidden, MASK, strict=True)
    ]
    want = np.stack([row / np.linalg.norm(row) for row in rows] if normalize else rows)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_both_spellings_of_modes_are_read(tmp_path: Path) -> None:
    write_pooling(tmp_path, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, normalize=False)
    assert read_pooling(tmp_path) == (Pooling(("cls", "mean")), "")
    write_pooling(tmp_path, {"pooling_mode": "lasttoken"})
    pooling, note = read_pooling(tmp_path)
    assert (str(pooling), note) == ("lasttoken pooling, L2 normalisation", "")


def test_checkpoint_without_modules_has_no_pooling(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == (None, "")
    assert read_pooling(None) == (None, "")


def add_module(folder: Path, kind: str, path: str) -> None:
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules.insert(2, {"idx": 9, "name": "9", "path": path, "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


def test_dense_layer_is_applied_between_pooling_and_normalisation(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    write_pooling(tmp_path, {"pooling_mode": "mean"})
    add_module(tmp_path, "Dense", "2_Dense")
    dense = tmp_path / "2_Dense"
    dense.mkdir()
    (dense / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.Tanh"}', encoding="utf-8")
    weight, bias = torch.randn(3, 5), torch.randn(3)
    save_file({"linear.weight": weight, "linear.bias": bias}, dense / "model.safetensors")
    pooling, _ = read_pooling(tmp_path)
    assert pooling is not None
    assert str(pooling) == "mean pooling, dense Tanh, L2 normalisation"
    hidden = torch.randn(2, 4, 5)
    vector = torch.tanh(hidden.mean(1) @ weight.T + bias)
    want = vector / vector.norm(dim=1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(build_head(pooling)(hidden, torch.ones(2, 4, dtype=torch.int64)), want)


@pytest.mark.parametrize(
    ("kind", "path", "reason"),
    [
        ("Dense", "../outside", "modules.json names the path '../outside'"),
        ("Dense", "/etc", "modules.json names the path '/etc'"),
        ("LSTM", "2_LSTM", "modules.json has a LSTM step"),
    ],
)
def test_parts_that_are_not_supported_are_named(kind: str, path: str, reason: str, tmp_path: Path) -> None:
    write_pooling(tmp_path, {"pooling_mode": "mean"})
    add_module(tmp_path, kind, path)
    assert read_pooling(tmp_path) == (None, f"no sentence_embedding output: {reason}")


def test_pickled_dense_weights_are_refused(tmp_path: Path) -> None:
    write_pooling(tmp_path, {"pooling_mode": "mean"})
    add_module(tmp_path, "Dense", "2_Dense")
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    assert read_pooling(tmp_path)[1] == "no sentence_embedding output: 2_Dense has no model.safetensors"


def test_broken_modules_file_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"idx": 0}]', encoding="utf-8")
    assert read_pooling(tmp_path)[1] == "no sentence_embedding output: modules.json cannot be read"
