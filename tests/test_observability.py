"""What is visible outside: log lines, metrics, alarms, dashboard. And what never is: keys."""

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from alarms import ALARMS, fires, needed, notifies, state
from emulated import FakeElevate
from faulty_dynamodb import Drop, FaultyDynamoDB, faulty_dynamodb
from handler import application as shared
from handler import end, sweep, track
from handler.application import Application
from handler.events import EventFailed, InvalidEvent, NotKept
from handlers import Context, forget, sample
from registry_table import template
from sessions.session import Activity, Session
from sessions.telemetry import Telemetry, hashed

MANUAL = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
RESOURCES: dict[str, Any] = template()["Resources"]
COMMON = {"level", "message", "timestamp", "correlation_id"}
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "list": list,
}

type Log = Callable[[], list[dict[str, Any]]]


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
    dynamodb: Any,
    log: Log,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """Take every path, happy and unhappy."""
    taken: dict[str, Any] = {"FailedEntryCount": 0}
    monkeypatch.setattr(
        "handler.events.bus", lambda: type("Bus", (), {"put_events": lambda *_, **__: taken})
    )
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
    track.handle(sample("session_active", **{"detail-type": "Session Lost"}), Context())
    world.event(end, "session_ended", world.session(), world.session(), seconds=1)  # only kept
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
        patch.setattr(world.application.elevate, "notify", crash)
        world.end()
        world.event(end, "session_ended", world.session())
    world.reopen()
    world.held_back()
    world.without_registry()
    world.end()
    world.event(track, "session_active", world.session())
    return world


# -- log lines ---------------------------------------------------------------------------------


def test_every_line_is_as_documented_and_every_documented_field_is_written(
    all_that_happens: World, log: Log
) -> None:
    lines = {next(iter(names(row[0]))): (row[1], names(row[2])) for row in rows_of("`message`")}
    types = {name: row[1] for row in rows_of("field") for name in names(row[0])}
    seen: dict[str, set[str]] = {message: set() for message in lines}
    for line in log():
        level, fields = lines[line["message"]]
        assert line["level"] in level
        assert set(line) >= COMMON
        for name in set(line) - COMMON:
            assert name in fields, (line["message"], name)
            assert isinstance(line[name], TYPES[types[name]]), name
            seen[line["message"]].add(name)
    for message, (_, fields) in lines.items():
        assert seen[message] == fields, message


def test_levels_say_who_must_act(all_that_happens: World, log: Log) -> None:
    found = {
        (line["message"], line.get("outcome", line.get("source")), line["level"])
        for line in log()
        if line["level"] != "DEBUG"
    }
    tried_again = {
        ("notification", "unavailable", "WARNING"),
        ("registry failed", None, "WARNING"),
        ("sweep", None, "WARNING"),  # stopped by Elevate
    }
    someone_must_act = {
        ("notification", "rejected", "ERROR"),
        ("refused", "event", "ERROR"),  # a dead-letter message
        ("refused", "sweep", "ERROR"),
        ("crashed", None, "ERROR"),
        ("unknown event", None, "ERROR"),
    }
    normal = {
        ("notification", "delivered", "INFO"),
        ("expired", "expired", "INFO"),
        ("sweep", None, "INFO"),
        ("refused", "api", "INFO"),  # its caller has the answer
    }
    assert found == normal | tried_again | someone_must_act


def test_a_sweep_warns_of_rows_that_it_cannot_read(world: World, dynamodb: Any, log: Log) -> None:
    table = world.application.settings.table_name
    keys = {"sessionKey": {"S": world.key()}, "market": {"S": "UK"}}
    due = {"sweepShard": {"N": "1"}, "dueAt": {"N": "1"}}
    dynamodb.put_item(TableName=table, Item=keys | due | {"state": {"S": "of a later version"}})
    try:
        world.sweep()
    finally:
        dynamodb.delete_item(TableName=table, Key=keys)
    (line,) = log()
    assert (line["level"], line["unreadable"]) == ("WARNING", 1)


def test_the_log_level_is_the_one_that_was_set_whatever_lambda_sets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: Log
) -> None:
    """Where logs are JSON, Lambda sets AWS_LAMBDA_LOG_LEVEL itself."""
    monkeypatch.setenv("AWS_LAMBDA_LOG_LEVEL", "INFO")
    telemetry = Telemetry("ERROR")
    telemetry.refused([], "api")
    telemetry.count("Invalid", 0)
    telemetry.crashed(ValueError())
    telemetry.flush()
    assert [line["message"] for line in log()] == ["crashed"]
    (metrics,) = capsys.readouterr().out.splitlines()
    assert json.loads(metrics)["Invalid"] == [1.0]


