"""Write a result as an artifact folder, all of it or nothing, and read one back.

An artifact::

    model.onnx            the graph; weights too, up to EXTERNAL_DATA_BYTES
    model.onnx_data       the weights of a larger model, under the name that transformers.js looks for
    tokenizer.json, ...   tokenizer, processor and config files, in the folders the checkpoint had them in
    genai_config.json     for a decoder: what onnxruntime-genai must know of it
    golden/golden.json    the cases below: names, dtypes, shapes, tolerances
    golden/inputs_0.npz   one file per case for Python, without pickles
    golden/outputs_0.npz
    golden/inputs_0_0.bin one file per tensor for everyone else: raw elements, row-major, little-endian
    golden/outputs_0_0.bin
    manifest.json         what the inputs decide: same inputs, same bytes
    measurements.json     what differs between runs: date, latencies

Everything is written into a folder beside the destination and moved into place with a rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.cache import Cache, served
from onnxopt.errors import InputError, PassAuthorError
from onnxopt.graph import CONTRIB, attribute, is_op
from onnxopt.machine import describe_machine, versions
from onnxopt.manifest import (
    MANIFEST_NAME,
    MEASUREMENTS_NAME,
    DecodingRecord,
    Evidence,
    FileRecord,
    Manifest,
    Measurements,
)
from onnxopt.model import Array, Feeds, Loaded
from onnxopt.session import MODEL_NAME, Session
from onnxopt.spec import Budget, Padding, Target, Workload
from onnxopt.stacks import GENAI_NAME, served_model, stack_files

DATA_NAME = "model.onnx_data"
GOLDEN_FOLDER = "golden"
GOLDEN_NAME = "golden.json"
EXTERNAL_DATA_BYTES = 1_500_000_000  # a protobuf file ends at 2 GiB; the graph itself and its readers need room
_INLINE_BELOW_BYTES = 1024  # shapes and scalars stay in the graph, where shape inference can read them
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip entry can have
_ZIP_MODE = 0o100644 << 16
_PIECE_BYTES = 1 << 20
_GOLDEN_RULE = "per output element: |got - expected| <= max_absolute_error, or both are equal, or both are not-a-number"
# files that an operating system leaves in a folder it has shown
_DROPPINGS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


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
        output: name of the output.
        found: what differs, in words.
    """

    case: int
    output: str
    found: str

    def __str__(self) -> str:
        return f"golden case {self.case}, output {self.output!r}: {self.found}"


