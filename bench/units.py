"""DynamoDB's request units, counted by its documented rules from the items and calls there were.

    write   1 for each started KB of the larger of old and new item, refused by a condition or not
    index   nothing if the entry stays as it is; 1 to insert, remove or change it, 2 to move it to
            other keys; each for every started KB
    query   0.5 for all its items together, for each started 4 KB, and for none

Sources: DynamoDB's developer guide, "DynamoDB Item sizes and formats", "Read and write operations"
and "Global secondary indexes: write considerations". The emulator's own figures
(ReturnConsumedCapacity) follow these rules for single writes only: a query costs 0.5 there whatever
it returns, and a statement of a batch 1 whatever index it writes (tests/test_units.py).
"""

from typing import Any

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
    """Return what it costs to write one row of the registry; an item that is not there is empty."""
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


class Metered:
    """A client of the registry that counts units; it looks at each row before and after a write."""

    def __init__(self, client: Any, bare: Any, table: str) -> None:
        self._client = client
        self._bare = bare
        self._table = table
        self.writes = 0
        self.reads = 0.0
        self.calls = 0

    def update_item(self, **arguments: Any) -> Any:
        """Write one row."""
        return self._written([arguments["Key"]], lambda: self._client.update_item(**arguments))

    def batch_execute_statement(self, Statements: list[dict[str, Any]]) -> Any:
        """Write rows, each by its own statement."""
        keys = []
        for statement in Statements:
            place = statement["Statement"].split("WHERE")[0].count("?")
            values = statement["Parameters"][place : place + len(_KEYS)]
            keys.append(dict(zip(_KEYS, values, strict=True)))
        return self._written(
            keys, lambda: self._client.batch_execute_statement(Statements=Statements)
        )

    def query(self, **arguments: Any) -> Any:
        """Read a page."""
        answer = self._client.query(**arguments)
        self.calls += 1
        self.reads += query_units(answer["Items"])
        return answer

    def _written(self, keys: list[Item], write: Any) -> Any:
        before = [self._item(key) for key in keys]
        try:
            return write()
        finally:
            self.calls += 1
            after = [self._item(key) for key in keys]
            self.writes += sum(map(write_units, before, after))

    def _item(self, key: Item) -> Item:
        answer = self._bare.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        item: Item = answer.get("Item", {})
        return item