def test_what_sends_nothing_is_logged_at_debug(world: World, log: Log) -> None:
    world.due()
    world.end()
    call = sample("api_end", body=json.dumps(session := world.session()))
    world.call(end, call)
    world.call(end, call)
    world.reopen()
    world.event(track, "session_active", session)
    traces = [line for line in log() if line["level"] == "DEBUG"]
    assert [(line["message"], line["result"]) for line in traces] == [
        ("track", "tracked"),
        ("repeated end", "over"),
        ("track", "tracked"),
        ("track", "reopened"),
        ("track", "over"),
    ]
    assert traces[1]["session"] == traces[-1]["session"] == hashed(session["sessionKey"])
    forget()
    Telemetry("INFO").tracked("tracked", Session("UK", world.key(), world.key()))
    assert [line for line in log() if line["level"] == "DEBUG"] == traces


def test_a_notification_has_the_correlation_id_of_its_call_event_tick_or_hand_over(
    world: World, log: Log
) -> None:
    world.end()
    world.event(end, "session_ended", world.session())
    world.due()
    sweep.handle(sample("scheduled_sweep"), Context())
    world.due()
    handed_over = {"correlationId": "tick of an hour ago", "depth": 1}
    sweep.handle(sample("session_sweep", detail=handed_over), Context())
    called = sample("api_end")["requestContext"]["requestId"]
    event, tick = sample("session_ended")["id"], Context.aws_request_id
    found = [line["correlation_id"] for line in log() if line["level"] != "DEBUG"]
    assert found == [called, event, tick, tick, "tick of an hour ago", "tick of an hour ago"]


def test_every_line_has_a_correlation_id(all_that_happens: World, log: Log) -> None:
    assert all(line["correlation_id"] for line in log())


# -- keys --------------------------------------------------------------------------------------


def forms(key: str) -> Iterator[str]:
    yield from (key, quote(key, safe=""), json.dumps(key)[1:-1], key.replace("-", ""))
    # In base64 a text can begin at one of three offsets.
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + key.encode()).decode()
        yield encoded[4:-4]


