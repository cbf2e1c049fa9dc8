"""What a user says of a model that cannot be found out: inputs that run, sizes of axes, values of scalars."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.host.files import read_npz
from onnxopt.spec import Array, AxisRange, Feeds, Signature, TensorSpec

_RANGE = re.compile(r"(\d+)(?:(\.\.)(\d*))?(?::(\d+))?")
_AXIS_HINT = "write --axis name=16 for one size, name=8..4096 for a range, name=8..4096:8 for multiples of 8 in it"
_VALUE_HINT = "write --value name=16000,8000"
_FEEDS_HINT = "write it with numpy.savez(path, name=array), one array for each input"

Axes = Mapping[str, AxisRange | str | int] | Sequence[str]
Values = Mapping[str, Any] | Sequence[str]
Examples = str | Path | Mapping[str, Array] | Sequence[Mapping[str, Array]]


@dataclass(frozen=True)
class Given:
    """What the user says of a model.

    Attributes:
        axes: the sizes of an axis, by its name in the file.
        values: what an input takes, by its name: numbers, words or flags.
        feeds: inputs that run.
    """

    axes: Mapping[str, AxisRange] = field(default_factory=dict)
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    feeds: tuple[Feeds, ...] = ()

    @classmethod
    def parse(cls, feeds: Examples | None = None, axes: Axes | None = None, values: Values | None = None) -> Given:
        """Read what a command line or a Python program gives.

        Args:
            feeds: an .npz file, a folder of them, or arrays by name of an input, once or several times.
            axes: `name=8..4096:8` each, or ranges by name.
            values: `name=16000,8000` each, or values by name.

        Raises:
            InputError: when something cannot be read.
        """
        said = dict(axes) if isinstance(axes, Mapping) else dict(_pair(one, _AXIS_HINT) for one in axes or ())
        chosen = dict(values) if isinstance(values, Mapping) else dict(_pair(one, _VALUE_HINT) for one in values or ())
        return cls(
            {
                axis: found if isinstance(found, AxisRange) else parse_range(axis, str(found))
                for axis, found in said.items()
            },
            {name: _listed(found) for name, found in chosen.items()},
            tuple(_examples(feeds)) if feeds is not None else (),
        )

    def __bool__(self) -> bool:
        return bool(self.axes or self.values or self.feeds)

    def check(self, signature: Signature, where: str) -> None:
        """Refuse what the model does not have.

        Args:
            signature: inputs as the file names them.
            where: the file, for messages.

        Raises:
            InputError: an axis or an input is unknown, or an array has another type or rank.
        """
        specs = {spec.name: spec for spec in signature.inputs}
        for axis in self.axes:
            if axis not in signature.axes:
                known = ", ".join(signature.axes) or "none: every size is fixed"
                raise InputError(f"--axis names {axis!r}, which no input has", where=where, hint=f"open axes: {known}")
        for name in dict.fromkeys([*self.values, *(name for feeds in self.feeds for name in feeds)]):
            if name not in specs:
                shown = ", ".join(specs)
                raise InputError(f"{name!r} is given but is no input", where=where, hint=f"inputs: {shown}")
        for feeds in self.feeds:
            for name, array in feeds.items():
                _check_array(specs[name], array, where)

    def typed_values(self, spec: TensorSpec) -> tuple[Any, ...]:
        """Return the values given for an input, in its type.

        Raises:
            InputError: one of them has no such meaning.
        """
        return tuple(_typed(spec, value) for value in self.values.get(spec.name, ()))


def parse_range(axis: str, text: str) -> AxisRange:
    """Read `16`, `8..4096`, `8..` or `8..4096:8`.

    Raises:
        InputError: it is none of these, or holds no size.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"cannot read the sizes {text!r} of axis {axis!r}", hint=_AXIS_HINT)
    least, step = int(found.group(1)), int(found.group(4) or 1)
    most = (int(found.group(3)) if found.group(3) else 0) if found.group(2) else least
    if step < 1 or least < 1 or (most and most // step * step < -(-least // step) * step):
        raise InputError(f"there is no size in {text!r} of axis {axis!r}", hint=_AXIS_HINT)
    return AxisRange(-(-least // step) * step, step, most // step * step)


def _pair(text: str, hint: str) -> tuple[str, str]:
    name, mark, rest = text.rpartition("=")
    if not mark or not name.strip() or not rest.strip():
        raise InputError(f"cannot read {text!r}", hint=hint)
    return name.strip(), rest.strip()


def _listed(found: Any) -> tuple[Any, ...]:
    if isinstance(found, str):
        return tuple(part.strip() for part in found.split(","))
    return tuple(found) if isinstance(found, Iterable) else (found,)


def _typed(spec: TensorSpec, value: Any) -> Any:
    kind = np.dtype(spec.dtype)
    if kind == np.dtype(object):
        return str(value)
    if kind == np.dtype(bool):
        words = {"true": True, "1": True, "false": False, "0": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
    else:
        try:
            number = float(value)
            typed = kind.type(int(value) if kind.kind in "iu" else number)
            if float(typed) == number or kind.kind == "f":
                return typed
        except (ValueError, OverflowError):
            pass
    raise InputError(f"input {spec.name!r} is {spec.dtype}, which {value!r} is not", hint=_VALUE_HINT)


def _examples(feeds: Examples) -> list[Feeds]:
    if isinstance(feeds, Mapping):
        return [dict(feeds)]
    if not isinstance(feeds, (str, Path)):
        return [dict(one) for one in feeds]
    path = Path(feeds)
    if not path.exists():
        raise InputError("no such file or folder", where=str(path), hint=_FEEDS_HINT)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise InputError("there is no .npz file in the folder", where=str(path), hint=_FEEDS_HINT)
    return [_read(file) for file in files]


def _read(path: Path) -> Feeds:
    try:
        found = read_npz(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as .npz ({error})", where=str(path), hint=_FEEDS_HINT) from error
    # words lie in an .npz as fixed widths; ONNX Runtime takes them as objects
    return {name: array.astype(object) if array.dtype.kind in "US" else array for name, array in found.items()}


def _check_array(spec: TensorSpec, array: Array, where: str) -> None:
    is_text = array.dtype.kind in "OUS" and spec.dtype == "object"
    if not is_text and array.dtype != np.dtype(spec.dtype):
        what = f"the array given for input {spec.name!r} is {array.dtype}, the input {spec.dtype}"
        raise InputError(what, where=where, hint=_FEEDS_HINT)
    fits = len(array.shape) == len(spec.axes) and all(
        axis == size for axis, size in zip(spec.axes, array.shape, strict=True) if isinstance(axis, int)
    )
    if not fits:
        shown = ", ".join(str(axis or "?") for axis in spec.axes)
        what = f"the array given for input {spec.name!r} has shape {list(array.shape)}, the input [{shown}]"
        raise InputError(what, where=where, hint=_FEEDS_HINT)
