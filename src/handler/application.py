"""What all handlers share, built once per execution environment."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from handler.events import put_sweeps
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
    """What a handler needs."""

    settings: Settings
    telemetry: Telemetry
    validators: Validators
    ending: Ending
    sweeper: Sweeper


@cache
def application() -> Application:
    """Read the environment and build the application, at the first invocation."""
    settings = Settings.read()
    telemetry = Telemetry(settings.log_level)
    registry = Registry(settings, aws.client("dynamodb", settings.concurrency))
    elevate = Elevate(settings)

    def hand_over(details: list[dict[str, Any]]) -> int:
        # Few sweeps hand over, so the client is made when one does.
        return put_sweeps(aws.client("events"), settings.event_bus_name, telemetry, details)

    return Application(
        settings,
        telemetry,
        Validators(settings.dialect, settings.markets),
        Ending(settings, registry, elevate, telemetry),
        Sweeper(settings, registry, elevate, telemetry, hand_over),
    )
