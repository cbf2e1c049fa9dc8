"""Where the cache folder of the user is."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the cache folder: `ONNXOPT_CACHE`, else `XDG_CACHE_HOME/onnxopt`, else `~/.cache/onnxopt`."""
    if own := os.environ.get("ONNXOPT_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").expanduser().absolute() / "onnxopt"
