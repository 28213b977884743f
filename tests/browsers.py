"""A real browser for tests: whichever Chromium is installed, headless, offline, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import axe_playwright_python
import pytest
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
"""Deque's accessibility rules; run in the page from outside, where its policy does not reach."""


def find_browser() -> str:
    """Return the path of a browser; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine; on Debian: apt-get install chromium")
    return found


@contextmanager
def opened(path: Path, scheme: Literal["light", "dark"] = "light") -> Iterator[tuple[Page, list[str]]]:
    """Open a file; yield the page and what it asked for beyond itself, logged or threw."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        try:
            page = browser.new_context(offline=True, color_scheme=scheme).new_page()
            heard: list[str] = []
            page.on("console", lambda message: heard.append(message.text))
            page.on("pageerror", lambda error: heard.append(str(error)))
            address = path.absolute().as_uri()
            page.on("request", lambda asked: heard.append(asked.url) if asked.url != address else None)
            page.goto(address)
            yield page, heard
        finally:
            browser.close()


def accessibility_faults(page: Page) -> list[str]:
    """Return the rules of axe-core that the page breaks, each with the first element that does."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    return [f"{rule['id']}: {rule['nodes'][0]['target']}" for rule in found["violations"]]
