"""A captured graph exports to the same answers as torch's own way, or is left to it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from onnxopt.errors import ExportError
from onnxopt.load.export.untraced import MAX_TERMS, capture, short_expressions, types_as_captured
from onnxopt.spec import Signature, TensorSpec

FLOATS = Signature((TensorSpec("x", "float32", ("batch", "sequence", 8)),), ())
EXAMPLE = {"batch": 3, "sequence": 5}
OTHERS = ({"batch": 1, "sequence": 1}, {"batch": 2, "sequence": 11})


def module(forward: Callable[..., Any], **parts: Any) -> Any:
    """Return a module with these parts and this forward."""

    class Made(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                if isinstance(part, torch.Tensor):
                    self.register_buffer(name, part)
                else:
                    setattr(self, name, part)

        def forward(self, *tensors: Any) -> Any:  # as the flat face of a model takes them
            return forward(self, *tensors)

    torch.manual_seed(0)
    return Made().eval()


def example(sizes: dict[str, int], seed: int = 0) -> Any:
    shape = FLOATS.inputs[0].shape(sizes)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def captured(made: Any) -> Any:
    return capture(made, FLOATS, (example(EXAMPLE),))


def exported(program: Any, **options: Any) -> Any:
    """Return a session on what torch's exporter writes."""
    import onnxruntime

    from onnxopt.host.quiet import quiet

    with quiet(), torch.no_grad():
        made = torch.onnx.export(program, dynamo=True, opset_version=23, optimize=False, verbose=False, **options)
    assert made is not None
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(made.model_proto.SerializeToString(), settings)


def answers(session: Any, sizes: dict[str, int]) -> list[Any]:
    return list(session.run(None, {session.get_inputs()[0].name: example(sizes, 1).numpy()}))


def linears() -> dict[str, Any]:
    torch.manual_seed(1)
    return {"one": torch.nn.Linear(8, 16), "two": torch.nn.Linear(16, 8), "norm": torch.nn.LayerNorm(8)}


def attend(self: Any, x: Any) -> Any:
    heads = x.view(x.shape[0], x.shape[1], 2, 4).transpose(1, 2)
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    made = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=seen)
    return self.norm(x + made.transpose(1, 2).reshape(x.shape))


CAPTURED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "linears": (lambda self, x: self.two(torch.nn.functional.gelu(self.one(x))) + x, linears()),
    "attention": (attend, linears()),
    "casts to another type": (lambda self, x: (x.to(torch.float64) * 2).to(torch.float32) + (x > 0).to(x.dtype), {}),
    "casts to the same type": (lambda self, x: x.to(torch.float32).float().type_as(x) + 1, {}),
    "a cast to the type of another": (lambda self, x: (x > 0).type_as(x) + (x > 1).to(x), {}),
    "and, or of booleans": (lambda self, x: torch.where(((x > 0) & (x < 1)) | (x < -1), x, -x), {}),
    "and, or of integers": (lambda self, x: ((x.long() & (x * 3).long()) | (x * 5).long()).float(), {}),
    "detached, contiguous": (lambda self, x: x.detach().transpose(1, 2).contiguous().transpose(1, 2) * 2, {}),
    "positions as long as the input": (lambda self, x: x + torch.arange(x.shape[1])[None, :, None], {}),
    "a sum over counted positions": (lambda self, x: (x > 0).long().cumsum(1).float() - 1, {}),
    "an output that is cast to its own type": (lambda self, x: (x * 2).float(), {}),
    "an output that is cast to another": (lambda self, x: ((x * 2).long(), x.to(torch.float64)), {}),
    "an output that is detached": (lambda self, x: ((x * 2).detach(), x + 1), {}),
    "an output that is an input": (lambda self, x: (x.detach(), x + 1), {}),
    "several outputs": (lambda self, x: (x + 1, x.sum(-1)), {}),
    "a buffer": (lambda self, x: x * self.scale, {"scale": torch.arange(8.0)}),
    "parts": (lambda self, x: torch.cat([-x.chunk(2, dim=-1)[1], x.chunk(2, dim=-1)[0]], dim=-1), {}),
}


@pytest.mark.parametrize(("forward", "parts"), CAPTURED.values(), ids=CAPTURED.keys())
def test_a_captured_module_gives_the_same_answers(forward: Callable[..., Any], parts: dict[str, Any]) -> None:
    made = module(forward, **parts)
    program = captured(made)
    assert program is not None
    assert program.run_decompositions() is program
    session = exported(program)
    for sizes in (EXAMPLE, *OTHERS):
        with torch.no_grad():
            expected = made(example(sizes, 1))
        found = answers(session, sizes)
        for left, right in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert left.dtype == right.numpy().dtype
            assert left.shape == right.shape
            assert np.allclose(left, right.numpy(), rtol=0, atol=1e-5)


MIXED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "an integer beside a float": (lambda self, x: (x > 0).long() * x + 2, {}),
    "a number of a wider kind": (lambda self, x: (x > 0).long() + 0.5, {}),
    "a size beside a float": (lambda self, x: x * x.shape[1] + x.shape[0], {}),
    "a boolean that is counted": (lambda self, x: ((x > 0) + (x > 1) * 3).float().sum(1) + x[:, 0], {}),
    "types that change what reads them": (
        lambda self, x: ((x > 0).long() * self.scale * 2 + 1).exp().sum(-1),
        linears() | {"scale": torch.arange(8.0)},
    ),
}


