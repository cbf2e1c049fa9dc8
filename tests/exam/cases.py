"""The cases of ONNX's own backend test, as they lie in its wheel: small graphs with inputs and the answers to give."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

Value = Any  # an array, a list of values (a sequence), or None (an optional that is empty)


@dataclass(frozen=True)
class BackendCase:
    """One graph with what it must answer.

    Attributes:
        name: as ONNX calls it, `test_abs`.
        model: the graph.
        data: pairs of inputs and outputs, each in the order of the graph.
        rtol: how far a number may be off, relative to the expected one.
        atol: the same, absolute, on top.
    """

    name: str
    model: onnx.ModelProto
    data: tuple[tuple[dict[str, Value], dict[str, Value]], ...]
    rtol: float
    atol: float


def backend_cases() -> list[BackendCase]:
    """Return all cases of the installed onnx, in its order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they make infinities and not-a-numbers on purpose
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return [_case(one) for one in found if one.model is not None and one.data_sets]


def _case(found: Any) -> BackendCase:
    graph = found.model.graph
    inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    data = tuple(
        (
            dict(zip(inputs, map(_value, given), strict=False)),
            dict(zip(outputs, map(_value, wanted), strict=True)),
        )
        for given, wanted in found.data_sets
    )
    return BackendCase(found.name, found.model, data, found.rtol, found.atol)


def _value(stored: Any) -> Value:
    """Return what a case holds as an array, a list of arrays or None; types that NumPy lacks lie in messages."""
    if isinstance(stored, onnx.TensorProto):
        return onnx.numpy_helper.to_array(stored)
    if isinstance(stored, list | tuple):
        return [_value(one) for one in stored]
    return None if stored is None else np.asarray(stored)


def difference(expected: Mapping[str, Value], found: Mapping[str, Value], rtol: float, atol: float) -> str:
    """Return in words where answers are not what a case expects; empty when they are.

    Args:
        expected: by name of the output.
        found: the same.
        rtol: allowed error relative to the expected number.
        atol: allowed absolute error on top.
    """
    for name, wanted in expected.items():
        if name not in found:
            return f"{name} is missing"
        reason = _unlike(wanted, found[name], rtol, atol)
        if reason:
            return f"{name}: {reason}"
    return ""


def _unlike(wanted: Value, found: Value, rtol: float, atol: float) -> str:
    if wanted is None or found is None:
        return "" if wanted is found else f"{_kind(found)} instead of {_kind(wanted)}"
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return _unlike_sequence(wanted, found, rtol, atol)
    if isinstance(found, Sequence):
        return f"{_kind(found)} instead of {_kind(wanted)}"
    left, right = np.asarray(wanted), np.asarray(found)
    if left.shape != right.shape:
        return f"shape {list(right.shape)} instead of {list(left.shape)}"
    if left.dtype.kind in "OUS" or right.dtype.kind in "OUS":
        return "" if np.array_equal(left.astype(object), right.astype(object)) else "other text"
    if left.dtype != right.dtype:
        return f"{right.dtype} instead of {left.dtype}"
    a, b = (_comparable(side) for side in (left, right))
    if np.allclose(b, a, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        return f"off by {np.nanmax(np.abs(b - a)):.3g}"


def _unlike_sequence(wanted: Sequence[Value], found: Value, rtol: float, atol: float) -> str:
    if not isinstance(found, Sequence):
        return f"{_kind(found)} instead of {_kind(wanted)}"
    if len(wanted) != len(found):
        return f"{len(found)} values instead of {len(wanted)}"
    pairs = enumerate(zip(wanted, found, strict=True))
    return next((f"value {i}: {said}" for i, (a, b) in pairs if (said := _unlike(a, b, rtol, atol))), "")


def _comparable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _kind(value: Value) -> str:
    if value is None:
        return "nothing"
    return "a sequence" if isinstance(value, Sequence) else "a tensor"
