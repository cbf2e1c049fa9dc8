"""Write the generated parts of the documents: `python -m tools.docs`; `--check` tells those that are stale instead."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tools.docs import api, cli, errors, layout, passes, recipes, records, tasks
from tools.docs.blocks import fill

ROOT = Path(__file__).parents[2]

Block = Callable[[], str]

PAGES: Mapping[str, Mapping[str, Block]] = {
    "docs/passes/index.md": {"passes": passes.overview},
    **{f"docs/passes/{stage}.md": {stage: partial(passes.stage_page, stage)} for stage in passes.STAGES},
    "docs/tasks.md": {"tasks": tasks.tasks_table},
    "docs/models.md": {"recipes": recipes.recipes_table},
    "docs/reference/cli.md": {"commands": cli.commands},
    "docs/reference/api.md": {"public face": api.public_face, "rewrite": api.face_of_passes},
    "docs/reference/artifact.md": {
        "manifest": records.manifest,
        "measurements": records.measurements,
        "io": records.io_keys,
        "reports": records.reports,
    },
    "docs/reference/errors.md": {"errors": errors.errors_table},
    "docs/develop/layout.md": {"rooms": layout.rooms},
}


def fresh(name: str, text: str) -> str:
    """Return a page with its generated blocks written anew.

    Args:
        name: the page, as in `PAGES`.
        text: what stands there now.
    """
    for block, made in PAGES[name].items():
        text = fill(text, block, made())
    return text


def main() -> int:
    """Write what is stale; with `--check` name it, and return 1 when there is any."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documents.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is stale")
    checks = parser.parse_args().check
    stale = 0
    for name in PAGES:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = fresh(name, old)
        if new == old:
            continue
        stale += 1
        print(f"{'stale' if checks else 'written'}: {name}")
        if not checks:
            path.write_text(new, encoding="utf-8")
    return int(bool(checks and stale))


if __name__ == "__main__":
    raise SystemExit(main())
