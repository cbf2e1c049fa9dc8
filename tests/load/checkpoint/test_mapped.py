"""Weights that lie in files are float32 to a network: every operator says the same of them, to the bit.

Covers: load/checkpoint/stored.py, load/checkpoint/network.py
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.graph import weight_files
from onnxopt.load.checkpoint.classes import infer_task, model_class
from onnxopt.load.checkpoint.folder import load_config, read_checkpoint
from onnxopt.load.checkpoint.heads import weight_names
from onnxopt.load.checkpoint.mapped import MappedWeights, laying, stored_type
from onnxopt.load.checkpoint.network import build_network, mapped_network
from onnxopt.load.checkpoint.stored import float_bytes, is_large, places_in, weight_files_of
from onnxopt.load.source.source import resolve
from tests.support.tiny import tiny_checkpoint


def written(path: Path, **tensors: Any) -> Path:
    """Write a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: one.contiguous() for name, one in tensors.items()}, path)
    return path


def drawn(*shape: int, dtype: str = "bfloat16") -> Any:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(getattr(torch, dtype))


def test_every_tensor_is_where_its_header_says(tmp_path: Path) -> None:
    import torch

    tensors = {
        "a": drawn(3, 5, dtype="float32"),
        "b": drawn(7, dtype="float16"),
        "c": torch.arange(6).view(2, 3),
        "empty": torch.zeros(0, 4),
        "one": torch.tensor(2.5),
    }
    path = written(tmp_path / "model.safetensors", **tensors)
    places = places_in(path)
    assert set(places) == set(tensors) == weight_names([path])
    content = path.read_bytes()
    for name, place in places.items():
        assert place.shape == tuple(tensors[name].shape)
        assert content[place.offset : place.offset + place.nbytes] == tensors[name].numpy().tobytes()
    assert float_bytes([path]) == 4 * (15 + 7 + 6 + 0 + 1)


