"""The sweep as most would write it: scan, POST and delete, with 16 threads."""

import os
from concurrent.futures import ThreadPoolExecutor

import boto3
import requests

URL = os.environ["ELEVATE_BASE_URL"] + "/api/v2/notifications/end"
dynamodb = boto3.client("dynamodb")
http = requests.Session()


def end(item):
    names = ("market", "customerKey", "sessionKey")
    arguments = {f"esales.{name}": item[name]["S"] for name in names}
    http.post(URL, params=arguments, timeout=10).raise_for_status()
    key = {name: item[name] for name in ("sessionKey", "market")}
    dynamodb.delete_item(TableName=os.environ["TABLE_NAME"], Key=key)


def handle(event, context):
    pages = dynamodb.get_paginator("scan").paginate(TableName=os.environ["TABLE_NAME"])
    with ThreadPoolExecutor(16) as threads:
        for page in pages:
            list(threads.map(end, page["Items"]))
