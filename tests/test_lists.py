"""Lists that one invocation has no time for: what is not reached goes back on the bus."""

import itertools
import json
import time
import uuid
from typing import Any

import pytest

from emulated import FakeElevate, Log
from handler import end, events, track
from handler.application import Application
from handler.events import MOST_BYTES, MOST_EVENTS, InvalidEvent, NotKept
from invoking import Context, FakeBus, forget, moment, sample

pytestmark = pytest.mark.usefixtures("application")

HANDLERS = {"Session Ended": end.handle, "Session Active": track.handle}
# What an invocation leaves for calls that hang: two for an end, one for a track.
RESERVES = {"Session Ended": 16.0, "Session Active": 8.0}
NO_TIME = Context(seconds=0)


def sessions(count: int) -> list[dict[str, str]]:
    return [
        {"market": "UK", "customerKey": str(uuid.uuid4()), "sessionKey": str(uuid.uuid4())}
        for _ in range(count)
    ]


def listed(detail_type: str, entries: list[Any], **changes: Any) -> dict[str, Any]:
    name = {"Session Ended": "session_ended", "Session Active": "session_active"}[detail_type]
    return sample(name, detail={"sessions": entries}, time=moment(time.time() - 60)) | changes


def from_bus(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the event that EventBridge makes of an entry."""
    return {
        "id": str(uuid.uuid4()),
        "source": entry["Source"],
        "detail-type": entry["DetailType"],
        "time": moment(entry["Time"]),
        "detail": json.loads(entry["Detail"]),
    }


def deliver_all(bus: FakeBus, detail_type: str, seconds: float) -> int:
    """Deliver what the bus holds until it holds nothing; return how many events it was."""
    for count in itertools.count():
        if not bus.entries:
            return count
        event = from_bus(bus.entries.pop(0))
        HANDLERS[detail_type](event, Context(RESERVES[detail_type] + seconds))
    raise AssertionError


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put lists back in parts of about 100 sessions, so that a test needs few of them."""
    monkeypatch.setattr(events, "MOST_BYTES", 16 * 1024)


@pytest.mark.usefixtures("small_parts")
def test_a_list_that_one_invocation_has_no_time_for_is_ended_all_the_same(
    bus: FakeBus, elevate: FakeElevate
) -> None:
    # So 16 threads begin 48 notifications at most in a tenth of a second, however quick they are.
    elevate.before_answer = lambda: time.sleep(0.05)
    asked = sessions(300)
    end.handle(listed("Session Ended", asked), Context(RESERVES["Session Ended"] + 0.1))
    assert 0 < len(elevate.received) <= 48
    parts = len(bus.entries)
    assert parts > 1
    assert deliver_all(bus, "Session Ended", seconds=0.1) >= 3 * parts
    assert sorted(elevate.keys()) == sorted(session["sessionKey"] for session in asked)


@pytest.mark.usefixtures("small_parts")
def test_a_list_that_one_invocation_has_no_time_for_is_tracked_all_the_same(
    bus: FakeBus, application: Application
) -> None:
    seen = sessions(150)
    track.handle(listed("Session Active", seen), NO_TIME)
    assert deliver_all(bus, "Session Active", seconds=0.3) > 1
    states = [application.ending.status(session["sessionKey"]) for session in seen]
    assert [[one.state for one in state] for state in states] == [["open"]] * 150


@pytest.mark.parametrize("detail_type", HANDLERS)
def test_what_is_put_back_has_the_time_of_its_event_and_a_size_that_the_bus_takes(
    bus: FakeBus, log: Log, detail_type: str
) -> None:
    """An event of 1 MiB, EventBridge's limit, of which one session is done."""
    asked = sessions(8_600)
    event = listed(detail_type, asked)
    assert 1024**2 < len(json.dumps(event)) < 1.1 * 1024**2
    HANDLERS[detail_type](event, NO_TIME)
    parts = [json.loads(entry["Detail"]) for entry in bus.entries]
    assert [session for part in parts for session in part["sessions"]] == asked[1:]
    assert {name for part in parts for name in part} == {"sessions"}
    assert all(MOST_BYTES / 3 < len(entry["Detail"]) <= MOST_BYTES for entry in bus.entries)
    assert all(moment(entry["Time"]) == event["time"] for entry in bus.entries)
    assert {entry["DetailType"] for entry in bus.entries} == {detail_type}
    assert MOST_EVENTS * (MOST_BYTES + 1024) < 1_000_000
    (line,) = [line for line in log() if line["message"] == "put back"]
    assert (line["sessions"], line["events"]) == (8_599, len(parts))


def test_each_pass_does_a_session_however_little_time_there_is(
    bus: FakeBus, elevate: FakeElevate
) -> None:
    """Else a list that starts too late would go round for ever."""
    asked = sessions(5)
    end.handle(listed("Session Ended", asked), NO_TIME)
    for _ in asked[1:]:
        end.handle(from_bus(bus.entries.pop()), NO_TIME)
    assert bus.entries == []
    assert elevate.keys() == [session["sessionKey"] for session in asked]


@pytest.mark.parametrize("detail_type", HANDLERS)
def test_what_the_bus_refuses_is_delivered_again_with_the_whole(
    bus: FakeBus, elevate: FakeElevate, detail_type: str
) -> None:
    event = listed(detail_type, sessions(3))
    bus.takes = 0
    with pytest.raises(NotKept, match="2 of 3 sessions were not put back"):
        HANDLERS[detail_type](event, NO_TIME)
    HANDLERS[detail_type](event, Context())
    assert len(elevate.received) == len(set(elevate.keys()))
    assert len(elevate.received) == (3 if detail_type == "Session Ended" else 0)


@pytest.mark.usefixtures("small_parts")
def test_if_the_bus_refuses_a_part_nothing_is_sent_twice(
    bus: FakeBus, elevate: FakeElevate
) -> None:
    event = listed("Session Ended", sessions(150))
    bus.takes = 1  # of two
    with pytest.raises(NotKept):
        end.handle(event, NO_TIME)
    assert len(bus.entries) == 1
    end.handle(event, Context())
    deliver_all(bus, "Session Ended", seconds=60)
    assert len(elevate.received) == len(set(elevate.keys())) == 150


def test_a_bus_that_is_not_reached_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", "http://127.0.0.1:9")
    with pytest.raises(NotKept):
        end.handle(listed("Session Ended", sessions(2)), NO_TIME)


def test_an_answer_of_the_bus_that_was_cut_short_is_no_success(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "put_events", lambda _: (200, {}))
    with pytest.raises(NotKept):
        end.handle(listed("Session Ended", sessions(2)), NO_TIME)


def test_beside_what_is_lost_nothing_is_put_back(
    bus: FakeBus, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it comes again: in an outage each delivery would put the same on the bus."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget()
    elevate.statuses = [503]
    with pytest.raises(NotKept, match="1 of 3 sessions are lost"):
        end.handle(listed("Session Ended", sessions(3)), NO_TIME)
    assert bus.entries == []


def test_what_is_invalid_in_a_list_is_not_put_back(bus: FakeBus, elevate: FakeElevate) -> None:
    asked = sessions(3)
    with pytest.raises(InvalidEvent):
        end.handle(listed("Session Ended", [{"market": "UK"}, *asked]), NO_TIME)
    (entry,) = bus.entries
    assert json.loads(entry["Detail"])["sessions"] == asked[1:]
    assert elevate.keys() == [asked[0]["sessionKey"]]
