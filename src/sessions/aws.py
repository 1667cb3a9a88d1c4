"""AWS's JSON protocol: one signed POST a call. botocore signs and carries; its models stay out.

A botocore client is built from service models: that took half of a cold start, and its generic
serialising more CPU per session than the notification itself (`make bench`, docs/decisions.md).
The values of DynamoDB's API are JSON as they are, so nothing is lost without. Methods and errors
are those of a botocore client, which can take the place of these.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from random import SystemRandom
from typing import Any, NamedTuple

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import (
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
)
from botocore.httpsession import URLLib3Session

# botocore writes requests, and so keys, into its debug lines.
logging.getLogger("botocore").setLevel(logging.WARNING)

# As in elevate.py: copies of a snapshot must not wait in step.
_random = SystemRandom()

_TIMEOUT = (1, 2)  # seconds to connect, and between bytes
_TRIES = 3
_BACKOFF = 0.1  # seconds, at most, before the second try; doubles, with full jitter
_THROTTLED = {
    "ThrottlingException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "TransactionInProgressException",
}


class _Keys(NamedTuple):
    access_key: str
    secret_key: str
    token: str | None


class _Service:
    """A service of the function's own region.

    Calls raise ClientError when it refuses them, ConnectionError or HTTPClientError when it cannot
    be reached.
    Refusals for the moment (throttled, 5xx) and lost calls are made three times.
    """

    _name: str
    _target: str
    _content_type: str

    def __init__(self, connections: int) -> None:
        self._region = os.environ.get("AWS_REGION") or os.environ["AWS_DEFAULT_REGION"]
        self._url = _endpoint(self._name, self._region)
        self._keys = _credentials()
        self._http = URLLib3Session(
            timeout=_TIMEOUT,  # type: ignore[arg-type]  # two of them, as its docstring says
            max_pool_connections=connections,
            # Else the body waits for the headers to be acknowledged: 40 ms a call.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # type: ignore[list-item]
        )

    def _call(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(arguments, separators=(",", ":")).encode()
        for tries_left in range(_TRIES - 1, -1, -1):
            try:
                return self._try(operation, body)
            except (ConnectionError, HTTPClientError):
                if not tries_left:
                    raise
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                momentary = status >= 500 or error.response["Error"]["Code"] in _THROTTLED
                if not (momentary and tries_left):
                    raise
            time.sleep(_random.uniform(0, _BACKOFF * 2 ** (_TRIES - 1 - tries_left)))
        raise AssertionError("unreachable")

    def _try(self, operation: str, body: bytes) -> dict[str, Any]:
        headers = {
            "Content-Type": self._content_type,
            "X-Amz-Target": f"{self._target}.{operation}",
        }
        request = AWSRequest("POST", self._url, headers, body)
        SigV4Auth(self._keys(), self._name, self._region).add_auth(request)
        answer = self._http.send(request.prepare())
        try:
            content: dict[str, Any] = json.loads(answer.content)
        except ValueError:
            # Not DynamoDB's words but those of something on the way: as good as no answer.
            raise HTTPClientError(error="unreadable answer") from None
        if answer.status_code == 200:
            return content
        refusal: Any = {
            **content,
            "Error": {"Code": content.get("__type", "").rsplit("#", 1)[-1], "Message": ""},
            "ResponseMetadata": {"HTTPStatusCode": answer.status_code},
        }
        raise ClientError(refusal, operation)


class DynamoDB(_Service):
    """The operations the registry uses."""

    _name = "dynamodb"
    _target = "DynamoDB_20120810"
    _content_type = "application/x-amz-json-1.0"

    def update_item(self, **arguments: Any) -> dict[str, Any]:
        """Write one item."""
        return self._call("UpdateItem", arguments)

    def query(self, **arguments: Any) -> dict[str, Any]:
        """Read a page of items."""
        return self._call("Query", arguments)

    def batch_execute_statement(self, **arguments: Any) -> dict[str, Any]:
        """Run up to 25 PartiQL statements."""
        return self._call("BatchExecuteStatement", arguments)


class Events(_Service):
    """The operation that hands sweeps over."""

    _name = "events"
    _target = "AWSEvents"
    _content_type = "application/x-amz-json-1.1"

    def put_events(self, **arguments: Any) -> dict[str, Any]:
        """Put up to 10 events on a bus."""
        return self._call("PutEvents", arguments)


def _endpoint(service: str, region: str) -> str:
    """Return the service's URL; the SDKs' own variables may name another."""
    given = os.environ.get(f"AWS_ENDPOINT_URL_{service.upper()}") or os.environ.get(
        "AWS_ENDPOINT_URL"
    )
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return given or f"https://{service}.{region}.{suffix}"


def _credentials() -> Callable[[], Any]:
    """Return what gives the credentials to sign with at any moment."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        # Lambda's own: they hold for as long as the execution environment lives.
        keys = _Keys(
            os.environ["AWS_ACCESS_KEY_ID"],
            os.environ["AWS_SECRET_ACCESS_KEY"],
            os.environ.get("AWS_SESSION_TOKEN"),
        )
        return lambda: keys
    # SnapStart serves credentials that change; botocore's chain knows how to renew them.
    import botocore.session

    found = botocore.session.get_session().get_credentials()
    if found is None:
        raise NoCredentialsError
    return found.get_frozen_credentials
