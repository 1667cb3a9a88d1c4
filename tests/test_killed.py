"""Functions that are killed between two steps: nothing is lost."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emulated import Clock, FakeElevate
from endings import end as end_again
from endings import new_session, service_of, sweep
from endings import state as state_of
from faulty_dynamodb import Drop, FaultyDynamoDB
from invoking import sample
from sessions.session import Activity, Session
from sessions.settings import Settings
from sessions.statements import LEASE_SECONDS

ROOT = Path(__file__).parent.parent
KEY = sample("session_ended")["detail"]["sessionKey"]
VICTIM = """
from handler import end, sweep
from invoking import Context, sample
function, event = {"end": (end, "api_end"), "sweep": (sweep, "scheduled_sweep")}[NAME]
function.handle(sample(event), Context())
"""


@pytest.fixture
def victim(settings: Settings, dynamo: FaultyDynamoDB, elevate: FakeElevate) -> Iterator[Any]:
    """Return a helper that starts a function in a process of its own, to be killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> "subprocess.Popen[bytes]":
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
            "TABLE_NAME": settings.table_name,
            "EVENT_BUS_NAME": "default",
            "ELEVATE_BASE_URL": elevate.url,
            "AWS_ENDPOINT_URL": dynamo.url,
        }
        code = f"NAME = {name!r}{VICTIM}"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def kill_at(
    operation: str, after: bool, dynamo: FaultyDynamoDB, process: Callable[[], Any], nth: int = 1
) -> None:
    count = itertools.count(1)

    def kill(seen: str) -> None:
        if seen == operation and next(count) == nth:
            os.kill(process().pid, signal.SIGKILL)
            raise Drop

    if after:
        dynamo.after = kill
    else:
        dynamo.before = kill


@pytest.mark.parametrize(
    ("operation", "after", "sent", "repeated", "sent_in_all"),
    [
        ("UpdateItem", False, 0, "delivered", 1),  # nothing was written
        ("UpdateItem", True, 0, "kept", 1),  # claimed, not notified
        ("BatchExecuteStatement", False, 1, "kept", 2),  # not settled: the one duplicate
        ("BatchExecuteStatement", True, 1, "over", 1),  # settled
    ],
    ids=["before claim", "between claim and notify", "between notify and settle", "after settle"],
)
def test_a_function_killed_between_two_steps(
    settings: Settings,
    dynamo: FaultyDynamoDB,
    elevate: FakeElevate,
    victim: Any,
    operation: str,
    after: bool,
    sent: int,
    repeated: str,
    sent_in_all: int,
) -> None:
    """Its caller gets no answer, and so calls again: nothing had been accepted."""
    processes: list[Any] = []
    kill_at(operation, after, dynamo, lambda: processes[0])
    processes.append(victim("end"))
    assert processes[0].wait(30) == -signal.SIGKILL
    assert len(elevate.received) == sent
    dynamo.before = dynamo.after = lambda operation: None
    later = Clock(time.time())
    survivor = service_of(settings, later)
    body = json.loads(sample("api_end")["body"])
    session = Session("UK", KEY, body["customerKey"])
    assert end_again(survivor, session, later).result == repeated
    sweep(survivor)
    assert len(elevate.received) == sent + (repeated == "delivered"), "a lease still holds"
    later.turn(LEASE_SECONDS + 1)
    sweep(survivor)
    assert len(elevate.received) == sent_in_all
    assert state_of(survivor, session) == "ended"


def test_a_sweep_that_is_killed_in_the_middle_loses_nothing(
    settings: Settings, dynamo: FaultyDynamoDB, elevate: FakeElevate, victim: Any
) -> None:
    """At most what was in flight, or waited to be settled, is sent twice."""
    now = Clock(time.time())
    survivor = service_of(settings, now)
    sessions = [new_session() for _ in range(200)]
    for session in sessions:
        survivor.ending.track(Activity(session, int(now.now) - settings.idle - 1))
    processes: list[Any] = []
    kill_at("BatchExecuteStatement", False, dynamo, lambda: processes[0], nth=6)
    processes.append(victim("sweep"))
    assert processes[0].wait(30) == -signal.SIGKILL
    before = len(elevate.received)
    assert before > 0
    now.now = time.time() + LEASE_SECONDS + 1
    sweep(survivor)
    assert set(elevate.keys()) == {session.session_key for session in sessions}
    twice = len(elevate.received) - len(sessions)
    assert twice <= settings.concurrency + 100