@dataclass(frozen=True)
class Artifact:
    """An output folder.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
    """

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The .onnx file."""
        return self.path / MODEL_NAME

    @property
    def measurements(self) -> Measurements | None:
        """Date and latencies of the run that wrote it; None when they were removed."""
        return Measurements.read(self.path)

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open an artifact folder.

        Raises:
            InputError: when it is none, or a file of it is missing or has another size.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        for name, record in manifest.files.items():
            path = _member(folder, name)
            size = path.stat().st_size if path.is_file() else None
            if size != record.size_bytes:
                found = "missing" if size is None else f"{size} bytes long, the manifest says {record.size_bytes}"
                raise InputError(f"is {found}", where=str(path), hint="make the artifact again")
        return cls(folder, manifest)

    def session(self, *, target: Target | None = None, threads: int | None = None) -> Session:
        """Open the model in ONNX Runtime."""
        return Session(self.path, target=target, threads=threads)

    def changed_files(self) -> list[str]:
        """Return the files whose bytes are not those in the manifest."""
        return [
            name for name, record in self.manifest.files.items() if _file_record(_member(self.path, name)) != record
        ]


def check_output_folder(out: Path) -> None:
    """Make sure that an artifact can be written, without leaving anything behind.

    Call it before long work.

    Args:
        out: the folder that the artifact shall become.

    Raises:
        InputError: when it is a file, holds anything but an artifact, or cannot be written.
    """
    out = _resolved(out)
    _check_replaceable(out)
    if os.path.ismount(out):
        raise InputError("a mount point cannot be replaced", where=str(out), hint="name a folder inside it")
    base = next(parent for parent in out.parents if parent.exists())
    if not base.is_dir():
        raise InputError(f"{base} is a file, not a folder", where=str(out), hint="choose another output folder")
    try:
        # os.access does not tell on read-only file systems and for root; trying does
        Path(tempfile.mkdtemp(prefix=".onnxopt-", dir=base)).rmdir()
    except OSError as error:
        raise _unwritable(out, error) from error


def write_artifact(
    out: Path,
    model: ir.Model,
    loaded: Loaded,
    *,
    target: Target,
    workload: Workload,
    budget: Budget,
    evidence: Evidence,
    golden: Sequence[Golden],
    measurements: Measurements | None = None,
    extras: Mapping[str, bytes | Callable[[Manifest], bytes]] | None = None,
) -> Artifact:
    """Write everything a program needs to serve the model.

    The bytes of every file but `measurements.json` and the extras follow from the arguments, the installed versions
    and the machine. `origin["folder"]` is where the checkpoint lies on this machine; it places the assets and is not
    written.

    Args:
        out: the folder to make; an artifact or empty folder that is there already is replaced.
        model: the finished graph.
        loaded: what it was made from: name, signature, task, assets, origin.
        target: where it is meant to run.
        workload: what it was optimized for.
        budget: how far its answer may be off.
        evidence: the proof, the ledger and the counts; `bytes_after` is filled in here, the loader's notes come first.
        golden: cases with expected outputs.
        measurements: date and latencies.
        extras: more files by name, such as `report.html`, whose bytes may differ between runs; a function makes them
            out of the manifest.

    Returns:
        The artifact.

    Raises:
        InputError: when the folder cannot be written or holds something else.
    """
    out = _resolved(out)
    check_output_folder(out)
    with _folder_in_place(out) as folder:
        model_files = _write_model(served_model(model, loaded.signature), folder)
        _copy_assets(loaded, folder)
        decoding, signature = _decoding(model, loaded), served(loaded.signature)
        for name, content in stack_files(folder, signature, decoding, provider=target.provider).items():
            _write(folder / name, content)
        _write_golden(golden, folder / GOLDEN_FOLDER)
        hashed = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        changing = dict(extras or {})
        if measurements is not None:
            changing[MEASUREMENTS_NAME] = measurements.to_json().encode()
        for name in changing:
            _check_name(name, taken={*hashed, MANIFEST_NAME})
        size = sum((folder / name).stat().st_size for name in model_files)
        manifest = Manifest(
            name=loaded.name,
            origin={key: value for key, value in loaded.origin.items() if key != "folder"},
            task=loaded.task,
            random_weights=loaded.random_weights,
            signature=signature,
            decoding=decoding,
            target=target,
            workload=workload,
            budget=budget,
            versions=versions(),
            machine=describe_machine(),
            files={name: _file_record(folder / name) for name in hashed},
            extras=tuple(sorted(changing)),
            **{name: getattr(evidence, name) for name in Evidence.model_fields}
            | {"bytes_after": size, "notes": tuple(dict.fromkeys((*loaded.notes, *evidence.notes)))},
        )
        for name, extra in changing.items():
            _write(folder / name, extra if isinstance(extra, bytes) else extra(manifest))
        _write(folder / MANIFEST_NAME, manifest.to_json().encode())
        _sync(folder)
    return Artifact(out, Manifest.read(out))


def _decoding(model: ir.Model, loaded: Loaded) -> DecodingRecord | None:
    """Return how a decoder is run, None for a model without a cache."""
    cache = Cache.of(loaded.signature)
    logits = next((spec for spec in loaded.signature.outputs if spec.name == "logits"), None)
    if cache is None or logits is None:
        return None
    past = {spec.name for spec in cache.inputs}
    readers = [use.node for value in model.graph.inputs if value.name in past for use in value.uses()]
    vocabulary = logits.axes[-1]
    return DecodingRecord(
        shared_buffers=all(
            is_op(node, "GroupQueryAttention", domain=CONTRIB) or _reads_batch(node) for node in readers
        ),
        logits="last" if logits.axes[1] == 1 else "all",
        context_length=int(loaded.origin.get("context_length", 0)),
        vocabulary=vocabulary if isinstance(vocabulary, int) else 0,
    )


def _reads_batch(node: ir.Node) -> bool:
    """Tell whether a node reads the size of the batch alone, which is no matter of how long a buffer is."""
    return is_op(node, "Shape") and not attribute(node, "start") and attribute(node, "end") == 1


def check_golden(path: str | Path, *, target: Target | None = None) -> list[GoldenDifference]:
    """Run an artifact on its golden inputs in a default session.

    Args:
        path: the artifact.
        target: where to run; the default is the artifact's own target.

    Returns:
        What differs; empty when every case is reproduced.

    Raises:
        InputError: when the artifact or its golden files cannot be read.
    """
    artifact = Artifact.open(path)
    session = artifact.session(target=target)
    found: list[GoldenDifference] = []
    for number, case in enumerate(read_golden(artifact.path)):
        limits = {entry["name"]: float(entry["max_absolute_error"]) for entry in case.entries["outputs"]}
        got = session.run(case.feeds)
        for name, expected in case.outputs.items():
            difference = "is missing" if name not in got else _difference(expected, got[name], limits[name])
            if difference:
                found.append(GoldenDifference(number, name, difference))
    return found


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


def read_golden(folder: Path) -> list[GoldenCase]:
    """Read the golden cases of an artifact folder.

    Raises:
        InputError: when they are missing or damaged.
    """
    base = Path(folder) / GOLDEN_FOLDER
    try:
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


# Where it goes


def _resolved(out: Path) -> Path:
    try:
        return Path(out).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unwritable(Path(out), error) from error


def _unwritable(out: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"cannot be written ({reason})", where=str(out), hint="choose another output folder")


def _check_replaceable(out: Path) -> None:
    """Refuse to replace anything that we did not write ourselves."""
    try:
        out.stat()  # unlike `exists`, this refuses a name that the file system cannot hold
        if not out.is_dir():
            raise InputError("is a file, not a folder", where=str(out), hint="choose another output folder")
        empty = all(path.name in _DROPPINGS for path in out.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unwritable(out, error) from error
    if empty:
        return
    try:
        manifest = Manifest.read(out)
    except InputError as error:
        raise InputError(
            "holds other files and is no artifact", where=str(out), hint="choose a new or empty output folder"
        ) from error
    files = (path for path in out.rglob("*") if path.is_symlink() or not path.is_dir())
    present = {path.relative_to(out).as_posix() for path in files if path.name not in _DROPPINGS}
    foreign = sorted(present - set(manifest.files) - set(manifest.extras) - {MANIFEST_NAME})
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(
            f"holds {foreign[0]}{more}, which onnxopt did not write",
            where=str(out),
            hint="move it away or choose another output folder",
        )


@contextlib.contextmanager
def _folder_in_place(out: Path) -> Iterator[Path]:
    """Give a fresh folder that becomes `out` when the block ends well, and vanishes in every other case."""
    parents = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    folder: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".onnxopt-", suffix=".part", dir=out.parent))
        yield folder
        folder.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        _swap(folder, out)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise _unwritable(out, error) from error
        raise


def _swap(folder: Path, out: Path) -> None:
    """Put `folder` in the place of `out`; an older folder comes back when that fails."""
    older: Path | None = None
    try:
        if out.exists():
            aside = Path(tempfile.mkdtemp(prefix=".onnxopt-", suffix=".old", dir=out.parent))
            older = aside / "old"
            out.rename(older)
        folder.rename(out)
    except BaseException:
        if older is not None:
            if older.exists() and not out.exists():
                older.rename(out)
            shutil.rmtree(older.parent, ignore_errors=True)
        raise
    _sync_folder(out.parent)
    if older is not None:
        shutil.rmtree(older.parent, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


# What is in it


def _write_model(model: ir.Model, folder: Path) -> list[str]:
    """Write the graph and return the names of its files. The model in memory stays as it is."""
    total = sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    path = folder / MODEL_NAME
    # with `external_data` set, tensors up to the threshold are read into the graph wherever they lay before
    threshold = _INLINE_BELOW_BYTES if total > EXTERNAL_DATA_BYTES else total
    ir.save(model, path, external_data=DATA_NAME, size_threshold_bytes=threshold)
    data = folder / DATA_NAME
    if total <= EXTERNAL_DATA_BYTES:
        data.unlink(missing_ok=True)
        return [MODEL_NAME]
    return [MODEL_NAME, DATA_NAME]


def _copy_assets(loaded: Loaded, folder: Path) -> None:
    taken = {MODEL_NAME, DATA_NAME, MANIFEST_NAME, MEASUREMENTS_NAME, GENAI_NAME, GOLDEN_FOLDER}
    for name, source in _placed(loaded).items():
        _check_name(name, taken=taken)
        taken.add(name)
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, place)  # follows the links of the Hub's cache
        except FileNotFoundError as error:
            raise InputError("vanished while the model was being made", where=str(source)) from error


def _placed(loaded: Loaded) -> dict[str, Path]:
    """Return the assets by their place: relative to the checkpoint's folder, or to their own deepest common folder."""
    if not loaded.assets:
        return {}
    assets = [Path(os.path.abspath(asset)) for asset in loaded.assets]  # noqa: PTH100  # links must stay unresolved
    given = loaded.origin.get("folder")
    base = Path(os.path.abspath(given)) if given else Path(os.path.commonpath([asset.parent for asset in assets]))  # noqa: PTH100
    placed: dict[str, Path] = {}
    for asset in assets:
        name = asset.relative_to(base).as_posix() if asset.is_relative_to(base) else asset.name
        if name in placed:
            raise InputError(f"two files want to be {name}", where=f"{placed[name]}, {asset}")
        placed[name] = asset
    return placed


