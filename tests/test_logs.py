"""Log lines are as documented, and no key is readable anywhere outside."""

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from emulated import FakeElevate, Log
from faulty_dynamodb import FaultyDynamoDB
from handler import application as shared
from handler import end, sweep, track
from handler.application import Application
from invoking import Context, forget, sample
from sessions.session import Session, hashed
from sessions.telemetry import Telemetry
from world import World, names, rows_of

COMMON = {"level", "message", "timestamp", "correlation_id"}
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "list": list,
}


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
        ("repeated end", "event", "WARNING"),  # no: it looks like a mistake of the shop's
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
        ("outdated", "outdated", "INFO"),
        ("sweep", None, "INFO"),
        ("put back", None, "INFO"),
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
    assert traces[1]["session"] == traces[-1]["session"] == hashed(session["sessionKey"].lower())
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
    earlier = "00000000-0000-0000-0000-000000000001"
    handed_over = {"correlationId": earlier, "depth": 1}
    sweep.handle(sample("session_sweep", detail=handed_over), Context())
    called = sample("api_end")["requestContext"]["requestId"]
    event, tick = sample("session_ended")["id"], Context.aws_request_id
    found = [line["correlation_id"] for line in log() if line["level"] != "DEBUG"]
    assert found == [called, event, tick, tick, earlier, earlier]


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
