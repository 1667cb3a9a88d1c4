"""The end and the sweep as an expert would write them, with the packages that we use too.

A boto3 client, Powertools' Logger, one urllib3 pool; a conditional claim before the POST, so that
no session is ended twice at once. No batches, no retries, no metrics.
"""

import json
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import boto3
import urllib3
from aws_lambda_powertools import Logger
from botocore.config import Config
from botocore.exceptions import ClientError

THREADS = 16
SHARDS = 8
NAMES = ("market", "customerKey", "sessionKey")
TABLE = os.environ["TABLE_NAME"]
END = os.environ["ELEVATE_BASE_URL"] + "/api/v2/notifications/end?"

logger = Logger()
dynamodb = boto3.client("dynamodb", config=Config(max_pool_connections=THREADS))
http = urllib3.PoolManager(
    maxsize=THREADS, timeout=urllib3.Timeout(connect=1, read=3), retries=False
)


def handle(event, context):
    """Serve `POST /sessions/end`."""
    logger.set_correlation_id(event["requestContext"]["requestId"])
    try:
        session = json.loads(event["body"])
        uuid.UUID(session["customerKey"])
        uuid.UUID(session["sessionKey"])
        if not session["market"]:
            raise ValueError
    except (TypeError, KeyError, ValueError):
        problem = "market, customerKey and sessionKey are required, the keys as UUIDs"
        return {"statusCode": 400, "body": json.dumps({"detail": problem})}
    return {"statusCode": 204 if end(session) else 502}


def sweep(event, context):
    """End the sessions that are due."""
    with ThreadPoolExecutor(THREADS) as threads:
        for shard in range(SHARDS):
            pages = dynamodb.get_paginator("query").paginate(
                TableName=TABLE,
                IndexName="due",
                KeyConditionExpression="sweepShard = :shard AND dueAt <= :now",
                ExpressionAttributeValues={
                    ":shard": {"N": str(shard)},
                    ":now": {"N": str(int(time.time()))},
                },
            )
            for page in pages:
                list(threads.map(end, [{n: i[n]["S"] for n in NAMES} for i in page["Items"]]))


def end(session):
    """Claim, notify, settle; True if the session is over."""
    key = {name: {"S": session[name]} for name in ("sessionKey", "market")}
    now = int(time.time())
    try:
        dynamodb.update_item(
            TableName=TABLE,
            Key=key,
            UpdateExpression="SET #s = :ending, customerKey = :customer, leaseUntil = :until",
            ConditionExpression="attribute_not_exists(#s) OR (#s <> :ended AND leaseUntil < :now)",
            ExpressionAttributeNames={"#s": "state"},
            ExpressionAttributeValues={
                ":ending": {"S": "ending"},
                ":ended": {"S": "ended"},
                ":customer": {"S": session["customerKey"]},
                ":now": {"N": str(now)},
                ":until": {"N": str(now + 90)},
            },
        )
    except ClientError as error:
        if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
            return True
        raise
    query = urlencode({f"esales.{name}": session[name] for name in NAMES})
    status = http.request("POST", END + query, redirect=False).status
    is_over = status == 204
    dynamodb.update_item(
        TableName=TABLE,
        Key=key,
        UpdateExpression="SET #s = :s, leaseUntil = :free, expiresAt = :later"
        + " REMOVE dueAt, sweepShard" * is_over,
        ExpressionAttributeNames={"#s": "state"},
        ExpressionAttributeValues={
            ":s": {"S": "ended" if is_over else "open"},
            ":free": {"N": "0"},
            ":later": {"N": str(now + 14 * 24 * 60 * 60)},
        },
    )
    logger.info("notification", extra={"market": session["market"], "status": status})
    return is_over
