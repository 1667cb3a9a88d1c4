"""What all handlers share, built once per execution environment."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from handler.events import put_events
from sessions import aws
from sessions.elevate import Elevate
from sessions.ending import Ending
from sessions.registry import Registry
from sessions.schemas import Validators
from sessions.settings import Settings
from sessions.sweeping import Sweeper
from sessions.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Application:
    """What a handler needs.

    `put` puts events on the stack's own bus; see `put_events`.
    """

    settings: Settings
    telemetry: Telemetry
    validators: Validators
    ending: Ending
    sweeper: Sweeper
    put: Callable[[str, int | None, list[dict[str, Any]]], int]


@cache
def application() -> Application:
    """Read the environment and build the application, at the first invocation."""
    settings = Settings.read()
    telemetry = Telemetry(settings.log_level)
    registry = Registry(settings, aws.client("dynamodb", settings.concurrency))
    elevate = Elevate(settings)

    def put(detail_type: str, at: int | None, details: list[dict[str, Any]]) -> int:
        # Few invocations put events, so the client is made when one does.
        bus = aws.client("events")
        return put_events(bus, settings.event_bus_name, telemetry, detail_type, at, details)

    return Application(
        settings,
        telemetry,
        Validators(settings.dialect, settings.markets),
        Ending(settings, registry, elevate, telemetry),
        # What the bus does not take is still due, and the schedule's next tick finds it.
        Sweeper(settings, registry, elevate, telemetry, partial(put, "Session Sweep", None)),
        put,
    )
