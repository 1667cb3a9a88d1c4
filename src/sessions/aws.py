"""The AWS clients: boto3's, with time-outs that leave a caller time for an answer."""

import logging
from typing import Any, Literal

import boto3
from botocore.config import Config

# botocore writes requests, and so keys, into its debug lines.
logging.getLogger("botocore").setLevel(logging.WARNING)

# What a call that hangs takes at most (seconds): two tries of three seconds each, and a pause.
HANGING_CALL = 8.0

type Client = Any  # boto3 makes them at run time


def client(service: Literal["dynamodb", "events"], connections: int = 1) -> Client:
    """Return a client for threads to share; it tries a call twice (its standard retries)."""
    return boto3.client(
        service,
        config=Config(
            connect_timeout=1,
            read_timeout=2,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=connections,
            # What we send is built in statements.py and held to DynamoDB by tests.
            parameter_validation=False,
        ),
    )