def test_no_key_is_readable_anywhere(
    all_that_happens: World, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = capsys.readouterr()
    written = "\n".join([json.dumps(log()), out, err, *all_that_happens.answers]).lower()
    assert len(all_that_happens.keys) > 50
    for key in all_that_happens.keys:
        for form in forms(key):
            assert form.lower() not in written
    assert any(str(hashed(key)) in written for key in all_that_happens.keys)


class FreeText(World):
    """Elevate 4 takes any text as a key."""

    def key(self) -> str:
        self.keys.append(f"jürgen+o'neil{len(self.keys)}@shop.example/ß \U0001f6d2")
        return self.keys[-1]


def test_keys_of_free_text_are_not_readable_either(
    application: Application,
    elevate: FakeElevate,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ELEVATE_API", "storefront-v3")
    forget()
    world = FreeText(shared.application(), elevate, FaultyDynamoDB(""))
    for status in (204, 400, 503):
        elevate.statuses = [status]
        world.end()
        world.event(end, "session_ended", world.session())
        world.due()
        world.sweep()
    out, err = capsys.readouterr()
    written = "\n".join([json.dumps(log()), out, err, *world.answers]).lower()
    assert {line.get("status") for line in log()} >= {204, 400, 503}
    for key in world.keys:
        for form in forms(key):
            assert form.lower() not in written


# -- metrics -----------------------------------------------------------------------------------


def emitted(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith('{"_aws"')
    ]


def metrics_of(blob: dict[str, Any]) -> set[str]:
    return {metric["Name"] for metric in blob["_aws"]["CloudWatchMetrics"][0]["Metrics"]}


def test_every_metric_is_documented_and_every_documented_one_is_written(
    all_that_happens: World, capsys: pytest.CaptureFixture[str]
) -> None:
    documented = set().union(*(names(row[0]) for row in rows_of("metric")))
    blobs = emitted(capsys)
    assert set().union(*map(metrics_of, blobs)) == documented
    for blob in blobs:
        (written,) = blob["_aws"]["CloudWatchMetrics"]
        assert written["Namespace"] == "ElevateSessions"
        assert written["Dimensions"] == [["service"]]


def test_each_latency_of_a_large_sweep_is_written_once(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.due(230)
    capsys.readouterr()
    world.sweep()
    blobs = emitted(capsys)
    assert sum(len(blob["ElevateLatency"]) for blob in blobs) == 230
    assert all(len(blob["ElevateLatency"]) <= 100 for blob in blobs)
    assert sum(sum(blob.get("Delivered", [])) for blob in blobs) == 230


# -- alarms ------------------------------------------------------------------------------------


def points(alarm: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[float]:
    """Return what has been written of the alarm's metric under exactly its dimensions."""
    found: list[float] = []
    for blob in emitted(capsys):
        (written,) = blob["_aws"]["CloudWatchMetrics"]
        assert written["Namespace"] == alarm["Namespace"]
        assert [d["Name"] for d in alarm["Dimensions"]] in written["Dimensions"]
        found += blob.get(alarm["MetricName"], [])
    return found


def down(world: World) -> None:
    world.elevate.statuses = [503]
    world.due()
    world.sweep()


def late(world: World) -> None:
    world.due(silent_for=3600)
    world.sweep()


def rejecting(world: World) -> None:
    world.elevate.statuses = [400]
    world.end()


def reusing_keys(world: World, views: int = 101) -> None:
    """Sign out, then view more pages with the same keys."""
    session = world.session()
    world.event(end, "session_ended", session)
    world.event(track, "session_active", *[session] * views)


FAULTS = {
    "SweepLagAlarm": late,
    "RejectedAlarm": rejecting,
    "UnavailableAlarm": down,
    "ReusedKeysAlarm": reusing_keys,
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_alarm_fires_on_its_fault_and_is_silent_when_all_is_well(
    name: str,
    world: World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alarm = ALARMS[name]
    world.end()
    world.due(2)
    capsys.readouterr()
    world.sweep()
    well = points(alarm, capsys)
    FAULTS[name](world)
    ill = points(alarm, capsys)
    count = needed(alarm)
    assert not fires(alarm, [well] * count)
    assert fires(alarm, [ill] * count)
    if count > 1:
        assert not fires(alarm, [ill] * (count - 1) + [well])


def test_an_outage_seen_by_a_single_session_fires_the_alarm(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small shop sends nothing between the retries of its one session."""
    alarm = ALARMS["UnavailableAlarm"]
    down(world)
    ill = points(alarm, capsys)
    assert fires(alarm, [ill, [], ill, *[[]] * 3, ill, *[[]] * 7, ill, *[[]] * 14, ill])
    assert not fires(alarm, [ill, ill, *[[]] * 30, ill, ill, ill])


def test_an_alarm_stays_silent_while_some_notifications_get_through(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm = ALARMS["UnavailableAlarm"]
    world.elevate.statuses = [503, 204]
    world.due(2)
    world.sweep()
    some = points(alarm, capsys)
    assert some == [1]
    assert not fires(alarm, [some] * 30)


def test_a_claim_that_the_registry_refuses_shows_as_lag(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The call succeeds, but none of its statements does."""
    world.dynamo.statement_errors = lambda batch: dict.fromkeys(range(len(batch)), "AccessDenied")
    late(world)
    alarm = ALARMS["SweepLagAlarm"]
    assert fires(alarm, [points(alarm, capsys)] * needed(alarm))


def test_a_page_view_that_comes_after_the_sign_out_is_normal(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    reusing_keys(world, views=3)
    late_ones = points(ALARMS["ReusedKeysAlarm"], capsys)
    assert sum(late_ones) == 3
    assert not fires(ALARMS["ReusedKeysAlarm"], [late_ones])


def test_sweeps_that_stop_notify_somebody_and_those_that_have_not_begun_do_not(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep that cannot read the registry writes no lag; nor does one that does not run."""
    alarm = ALARMS["SweepLagAlarm"]
    world.sweep()
    looked = points(alarm, capsys)
    world.without_registry()
    world.sweep()
    without = [points(alarm, capsys)] * 10
    first, running, stopped = state(alarm, without), state(alarm, [looked]), state(alarm, without)
    assert not notifies(alarm, "INSUFFICIENT_DATA", first), "the first deploy"
    assert running == "OK"
    assert notifies(alarm, running, stopped)


@pytest.mark.parametrize("name", sorted(set(ALARMS) - set(FAULTS)))
def test_alarms_on_awss_own_metrics_fire_at_one(name: str) -> None:
    """One throttle, error or dead-letter message is enough; see also tests/stack/test_alarms.py."""
    assert ALARMS[name]["Namespace"] in ("AWS/Lambda", "AWS/SQS")
    assert fires(ALARMS[name], [[1.0]])
    assert not fires(ALARMS[name], [[]])


# -- dashboard ---------------------------------------------------------------------------------


def test_the_dashboard_shows_exactly_the_metrics_that_are_written(
    all_that_happens: World, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    written = set().union(*map(metrics_of, emitted(capsys)))
    fields = set().union(*log())
    widgets = json.loads(RESOURCES["StackDashboard"]["Properties"]["DashboardBody"])["widgets"]
    first = min(widgets, key=lambda w: (w["y"], w["x"]))
    assert first["properties"]["title"] == "Are sessions being ended?"
    shown = set()
    for widget in widgets:
        for metric in widget["properties"].get("metrics", []):
            if metric[0] == "ElevateSessions":
                assert metric[2:4] == ["service", "${AWS::StackName}"]
                shown.add(metric[1])
        if query := widget["properties"].get("query"):
            log_groups = re.findall(r"SOURCE '\$\{(\w+)\}'", query)
            assert {RESOURCES[group]["Type"] for group in log_groups} == {"AWS::Logs::LogGroup"}
            asked = set(re.findall(r"\b([a-z]+(?:_[a-z]+)*)\b(?=[,) ]|$)", query.split("|", 2)[2]))
            words = {
                "filter",
                "ispresent",
                "and",
                "stats",
                "count",
                "as",
                "ends",
                "latest",
                "one",
                "by",
            }
            words |= {"sort", "desc", "display", "timestamp", "limit"}
            assert asked - words <= fields
    assert shown == written
