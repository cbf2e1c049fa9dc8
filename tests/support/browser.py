"""A headless Chromium for tests that look at a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape, unescape
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


# Looks at each drawing: words that lie over each other, and words that are cut at its edge.
DRAWINGS = """<!doctype html><title>not measured</title>
<iframe id="page" src="{address}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
page.onload = () => {{
  const found = [];
  let words = 0;
  for (const svg of page.contentDocument.querySelectorAll("svg")) {{
    const edge = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
    words += texts.length;
    texts.forEach(([said, box], place) => {{
      const inside = box.left > edge.left - 1 && box.right < edge.right + 1;
      if (!inside || box.top < edge.top - 1 || box.bottom > edge.bottom + 1)
        found.push(`${{said}} is cut`);
      for (const [other, its] of texts.slice(place + 1)) {{
        const beside = box.right < its.left + 1 || its.right < box.left + 1;
        if (!beside && box.top + 3 < its.bottom && its.top + 3 < box.bottom)
          found.push(`${{said}} over ${{other}}`);
      }}
    }});
  }}
  document.title = `${{words}};${{found.slice(0, 5).join(" | ")}}`;
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


def drawings(page: Path, width: int, room: Path) -> tuple[int, str]:
    """Return how many words the drawings of a page have in a frame so wide, and which lie over others or are cut."""
    wrapper = room / f"drawings_{width}.html"
    wrapper.write_text(DRAWINGS.format(address=escape(page.as_uri()), width=width), encoding="utf-8")
    dom = run(room / "profile", "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri())
    found = re.search(r"<title>(\d+);(.*?)</title>", dom)
    assert found, dom[:500]
    return int(found[1]), unescape(found[2])


def screenshot(page: Path, picture: Path, width: int, height: int, room: Path) -> None:
    """Write a picture of a page."""
    run(room / "profile", f"--screenshot={picture}", f"--window-size={width},{height}", page.as_uri())
