"""Notice that a file of an artifact was changed or damaged since it was made, before it answers.

Everything was proved of the files that the manifest names, by their SHA-256. They are compared when an artifact is
opened: a flipped bit in weights gives wrong numbers, not an error. It costs a second for each 0.9 GB (one core with SHA
instructions), so of files beyond a limit, 1 GiB by default, only the length is compared.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from onnxopt.errors import InputError
from onnxopt.host.bounds import allow, bounds
from onnxopt.host.folders import sha256_of
from onnxopt.records.manifest import MANIFEST_NAME, FileRecord, Manifest

GOLDEN_FOLDER = "golden"
# People set how texts are written; types are checked where they are read, and templates run in a sandbox.
OF_PEOPLE = ("generation_config.json", "chat_template.jinja", "chat_template.json")

_known: dict[tuple[str, int, int, int], str] = {}  # digests in this process, by path, inode, size and time of change


def check_intact(folder: Path, manifest: Manifest, *, golden: bool = False) -> None:
    """Refuse an artifact of which a file is not as it was written.

    What people set may be changed, and a file that is missing is said by whoever reads it.

    Args:
        folder: the artifact.
        manifest: what it says of its files.
        golden: look at the golden cases, in place of what answers.

    Raises:
        InputError: names the first file that differs.
    """
    for name, record in manifest.files.items():
        path = member(folder, name)
        if name in OF_PEOPLE:
            continue
        if (PurePosixPath(name).parts[0] == GOLDEN_FOLDER) is golden and path.is_file():
            _check(path, record)


def _check(path: Path, record: FileRecord) -> None:
    size, most = path.stat().st_size, bounds().verify
    if not most:
        return
    hint = f"make the artifact again, or {allow('verify', '0')}"
    if size != record.size_bytes:
        raise InputError(f"is {size} bytes long, the manifest says {record.size_bytes}", where=str(path), hint=hint)
    if size <= most and _digest(path) != record.sha256:
        raise InputError("was changed or damaged: its content is not what was proved", where=str(path), hint=hint)


def _digest(path: Path) -> str:
    info = path.stat()
    key = (str(path.absolute()), info.st_ino, info.st_size, info.st_mtime_ns)
    if key not in _known:
        _known[key] = sha256_of(path)
    return _known[key]


def member(folder: Path, name: str) -> Path:
    """Return a file of an artifact by the name its manifest gives, which may be anyone's manifest.

    Raises:
        InputError: the name leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or "\0" in name:
        raise InputError(f"names the file {name!r} outside of the artifact", where=str(folder / MANIFEST_NAME))
    return folder / path
