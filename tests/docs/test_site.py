"""A link that leads nowhere ends the build of the site."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = Path(__file__).parents[2] / "mkdocs.yml"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("[there](other.md#a-place)", ""),
        ("[gone](another.md)", "target is not found"),
        ("[gone](other.md#no-place)", "does not contain an anchor"),
    ],
    ids=["page-and-place", "no-page", "no-place"],
)
def test_links_are_held_to_what_is_there(text: str, warning: str, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.md").write_text(f"# Index\n\n{text}\n", encoding="utf-8")
    (pages / "other.md").write_text("# Other\n\n## A place\n", encoding="utf-8")
    small = f"INHERIT: {SETTINGS}\ndocs_dir: pages\nsite_dir: out\nnav: [index.md, other.md]\ntheme: {{name: mkdocs}}\n"
    (tmp_path / "mkdocs.yml").write_text(small, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not warning), done.stderr
    assert warning in done.stderr
