"""A DynamoDB that answers at once and accepts everything, so that only its callers are measured.

The emulator spends more time on a statement than the sweep does on a session; it would be the
bottleneck of any caller. A table called `due-1000` holds 1,000 due sessions, in eight shards;
`due-1000-200` holds 200 more in the last of all shards, to warm up with. What it answers is fixed;
what a registry must refuse is tested elsewhere. DescribeTable shows, as `ItemCount`, how many other
calls there have been.
"""

import asyncio
import json
import re
import sys
import time
import uuid
import zlib
from collections import Counter
from functools import cache
from typing import Any

SHARDS = 8
WARM_UP_SHARD = 31
SCAN_PAGE = 2000  # about the megabyte that DynamoDB returns at most

_calls: Counter[str] = Counter()


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self) -> None:
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
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\n"
                b"x-amzn-RequestId: 00000000-0000-0000-0000-000000000000\r\n"
                b"x-amz-crc32: %d\r\nContent-Length: %d\r\n\r\n"
                % (zlib.crc32(answer), len(answer))
                + answer
            )


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
            shard: int | None = int(asked["ExpressionAttributeValues"][":shard"]["N"])
            start = int(asked.get("ExclusiveStartKey", {}).get("start", {}).get("N", 0))
            count, warm_up = _counts(asked)
            if shard == WARM_UP_SHARD:
                count, shard = warm_up, None
            return _page(count, shard, start, asked.get("Limit", SCAN_PAGE))
        case "scan":
            asked = json.loads(body)
            start = int(asked.get("ExclusiveStartKey", {}).get("start", {}).get("N", 0))
            return _page(_counts(asked)[0], None, start, SCAN_PAGE)
        case "updateitem":
            return _updated(json.loads(body))
        case _:
            return b"{}"


def _updated(asked: dict[str, Any]) -> bytes:
    """Return the new row, as far as the update's values have the names of attributes."""
    if asked.get("ReturnValues") != "ALL_NEW":
        return b"{}"
    values = asked["ExpressionAttributeValues"]
    row = asked["Key"] | {name.lstrip(":"): value for name, value in values.items()}
    return json.dumps({"Attributes": row}).encode()


def _counts(asked: dict[str, Any]) -> tuple[int, int]:
    count, *warm_up = asked["TableName"].split("-")[1:]
    return int(count), int(*warm_up)


@cache
def _accepted(statements: int) -> bytes:
    return json.dumps({"Responses": [{"TableName": "due"}] * statements}).encode()


@cache
def _page(count: int, shard: int | None, start: int, limit: int) -> bytes:
    rows = _rows(count)
    mine = rows if shard is None else rows[shard::SHARDS] if 0 <= shard < SHARDS else []
    answer: dict[str, Any] = {"Items": mine[start : start + limit]}
    if start + limit < len(mine):
        answer["LastEvaluatedKey"] = {"start": {"N": str(start + limit)}}
    return json.dumps(answer).encode()


@cache
def _rows(count: int) -> list[dict[str, Any]]:
    now = int(time.time())
    return [
        {
            "sessionKey": {"S": str(uuid.uuid4())},
            "market": {"S": "UK"},
            "customerKey": {"S": str(uuid.uuid4())},
            "activeAt": {"N": str(now - 3600)},
            "dueAt": {"N": str(now - 60)},
            "sweepShard": {"N": str(number % SHARDS)},
            "attempts": {"N": "0"},
        }
        for number in range(count)
    ]


async def main() -> None:
    """Print the address, and serve until interrupted."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit()
