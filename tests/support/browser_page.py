"""A page in headless Chromium, with what its console said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from knobctl.tools.chromium import browser, chromium, opened


def needs_chromium() -> None:
    """Skips the test if no browser is installed; fails where the variable CI is set."""
    if chromium() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium is installed: apt-get install chromium")


@contextmanager
def started_browser() -> Iterator[Any]:
    needs_chromium()
    with browser() as started:
        yield started


@contextmanager
def shown(started: Any, path: Path, *, width: int, dark: bool = False) -> Iterator[tuple[Any, list[str]]]:
    """Yields the page and a list that receives warnings and errors of its console, and failed requests."""
    problems: list[str] = []
    with opened(started, path, width=width, dark=dark) as page:
        page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.reload()
        yield page, problems
