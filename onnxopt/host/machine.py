"""Describe this machine and the installed tools, so that a number or a proof can be read later.

Only facts that stay the same between two runs are told: no load, no free memory, no clock frequency.
"""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxopt.host.threads import available_threads

TOOLS = ("onnxopt", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "transformers", "tokenizers", "numpy")
# the runtime comes in several packages that all install the module `onnxruntime`
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")

X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")  # what ORT's x86 kernels (MLAS) branch on
ARM_FLAGS = ("asimddp", "i8mm")  # and its arm64 kernels: dot product, int8 matrix product
_APPLE_FLAGS = {"asimddp": "hw.optional.arm.FEAT_DotProd", "i8mm": "hw.optional.arm.FEAT_I8MM"}
_CPUINFO = Path("/proc/cpuinfo")
_SYSCTL = Path("/usr/sbin/sysctl")


def describe_machine() -> dict[str, Any]:
    """Return what decides speed and rounding here.

    Returns:
        `cpu`: model name; `architecture`; `cores`: that this process may use; `isa`: the vector extensions present out
        of `X86_FLAGS` and `ARM_FLAGS`, or None where the system does not tell; `memory_bytes`: of the machine; `os`;
        `python`.
    """
    import psutil

    name, isa = _processor()
    return {
        "cpu": name or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "cores": available_threads(),
        "isa": isa,
        "memory_bytes": int(psutil.virtual_memory().total),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return the version of each installed tool, read from its metadata and without importing it."""
    found: dict[str, str] = {}
    for tool in TOOLS:
        packages = RUNTIME_PACKAGES if tool == "onnxruntime" else (tool,)
        version = next((version for package in packages if (version := _version(package))), None)
        if version:
            found[tool] = version
    return found


def runtime_package() -> str:
    """Return the name of the package that provides `onnxruntime` here, or an empty string."""
    return next((package for package in RUNTIME_PACKAGES if _version(package)), "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> tuple[str, list[str] | None]:
    """Return the processor's name and its vector extensions."""
    if _CPUINFO.is_file():
        return parse_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    if _SYSCTL.is_file():
        return _sysctl("machdep.cpu.brand_string"), _apple_isa()
    return "", None


def parse_cpuinfo(text: str) -> tuple[str, list[str] | None]:
    """Read the first processor of Linux' /proc/cpuinfo.

    Args:
        text: the file's content.

    Returns:
        Its name (empty on arm64 systems that give none) and its vector extensions.
    """
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip().lower(), value.strip())
    name = facts.get("model name") or facts.get("hardware") or facts.get("cpu part", "")
    flags = facts.get("flags") or facts.get("features")
    if flags is None:
        return name, None
    present = set(flags.split())
    return name, [flag for flag in (*X86_FLAGS, *ARM_FLAGS) if flag in present]


def _apple_isa() -> list[str]:
    if platform.machine() == "arm64":
        return [flag for flag, key in _APPLE_FLAGS.items() if _sysctl(key) == "1"]
    words = _sysctl("machdep.cpu.leaf7_features").lower().split()
    return [flag for flag in X86_FLAGS if flag in words]


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # fixed program, keys from this file
            [str(_SYSCTL), "-n", key], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
