"""`onnxopt doctor | cache`: what is installed and what is missing; what was kept, and how it goes."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from onnxopt.cli.answers import print_answer
from onnxopt.cli.shared import JsonOption, app, out_console
from onnxopt.cli.words import print_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxopt.host.cachelist import Entry
    from onnxopt.host.checkup import Checkup


class CacheAction(str, Enum):
    """What to do with the cache."""

    show = "show"
    clear = "clear"


@app.command(epilog="Examples: `onnxopt doctor` · `onnxopt doctor --json`")
def doctor(as_json: JsonOption = False) -> None:
    """Look over what is installed: versions, what this machine can do, what is missing for what; for a bug report."""
    from onnxopt.host.checkup import check_up

    found = check_up()
    if as_json:
        print_answer(found)
        return
    for line in doctor_lines(found):
        print_words(out_console, line)


@app.command(
    epilog="Examples: `onnxopt cache` · `onnxopt cache clear` · `onnxopt cache clear --older-than 30d` · "
    "`onnxopt cache --json`"
)
def cache(
    action: Annotated[CacheAction, typer.Argument(help="show, or clear.")] = CacheAction.show,
    older_than: Annotated[
        str, typer.Option("--older-than", help="Only what was not used for so long: 12h, 30d or 2w.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what onnxopt keeps in the cache folder, or remove it: all but what a process uses at the moment."""
    from onnxopt.host.cachelist import clear, entries
    from onnxopt.host.cachelist import older_than as aged
    from onnxopt.host.usercache import cache_root

    found = entries()
    chosen = aged(found, older_than) if older_than else found
    gone, stayed = clear(chosen) if action is CacheAction.clear else ([], chosen)
    if as_json:
        freed = {"freed_bytes": sum(one.size for one in gone), "removed": len(gone)}
        rows = [_row(one) for one in stayed]
        print_answer({"path": str(cache_root()), **freed, "entries": rows})
        return
    lines = _cleared(gone, stayed) if action is CacheAction.clear else _listed(chosen)
    for line in lines:
        out_console.print(line, markup=False, soft_wrap=True)


def doctor_lines(found: Checkup) -> Iterator[str]:
    """Yield what `onnxopt doctor` prints."""
    from onnxopt.host.sizes import size_text

    machine, versions = found.machine, dict(found.versions)
    isa = machine["isa"]
    yield f"onnxopt       {versions.pop('onnxopt')}"
    yield f"python        {versions.pop('python')}"
    yield f"system        {machine['os']}, {machine['architecture']}"
    yield f"cpu           {machine['cpu']}"
    yield f"abilities     {'not known' if isa is None else ', '.join(isa) or 'none of the fast ones'}"
    yield f"threads       {machine['cores']} of {machine['cores_of_machine']}"
    yield f"memory        {size_text(machine['memory_allowed'])} of {size_text(machine['memory_bytes'])}"
    yield f"providers     {', '.join(found.providers) or 'none'}"
    yield f"cache         {found.cache['path']}, {size_text(found.cache['bytes'])} in {found.cache['entries']} entries"
    yield from (f"{name:<13} {version}" for name, version in versions.items())
    for name, extra in found.extras.items():
        gone = ", ".join(extra["missing"])
        words = f"not installed ({gone}): {extra['install']}" if gone else "installed"
        yield f"{f'[{name}]':<13} {words}; for {extra['for']}"
    yield from (f"problem       {one}" for one in found.problems)
    if not found.problems:
        yield "no problem found"


def _row(entry: Entry) -> dict[str, object]:
    return {
        "kind": entry.kind,
        "name": entry.path.name,
        "bytes": entry.size,
        "used": entry.used.isoformat(timespec="seconds"),
        "finished": not entry.is_left,
    }


def _listed(found: list[Entry]) -> Iterator[str]:
    """Yield the size of the cache, of each kind, and each entry, one a line."""
    from onnxopt.host.cachelist import KINDS
    from onnxopt.host.checkup import tilde
    from onnxopt.host.sizes import size_text
    from onnxopt.host.usercache import cache_root

    yield f"{tilde(str(cache_root()))}: {size_text(sum(one.size for one in found))} in {len(found)} entries"
    for kind, about in KINDS.items():
        here = sorted((one for one in found if one.kind == kind), key=lambda one: -one.size)
        if here:
            yield f"{kind}: {about.purpose}, {size_text(sum(one.size for one in here))}"
        for one in here:
            left = "  never finished" if one.is_left else ""
            yield f"  {size_text(one.size):>10}  {one.used.astimezone():%Y-%m-%d %H:%M}  {one.path.name}{left}"


def _cleared(gone: list[Entry], stayed: list[Entry]) -> Iterator[str]:
    from onnxopt.host.sizes import size_text

    yield f"removed {len(gone)} entries, {size_text(sum(one.size for one in gone))} freed"
    if stayed:
        yield f"{len(stayed)} entries stayed: other processes use them, or they cannot be removed"
