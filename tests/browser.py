"""A real browser, where the machine has one."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a headless Chromium for one module only: it occupies the thread's event loop."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("The playground was not tested: no chromium here (apt-get install chromium).")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=_OPTIONS)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a page; the test fails if anything on the page does."""
    errors: list[str] = []
    with browser.new_page() as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        yield page
    assert errors == []
