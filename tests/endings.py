"""Fixtures and helpers for tests of endings and sweeps, under a clock that is set by hand."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from emulated import Clock
from ops.rejected import rejected, retry
from sessions import aws
from sessions.elevate import Elevate
from sessions.ending import End, Ending
from sessions.lifetime import MINUTE
from sessions.registry import Registry
from sessions.session import Activity, Session
from sessions.settings import Settings
from sessions.statements import SHARDS
from sessions.sweeping import Sweep, Sweeper
from sessions.telemetry import Telemetry

IDLE = 30 * MINUTE
FOREVER = 1e9
ALL_SHARDS = range(SHARDS)


@dataclass(frozen=True)
class Service:
    """The parts of an application, as handler/application.py puts them together."""

    registry: Registry
    elevate: Elevate
    ending: Ending
    sweeper: Sweeper


def service_of(
    settings: Settings, clock: Clock, client: Any = None, elevate: Elevate | None = None
) -> Service:
    """Put the parts together, as a new execution environment does."""
    registry = Registry(settings, client or aws.client("dynamodb"), clock)
    elevate, telemetry = elevate or Elevate(settings), Telemetry()
    return Service(
        registry,
        elevate,
        Ending(settings, registry, elevate, telemetry, clock),
        Sweeper(settings, registry, elevate, telemetry, len, clock),
    )


@pytest.fixture
def make(clock: Clock) -> Callable[[Settings], Service]:
    return lambda settings: service_of(settings, clock)


@pytest.fixture
def service(settings: Settings, make: Callable[[Settings], Service]) -> Service:
    return make(settings)


def new_session(market: str = "UK") -> Session:
    return Session(market, str(uuid.uuid4()), str(uuid.uuid4()))


def end(service: Service, session: Session, clock: Clock) -> End:
    return service.ending.end(session, int(clock.now), "api")


def sweep(service: Service, until: float = FOREVER) -> Sweep:
    return service.sweeper.sweep(ALL_SHARDS, until)


def tracked(
    service: Service, clock: Clock, count: int, market: str = "UK", **changes: Any
) -> list[Session]:
    sessions = [new_session(market) for _ in range(count)]
    for session in sessions:
        assert service.ending.track(Activity(session, int(clock.now), **changes)) == "tracked"
    return sessions


def ended_as_idle(service: Service, clock: Clock) -> Session:
    (session,) = tracked(service, clock, 1)
    clock.turn(IDLE)
    assert sweep(service).counts["delivered"] == 1
    return session


def state(service: Service, session: Session) -> str:
    (status,) = service.ending.status(session.session_key)
    return status.state


@pytest.fixture
def retry_rejected(dynamodb: Any, settings: Settings, clock: Clock) -> Callable[..., int]:
    """Return what makes rejected sessions due again, as an operator does, and counts them."""

    def do(market: str | None = None) -> int:
        found = list(rejected(dynamodb, settings.table_name, market))
        return sum(retry(dynamodb, settings.table_name, row, int(clock.now)) for row in found)

    return do


@pytest.fixture
def item(dynamodb: Any, settings: Settings) -> Callable[[Session], dict[str, Any]]:
    """Return a helper that reads a session's row as the table holds it."""

    def read(session: Session) -> dict[str, Any]:
        key = {"sessionKey": {"S": session.session_key}, "market": {"S": session.market}}
        return dict(dynamodb.get_item(TableName=settings.table_name, Key=key).get("Item", {}))

    return read