@pytest.mark.parametrize(
    ("forward", "parts"), [*CAPTURED.values(), *MIXED.values()], ids=[*CAPTURED.keys(), *MIXED.keys()]
)
def test_types_that_are_known_make_the_same_file(forward: Callable[..., Any], parts: dict[str, Any]) -> None:
    made = module(forward, **parts)
    written = []
    for known in (False, True):
        program = captured(made)
        assert program is not None
        with types_as_captured() if known else contextlib.nullcontext(), torch.no_grad():
            found = torch.onnx.export(program, dynamo=True, opset_version=23, optimize=False, verbose=False)
        assert found is not None
        written.append(found.model_proto.SerializeToString(deterministic=True))
    assert written[0] == written[1]


def test_known_types_are_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    plain = torch.fx.Interpreter.call_function

    def call(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        ran.append(str(target))
        return plain(self, target, args, kwargs)

    monkeypatch.setattr(torch.fx.Interpreter, "call_function", call)
    for forward, some in ((lambda self, x: self.two(self.one(x)) + x, 0), ((lambda self, x: (x > 0).long() * x), 1)):
        ran.clear()
        with types_as_captured(), torch.no_grad():
            torch.onnx.export(captured(module(forward, **linears())), dynamo=True, opset_version=23, optimize=False)
        assert bool(ran) == bool(some)


def test_both_ways_through_the_exporter_agree() -> None:
    made = module(attend, **linears())
    axes = (({0: "batch", 1: "sequence"},),)
    short, long = exported(captured(made)), exported(made, args=(example(EXAMPLE),), dynamic_shapes=axes)
    for sizes in OTHERS:
        assert np.allclose(answers(short, sizes)[0], answers(long, sizes)[0], rtol=0, atol=1e-6)


def test_the_module_is_not_changed() -> None:
    made = module(attend, **linears())
    with torch.no_grad():
        before = made(example(EXAMPLE))
        captured(made)
        assert torch.equal(made(example(EXAMPLE)), before)


LEFT: dict[str, Callable[..., Any]] = {
    "no translation": lambda self, x: torch.special.bessel_j0(x),
    "one among others": lambda self, x: torch.special.bessel_j0(x.detach()) + torch.relu(x),
    "one with two inputs": lambda self, x: torch.special.gammaincc(x.abs() + 1, x.abs()),
}


@pytest.mark.parametrize("forward", LEFT.values(), ids=LEFT.keys())
def test_an_operator_without_translation_is_left_to_the_exporter(
    forward: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert captured(module(forward)) is None
    assert "operators that need decomposition: aten." in caplog.text


CHANGED: dict[str, Callable[..., Any]] = {
    "add_": lambda self, x: (x * 2).add_(1),
    "masked_fill_": lambda self, x: (x + 0).masked_fill_(x > 0, 5.0),
    "a part is written": lambda self, x: _write(x * 1),
    "the input is written": lambda self, x: x.mul_(2) + 1,
    "a view is written and its base is read": lambda self, x: _through_view(x * 1),
    "relu_": lambda self, x: torch.relu_(x - 1) + x,
    "detach_": lambda self, x: (x * 2).detach_() + 1,
    "a detached one is written": lambda self, x: _through_detached(x * 1),
}


def _write(x: Any) -> Any:
    x[:, 0] = 7.0
    return x


def _through_view(x: Any) -> Any:
    x.view(-1).mul_(3)
    return x


def _through_detached(x: Any) -> Any:
    x.detach().mul_(3)
    return x


@pytest.mark.parametrize("forward", CHANGED.values(), ids=CHANGED.keys())
def test_what_changes_tensors_in_place_is_left_alone_or_right(forward: Callable[..., Any]) -> None:
    made = module(forward)
    program = captured(made)
    if program is None:
        return
    session = exported(program)
    for sizes in OTHERS:
        with torch.no_grad():
            expected = made(example(sizes, 1)).numpy()
        assert np.allclose(answers(session, sizes)[0], expected, rtol=0, atol=1e-6)


def test_what_branches_on_its_numbers_cannot_be_captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert captured(module(lambda self, x: x + 1 if x.sum() > 0 else x)) is None
    assert "the model cannot be captured ahead of the exporter" in caplog.text


def test_what_fails_is_left_to_the_exporter_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def fail(self: Any, x: Any) -> Any:
        raise RuntimeError("no")

    assert captured(module(fail)) is None


def test_an_axis_that_is_frozen_stays_a_matter_of_the_proof() -> None:
    """A module that fixes a size is captured with it, or not at all; it never gives a graph that follows the axis."""
    program = captured(module(lambda self, x: x.reshape(3, 5, 8) * 2))
    if program is None:
        return
    session = exported(program)
    with pytest.raises(Exception, match=r"(?i)dim|shape"):
        answers(session, OTHERS[1])


def filled(steps: int) -> Any:
    """Return a module that fills a sequence up to windows and halves it, so many times."""

    def forward(_: Any, x: Any) -> Any:
        for _turn in range(steps):
            x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 7))
            x = x.reshape(x.shape[0], x.shape[1] // 7, 7, 8).transpose(1, 2).reshape(x.shape[0], -1, 8)
            x = torch.nn.functional.pad(x, (0, 0, 0, x.shape[1] % 2))[:, ::2]
        return x

    return module(forward)


def test_sizes_that_are_endless_expressions_are_given_up_at_once_and_said() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    before = ShapeEnv.evaluate_expr
    with pytest.raises(ExportError, match=f"an expression of more than {MAX_TERMS} terms"):
        captured(filled(12))
    assert ShapeEnv.evaluate_expr is before
    assert captured(filled(1)) is not None


@pytest.mark.parametrize("most", [3, 40])
def test_the_bound_on_terms_is_the_one_that_is_asked_for(most: int) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    with short_expressions(most), pytest.raises(ExportError, match=f"more than {most} terms"):
        torch.export.export(filled(6), (example(EXAMPLE),), dynamic_shapes=(({0: dynamic, 1: dynamic},),))
