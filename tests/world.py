"""A deployed application and all that can happen to it, for tests of what is visible outside."""

import json
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from emulated import FakeElevate
from faulty_dynamodb import Drop, FaultyDynamoDB, faulty_dynamodb
from handler import application as shared
from handler import end, sweep, track
from handler.application import Application
from handler.events import EventFailed, InvalidEvent, NotKept
from invoking import Context, FakeBus, forget, moment, sample
from sessions.elevate import Elevate
from sessions.session import Activity, Session

MANUAL = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the manual's table whose first column has this heading."""
    lines = iter(MANUAL.splitlines())
    next(line for line in lines if line.startswith(f"| {heading} |"))
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def emitted(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith('{"_aws"')
    ]


def metrics_of(blob: dict[str, Any]) -> set[str]:
    return {metric["Name"] for metric in blob["_aws"]["CloudWatchMetrics"][0]["Metrics"]}


class World:
    """A deployed application as its callers see it; remembers each key and each answer."""

    def __init__(
        self, application: Application, elevate: FakeElevate, dynamo: FaultyDynamoDB
    ) -> None:
        self.application = application
        self.dynamo = dynamo
        self.elevate = elevate
        self.keys: list[str] = []
        self.answers: list[str] = []

    def key(self) -> str:
        self.keys.append(str(uuid.uuid4()).upper() if len(self.keys) % 2 else str(uuid.uuid4()))
        return self.keys[-1]

    def session(self) -> dict[str, Any]:
        return {"market": "UK", "customerKey": self.key(), "sessionKey": self.key()}

    def end(self, **changes: Any) -> None:
        body = json.dumps(self.session() | changes)
        self.call(end, sample("api_end", body=body))

    def call(self, module: Any, request: dict[str, Any]) -> None:
        """Keep only the answer's body: a 202's Location repeats the key to its own caller."""
        self.answers.append(module.handle(request, Context())["body"])

    def event(self, module: Any, name: str, *details: Any, seconds: float = 60) -> None:
        detail = {"sessions": list(details)} if len(details) > 1 else details[0]
        try:
            module.handle(sample(name, detail=detail), Context(seconds))
        except (InvalidEvent, NotKept, EventFailed) as error:
            # Lambda writes an error's text and cause to the log and the dead-letter message.
            self.answers.append(f"{error!r} {error.__cause__!r} {error.__suppress_context__}")

    def due(self, count: int = 1, silent_for: int = 0) -> None:
        settings = self.application.settings
        at = int(time.time()) - settings.idle - 1 - silent_for
        for _ in range(count):
            session = Session("UK", self.key(), self.key())
            assert self.application.ending.track(Activity(session, at))

    def sweep(self, seconds: float = 60) -> None:
        sweep.handle(sample("scheduled_sweep"), Context(seconds))

    def reopen(self) -> None:
        self.due()
        self.sweep()
        (session_key, customer_key) = self.keys[-2:]
        session = Session("UK", session_key, customer_key)
        later = Activity(session, int(time.time()) + 1)
        assert self.application.ending.track(later) == "reopened"

    def late_end(self) -> None:
        session = self.session()
        self.event(track, "session_active", session)
        two_hours_ago = moment(time.time() - 7200)
        end.handle(sample("session_ended", detail=session, time=two_hours_ago), Context())

    def held_back(self) -> None:
        self.elevate.before_answer = lambda: time.sleep(0.3)  # longer than the read time-out
        for _ in range(3):
            self.end()
        self.elevate.before_answer = lambda: None
        self.end()

    def without_registry(self) -> None:
        def drop(operation: str) -> None:
            raise Drop

        self.dynamo.before = drop


@pytest.fixture
def world(
    application: Application, elevate: FakeElevate, aws: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    with faulty_dynamodb(aws) as dynamo:
        monkeypatch.setenv("AWS_ENDPOINT_URL", dynamo.url)
        monkeypatch.setenv("ELEVATE_READ_TIMEOUT", "0.25")
        monkeypatch.setenv("POWERTOOLS_LOG_LEVEL", "DEBUG")
        forget()
        yield World(shared.application(), elevate, dynamo)


@pytest.fixture
def all_that_happens(
    world: World,
    bus: FakeBus,
    dynamodb: Any,
    capsys: pytest.CaptureFixture[str],  # for the metrics, which are written meanwhile
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """Take every path, happy and unhappy."""
    world.end()
    world.due(3)
    world.sweep(seconds=1)  # no time: handed over
    world.sweep()
    world.event(end, "session_ended", world.session())
    world.event(track, "session_active", world.session() | {"interactive": True})
    over = world.session()
    world.event(end, "session_ended", over)
    world.event(track, "session_active", over)  # too late
    world.event(end, "session_ended", over)  # once more
    world.event(end, "session_ended", over | {"customerKey": world.key()})  # another visitor
    world.late_end()
    track.handle(sample("session_active", **{"detail-type": "Session Lost"}), Context())
    world.event(end, "session_ended", world.session(), world.session(), seconds=1)  # put back
    for name, prefix in (("api_elevate_v2", "esales."), ("api_elevate_storefront_v3", "")):
        for market in ("UK", world.key()):
            query = {prefix + n: [v] for n, v in (world.session() | {"market": market}).items()}
            world.call(end, sample(name, multiValueQueryStringParameters=query))
    # Bad input, with keys where they should not be.
    world.end(market=world.key())
    world.end(sessionKey=world.key() + "x", extra=world.key())
    world.end(**{world.key(): 1})
    world.event(end, "session_ended", world.session(), {"sessionKey": world.key()})
    world.event(track, "session_active", {"customerKey": world.key()})
    world.call(end, sample("api_end", body=world.key()))
    path = {"sessionKey": world.key() + "%20"}
    for name in ("api_track", "api_status"):
        world.call(track, sample(name, pathParameters=path))
    with pytest.raises(InvalidEvent):
        sweep.handle(sample("scheduled_sweep", detail={world.key(): world.key()}), Context())
    # Elevate refuses, and echoes the keys.
    for status in (400, 503):
        world.elevate.statuses = [status]
        world.end()
        world.due()
        world.sweep()
    world.elevate.statuses = [204]
    world.due(silent_for=world.application.settings.session_limit)
    world.sweep()  # expired
    table = world.application.settings.table_name
    bad = {"sweepShard": {"N": "1"}, "dueAt": {"N": "1"}, "market": {"S": "UK"}}
    item = bad | {"sessionKey": {"S": world.key()}, "state": {"S": world.key()}}
    dynamodb.put_item(TableName=table, Item=item)
    world.sweep()  # unreadable
    dynamodb.delete_item(
        TableName=table, Key={name: item[name] for name in ("sessionKey", "market")}
    )
    # Crashes, with a key in the exception's message.
    secret = world.key()

    def crash(*_: Any) -> None:
        raise ValueError(f"{secret} in {quote(secret)}")

    with monkeypatch.context() as patch:
        patch.setattr(Elevate, "notify", crash)
        world.end()
        world.event(end, "session_ended", world.session())
    world.reopen()
    world.held_back()
    world.without_registry()
    world.end()
    world.event(track, "session_active", world.session())
    return world
