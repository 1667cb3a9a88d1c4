"""The least that the work takes: bare POSTs of urllib3's pool, bare writes of a boto3 client."""

import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import boto3
import urllib3

THREADS = 16
END = os.environ["ELEVATE_BASE_URL"] + "/api/v2/notifications/end?"

dynamodb = boto3.client("dynamodb")
http = urllib3.PoolManager(maxsize=THREADS, block=True, timeout=urllib3.Timeout(5, 10))


def post(session):
    query = urlencode({f"esales.{name}": value for name, value in session.items()})
    assert http.request("POST", END + query).status == 204


def write(session, state):
    dynamodb.update_item(
        TableName=os.environ["TABLE_NAME"],
        Key={name: {"S": session[name]} for name in ("sessionKey", "market")},
        UpdateExpression="SET #s = :s",
        ExpressionAttributeNames={"#s": "state"},
        ExpressionAttributeValues={":s": {"S": state}},
    )


def end(event, context):
    """One POST between two writes."""
    session = json.loads(event["body"])
    write(session, "ending")
    post(session)
    write(session, "ended")


def posts(event, context):
    """As many POSTs as the event says, 16 at a time."""
    keys = [{n: str(uuid.uuid4()) for n in ("customerKey", "sessionKey")} for _ in range(event)]
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(post, [{"market": "UK", **key} for key in keys]))
