"""Let two folders change places in one step of the file system, so that there is no moment without either."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD of Linux' fcntl.h: paths are those of this process
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2), and RENAME_SWAP of macOS' renamex_np(2)
_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)


def exchanged(one: Path, other: Path) -> bool:
    """Let two folders change places; False where the system or the file system has no such step, and nothing is done.

    Raises:
        OSError: one of them is not there, or may not be moved.
    """
    call = _call()
    if call is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    ctypes.set_errno(0)
    if sys.platform == "darwin":
        failed = call(*names, _EXCHANGE)
    else:
        failed = call(_HERE, names[0], _HERE, names[1], _EXCHANGE)
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _UNABLE:
        return False
    raise OSError(code, os.strerror(code), str(other))


@cache
def _call() -> Any:
    """Return the system's function, None where it has none."""
    if sys.platform not in ("linux", "darwin"):
        return None
    name = "renamex_np" if sys.platform == "darwin" else "renameat2"
    found = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if found is not None:
        found.restype = ctypes.c_int
        kinds = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
        if sys.platform != "darwin":
            kinds = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        found.argtypes = kinds
    return found
