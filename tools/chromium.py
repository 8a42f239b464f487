"""Opens a page in headless Chromium, driven by Playwright: for screenshots of the documentation and for tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Returns the path of the installed browser; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Starts the installed browser. Raises AssertionError if there is none."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    assert path, "no Chromium is installed: apt-get install chromium"
    with sync_playwright() as playwright:
        # A container's root user has no sandbox, and its /dev/shm is often too small.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(started: Browser, page: Path, *, width: int, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """Opens a file in a window of this size, offline."""
    scheme = "dark" if dark else "light"
    context = started.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1, offline=True
    )
    try:
        shown = context.new_page()
        shown.goto(page.resolve().as_uri())
        yield shown
    finally:
        context.close()
