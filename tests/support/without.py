"""An environment in which some packages cannot be imported, as if they were not installed: in every child too."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from onnxopt.host.extras import EXTRAS

HEAVY = frozenset({*EXTRAS["hf"].packages.values(), "matplotlib"})  # modules that the core does without
_HOOK = '''
import sys

class Absent:
    """Finds nothing, and keeps others from finding it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
'''


def without(modules: Collection[str], room: Path) -> dict[str, str]:
    """Return environment variables that keep Python from finding modules.

    Args:
        modules: the first parts of their names.
        room: a folder for the hook, which Python runs as it starts.
    """
    room.mkdir(parents=True, exist_ok=True)
    (room / "sitecustomize.py").write_text(_HOOK.format(names=sorted(modules)), encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(room), os.environ.get("PYTHONPATH"))))}
