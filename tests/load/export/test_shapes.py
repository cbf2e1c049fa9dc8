"""Of a large network shapes are asked without its numbers; what does not run so is run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.graph import weight_files
from onnxopt.load.checkpoint.classes import infer_task
from onnxopt.load.checkpoint.folder import load_config, read_checkpoint
from onnxopt.load.checkpoint.mapped import MappedWeights
from onnxopt.load.export.shapes import shapes_alone, unchanged
from onnxopt.load.export.torch_model import TorchModel, load_torch
from onnxopt.load.source.source import resolve
from tests.support.tiny import tiny_checkpoint


def module(forward: Any) -> Any:
    import torch

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(4.0))
            self.seen: Any = None
            self.scale = torch.nn.Parameter(torch.full((4,), 2.0))

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Own()


@pytest.fixture
def weights() -> MappedWeights:
    return MappedWeights(())


def test_a_network_in_files_is_not_run_for_its_shapes(weights: MappedWeights) -> None:
    import torch
    from torch._subclasses import FakeTensor

    made = module(lambda self, x: (x * self.scale)[:, None])
    found = shapes_alone(made, weights, lambda: made(torch.ones(3, 4)))
    assert isinstance(found, FakeTensor)
    assert tuple(found.shape) == (3, 1, 4)
    held = shapes_alone(made, None, lambda: made(torch.ones(3, 4)))
    assert not isinstance(held, FakeTensor)
    assert float(held[0, 0, 0]) == 2.0


def test_a_network_that_asks_for_its_numbers_is_run(weights: MappedWeights) -> None:
    import torch

    made = module(lambda self, x: x if float(self.scale.sum()) > 7 else x[:1])
    found = shapes_alone(made, weights, lambda: made(torch.ones(3, 4)))
    assert found.tolist() == torch.ones(3, 4).tolist()


def test_what_fails_in_earnest_says_so(weights: MappedWeights) -> None:
    import torch

    made = module(lambda self, x: x @ self.table[:3])
    with pytest.raises(RuntimeError, match=r"size mismatch|shapes cannot be multiplied"):
        shapes_alone(made, weights, lambda: made(torch.ones(3, 4)))


def test_what_a_run_leaves_in_a_network_is_taken_back(weights: MappedWeights) -> None:
    import torch

    def forward(self: Any, x: Any) -> Any:
        self.seen = x.cumsum(0)
        self.register_buffer("table", x.sum(0), persistent=False)
        self.register_buffer("more", x, persistent=False)
        return x + self.table

    made = module(forward)
    shapes_alone(made, weights, lambda: made(torch.ones(3, 4)))
    assert made.seen is None
    assert list(dict(made.named_buffers())) == ["table"]
    assert made.table.tolist() == [0, 1, 2, 3]
    with unchanged(made):
        made(torch.ones(2, 4))
        assert list(dict(made.named_buffers())) == ["table", "more"]
    assert list(dict(made.named_buffers())) == ["table"]
    assert made(torch.ones(2, 4)).tolist() == [[3.0] * 4] * 2


@pytest.mark.parametrize("kind", ["bert", "vit", "gpt2"])
def test_shapes_are_those_of_a_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 0)
    checkpoint = read_checkpoint(resolve(str(tiny_checkpoint(kind, tmp_path / kind))))
    config = load_config(checkpoint)
    model = load_torch(checkpoint, config, infer_task(config, where=""), None)
    assert model.weights is not None
    sizes = {"batch": 2, "sequence": 5, "past_sequence": 3, "total_sequence": 8}
    feeds = {spec.name: np.ones(spec.shape(sizes), spec.dtype) for spec in model.inputs}
    expected = [(name, array.shape, str(array.dtype)) for name, array in model.run(feeds).items()]

    def refuse(*_: Any) -> None:
        raise AssertionError("it is run")

    monkeypatch.setattr(TorchModel, "run", refuse)
    assert model.shapes(feeds) == expected
