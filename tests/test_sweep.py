"""The sweep function, called with the sample events as the schedule and the bus call it."""

import json
import time
import uuid
from typing import Any

import pytest

from emulated import FakeElevate
from handler import sweep
from handler.application import Application
from handler.events import MOST_EVENTS, InvalidEvent
from invoking import Context, FakeBus, forget, sample
from sessions.session import Activity, Session
from sessions.statements import SHARDS
from sessions.sweeping import MAX_DEPTH


def quiet(application: Application, count: int) -> list[str]:
    """Track sessions whose idle time has just passed; return their keys."""
    at = int(time.time()) - application.settings.idle - 1
    keys = [str(uuid.uuid4()) for _ in range(count)]
    for key in keys:
        session = Session("UK", key, str(uuid.uuid4()))
        assert application.ending.track(Activity(session, at))
    return keys


def line(log: Any) -> dict[str, Any]:
    (swept,) = [written for written in log() if written.get("message") == "sweep"]
    return dict(swept)


@pytest.fixture
def put(bus: FakeBus) -> list[dict[str, Any]]:
    """Collect the events that are put on the bus."""
    return bus.entries


def test_the_schedule_ends_what_is_quiet(
    application: Application, elevate: FakeElevate, log: Any
) -> None:
    keys = quiet(application, 30)
    sweep.handle(sample("scheduled_sweep"), Context())
    assert sorted(elevate.keys()) == sorted(keys)
    swept = line(log)
    assert (swept["due"], swept["delivered"], swept["handed_over"]) == (30, 30, 0)
    assert swept["correlation_id"] == Context.aws_request_id


def test_an_event_sweeps_the_shards_it_names(
    application: Application, elevate: FakeElevate
) -> None:
    quiet(application, 40)
    sweep.handle(sample("session_sweep"), Context())  # shards 0 to 3 of 8
    assert 0 < len(elevate.received) < 40
    sweep.handle(sample("session_sweep", detail={"shards": [4, 5, 6, 7]}), Context())
    assert len(elevate.received) == 40


def test_what_is_left_when_time_runs_out_is_handed_over_in_one_event_per_shard(
    application: Application, elevate: FakeElevate, put: list[dict[str, Any]], log: Any
) -> None:
    quiet(application, 40)
    sweep.handle(sample("scheduled_sweep"), Context(seconds=5))
    details = [json.loads(entry["Detail"]) for entry in put]
    # There was no time to look at any of them.
    assert sorted(detail["shards"] for detail in details) == [[n] for n in range(SHARDS)]
    assert {detail["depth"] for detail in details} == {1}
    assert {entry["DetailType"] for entry in put} == {"Session Sweep"}
    assert line(log)["handed_over"] == SHARDS
    for detail in details:
        sweep.handle(sample("session_sweep", detail=detail), Context())
    assert len(elevate.received) == 40
    written = [w for w in log() if w.get("message") == "notification"]
    assert {w["correlation_id"] for w in written} == {Context.aws_request_id}


def test_a_lasting_backlog_gets_one_hand_over_per_shard(
    application: Application, put: list[dict[str, Any]]
) -> None:
    """For 20 minutes, every sweep runs out of time."""
    quiet(application, 40)
    at_once = []
    for _ in range(20):
        sweep.handle(sample("scheduled_sweep"), Context(seconds=5))
        handed_over, put[:] = list(put), []
        at_once.append([json.loads(entry["Detail"])["shards"] for entry in handed_over])
        for entry in handed_over:
            detail = json.loads(entry["Detail"])
            sweep.handle(sample("session_sweep", detail=detail), Context(seconds=5))
        assert put == [], "what a hand-over leaves is for the next tick"
    assert all(sorted(one) == [[shard] for shard in range(SHARDS)] for one in at_once)


def test_a_hand_over_finishes_before_the_next_tick_hands_over(
    application: Application, elevate: FakeElevate, put: list[dict[str, Any]]
) -> None:
    """With 15 seconds left a tick sends; a hand-over has none to spare."""
    quiet(application, 3)
    sweep.handle(sample("session_sweep", detail={"depth": 1}), Context(seconds=18))
    assert elevate.received == []
    sweep.handle(sample("scheduled_sweep"), Context(seconds=18))
    assert len(elevate.received) == 3


def test_nothing_is_handed_over_where_elevates_rate_is_limited(
    application: Application, put: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELEVATE_MAX_RATE", "5")
    forget()
    quiet(application, 3)
    sweep.handle(sample("scheduled_sweep"), Context(seconds=5))
    assert put == []


def test_what_the_bus_does_not_take_is_not_reported_as_handed_over(
    application: Application, bus: FakeBus, log: Any
) -> None:
    bus.takes = 1  # of each call
    quiet(application, 40)
    sweep.handle(sample("scheduled_sweep"), Context(seconds=5))
    assert (line(log)["unfinished"], line(log)["handed_over"]) == (SHARDS, SHARDS / MOST_EVENTS)


def test_a_bus_that_takes_nothing_does_not_fail_the_sweep(
    application: Application, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    quiet(application, 3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    sweep.handle(sample("scheduled_sweep"), Context(seconds=5))
    assert line(log)["handed_over"] == 0


@pytest.mark.usefixtures("application")
@pytest.mark.parametrize(
    "detail",
    [
        None,
        [],
        {"shards": []},
        {"shards": [SHARDS]},
        {"shards": [1, 1]},
        {"shards": ["0"]},
        {"depth": MAX_DEPTH + 1},
        {"correlationId": "a visitor's key, perhaps"},
        {"unknown": 1},
    ],
)
def test_a_sweep_of_another_shape_is_invalid(detail: Any) -> None:
    with pytest.raises(InvalidEvent):
        sweep.handle(sample("session_sweep", detail=detail), Context())


def test_a_shard_that_json_writes_as_a_float_is_a_shard(
    application: Application, elevate: FakeElevate
) -> None:
    """To JSON Schema 1.0 is an integer."""
    quiet(application, 20)
    every = [float(shard) for shard in range(SHARDS)]
    sweep.handle(sample("session_sweep", detail={"shards": every, "depth": 0.0}), Context())
    assert len(elevate.received) == 20
