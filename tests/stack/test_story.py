"""The playground on the deployed stack: the story, played with the keyboard, and each button."""

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from local.faults import KINDS
from local.playground import Playground
from local.service import Service
from stack.conftest import Deployed, wait_for


@pytest.fixture
def playground(deployed: Deployed) -> Iterator[Playground]:
    with closing(Service(deployed.info)) as service, Playground() as playground:
        playground.show(service)
        yield playground


def picked(page: Page, deployed: Deployed) -> dict[str, Any]:
    """Return the notifications that Elevate received for the session that the page marks."""
    title = page.locator("#sessions tr.picked .key").get_attribute("title")
    assert title
    return {"received": deployed.received({"sessionKey": title.partition(":")[0]})}


def test_an_end_outlives_an_outage_in_three_key_presses(
    deployed: Deployed, playground: Playground, page: Page
) -> None:
    page.goto(playground.url)
    why = page.locator("#why")
    # When Elevate is taken down
    expect(page.locator("#step-1")).to_be_enabled()
    page.locator("#step-1").focus()
    page.keyboard.press("Enter")
    expect(why).to_contain_text("Elevate is down")
    expect(page.locator("#flow-elevate")).to_have_text("down")
    # and a visitor signs out
    expect(page.locator("#step-2")).to_be_focused()
    page.keyboard.press("Enter")
    # Then the page says that the end is kept, and why.
    expect(why).to_contain_text("202 Accepted. It could not reach Elevate", timeout=30_000)
    expect(page.locator("#sessions tr.picked")).to_contain_text("retrying")
    # When Elevate is back
    expect(page.locator("#step-3")).to_be_focused()
    page.keyboard.press("Enter")
    # Then a sweep delivers it, once.
    expect(why).to_contain_text("Delivered", timeout=60_000)
    expect(page.locator("#sessions tr.picked")).to_contain_text("ended")
    statuses = [n["status"] for n in picked(page, deployed)["received"]]
    assert statuses.count(204) == 1
    assert statuses[0] is None
    # When it is started again, then the first step waits once more.
    expect(page.locator("#again")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#step-1")).to_be_focused()


def test_a_session_is_tracked_and_ended_by_buttons(
    deployed: Deployed, playground: Playground, page: Page
) -> None:
    page.goto(playground.url)
    page.get_by_role("button", name="Track a visitor").click()
    expect(page.locator("#answer")).to_contain_text("204 No Content: noted", timeout=30_000)
    row = page.locator("#sessions tr.picked")
    expect(row).to_contain_text(re.compile(r"open\s*in \d+ s"))
    row.get_by_role("button", name="End").click()
    expect(page.locator("#answer")).to_contain_text("204 No Content: delivered", timeout=30_000)
    expect(row).to_contain_text("ended")
    assert [n["status"] for n in picked(page, deployed)["received"]] == [204]
    # One that is over is not tracked again.
    row.get_by_role("button", name="Track").click()
    expect(page.locator("#answer")).to_contain_text("409 Conflict", timeout=30_000)


def test_a_hundred_visitors_come_at_once(playground: Playground, page: Page) -> None:
    page.goto(playground.url)
    shown = page.locator("#sessions tr")
    expect(page.locator("#market")).to_have_value("UK")
    before = shown.count()
    page.get_by_role("button", name="Track 100").click()
    wait_for(lambda: page.locator("#sessions tr").count() >= before + 100, 60)


def test_each_fault_has_a_button(deployed: Deployed, playground: Playground, page: Page) -> None:
    page.goto(playground.url)
    buttons = page.locator("#faults button")
    expect(buttons).to_have_count(len(KINDS))
    with closing(Service(deployed.info)) as service:
        for kind in (*KINDS[1:], KINDS[0]):
            page.locator(f'#faults button[value="{kind}"]').click()
            wait_for(lambda kind=kind: service.fault() == {"kind": kind})  # type: ignore[misc]
            pressed = page.locator('#faults button[aria-pressed="true"]')
            expect(pressed).to_have_attribute("value", kind)


def test_sweep_now_sweeps(deployed: Deployed, playground: Playground, page: Page) -> None:
    before = len(deployed.log_lines("sweep"))
    page.goto(playground.url)
    page.get_by_role("button", name="Sweep now").click()
    expect(page.locator("#answer")).to_contain_text("Session Sweep event → sent")
    wait_for(lambda: len(deployed.log_lines("sweep")) > before)
