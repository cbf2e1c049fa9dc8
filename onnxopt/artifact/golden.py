"""Golden cases: inputs with the outputs that every program serving an artifact must get from them.

A folder of cases holds `golden.json` with names, dtypes, shapes and limits, one .npz per case for Python, without
pickles, and one .bin per tensor for everyone else: raw elements, row-major, little-endian. Strings lie in a .json
instead, a list in row-major order. A sequence has one entry per tensor, with its `place` in it and their number; an
empty one has one entry without a file, and so has an optional that holds nothing, whose number is null.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxopt.errors import InputError, PassAuthorError
from onnxopt.host.files import read_npz, regular_size
from onnxopt.qmath.compare import is_float
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds, Padding, Value, shape_text

GOLDEN_FOLDER = "golden"
GOLDEN_NAME = "golden.json"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip entry can have
_ZIP_MODE = 0o100644 << 16
_GOLDEN_RULE = "per output element: |got - expected| <= max_absolute_error, or both are equal, or both are not-a-number"


@dataclass(frozen=True)
class Golden:
    """One case that every program serving the artifact can repeat.

    Attributes:
        feeds: the inputs by name.
        outputs: the expected outputs by name.
        relative_error: how far a floating output may be off, as a share of its largest magnitude.
        sizes: size of each dynamic axis, for the reader.
        padding: where the padded positions lie, for the reader.
    """

    feeds: Feeds
    outputs: Feeds
    relative_error: float
    sizes: Mapping[str, int] = field(default_factory=dict)
    padding: Padding = "none"


@dataclass(frozen=True)
class GoldenDifference:
    """An output that is not what the golden case says.

    Attributes:
        case: number of the case.
        output: name of the output; `ids` where a text gives other tokens.
        found: what differs, in words.
        kind: `case` for tensors, `text` for a text.
    """

    case: int
    output: str
    found: str
    kind: Literal["case", "text"] = "case"

    def __str__(self) -> str:
        where = "ids" if self.kind == "text" and self.output == "ids" else f"output {self.output!r}"
        return f"golden {self.kind} {self.case}, {where}: {self.found}"


@dataclass(frozen=True)
class GoldenCase:
    """A golden case as read from an artifact.

    Attributes:
        feeds: the inputs by name.
        outputs: the expected outputs by name.
        entries: its part of golden.json: `inputs` and `outputs` with names, dtypes, shapes, files and limits.
    """

    feeds: Feeds
    outputs: Feeds
    entries: Mapping[str, Any]


def check_cases(session: Session, base: Path) -> list[GoldenDifference]:
    """Run a model on the cases of a folder and return what differs."""
    found: list[GoldenDifference] = []
    for number, case in enumerate(read_cases(base)):
        limits: dict[str, float] = {}
        for entry in case.entries["outputs"]:
            limits[entry["name"]] = max(limits.get(entry["name"], 0.0), float(entry["max_absolute_error"]))
        got = session.run(case.feeds)
        for name, expected in case.outputs.items():
            difference = "is missing" if name not in got else _difference(expected, got[name], limits[name])
            if difference:
                found.append(GoldenDifference(number, name, difference))
    return found


def read_cases(base: Path) -> list[GoldenCase]:
    """Read the cases of a folder; raises InputError when they are missing or damaged."""
    try:
        regular_size(base / GOLDEN_NAME)
        index = json.loads((base / GOLDEN_NAME).read_text(encoding="utf-8"))
        return [
            GoldenCase(
                _load_npz(base / f"inputs_{number}.npz", case["inputs"]),
                _load_npz(base / f"outputs_{number}.npz", case["outputs"]),
                case,
            )
            for number, case in enumerate(index["cases"])
        ]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the golden cases cannot be read ({error or type(error).__name__})",
            where=str(base),
            hint="make the artifact again",
        ) from error


def write_golden(cases: Sequence[Golden], folder: Path) -> None:
    """Write cases into a folder of their own."""
    folder.mkdir(parents=True)
    index: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        inputs = _write_tensors(case.feeds, folder, f"inputs_{number}")
        outputs = _write_tensors(case.outputs, folder, f"outputs_{number}")
        for entry, (_, array) in zip(outputs, _parts(case.outputs), strict=True):
            entry["max_absolute_error"] = 0.0 if array is None else _limit(array, case.relative_error)
        index.append(
            {
                "sizes": dict(case.sizes),
                "padding": case.padding,
                "relative_error": case.relative_error,
                "inputs": inputs,
                "outputs": outputs,
            }
        )
    content = {"format": 1, "layout": "row-major", "byte_order": "little", "rule": _GOLDEN_RULE, "cases": index}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / GOLDEN_NAME).write_text(text, encoding="utf-8")


def _parts(values: Mapping[str, Value]) -> Iterator[tuple[dict[str, Any], Array | None]]:
    """Yield every tensor of some values, with the beginning of its entry; None stands for what holds none."""
    for name, value in values.items():
        if value is None:
            yield {"name": name, "count": None}, None
        elif isinstance(value, list):
            yield from (({"name": name, "place": i, "count": len(value)}, part) for i, part in enumerate(value))
            if not value:
                yield {"name": name, "count": 0}, None
        else:
            yield {"name": name}, value


def _write_tensors(values: Mapping[str, Value], folder: Path, stem: str) -> list[dict[str, Any]]:
    """Write tensors as one .npz and as a file each; file names are numbers, so any tensor name will do."""
    entries: list[dict[str, Any]] = []
    plain: dict[str, Array] = {}
    for number, (entry, array) in enumerate(_parts(values)):
        if array is None:
            entries.append(entry)
            continue
        raw = _little_endian(array)
        is_text = raw.dtype.kind == "U"
        file = f"{stem}_{number}.{'json' if is_text else 'bin'}"
        content = json.dumps(raw.reshape(-1).tolist(), ensure_ascii=False).encode() if is_text else raw.tobytes()
        (folder / file).write_bytes(content)
        dtype = "string" if is_text else array.dtype.name
        entries.append(entry | {"dtype": dtype, "shape": list(array.shape), "file": file})
        plain[_key(entry)] = raw
    (folder / f"{stem}.npz").write_bytes(_npz(plain))
    return entries


def _key(entry: Mapping[str, Any]) -> str:
    """Return the name of a tensor in the .npz."""
    return f"{entry['name']}[{entry['place']}]" if "place" in entry else str(entry["name"])


def _little_endian(array: Array) -> Array:
    """Return the same elements row-major and little-endian.

    Types that NumPy does not know become unsigned integers, strings those of fixed width, which need no pickle.
    """
    if array.dtype.kind in "OUS":
        return np.ascontiguousarray(array.astype(np.str_)).reshape(array.shape)
    if array.dtype.kind not in "biufcV":
        raise PassAuthorError(f"golden tensors are numbers or strings, not {array.dtype}")
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name not in np.sctypeDict:  # bfloat16, float8 and int4 of ml_dtypes
        contiguous = contiguous.view(f"u{contiguous.dtype.itemsize}")
    return contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False)


def _npz(arrays: Mapping[str, Array]) -> bytes:
    """Return an .npz whose bytes follow from the arrays: numpy's own writer puts the time of day into it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_TIME)
            info.create_system = 3  # Unix, wherever it is written
            info.external_attr = _ZIP_MODE
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _load_npz(path: Path, entries: Sequence[Mapping[str, Any]]) -> Feeds:
    found: dict[str, Value] = {}
    archive = read_npz(path)
    for entry in entries:
        name = entry["name"]
        if "count" not in entry:
            found[name] = _typed(archive[_key(entry)], entry)
        elif entry["count"] is None:
            found[name] = None
        else:
            held = found.setdefault(name, [])
            held += [_typed(archive[_key(entry)], entry)] if "place" in entry else []
    return found


