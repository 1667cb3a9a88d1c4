"""Sweep: the event `Session Sweep`, from the schedule, from a hand-over, or from an operator.

Its detail may name `shards` (default all); `depth` counts hand-overs.
"""

import time
from functools import partial
from typing import Any

from handler.application import Application, application
from handler.events import consume
from sessions.schemas import Validator
from sessions.session import UUID
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
                "enum": list(range(MAX_DEPTH + 1)),
                "description": f"an integer from 0 to {MAX_DEPTH}",
            },
            # Free text could hold a visitor's key, and is written into each line.
            "correlationId": {
                "type": "string",
                "pattern": f"^{UUID}$",
                "description": "a UUID",
            },
        },
    },
    "detail",
)


def handle(event: Any, context: Any) -> None:
    """Sweep until done or out of time."""
    until = time.monotonic() + context.get_remaining_time_in_millis() / 1000
    app = application()
    consume(app.telemetry, event, context, partial(_sweep, app, context, until), "sweep")


def _sweep(app: Application, context: Any, until: float, event: dict[str, Any]) -> None:
    detail: Any = event.get("detail")
    _DETAIL(detail)
    own_id = str(event.get("id") or context.aws_request_id)
    correlation_id = detail.get("correlationId", own_id)
    app.telemetry.begin(correlation_id)
    shards = [int(shard) for shard in detail.get("shards", range(SHARDS))]
    app.sweeper.sweep(shards, until, int(detail.get("depth", 0)), correlation_id)
