"""DynamoDB's request units, counted by its documented rules from the actual items and calls.

    write   1 for each started KB of the larger of old and new item, even if a condition refuses it
    index   nothing if the entry stays as it is; 1 to insert, remove or change it, 2 to move it to
            other keys; each for every started KB
    query   0.5 for all its items together, for each started 4 KB, and for none

Sources: DynamoDB's developer guide, "DynamoDB Item sizes and formats", "Read and write operations"
and "Global secondary indexes: write considerations". The emulator's own figures
(ReturnConsumedCapacity) follow these rules for single writes only: a query costs 0.5 there whatever
it returns, and a statement of a batch 1 whatever index it writes (tests/test_units.py).
"""

import json
import threading
from typing import Any

import botocore.session

from registry_table import template

_TABLE = template()["Resources"]["Registry"]["Properties"]
_KEYS = [key["AttributeName"] for key in _TABLE["KeySchema"]]
_INDEX = _TABLE["GlobalSecondaryIndexes"][0]
_INDEX_KEYS = [key["AttributeName"] for key in _INDEX["KeySchema"]]
_PROJECTED = {*_KEYS, *_INDEX_KEYS, *_INDEX["Projection"]["NonKeyAttributes"]}

type Item = dict[str, Any]


def size_of(item: Item) -> int:
    """Return an item's size in bytes: names and values."""
    return sum(len(name.encode()) + _size_of(value) for name, value in item.items())


def _size_of(value: dict[str, Any]) -> int:
    ((kind, content),) = value.items()
    match kind:
        case "S":
            return len(str(content).encode())
        case "N":
            digits = len(content.lstrip("-").strip("0"))
            return 1 + -(-digits // 2) + int(content.startswith("-"))
        case "BOOL" | "NULL":
            return 1
    raise ValueError(f"the registry holds no {kind}")


def write_units(old: Item, new: Item) -> int:
    """Return what it costs to write one row of the registry; a missing item is empty."""
    return max(_kilobytes(old), _kilobytes(new)) + _index_units(_entry(old), _entry(new))


def _index_units(old: Item, new: Item) -> int:
    if old == new:
        return 0
    if old and new and any(old[key] != new[key] for key in _INDEX_KEYS):
        return _kilobytes(old) + _kilobytes(new)
    return max(_kilobytes(old), _kilobytes(new))


def _entry(item: Item) -> Item:
    """Return what the index holds of an item."""
    if not all(key in item for key in _INDEX_KEYS):
        return {}
    return {name: value for name, value in item.items() if name in _PROJECTED}


def _kilobytes(item: Item) -> int:
    return max(1, -(-size_of(item) // 1024))


def query_units(entries: list[Item]) -> float:
    """Return what an eventually consistent query costs."""
    return 0.5 * max(1, -(-sum(map(size_of, entries)) // 4096))


class Meter:
    """Counts what clients' calls cost; it looks at each row before and after a write.

    `events` are those of a boto3 client, or of a session that will make clients.
    """

    def __init__(self, events: Any, table: str) -> None:
        self._bare: Any = botocore.session.get_session().create_client("dynamodb")
        self._table = table
        self._lock = threading.Lock()
        self.writes = 0
        self.reads = 0.0
        self.calls = 0
        events.register("before-call.dynamodb", self._before)
        events.register("after-call.dynamodb", self._after)

    def read(self) -> dict[str, float]:
        """Return what was counted since the last time."""
        with self._lock:
            read = {"writes": self.writes, "reads": self.reads, "calls": self.calls}
            self.writes, self.reads, self.calls = 0, 0.0, 0
        return read

    def _before(self, model: Any, params: Any, context: Any, **_: Any) -> None:
        keys = _keys_of(model.name, json.loads(params["body"]))
        context["metered"] = [(key, self._item(key)) for key in keys]

    def _after(self, parsed: Any, context: Any, **_: Any) -> None:
        writes = sum(write_units(old, self._item(key)) for key, old in context["metered"])
        with self._lock:
            self.calls += 1
            self.writes += writes
            if "Items" in parsed:
                self.reads += query_units(parsed["Items"])

    def _item(self, key: Item) -> Item:
        answer = self._bare.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        item: Item = answer.get("Item", {})
        return item


def _keys_of(operation: str, asked: dict[str, Any]) -> list[Item]:
    """Return the keys of the rows that a call writes."""
    match operation:
        case "Query" | "Scan":
            return []
        case "PutItem":
            return [{name: asked["Item"][name] for name in _KEYS}]
        case "UpdateItem" | "DeleteItem":
            return [asked["Key"]]
        case "BatchExecuteStatement":
            return [_key_of(one["Statement"], one["Parameters"]) for one in asked["Statements"]]
    raise ValueError(f"what {operation} costs is not known")


def _key_of(statement: str, parameters: list[dict[str, Any]]) -> Item:
    place = statement.split("WHERE")[0].count("?")
    return dict(zip(_KEYS, parameters[place : place + len(_KEYS)], strict=True))
