"""Pictures of the page for the README, of a server that runs: `falcon serve`, and beside it

    python -m tests.page_screenshots [URL] [FOLDER]

writes page-light.png and page-dark.png. Needs Chromium (see `chromium.py`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.chromium import Page, find_chromium, running_chromium

QUESTION = (
    "Tickets cost 12 dollars for adults and 8 dollars for children. "
    "A family of 2 adults and 3 children pays how much?"
)


def main(url: str = "http://127.0.0.1:8000", folder: str = "docs") -> None:
    program = find_chromium()
    assert program is not None, "no Chromium found"
    with (
        tempfile.TemporaryDirectory() as profile,
        running_chromium(program, Path(profile)) as page,
    ):
        page.resize(1280, 760, scale=1.5)
        for scheme in ("light", "dark"):
            page.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
            picture(page, url, Path(folder) / f"page-{scheme}.png")


def picture(page: Page, url: str, file: Path) -> None:
    """An answer beside its replay, and the tree of its best step."""
    page.open(url)
    page.run("document.querySelector('#seed').value = 1; 0")
    page.run("document.querySelector('#question').focus()")
    page.type(QUESTION)
    page.press("Enter")
    page.wait("document.querySelector('.facts')")
    page.click(".facts button")
    page.wait("document.querySelector('.verdict')")
    page.run("document.activeElement.blur()")
    page.screenshot(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
