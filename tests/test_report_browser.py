"""A report's page in headless Chromium: no errors, no overflow, sorting, keyboard, accessibility by axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from knobctl.replay.report.page.write import write_report
from knobctl.tests.support.browser_page import needs_chromium, shown, started_browser
from knobctl.tests.support.caches import generated_cache
from knobctl.tests.support.random_controllers import random_controllers

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about two sets of controllers, with long names."""
    needs_chromium()
    folder = tmp_path_factory.mktemp("browser")
    cache = generated_cache(folder / "cache")
    long = "controllers_with_a_name_that_is_much_longer_than_a_telephone_is_wide"
    paths = [random_controllers(cache, folder / name, seed=seed) for seed, name in enumerate(("mine", long))]
    return Path(write_report(cache.path, paths, out=folder / "report.html", resamples=50).page)


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with started_browser() as one:
        yield one


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window_and_the_console_stays_empty(started: Any, page: Path, width: int):
    with shown(started, page, width=width) as (opened, problems):
        assert opened.locator("figure svg").count() > 5
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        for summary in opened.locator("summary").all():
            summary.click()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert problems == []


def column(table: Any, place: int) -> list[float]:
    """The numbers in a column of a table, in the order shown."""
    cells = table.locator(f"tbody tr > :nth-child({place})").all()
    return [float(value) for one in cells if (value := one.get_attribute("data-value")) is not None]


def test_columns_are_sorted_by_number_and_by_text(started: Any, page: Path):
    with shown(started, page, width=DESKTOP) as (opened, _):
        table = opened.locator("section[aria-labelledby=tables] table").first
        name, reward = (table.get_by_role("columnheader").nth(place) for place in (0, 3))
        before = column(table, 4)
        assert len(before) > 5
        reward.get_by_role("button").click()
        assert reward.get_attribute("aria-sort") == "ascending"
        assert column(table, 4) == sorted(before) != before
        reward.get_by_role("button").click()
        assert reward.get_attribute("aria-sort") == "descending"
        assert column(table, 4) == sorted(before, reverse=True)
        name.get_by_role("button").click()
        names = table.get_by_role("rowheader").all_inner_texts()
        assert names == sorted(names, key=str.casefold)
        assert (name.get_attribute("aria-sort"), reward.get_attribute("aria-sort")) == ("ascending", "none")


def test_everything_can_be_reached_by_keyboard(started: Any, page: Path):
    with shown(started, page, width=DESKTOP) as (opened, _):
        reached = []
        for _ in range(40):
            opened.keyboard.press("Tab")
            reached.append(opened.evaluate("document.activeElement.outerHTML.slice(0, 60)"))
            if "<button" in reached[-1]:
                break
        assert 'class="skip"' in reached[0]
        assert any('href="#figures"' in one for one in reached)
        opened.keyboard.press("Enter")
        focused = opened.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')")
        assert focused == "ascending"


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_violation(started: Any, page: Path, width: int, dark: bool):
    from axe_playwright_python.sync_playwright import Axe

    with shown(started, page, width=width, dark=dark) as (opened, problems):
        # axe-core is added by the debugger, which the page's own policy does not restrict.
        found = Axe().run(opened)
        assert found.violations_count == 0, found.generate_report()
        assert problems == []


def test_light_and_dark_differ_and_both_colour_the_figures(started: Any, page: Path, tmp_path: Path):
    means = {}
    for dark in (False, True):
        with shown(started, page, width=DESKTOP, dark=dark) as (opened, _):
            picture = tmp_path / f"{dark}.png"
            opened.locator("figure svg").first.screenshot(path=picture)
            pixels = np.asarray(Image.open(picture).convert("L"))
            means[dark] = pixels.mean()
            assert pixels.std() > 5  # something is drawn
    assert means[False] > 200
    assert means[True] < 80


def test_the_policy_of_the_page_refuses_other_scripts(started: Any, page: Path, tmp_path: Path):
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace("</main>", "<script>document.title = 'run'</script></main>"))
    with shown(started, changed, width=DESKTOP) as (opened, problems):
        assert opened.title() != "run"
        assert len(problems) == 1
        assert "Content Security Policy" in problems[0]