def _check_name(name: str, *, taken: set[str]) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
        raise PassAuthorError(f"an artifact cannot hold a file named {name!r}")
    if name in taken or path.parts[0] == GOLDEN_FOLDER or path.parts[0] in {MODEL_NAME, MANIFEST_NAME}:
        raise InputError(f"the checkpoint's file {name} has a name that the artifact needs", hint="rename it")


def _write_golden(cases: Sequence[Golden], folder: Path) -> None:
    folder.mkdir()
    index: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        inputs = _write_tensors(case.feeds, folder, f"inputs_{number}")
        outputs = _write_tensors(case.outputs, folder, f"outputs_{number}")
        for entry, array in zip(outputs, case.outputs.values(), strict=True):
            entry["max_absolute_error"] = _limit(array, case.relative_error)
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
    _write(folder / GOLDEN_NAME, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _write_tensors(arrays: Feeds, folder: Path, stem: str) -> list[dict[str, Any]]:
    """Write tensors as one .npz and as one .bin each; file names are numbers, so any tensor name will do."""
    entries: list[dict[str, Any]] = []
    plain: dict[str, Array] = {}
    for number, (name, array) in enumerate(arrays.items()):
        raw = _little_endian(array)
        file = f"{stem}_{number}.bin"
        _write(folder / file, raw.tobytes())
        entries.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "file": file})
        plain[name] = raw
    _write(folder / f"{stem}.npz", _npz(plain))
    return entries


