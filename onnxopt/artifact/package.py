"""Write a result as an artifact folder, all of it or nothing, and read one back.

An artifact::

    model.onnx            the graph; weights too, up to 256 MiB
    model.onnx_data       the weights of a larger model, under the name that transformers.js looks for; where shards are
                          asked for, `model-00001-of-00003.onnx_data` and so on
    tokenizer.json, ...   tokenizer, processor and config files, in the folders the checkpoint had them in
    genai_config.json     for a decoder: what onnxruntime-genai must know of it
    encoder_model.onnx    for an encoder-decoder two graphs in place of one, and golden/encoder, golden/decoder
    decoder_model.onnx
    io.json               what a program must know of inputs, padding and outputs
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

import html
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from onnxopt.artifact.golden import (
    GOLDEN_FOLDER,
    Golden,
    GoldenCase,
    GoldenDifference,
    check_cases,
    read_cases,
    write_golden,
)
from onnxopt.artifact.golden_texts import TEXTS_NAME, GoldenTexts, texts_differences
from onnxopt.artifact.io_json import IO_NAME, io_bytes, io_description
from onnxopt.artifact.io_parts import pair_description
from onnxopt.artifact.place import check_output_folder, resolved
from onnxopt.artifact.report import REPORT_NAME
from onnxopt.artifact.stacks import GENAI_NAME, served_model, stack_files
from onnxopt.errors import InputError, PassAuthorError
from onnxopt.graph import CONTRIB, attribute, is_op
from onnxopt.graph.cache import Cache, encoded_name, served
from onnxopt.graph.files import DATA_NAME, write_graph
from onnxopt.graph.sides import Crossings
from onnxopt.host.folders import sha256_of, staged, sync
from onnxopt.host.machine import describe_machine, versions
from onnxopt.load.loaded import Loaded
from onnxopt.probe.annotate import name_outputs
from onnxopt.probe.crossing import crossings_of
from onnxopt.records.manifest import MANIFEST_NAME, DecodingRecord, Evidence, FileRecord, Manifest, PartRecord
from onnxopt.records.measurements import MEASUREMENTS_NAME, Measurements
from onnxopt.records.record import REMAKE
from onnxopt.run.intact import check_intact, member
from onnxopt.run.session import Session
from onnxopt.run.there import MODEL_NAME
from onnxopt.spec import Budget, Target, Workload


@dataclass(frozen=True)
class Part:
    """One graph of an encoder-decoder, finished.

    Attributes:
        name: `encoder` or `decoder`.
        model: the graph.
        loaded: what it was made from.
        evidence: what was found out about it alone.
        golden: its cases.
    """

    name: str
    model: ir.Model
    loaded: Loaded
    evidence: Evidence
    golden: Sequence[Golden]

    @property
    def file(self) -> str:
        """Name of its file, as transformers.js and optimum say it."""
        return f"{self.name}_{MODEL_NAME}"

    @property
    def record(self) -> PartRecord:
        """What the manifest says of it."""
        found = self.evidence
        return PartRecord(
            file=self.file,
            signature=served(self.loaded.signature, self.loaded.names),
            blocks=found.blocks,
            nodes_before=found.nodes_before,
            nodes_after=found.nodes_after,
            golden=f"{GOLDEN_FOLDER}/{self.name}",
            shipped=found.shipped,
            forms=found.forms,
        )


@dataclass(frozen=True)
class Artifact:
    """An output folder.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
    """

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        made = self.manifest
        nodes = f"{made.nodes_after} of {made.nodes_before} nodes"
        return f"Artifact({str(self.path)!r}): {made.task} for {made.target.provider}, {nodes}"

    def _repr_html_(self) -> str:
        """Return the report, framed, as a notebook shows it; the line of `repr` where there is none."""
        report = self.path / REPORT_NAME
        if not report.is_file():
            return f"<code>{html.escape(repr(self))}</code>"
        page = html.escape(report.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" sandbox="" style="width:100%;height:40rem;border:0"></iframe>'

    @property
    def model_path(self) -> Path:
        """The .onnx file."""
        return self.path / MODEL_NAME

    @property
    def measurements(self) -> Measurements | None:
        """Date and latencies of the run that wrote it; None when they were removed."""
        return Measurements.read(self.path)

    @classmethod
    def open(cls, path: str | Path, *, without: str = "") -> Artifact:
        """Open an artifact folder.

        Args:
            path: the folder.
            without: files whose names begin so are of no matter, because they are about to be replaced.

        Raises:
            InputError: when it is none, or a file of it is missing or has another size.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        for name, record in manifest.files.items():
            if without and name.startswith(without):
                continue
            path = member(folder, name)
            size = path.stat().st_size if path.is_file() else None
            if size != record.size_bytes:
                found = "missing" if size is None else f"{size} bytes long, the manifest says {record.size_bytes}"
                part = PurePosixPath(name).parts
                again = f"package it again with --for {part[1]}" if part[0] == "clients" and part[2:] else REMAKE
                raise InputError(f"is {found}", where=str(path), hint=again)
        return cls(folder, manifest)

    def session(self, *, target: Target | None = None, threads: int | None = None) -> Session:
        """Open the model in ONNX Runtime."""
        return Session(self.path, target=target, threads=threads)

    def changed_files(self) -> list[str]:
        """Return the files whose bytes are not those in the manifest."""
        return [name for name, record in self.manifest.files.items() if file_record(member(self.path, name)) != record]


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
    parts: Sequence[Part] = (),
    shard_bytes: int | None = None,
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
        parts: of an encoder-decoder, its two graphs; they and their cases are written in place of `model` and
            `golden`, and `model` is the decoder.
        shard_bytes: of the largest file of weights; None writes one, however large.

    Returns:
        The artifact.

    Raises:
        InputError: when the folder cannot be written or holds something else.
    """
    out = resolved(out)
    check_output_folder(out)
    with staged(out) as folder:
        graphs = [(part.file, part.model, part.loaded) for part in parts]
        model_files = []
        for name, graph, given in graphs or [(MODEL_NAME, model, loaded)]:
            name_outputs(graph, given.signature)
            graph.metadata_props.update(_crossings(graph, loaded).to_metadata())
            written = write_graph(served_model(graph, given.signature, given.names), folder / name, shard_bytes)
            model_files += [path.name for path in written]
        _copy_assets(loaded, folder, taken=model_files)
        decoding = decoding_of(model, parts[-1].loaded if parts else loaded)
        signature = served(loaded.signature, loaded.names)
        for name, content in stack_files(folder, signature, decoding, provider=target.provider).items():
            _write(folder / name, content)
        records = {part.name: part.record for part in parts}
        compared = str(loaded.origin.get("scores", ""))
        described = (
            pair_description(folder, loaded.name, loaded.task, records, decoding)
            if records
            else io_description(
                folder, loaded.name, loaded.task, signature, decoding, proved=evidence.proved, compared=compared
            )
        )
        _write(folder / IO_NAME, io_bytes(described))
        for place, cases in [(part.record.golden, part.golden) for part in parts] or [(GOLDEN_FOLDER, golden)]:
            write_golden(cases, folder / place)
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
            parts=records,
            target=target,
            workload=workload,
            budget=budget,
            versions=versions(),
            machine=describe_machine(),
            files={name: file_record(folder / name) for name in hashed},
            extras=tuple(sorted(changing)),
            **{name: getattr(evidence, name) for name in Evidence.model_fields}
            | {"bytes_after": size, "notes": tuple(dict.fromkeys((*loaded.notes, *evidence.notes)))},
        )
        for name, extra in changing.items():
            _write(folder / name, extra if isinstance(extra, bytes) else extra(manifest))
        _write(folder / MANIFEST_NAME, manifest.to_json().encode())
        sync(folder)
    return Artifact(out, Manifest.read(out))


def decoding_of(model: ir.Model, loaded: Loaded) -> DecodingRecord | None:
    """Return how a decoder is run, None for a model without a cache."""
    cache = Cache.of(loaded.signature)
    logits = next((spec for spec in loaded.signature.outputs if spec.name == "logits"), None)
    if cache is None or logits is None:
        return None
    past = {spec.name for spec in cache.inputs}
    readers = [use.node for value in model.graph.inputs if value.name in past for use in value.uses()]
    vocabulary, context = logits.axes[-1], int(loaded.origin.get("context_length", 0))
    found = _crossings(model, loaded)
    if found.endless_from:  # no cache can follow: every token more would ask for another one
        context = found.endless_from
    return DecodingRecord(
        shared_buffers=all(
            is_op(node, "GroupQueryAttention", domain=CONTRIB) or _reads_batch(node) for node in readers
        ),
        logits="last" if logits.axes[1] == 1 else "all",
        context_length=context,
        vocabulary=vocabulary if isinstance(vocabulary, int) else 0,
        crossings=found.at,
        crossing=loaded.origin.get("crossing", "reread"),
        endless_from=found.endless_from,
    )


def _crossings(model: ir.Model, loaded: Loaded) -> Crossings:
    """Return where rotary tables change; nowhere in one part of a pair, where both sides count for themselves."""
    names = {spec.name for spec in loaded.signature.inputs}
    if any(map(encoded_name, names)) or not {"input_ids", "attention_mask"} <= names:
        return Crossings()
    found = crossings_of(model, longest=int(loaded.origin.get("context_length", 0)))
    return replace(found, endless_from=found.endless_from or int(loaded.origin.get("endless_from", 0)))


def _reads_batch(node: ir.Node) -> bool:
    """Tell whether a node reads the size of the batch alone, which is no matter of how long a buffer is."""
    return is_op(node, "Shape") and not attribute(node, "start") and attribute(node, "end") == 1


def check_golden(path: str | Path, *, target: Target | None = None) -> list[GoldenDifference]:
    """Run an artifact on its golden inputs, and on its golden texts where it has some, in a default session.

    Args:
        path: the artifact.
        target: where to run; the default is the artifact's own target.

    Returns:
        What differs; empty when every case is reproduced.

    Raises:
        InputError: when the artifact or its golden files cannot be read.
    """
    artifact = Artifact.open(path)
    for golden in (False, True):
        check_intact(artifact.path, artifact.manifest, golden=golden)
    parts = artifact.manifest.parts
    if not parts:
        session, golden_folder = artifact.session(target=target), artifact.path / GOLDEN_FOLDER
        found = check_cases(session, golden_folder)
        if (golden_folder / TEXTS_NAME).is_file():
            found += texts_differences(GoldenTexts.read(golden_folder / TEXTS_NAME), artifact.path, session)
        return found
    chosen = target or Target(artifact.manifest.target.provider)
    return [
        difference
        for part in parts.values()
        for difference in check_cases(
            Session(member(artifact.path, part.file), target=chosen), member(artifact.path, part.golden)
        )
    ]


def read_golden(folder: Path) -> list[GoldenCase]:
    """Read the golden cases of an artifact folder.

    Raises:
        InputError: when they are missing or damaged.
    """
    return read_cases(Path(folder) / GOLDEN_FOLDER)


# Where it goes


# What is in it


def _copy_assets(loaded: Loaded, folder: Path, *, taken: Sequence[str]) -> None:
    reserved = {MODEL_NAME, DATA_NAME, MANIFEST_NAME, MEASUREMENTS_NAME, GENAI_NAME, IO_NAME, GOLDEN_FOLDER, *taken}
    for name, source in _placed(loaded).items():
        _check_name(name, taken=reserved)
        reserved.add(name)
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


# Files


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def file_record(path: Path) -> FileRecord:
    """Return digest and size of a file."""
    return FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)
