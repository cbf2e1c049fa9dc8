"""Look an installation over: what is there, what it can do, what is missing for what, and known traps.

Nothing heavy is imported but onnxruntime, which alone knows what it runs on; versions come from what is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.host.bounds import bounds
from onnxopt.host.cachelist import entries
from onnxopt.host.claims import claimed
from onnxopt.host.extras import EXTRAS, install_line, missing
from onnxopt.host.machine import RUNTIME_PACKAGES, describe_machine, versions
from onnxopt.host.memory import memory_allowed
from onnxopt.host.usercache import cache_root
from onnxopt.version import __version__

CORE = "core"
RAN_WITH = ((3, 10), (3, 13))  # the oldest and the newest Python that the tests ran with
LITTLE_ROOM = 1 << 30  # bytes free on a disk below which a model may not fit
_NVIDIA = Path("/proc/driver/nvidia/version")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)(?:;.*)?")
_BOUND = re.compile(r"(>=|<)\s*([0-9.]+)")


@dataclass(frozen=True)
class Checkup:
    """What an installation is, as plain data: it tells of no folder by the name of its user.

    Attributes:
        versions: of onnxopt, Python and the tools that it works with.
        machine: as `describe_machine` says, with `cores_of_machine`, of which `cores` are for this process, and
            `memory_allowed`, the bytes that it may use.
        providers: of onnxruntime; empty where it cannot be imported.
        cache: `path`, `bytes` and `entries`.
        extras: for each what it is for, what of it is missing, and the command that installs it.
        problems: known traps that this installation is in, one sentence each, with what to do.
    """

    versions: dict[str, str]
    machine: dict[str, Any]
    providers: list[str]
    cache: dict[str, Any]
    extras: dict[str, dict[str, Any]]
    problems: list[str]


def check_up() -> Checkup:
    """Look over the installation that runs this."""
    providers, broken = _providers()
    found = entries()
    problems = [*broken, *_traps(providers)]
    return Checkup(
        versions={"onnxopt": __version__, "python": platform.python_version()}
        | {name: version for name, version in sorted(versions().items()) if name != "onnxopt"},
        machine=describe_machine() | {"cores_of_machine": os.cpu_count(), "memory_allowed": memory_allowed()},
        providers=providers,
        cache={"path": tilde(str(cache_root())), "bytes": sum(one.size for one in found), "entries": len(found)},
        extras={
            name: {"for": extra.purpose, "missing": list(missing(name)), "install": install_line(name)}
            for name, extra in EXTRAS.items()
        },
        problems=[tilde(one) for one in problems],
    )


def tilde(text: str) -> str:
    """Return a text with `~` in the place of the user's home folder."""
    try:
        home = str(Path.home())
    except RuntimeError:  # a user that the system does not know
        return text
    return text if len(home) < 2 else re.sub(rf"{re.escape(home)}(?=$|[/\\\s;,:)])", "~", text)


def version_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: (2, 13, 0) of `2.13.0+cpu`."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(one) for one in found[0].split(".")) if found else ()


def out_of_range(requirement: str, installed: str) -> bool:
    """Tell whether a version lies outside of what a requirement asks for, by its `>=` and `<`.

    Args:
        requirement: as the metadata of a package has it, such as `onnx>=1.21`.
        installed: the version.
    """
    have = version_numbers(installed)
    for sign, text in _BOUND.findall(requirement.partition(";")[0]):
        limit = version_numbers(text)
        if (sign == ">=" and have < limit) or (sign == "<" and have >= limit):
            return True
    return False


def _providers() -> tuple[list[str], list[str]]:
    """Return the providers of onnxruntime, and what is the matter with it."""
    try:
        import onnxruntime
    except Exception as error:  # noqa: BLE001  # whatever its native code cannot find
        said = " ".join(str(error).split())[:200]
        return [], [
            f"onnxruntime cannot be imported ({said}); install it again: pip install --force-reinstall onnxruntime"
        ]
    installed = versions().get("onnxruntime", "")
    imported = str(onnxruntime.__version__)
    found = list(onnxruntime.get_available_providers())
    if installed and version_numbers(installed) != version_numbers(imported):
        both = f"onnxruntime {imported} is imported where {installed} is installed"
        return found, [f"{both}; something else lies before it on sys.path, or two packages are mixed"]
    return found, []


