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
    """Return a client for threads to share; it tries a call twice, while most calls succeed.

    That is botocore's standard mode. A second try takes 14 of 500 tokens (5 after a throttle), so
    after some 35 failures in a row nothing is tried twice until calls succeed again.
    """
    made = boto3.client(
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
    made.meta.events.register("before-parse", _wait_no_longer)
    return made


def _wait_no_longer(response_dict: dict[str, Any], **_: Any) -> None:
    """Keep a call within HANGING_CALL: botocore would wait for as long as AWS asks, up to 5 s.

    A caller is waiting, and who comes again later is for the due time to say.
    """
    response_dict["headers"].pop("x-amz-retry-after", None)