def _little_endian(array: Array) -> Array:
    """Return the same elements row-major and little-endian; types that NumPy does not know become unsigned integers."""
    if array.dtype.kind not in "biufcV" or array.dtype.hasobject:
        raise PassAuthorError(f"golden tensors are numbers, not {array.dtype}")
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    if contiguous.dtype.kind == "V":  # bfloat16, float8 and int4 of ml_dtypes
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
    # numpy leaves the file open when it is no archive, so it gets an open one
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {entry["name"]: _typed(archive[entry["name"]], entry) for entry in entries}


def _typed(array: Array, entry: Mapping[str, Any]) -> Array:
    if list(array.shape) != list(entry["shape"]):
        raise ValueError(f"{entry['name']} has shape {list(array.shape)}, golden.json says {entry['shape']}")
    if array.dtype.name == entry["dtype"]:
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, entry["dtype"]))


def _limit(array: Array, relative_error: float) -> float:
    """Return how far an element may be off: exact for integers, a share of the largest magnitude for the rest."""
    if array.dtype.kind in "biu":
        return 0.0
    values = np.abs(array.astype(np.float64))
    largest = float(values[np.isfinite(values)].max(initial=0.0))
    return relative_error * (largest or 1.0)


def _difference(expected: Array, got: Array, limit: float) -> str:
    """Return in words how two tensors differ, or an empty string."""
    if got.shape != expected.shape:
        return f"shape {list(got.shape)}, expected {list(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"dtype {got.dtype.name}, expected {expected.dtype.name}"
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


# Files


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _file_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return FileRecord(sha256=digest.hexdigest(), size_bytes=path.stat().st_size)


def _member(folder: Path, name: str) -> Path:
    """Return a file of an artifact by the name its manifest gives, which may be anyone's manifest."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise InputError(f"names the file {name!r} outside of the artifact", where=str(folder / MANIFEST_NAME))
    return folder / path


def _sync(folder: Path) -> None:
    """Bring every file to the disk before the rename makes it visible."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
            continue
        with path.open("r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