def _typed(array: Array, entry: Mapping[str, Any]) -> Array:
    if list(array.shape) != list(entry["shape"]):
        raise ValueError(f"{entry['name']} has shape {list(array.shape)}, golden.json says {entry['shape']}")
    if entry["dtype"] == "string":
        return array.astype(object)
    if array.dtype.name == entry["dtype"]:
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, entry["dtype"]))


def _limit(array: Array, relative_error: float) -> float:
    """Return how far an element may be off: exact for integers, a share of the largest magnitude for the rest."""
    if array.dtype.kind in "biuOUS" or not is_float(array.dtype):
        return 0.0
    values = np.abs(array.astype(np.float64))
    largest = float(values[np.isfinite(values)].max(initial=0.0))
    return relative_error * (largest or 1.0)


def _difference(expected: Value, got: Value, limit: float) -> str:
    """Return in words how two values differ, or an empty string."""
    if expected is None or got is None or isinstance(expected, list) or isinstance(got, list):
        return _difference_of_parts(expected, got, limit)
    if got.shape != expected.shape:
        return f"shape {list(got.shape)}, expected {list(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"dtype {got.dtype.name}, expected {expected.dtype.name}"
    if expected.dtype == np.dtype(object):
        return "" if np.array_equal(expected, got) else "other text"
    wanted, found = expected.astype(np.float64), got.astype(np.float64)
    same = (wanted == found) | (np.isnan(wanted) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(found - wanted))
    wrong = ~(error <= limit)
    if not wrong.any():
        return ""
    at = np.unravel_index(int(np.argmax(np.where(np.isnan(error), np.inf, error))), error.shape)
    return (
        f"{int(wrong.sum())} of {wrong.size} elements differ by more than {limit:.3g}; "
        f"worst at {[int(i) for i in at]}: {found[at]:.6g}, expected {wanted[at]:.6g}"
    )


def _difference_of_parts(expected: Value, got: Value, limit: float) -> str:
    if not isinstance(expected, list) or not isinstance(got, list):
        return "" if expected is got else f"{shape_text(got)}, expected {shape_text(expected)}"
    if len(expected) != len(got):
        return f"{len(got)} tensors, expected {len(expected)}"
    said = (_difference(one, other, limit) for one, other in zip(expected, got, strict=True))
    return next((f"tensor {place}: {reason}" for place, reason in enumerate(said) if reason), "")
