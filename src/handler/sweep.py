"""Sweep: the event `Session Sweep`, from the schedule, from a hand-over, or from an operator.

Its detail may name `shards` (default all), or `{"retry": "rejected", "market": …}` to make rejected
sessions due again. `depth` counts hand-overs.
"""

import time
from typing import Any

from handler.application import application
from handler.events import InvalidEvent, consume, put_sweeps
from sessions.schemas import Validator
from sessions.session import MAX_SHARDS, InvalidPayload
from sessions.sweeping import ALL_SHARDS

# A tick hands a shard over once, and what that leaves is the next tick's: so there is one hand-over
# a shard at most. It ends this much (seconds) before the next tick may hand over.
SWEEP_DEPTH = 1
HAND_OVER_MARGIN = 10
# Rejected sessions are made due by one function after the other.
MAX_DEPTH = 10

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
            "retry": {"enum": ["rejected"], "description": "rejected"},
            "market": {"type": "string", "description": "the name of a market"},
            "correlationId": {"type": "string", "description": "a string"},
        },
    },
    "detail",
)


def handle(event: Any, context: Any) -> None:
    """Sweep until done or out of time, and hand over what is left, one event per shard."""
    until = time.monotonic() + context.get_remaining_time_in_millis() / 1000
    correlation_id = str((isinstance(event, dict) and event.get("id")) or context.aws_request_id)
    consume(event, context, lambda event: _sweep(event, until, correlation_id), "sweep")


def _sweep(event: dict[str, Any], until: float, correlation_id: str) -> None:
    app, started = application(), time.monotonic()
    detail = event.get("detail")
    try:
        _DETAIL(detail)
    except InvalidPayload as invalid:
        app.telemetry.refused(invalid.errors, "sweep")
        raise InvalidEvent("the event's detail is invalid") from None
    detail = detail or {}
    correlation_id = detail.get("correlationId", correlation_id)
    app.telemetry.begin(correlation_id)
    is_retry, shards = "retry" in detail, detail.get("shards", ALL_SHARDS)
    depth = detail.get("depth", 0)
    if is_retry:
        report = app.sweeper.retry_rejected(detail.get("market"), shards, until)
        rest = [detail | {"shards": report.left}] if report.left else []
    else:
        report = app.sweeper.sweep(shards, until - HAND_OVER_MARGIN * bool(depth))
        # Where Elevate's rate is bounded, more sweeps would not be faster: the next tick goes on.
        rest = [] if app.settings.max_rate else [{"shards": [shard]} for shard in report.left]
    handed_over = 0
    if rest and depth < (MAX_DEPTH if is_retry else SWEEP_DEPTH):
        passed_on = {"depth": depth + 1, "correlationId": correlation_id}
        handed_over = put_sweeps([some | passed_on for some in rest])
    app.telemetry.swept(
        kind="retry" if is_retry else "sweep",
        oldest_age_s=report.oldest,
        **report.counts,
        stopped=report.stopped,
        given_up=report.given_up,
        left=len(report.left),
        handed_over=handed_over,
        duration_ms=round((time.monotonic() - started) * 1000),
    )
    if not is_retry and (report.stopped != "registry" or report.counts["due"]):
        # Zeros too: the alarm takes silence for trouble.
        app.telemetry.count("SweepLag", report.oldest // 60)
        app.telemetry.count("Backlog", report.counts["backlog"])
