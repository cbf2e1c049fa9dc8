"""A headless Chromium for tests that look at a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)
SECONDS = 60

# Measures a page in a frame of the wanted width: a window of the browser cannot be narrower than the system allows.
WRAPPER = """<!doctype html><title>not measured</title>
<iframe id="page" src="{address}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
page.onload = () => {{
  const root = page.contentDocument.documentElement;
  const wide = [...root.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > {width} + 1);
  const names = wide.map(e => `${{e.tagName}}.${{e.className}}`).slice(0, 5).join(" ");
  document.title = `${{root.scrollWidth}};${{root.scrollHeight}};${{names}}`;
}};
</script>
"""


def run(profile: Path, *arguments: str) -> str:
    """Start Chromium, wait for its end and return what it wrote."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    done = subprocess.run(
        [program, *FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=True,
    )
    return done.stdout


def measure(page: Path, width: int, room: Path) -> tuple[int, int, str]:
    """Return the width and height a page takes in a frame that is `width` pixels wide, and what sticks out."""
    wrapper = room / f"wrapper_{width}.html"
    wrapper.write_text(WRAPPER.format(address=escape(page.as_uri()), width=width), encoding="utf-8")
    dom = run(room / "profile", "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri())
    found = re.search(r"<title>(\d+);(\d+);(.*?)</title>", dom)
    assert found, dom[:500]
    return int(found[1]), int(found[2]), found[3]


def screenshot(page: Path, picture: Path, width: int, height: int, room: Path) -> None:
    """Write a picture of a page."""
    run(room / "profile", f"--screenshot={picture}", f"--window-size={width},{height}", page.as_uri())
