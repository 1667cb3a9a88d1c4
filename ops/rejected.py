"""Make rejected sessions due again: they wait in partitions of the index that no sweep reads."""

import random
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from sessions.statements import SHARDS, parked

# They are spread over this many seconds, so that the next sweep does not get them all at once.
SPREAD = 60


def rejected(dynamodb: Any, table: str, market: str | None = None) -> Iterator[dict[str, Any]]:
    """Return the rejected sessions of a market, or of all, as the index holds them."""
    for shard in range(SHARDS):
        start: dict[str, Any] | None = {}
        while start is not None:
            page = dynamodb.query(
                TableName=table,
                IndexName="due",
                KeyConditionExpression="sweepShard = :parked",
                ExpressionAttributeValues={":parked": {"N": str(parked(shard))}},
                **({"ExclusiveStartKey": start} if start else {}),
            )
            yield from (row for row in page["Items"] if market in (None, row["market"]["S"]))
            start = page.get("LastEvaluatedKey")


def retry(dynamodb: Any, table: str, row: dict[str, Any], now: int) -> bool:
    """Make a rejected session due within a minute of `now` (epoch seconds).

    Return False, and change nothing, if something else has ended, tracked or retried it since.
    """
    due_at = now + random.randint(0, SPREAD)  # noqa: S311 - not a secret
    try:
        dynamodb.update_item(
            TableName=table,
            Key={name: row[name] for name in ("sessionKey", "market")},
            UpdateExpression="SET #state = :retrying, dueAt = :due, sweepShard = :shard,"
            " attempts = :none REMOVE expiresAt",
            ConditionExpression="sweepShard = :parked AND dueAt = :read AND leaseUntil < :now",
            ExpressionAttributeNames={"#state": "state"},
            ExpressionAttributeValues={
                ":retrying": {"S": "retrying"},
                ":due": {"N": str(due_at)},
                # `parked` is its own inverse: this is the shard again.
                ":shard": {"N": str(parked(int(row["sweepShard"]["N"])))},
                ":none": {"N": "0"},
                ":parked": row["sweepShard"],
                ":read": row["dueAt"],
                ":now": {"N": str(now)},
            },
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
            raise
        return False
    return True