def _traps(providers: list[str]) -> Iterator[str]:
    """Yield the known traps that this installation is in."""
    yield from _of_python()
    yield from _of_packages(providers)
    yield from _of_folders()
    try:
        bounds()
    except InputError as error:
        yield str(error)
    if os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION") == "python":
        yield "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python makes reading models many times slower; unset it"


def _of_python() -> Iterator[str]:
    first, last = RAN_WITH
    if not first <= sys.version_info[:2] <= last:
        known = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
        yield f"Python {platform.python_version()}: the tests ran with {known}; use one of them"
    if sys.maxsize <= 1 << 32:
        yield "this Python has 32 bits, and onnxruntime is for 64; use another one"


def _of_packages(providers: list[str]) -> Iterator[str]:
    """Yield what is the matter with the installed packages."""
    there = {name: version for name in RUNTIME_PACKAGES if (version := _installed(name))}
    if len(there) > 1:
        names = " and ".join(there)
        only = next(name for name in there if name != "onnxruntime")
        yield (
            f"{names} are installed together and write over each other's files; "
            f"pip uninstall {' '.join(there)}, then pip install {only}"
        )
    if _NVIDIA.is_file() and providers and "CUDAExecutionProvider" not in providers and len(there) == 1:
        name = next(iter(there))
        yield (
            f"there is an NVIDIA GPU, which {name} does not use; "
            f"pip uninstall {name}, then pip install onnxruntime-gpu, if it should"
        )
    for requirement in _requirements():
        found = _REQUIREMENT.match(requirement)
        name = found[1] if found else requirement
        version = versions().get("onnxruntime") if name == "onnxruntime" else _installed(name)
        if version is None and "extra ==" not in requirement and not _is_for_other_pythons(requirement):
            yield f"{name} is not installed; pip install --upgrade onnxopt"
        elif version and found and out_of_range(requirement, version):
            asked = found[2].strip()
            yield f"{name} {version} is not in the range {asked}; pip install --upgrade '{name}{asked}'"


def _of_folders() -> Iterator[str]:
    """Yield what is the matter with the folders that are written to."""
    for folder, what, variable in (
        (cache_root(), "the cache", "ONNXOPT_CACHE"),
        (Path(tempfile.gettempdir()), "the folder for temporary files", "TMPDIR"),
    ):
        try:
            base = next(place for place in (folder, *folder.parents) if place.exists())
            with claimed(base, "part"):
                pass
        except OSError as error:
            yield f"{folder}: {what} cannot be written ({error.strerror}); set {variable} to another folder"
            continue
        if (free := shutil.disk_usage(base).free) < LITTLE_ROOM:
            yield f"{folder}: only {free >> 20} MiB are free for {what}; make room, or set {variable} to another folder"


def _requirements() -> list[str]:
    """Return what the installed package asks for, with the extras for users; nothing where it was never installed."""
    try:
        asked = metadata.requires("onnxopt") or []
    except metadata.PackageNotFoundError:
        return []
    extras = [re.search(r"extra\s*==\s*[\"']([^\"']+)", one) for one in asked]
    return [one for one, extra in zip(asked, extras, strict=True) if extra is None or extra[1] in EXTRAS]


def _is_for_other_pythons(requirement: str) -> bool:
    """Tell whether a requirement is one of older Pythons, such as `tomli>=2; python_version < "3.11"`."""
    found = re.search(r"python_version\s*<\s*[\"']([0-9.]+)", requirement)
    return found is not None and sys.version_info[:2] >= version_numbers(found[1])


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
