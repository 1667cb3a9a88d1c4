"""Sweep: the event `Session Sweep`, from the schedule, from a hand-over, or from an operator.

Its detail may name `shards` (default all); `depth` counts hand-overs.
"""

import time
from typing import Any

from handler.application import application
from handler.events import InvalidEvent, consume
from sessions.schemas import Validator
from sessions.session import InvalidPayload
from sessions.statements import SHARDS
from sessions.sweeping import MAX_DEPTH

_DETAIL = Validator(
    {
        "type": "object",
        "description": "a JSON object",
        "additionalProperties": False,
        "properties": {
            "shards": {
                "type": "array",
                "minItems": 1,
                "uniqueItems": True,
                # Not as integers with bounds: to JSON Schema 1.0 is an integer too.
                "items": {
                    "enum": list(range(SHARDS)),
                    "description": f"integers from 0 to {SHARDS - 1}",
                },
                "description": "a list of different shards",
            },
            "depth": {
                "type": "integer",
                "minimum": 0,
                "maximum": MAX_DEPTH,
                "description": f"an integer from 0 to {MAX_DEPTH}",
            },
            "correlationId": {"type": "string", "description": "a string"},
        },
    },
    "detail",
)


def handle(event: Any, context: Any) -> None:
    """Sweep until done or out of time."""
    until = time.monotonic() + context.get_remaining_time_in_millis() / 1000
    consume(event, context, lambda event: _sweep(event, context, until), "sweep")


def _sweep(event: dict[str, Any], context: Any, until: float) -> None:
    app = application()
    detail: Any = event.get("detail")
    try:
        _DETAIL(detail)
    except InvalidPayload as invalid:
        app.telemetry.refused(invalid.errors, "sweep")
        raise InvalidEvent("the event's detail is invalid") from None
    own_id = str(event.get("id") or context.aws_request_id)
    correlation_id = detail.get("correlationId", own_id)
    app.telemetry.begin(correlation_id)
    shards = [int(shard) for shard in detail.get("shards", range(SHARDS))]
    app.sweeper.sweep(shards, until, detail.get("depth", 0), correlation_id)
