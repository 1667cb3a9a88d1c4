"""The bench's count of DynamoDB's request units, against the rules and partly the emulator."""

import uuid
from typing import Any

import pytest

from emulated import Clock
from sessions import aws as aws_clients
from sessions.registry import Registry
from sessions.session import Activity, Claim, Session, Settlement
from sessions.settings import Settings
from sessions.statements import SHARDS
from units import Meter, query_units, size_of, write_units

ROW = {
    "sessionKey": {"S": "k" * 36},
    "market": {"S": "UK"},
    "customerKey": {"S": "c" * 36},
    "dueAt": {"N": "1006516811"},
    "sweepShard": {"N": "3"},
    "leaseUntil": {"N": "0"},
}
FINISHED = {name: v for name, v in ROW.items() if name not in ("dueAt", "sweepShard")}


def test_a_size_is_that_of_names_and_values() -> None:
    assert size_of({"name": {"S": "Å"}}) == 4 + 2
    assert size_of({"n": {"N": "1006516834"}, "b": {"BOOL": True}}) == (1 + 6) + (1 + 1)


@pytest.mark.parametrize(
    ("old", "new", "units"),
    [
        pytest.param({}, ROW, 2, id="insert: table and index"),
        pytest.param(ROW, ROW, 1, id="refused: the table nevertheless"),
        pytest.param(ROW, ROW | {"leaseUntil": {"N": "9"}}, 1, id="lease: not in the index"),
        pytest.param(ROW, ROW | {"attempts": {"N": "1"}}, 2, id="projected: one index write"),
        pytest.param(ROW, ROW | {"dueAt": {"N": "9"}}, 3, id="index key: two index writes"),
        pytest.param(ROW, FINISHED, 2, id="leaves the index"),
        pytest.param(FINISHED, FINISHED | {"lastReason": {"S": "x" * 1024}}, 2, id="two KB"),
    ],
)
def test_a_write_costs_what_it_changes(
    old: dict[str, Any], new: dict[str, Any], units: int
) -> None:
    assert write_units(old, new) == units


def test_a_query_costs_what_it_returns_and_something_even_for_nothing() -> None:
    assert query_units([]) == 0.5
    assert query_units([ROW] * 10) == 0.5
    assert query_units([ROW] * 100) == 0.5 * -(-100 * size_of(ROW) // 4096)


class Reported:
    """A client that adds up what the emulator reports for single writes."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.writes = 0.0

    def update_item(self, **arguments: Any) -> Any:
        answer = self._client.update_item(**arguments | {"ReturnConsumedCapacity": "TOTAL"})
        self.writes += answer["ConsumedCapacity"]["CapacityUnits"]
        return answer

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._client, operation)


def test_single_writes_are_counted_as_the_emulator_counts_them(
    settings: Settings, clock: Clock
) -> None:
    client = aws_clients.client("dynamodb")
    meter = Meter(client.meta.events, settings.table_name)
    reported = Reported(client)
    registry = Registry(settings, reported, clock)
    session = Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))
    for seconds in (0, 600):  # a new row, a due time that moves
        registry.track(Activity(session, int(clock.now) + seconds))
    clock.turn(1200)
    assert isinstance(registry.claim(session, int(clock.now)), Claim)
    assert meter.writes == reported.writes == 2 + 3 + 1


@pytest.mark.parametrize(("is_tracked", "writes"), [(False, 2), (True, 3)])
def test_an_explicit_end_costs_two_writes_and_three_if_it_leaves_the_index(
    settings: Settings, clock: Clock, is_tracked: bool, writes: int
) -> None:
    session = Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))
    if is_tracked:
        Registry(settings, aws_clients.client("dynamodb"), clock).track(
            Activity(session, int(clock.now))
        )
    client = aws_clients.client("dynamodb")
    meter = Meter(client.meta.events, settings.table_name)
    registry = Registry(settings, client, clock)
    claim = registry.claim(session, int(clock.now))
    assert isinstance(claim, Claim)
    registry.settle([(claim, Settlement("ended", None, 1, 204))])
    assert (meter.writes, meter.calls) == (writes, 2)


def test_a_sweep_costs_three_writes_a_session(settings: Settings, clock: Clock) -> None:
    plain = Registry(settings, aws_clients.client("dynamodb"), clock)
    for _ in range(3):
        session = Session("UK", str(uuid.uuid4()), str(uuid.uuid4()))
        plain.track(Activity(session, int(clock.now)))
    clock.turn(settings.idle)
    client = aws_clients.client("dynamodb")
    meter = Meter(client.meta.events, settings.table_name)
    registry = Registry(settings, client, clock)
    rows = [r for shard in range(SHARDS) for r in registry.due(shard, int(clock())).rows]
    claims = registry.claim_due(rows).done
    assert meter.writes == 3
    registry.settle([(claim, Settlement("ended", None, 1, 204)) for claim in claims])
    assert (meter.writes, meter.reads) == (9, 0.5 * SHARDS)
