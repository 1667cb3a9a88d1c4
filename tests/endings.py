"""Hands for the tests of endings and sweeps: an `Ending` under a clock that is turned by hand."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from emulated import Clock
from sessions.elevate import Elevate
from sessions.ending import End, Ending
from sessions.lifetime import MINUTE
from sessions.registry import Registry
from sessions.session import Activity, Session
from sessions.settings import Settings
from sessions.sweeping import ALL_SHARDS, Sweep, Sweeper

IDLE = 30 * MINUTE
FOREVER = 1e12


@pytest.fixture
def make(clock: Clock) -> Callable[[Settings], Ending]:
    return lambda settings: Ending(
        settings, Registry(settings, clock=clock), Elevate(settings), clock=clock
    )


@pytest.fixture
def ending(settings: Settings, make: Callable[[Settings], Ending]) -> Ending:
    return make(settings)


def new_session() -> Session:
    return Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))


def end(ending: Ending, session: Session, clock: Clock) -> End:
    return ending.end(session, int(clock.now), "api", "request")


def sweep(ending: Ending, until: float = FOREVER) -> Sweep:
    return Sweeper(ending).sweep(ALL_SHARDS, until, "tick")


def tracked(ending: Ending, clock: Clock, count: int, **changes: Any) -> list[Session]:
    sessions = [new_session() for _ in range(count)]
    for session in sessions:
        assert ending.track(Activity(session, int(clock.now), **changes))
    return sessions


def state(ending: Ending, session: Session) -> str:
    (status,) = ending.status(session.session_key)
    return status.state
