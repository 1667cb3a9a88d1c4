"""The deployed service as its users reach it: API, bus, registry and simulated Elevate."""

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import boto3
from botocore.config import Config

# What the API accepts of a session besides its key.
_BODY = ("market", "customerKey", "userContext")

# Whoever watches is better served by a quick "no answer" than by botocore's patience.
_CONFIG = Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 2})


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    status: int
    body: str

    @property
    def json(self) -> Any:
        """Return the body as a value, or None where it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def new_session(market: str) -> dict[str, str]:
    """Return a session with fresh keys."""
    return {
        "market": market,
        "customerKey": str(uuid.uuid4()),
        "sessionKey": str(uuid.uuid4()),
    }


class Service:
    """A running stack, as `.local/stack.json` describes it."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self._events = self._client("events")
        self._dynamodb = self._client("dynamodb")

    @property
    def simulates_elevate(self) -> bool:
        """Return whether the stack notifies an Elevate of its own."""
        return bool(self.info["elevateIsSimulated"])

    @property
    def markets(self) -> list[str]:
        """Return the markets to choose from; where any is accepted, one to begin with."""
        return self.info["markets"] or ["UK"]

    def close(self) -> None:
        """Close the connections to the stack."""
        self._events.close()
        self._dynamodb.close()

    # -- what a shop does ------------------------------------------------------------------

    def track(self, session: dict[str, str]) -> Answer:
        """Note that a session is alive."""
        return self._call("PUT", f"/sessions/{quote(session['sessionKey'], safe='')}", session)

    def end(self, session: dict[str, str]) -> Answer:
        """End a session."""
        body = {"sessionKey": session["sessionKey"]}
        return self._call("POST", "/sessions/end", session, body)

    def put_event(self, kind: str, detail: Any) -> None:
        """Put an event on the stack's bus."""
        entry = {
            "EventBusName": self.info["eventBusName"],
            "Source": "playground",
            "DetailType": kind,
            "Detail": json.dumps(detail),
        }
        self._events.put_events(Entries=[entry])

    def _call(
        self, method: str, path: str, session: dict[str, str], more: dict[str, str] | None = None
    ) -> Answer:
        body = {name: session[name] for name in _BODY if name in session} | (more or {})
        head = {"x-api-key": self.info["apiKey"], "content-type": "application/json"}
        url = self.info["apiUrl"] + path
        return _ask(urllib.request.Request(url, json.dumps(body).encode(), head, method=method))

    def _client(self, name: str) -> Any:
        return boto3.client(
            name,  # type: ignore[call-overload]
            endpoint_url=self.info["awsEndpointUrl"],
            region_name=self.info["region"],
            config=_CONFIG,
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - the emulator takes any
        )

    # -- what became of it -----------------------------------------------------------------

    def sessions(self, limit: int) -> list[dict[str, Any]]:
        """Return the registry's rows, at most `limit` of them."""
        rows = [row for _, row in zip(range(limit), self._scan(limit), strict=False)]
        return [{name: _value(value) for name, value in row.items()} for row in rows]

    def session(self, session: dict[str, str]) -> dict[str, Any] | None:
        """Return the registry's row of a session, or None."""
        key = {name: {"S": session[name]} for name in ("sessionKey", "market")}
        row = self._dynamodb.get_item(TableName=self.info["tableName"], Key=key).get("Item")
        return row and {name: _value(value) for name, value in row.items()}

    def _scan(self, limit: int) -> Iterator[dict[str, Any]]:
        pages = self._dynamodb.get_paginator("scan").paginate(
            TableName=self.info["tableName"], PaginationConfig={"PageSize": min(limit, 1000)}
        )
        for page in pages:
            yield from page["Items"]

    # -- the simulated Elevate -------------------------------------------------------------

    def fault(self) -> dict[str, Any]:
        """Return the simulated Elevate's current fault."""
        fault: dict[str, Any] = self._elevate("GET", "fault").json
        return fault

    def set_fault(self, fault: dict[str, Any]) -> Answer:
        """Make the simulated Elevate fail, or heal it with the kind `none`."""
        return self._elevate("PUT", "fault", fault)

    def summary(self) -> dict[str, Any]:
        """Return how much the simulated Elevate has received and delivered."""
        summary: dict[str, Any] = self._elevate("GET", "summary").json
        return summary

    def received(self, query: str) -> list[dict[str, Any]]:
        """Return what the simulated Elevate received, as the query selects."""
        page = self._elevate("GET", f"notifications?{query}").json
        found: list[dict[str, Any]] = page["notifications"]
        return found

    def _elevate(self, method: str, control: str, body: Any = None) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.info['elevateUrl']}/_sim/{control}"
        return _ask(urllib.request.Request(url, data, method=method))


def _ask(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=40) as answer:
            return Answer(answer.status, answer.read().decode())
    except urllib.error.HTTPError as answer:
        with answer:
            return Answer(answer.code, answer.read().decode())


def _value(value: dict[str, Any]) -> Any:
    """Return a DynamoDB value as a plain one; timestamps are numbers of seconds."""
    ((kind, plain),) = value.items()
    match kind:
        case "N":
            return float(plain)
        case "NULL":
            return None
        case _:
            return plain
