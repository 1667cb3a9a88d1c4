"""A DynamoDB that accepts everything, so that only its callers are measured: `… LATENCY_MS`.

The emulator spends more time on a statement than the sweep does on a session; it would be the
bottleneck of any caller. This one answers each call after its latency, however many there are at
once. A table called `due-1000` holds 1,000 due sessions, in all shards; in `due-1000-200` the last
shard holds 200 others, to warm up with. What it answers is fixed; what a registry must refuse is
tested elsewhere. DescribeTable shows, as `ItemCount`, how many other calls there have been.
"""

import asyncio
import json
import re
import sys
import time
import uuid
import zlib
from collections import Counter
from functools import cache, partial
from typing import Any

SHARDS = 8
SCAN_PAGE = 2000  # about the megabyte that DynamoDB returns at most

# What an update sets, or sets if it is missing, and the name of the value.
_SET = re.compile(r"([#\w]+) = (?:if_not_exists\([#\w]+, )?(:\w+)")

_calls: Counter[str] = Counter()


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            length = int(re.search(rb"content-length: *(\d+)", head)[1])  # type: ignore[index]
            if len(self._received) < end + 4 + length:
                return
            body = self._received[end + 4 : end + 4 + length]
            self._received = self._received[end + 4 + length :]
            operation = re.search(rb"dynamodb_20120810\.(\w+)", head)[1]  # type: ignore[index]
            answer = _answer(operation.decode(), body)
            answer = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\n"
                b"x-amzn-RequestId: 00000000-0000-0000-0000-000000000000\r\n"
                b"x-amz-crc32: %d\r\nContent-Length: %d\r\n\r\n" % (zlib.crc32(answer), len(answer))
            ) + answer
            if self._latency:
                loop = asyncio.get_running_loop()
                loop.call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)


def _answer(operation: str, body: bytes) -> bytes:
    _calls[operation] += 1
    match operation:
        case "describetable":
            counted = _calls.total() - _calls[operation]
            return json.dumps({"Table": {"ItemCount": counted}}).encode()
        case "batchexecutestatement":
            return _accepted(body.count(b'"Statement"'))
        case "query":
            asked = json.loads(body)
            shard = int(asked["ExpressionAttributeValues"][":shard"]["N"])
            return _page(asked, range(shard, shard + 1))
        case "scan":
            return _page(json.loads(body), range(SHARDS))
        case "updateitem":
            return _updated(json.loads(body))
        case _:
            return b"{}"


def _updated(asked: dict[str, Any]) -> bytes:
    """Return what an update of a row that was not there returns."""
    answer: dict[str, Any] = {}
    if asked.get("ReturnValues") == "ALL_NEW":
        names = asked.get("ExpressionAttributeNames", {})
        values = asked["ExpressionAttributeValues"]
        sets = _SET.findall(asked["UpdateExpression"])
        row = {names.get(name, name): values[value] for name, value in sets}
        answer["Attributes"] = asked["Key"] | row
    if asked.get("ReturnConsumedCapacity", "NONE") != "NONE":
        answer["ConsumedCapacity"] = {"TableName": asked["TableName"], "CapacityUnits": 1}
    return json.dumps(answer).encode()


@cache
def _accepted(statements: int) -> bytes:
    return json.dumps({"Responses": [{"TableName": "due"}] * statements}).encode()


def _page(asked: dict[str, Any], shards: range) -> bytes:
    start = int(asked.get("ExclusiveStartKey", {}).get("start", {}).get("N", 0))
    return _items(asked["TableName"], shards, start, start + asked.get("Limit", SCAN_PAGE))


@cache
def _items(table: str, shards: range, start: int, stop: int) -> bytes:
    found = [row for shard in shards for row in _shards(table).get(shard, [])]
    answer: dict[str, Any] = {"Items": found[start:stop]}
    if stop < len(found):
        answer["LastEvaluatedKey"] = {"start": {"N": str(stop)}}
    return json.dumps(answer).encode()


@cache
def _shards(table: str) -> dict[int, list[dict[str, Any]]]:
    """Return a table's rows by shard."""
    count, *warm_up = map(int, table.split("-")[1:])
    spread = SHARDS - len(warm_up)
    sizes = [*(len(range(shard, count, spread)) for shard in range(spread)), *warm_up]
    return {shard: _rows(shard, size) for shard, size in enumerate(sizes)}


def _rows(shard: int, count: int) -> list[dict[str, Any]]:
    now = int(time.time())
    same = {
        "market": {"S": "UK"},
        "activeAt": {"N": str(now - 3600)},
        "dueAt": {"N": str(now - 60)},
        "sweepShard": {"N": str(shard)},
        "attempts": {"N": "0"},
    }
    keys = ("sessionKey", "customerKey")
    return [same | {key: {"S": str(uuid.uuid4())} for key in keys} for _ in range(count)]


async def main() -> None:
    """Print the address, and serve until interrupted."""
    serve = partial(Connection, float(sys.argv[1]) / 1000)
    server = await asyncio.get_running_loop().create_server(serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit()
