"""The control groups of this process, which limit a container or a service; Linux alone has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def groups_of(controller: str, root: Path, membership: Path, *, folder: str = "") -> Iterator[Path]:
    """Yield the folders of the cgroups of this process for one controller, its own and all above it.

    Args:
        controller: such as `cpu`; version 2 has one tree for all.
        root: where the cgroup file system is mounted.
        membership: the file `/proc/self/cgroup`: lines of `id:controllers:path`, no controllers in version 2.
        folder: below `root`, in version 1; named as the line has the controllers when empty.
    """
    for line in text_of(membership).splitlines() or ["0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, inner = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = root / (folder or controllers) if controllers else root
        place = base / inner.strip("/")
        # in a container the path may be the host's; then only the mount itself is there
        yield from dict.fromkeys(one for one in (place, *place.parents) if one == base or base in one.parents)


def text_of(path: Path) -> str:
    """Return what a file of the kernel says; nothing where it is not there."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