@pytest.mark.parametrize("damage", ["cut", "outside", "longer", "type", "no entry", "no header"])
def test_headers_that_lie_are_one_line(damage: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", weight=drawn(8, 8, dtype="float32"))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    entry = header["weight"]
    if damage == "cut":
        data = data[:100]
    elif damage == "outside":
        entry["data_offsets"] = [1 << 40, (1 << 40) + 256]
    elif damage == "longer":
        entry["shape"] = [8, 9]
    elif damage == "type":
        entry["dtype"] = "F1"
    elif damage == "no entry":
        header["weight"] = [1]
    made = json.dumps(header if damage != "no header" else [1]).encode()
    path.write_bytes(struct.pack("<Q", len(made)) + made + data)
    with pytest.raises(InputError, match="the weights cannot be read") as error:
        places_in(path)
    assert "\n" not in str(error.value)


def test_one_whole_file_goes_before_shards(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in weight_files_of(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    written(tmp_path / "model.safetensors", a=drawn(2))
    assert [path.name for path in weight_files_of(tmp_path)] == ["model.safetensors"]


def test_weights_are_large_by_what_they_take_as_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint("distilbert", tmp_path / "model")
    size = float_bytes(weight_files_of(folder))
    assert not is_large(read_checkpoint(resolve(str(folder))))
    monkeypatch.setattr(weight_files, "LARGE_BYTES", size)
    assert not is_large(read_checkpoint(resolve(str(folder))))
    monkeypatch.setattr(weight_files, "LARGE_BYTES", size - 1)
    assert is_large(read_checkpoint(resolve(str(folder))))
    assert not is_large(read_checkpoint(resolve(str(folder), weights="random")))
    assert not is_large(read_checkpoint(resolve(str(folder), trust_remote_code=True)))


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "linear": lambda x, w: _torch().nn.functional.linear(x, w, w[:, 0]),
    "linear of last rows": lambda x, w: _torch().nn.functional.linear(x[:, -1:], w),
    "product": lambda x, w: x @ w.t(),
    "einsum": lambda x, w: _torch().einsum("bsi,oi->bso", x, w),
    "lookup": lambda _, w: _torch().nn.functional.embedding(_torch().tensor([[3, 1], [0, 3]]), w),
    "lookup with padding": lambda _, w: _torch().nn.functional.embedding(_torch().tensor([3, 0]), w, 0),
    "rows": lambda _, w: w[_torch().tensor([2, 2])],
    "rows of an axis": lambda _, w: w.index_select(1, _torch().tensor([5, 0])),
    "rows of experts": lambda _, w: w.view(4, 6, 32)[_torch().tensor([[3, 0], [0, 0]])],
    "piece": lambda _, w: w[1:4, ::2],
    "views": lambda _, w: w.unsqueeze(0).expand(3, -1, -1).reshape(3, -1).t(),
    "joined": lambda x, w: _torch().cat([w, x[0]]),
    "sum": lambda _, w: w.sum(0) * 2 + 1,
    "chunks": lambda _, w: _torch().stack(w.chunk(2)),
    "convolution": lambda x, w: _torch().nn.functional.conv1d(x.transpose(1, 2), w[:, :, None]),
    "cast": lambda _, w: w.to(_torch().float64),
}


def _torch() -> Any:
    import torch

    return torch


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_say_the_same_of_stored_weights(name: str, gradients: bool) -> None:  # noqa: FBT001
    import torch

    narrow, x = drawn(24, 32), drawn(2, 7, 32, dtype="float32")
    plain = torch.nn.Parameter(narrow.float())
    stored = torch.nn.Parameter(stored_type()(narrow))
    assert stored.dtype == torch.float32
    assert isinstance(stored, stored_type())
    with torch.no_grad() if gradients else torch.inference_mode():
        expected, found = OPERATORS[name](x, plain), OPERATORS[name](x, stored)
    assert found.dtype == expected.dtype
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


def test_a_stored_weight_is_not_written_to() -> None:
    import torch

    stored = stored_type()(drawn(4, 4))
    with torch.no_grad(), pytest.raises(TypeError, match="writes to a weight"):
        stored.fill_(0)


def test_tensors_know_where_they_lie(tmp_path: Path) -> None:
    import torch

    path = written(tmp_path / "model.safetensors", one=drawn(6, 4), two=drawn(3, 4, dtype="float32"))
    weights = MappedWeights((path,))
    one, two = (weights.state[name].stored for name in ("one", "two"))
    places = places_in(path)
    assert weights.place_of(one) == places["one"]
    assert weights.place_of(two) == places["two"]
    part = weights.place_of(one[2:5])
    assert part is not None
    assert (part.offset, part.shape, part.nbytes) == (places["one"].offset + 2 * 4 * 2, (3, 4), 24)
    assert weights.place_of(one.t()) is None
    assert weights.place_of(one.clone()) is None
    assert weights.place_of(torch.zeros(3)) is None


def test_what_is_written_to_a_mapped_weight_stays_in_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", one=drawn(6, 4, dtype="float32"))
    before = path.read_bytes()
    tensor = MappedWeights((path,)).state["one"].stored
    tensor.fill_(7.0)
    assert float(tensor[0, 0]) == 7.0
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conversions_are_laid_down(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(weight_files, "LEAST_BYTES", 64)
    path = written(tmp_path / "model.safetensors", **{f"expert.{i}": drawn(5, 8 + i, dtype=dtype) for i in range(3)})
    weights = MappedWeights((path,))
    with laying(weights):
        joined: Any = torch.cat([weights.state[f"expert.{i}"] for i in range(3)], dim=1)
        turned: Any = weights.state["expert.0"].t().contiguous()
    assert joined.dtype == torch.float32
    for made, expected in (
        (joined, torch.cat([drawn(5, 8 + i, dtype=dtype) for i in range(3)], dim=1)),
        (turned, drawn(5, 8, dtype=dtype).t().contiguous()),
    ):
        assert torch.equal(made.stored, expected)
        place = weights.place_of(made.stored)
        assert place is not None
        assert place.path != path
        lain = np.fromfile(place.path, np.uint8)[place.offset : place.offset + place.nbytes]
        assert lain.tobytes() == expected.view(torch.uint8).numpy().tobytes()


def opened(folder: Path) -> tuple[Any, Any, Any]:
    checkpoint = read_checkpoint(resolve(str(folder)))
    config = load_config(checkpoint)
    return checkpoint, config, model_class(config, infer_task(config, where=""))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_network_is_the_same_with_its_weights_in_files(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    monkeypatch.setattr(weight_files, "LEAST_BYTES", 1000)
    folder = tiny_checkpoint("gpt2", tmp_path / "model")
    network = transformers.GPT2LMHeadModel.from_pretrained(folder).to(getattr(torch, dtype))
    network.save_pretrained(folder)
    held, missing = build_network(*opened(folder))
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    found = mapped_network(*opened(folder))
    assert found is not None
    lying, lacking, weights = found
    assert lacking == missing
    assert lying.lm_head.weight is lying.transformer.wte.weight
    names = dict(held.named_parameters())
    for name, parameter in lying.named_parameters():
        plain = getattr(parameter, "stored", parameter)
        assert isinstance(parameter, torch.nn.Parameter)
        assert parameter.dtype == torch.float32
        assert torch.equal(plain.float(), names[name])
        assert (weights.place_of(plain) is not None) == (plain.numel() * 4 >= 1000), name
    for name, buffer in lying.named_buffers():
        assert torch.equal(buffer, dict(held.named_buffers())[name])
    ids = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        assert torch.equal(held(ids).logits, lying(ids).logits)


def test_a_checkpoint_that_does_not_load_so_is_loaded_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    folder = tiny_checkpoint("distilbert", tmp_path / "model")
    checkpoint, config, kind = opened(folder)
    assert mapped_network(checkpoint, config, kind) is not None

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no state dict is taken")

    monkeypatch.setattr(kind, "from_pretrained", refuse)
    assert mapped_network(checkpoint, config, kind) is None
