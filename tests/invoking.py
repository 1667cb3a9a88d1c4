"""Helpers for the tests of the handlers: samples, a Lambda context, an application."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulated import FakeElevate
from handler import application as shared
from sessions.settings import Settings

EVENTS = Path(__file__).parent.parent / "events"


def sample(name: str, **changes: Any) -> dict[str, Any]:
    """Return events/<name>.json with some of its members changed."""
    event: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return event | changes


def with_body(name: str, **changes: Any) -> dict[str, Any]:
    """Return a sample API event with some members of its JSON body changed."""
    event = sample(name)
    return event | {"body": json.dumps(json.loads(event["body"]) | changes)}


def moment(at: float) -> str:
    """Return epoch seconds as EventBridge writes the time of an event."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


class Context:
    """The part of Lambda's context object that the functions use."""

    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def __init__(self, seconds: float = 60) -> None:
        self._milliseconds = int(seconds * 1000)

    def get_remaining_time_in_millis(self) -> int:
        """Return the time an invocation has left, as if none had passed."""
        return self._milliseconds


@pytest.fixture
def application(
    settings: Settings, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> Iterator[shared.Application]:
    """Build the functions' application as they do, from the environment."""
    variables = {
        "TABLE_NAME": settings.table_name,
        "EVENT_BUS_NAME": "default",
        "ELEVATE_BASE_URL": elevate.url,
        "MARKETS": "UK,SE",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    forget()
    yield shared.application()
    forget()


_BUILT_ONCE = (
    shared.application,
    shared.session_validator,
    shared.activity_validator,
    shared.key_validator,
    shared.market_validator,
    shared.bus,
)


def forget() -> None:
    """Start over as a new execution environment would."""
    for built in _BUILT_ONCE:
        built.cache_clear()
