"""Sweep: the event `Session Sweep`, from the schedule, from a hand-over, or from an operator.

Its detail may name `shards` (default all); `depth` counts hand-overs.
"""

import time
from typing import Any

from handler.application import Application, application
from handler.events import consume
from sessions.schemas import Validator
from sessions.session import MAX_SHARDS
from sessions.sweeping import ALL_SHARDS

# A tick hands a shard over once, and what that leaves is the next tick's: so there is one hand-over
# a shard at most. It ends this much (seconds) before the next tick may hand over.
MAX_DEPTH = 1
HAND_OVER_MARGIN = 10

_SHARDS = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_SHARDS - 1,
        "description": f"integers from 0 to {MAX_SHARDS - 1}",
    },
    "description": "a list of different shards",
}
_DEPTH = {
    "type": "integer",
    "minimum": 0,
    "maximum": MAX_DEPTH,
    "description": f"an integer from 0 to {MAX_DEPTH}",
}
_DETAIL = Validator(
    {
        "type": "object",
        "description": "a JSON object",
        "additionalProperties": False,
        "properties": {
            "shards": _SHARDS,
            "depth": _DEPTH,
            "correlationId": {"type": "string", "description": "a string"},
        },
    },
    "detail",
)


def handle(event: Any, context: Any) -> None:
    """Sweep until done or out of time, and hand over what is left, one event per shard."""
    until = time.monotonic() + context.get_remaining_time_in_millis() / 1000
    correlation_id = str((isinstance(event, dict) and event.get("id")) or context.aws_request_id)
    app = application()
    consume(
        app.telemetry,
        event,
        context,
        lambda event: _sweep(app, event, until, correlation_id),
        "sweep",
    )


def _sweep(app: Application, event: dict[str, Any], until: float, correlation_id: str) -> None:
    started = time.monotonic()
    detail: Any = event.get("detail")
    _DETAIL(detail)
    correlation_id = detail.get("correlationId", correlation_id)
    app.telemetry.begin(correlation_id)
    depth = detail.get("depth", 0)
    margin = HAND_OVER_MARGIN if depth else 0
    report = app.sweeper.sweep(detail.get("shards", ALL_SHARDS), until - margin)
    handed_over = 0
    # Where Elevate's rate is bounded, more sweeps would not be faster: the next tick goes on.
    if depth < MAX_DEPTH and not app.settings.max_rate:
        passed_on = {"depth": depth + 1, "correlationId": correlation_id}
        handed_over = app.hand_over([{"shards": [shard]} | passed_on for shard in report.left])
    app.telemetry.swept(
        oldest_age_s=report.oldest,
        **report.counts,
        stopped=report.stopped,
        given_up=report.given_up,
        left=len(report.left),
        handed_over=handed_over,
        duration_ms=round((time.monotonic() - started) * 1000),
    )
    if report.stopped != "registry" or report.counts["due"]:
        # Zeros too: the alarm takes silence for trouble.
        app.telemetry.count("SweepLag", report.oldest // 60)
        app.telemetry.count("Backlog", report.counts["backlog"])
