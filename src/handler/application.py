"""What all handlers share, built once per execution environment."""

import os
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from sessions import aws
from sessions.dialects import Dialect
from sessions.elevate import Elevate
from sessions.ending import Ending
from sessions.registry import Registry
from sessions.schemas import Validator, market_schema, session_schema
from sessions.settings import Settings
from sessions.sweeping import Sweeper
from sessions.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Application:
    """The parts of this execution environment."""

    settings: Settings
    registry: Registry
    elevate: Elevate
    ending: Ending
    sweeper: Sweeper
    telemetry: Telemetry


@cache
def application() -> Application:
    """Read the environment and build the application, at the first invocation."""
    settings = Settings.read()
    telemetry = Telemetry(settings.log_level)
    registry = Registry(settings, aws.client("dynamodb", settings.concurrency))
    elevate = Elevate(settings)
    ending = Ending(settings, registry, elevate, telemetry)
    sweeper = Sweeper(settings, registry, elevate, telemetry, _hand_over)
    return Application(settings, registry, elevate, ending, sweeper, telemetry)


def _hand_over(details: Any) -> int:
    from handler.events import put_sweeps

    return put_sweeps(details)


@cache
def bus() -> aws.Client:
    """Return the client that puts events on the stack's own bus."""
    return aws.client("events")


@cache
def session_validator(dialect: Dialect) -> Validator:
    """Return the check of a session to end."""
    return Validator(session_schema(dialect, application().settings.markets))


@cache
def activity_validator(*, key_in_body: bool) -> Validator:
    """Return the check of a sign of life; over HTTP the session's key is in the path."""
    settings = application().settings
    return Validator(
        session_schema(settings.dialect, settings.markets, key_in_body=key_in_body, activity=True)
    )


@cache
def key_validator() -> Validator:
    """Return the check of the session key in a path."""
    return Validator(application().settings.dialect.key, "sessionKey")


@cache
def market_validator() -> Validator:
    """Return the check of the market in a query string."""
    return Validator(market_schema(application().settings.markets), "market")


def now() -> int:
    """Return the time in epoch seconds."""
    return int(time.time())


# SnapStart takes its snapshot after the imports: what is built now need not be built after each
# restore. No connection is open yet, and botocore renews credentials that have run out since.
if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
    application()
    bus()
