"""Sweep: the event `Session Sweep`, from the schedule, from a hand-over, or from an operator.

Its detail may name `shards` (default all), or `{"retry": "rejected", "market": …}` to make rejected
sessions due again. `depth` counts hand-overs.
"""

import time
from typing import Any

from handler.application import application
from handler.bus import InvalidEvent, consume, put_sweeps
from sessions.session import InvalidPayload, Validator
from sessions.settings import MAX_SHARDS
from sessions.sweeping import ALL_SHARDS, Sweep

# A chain of hand-overs ends here; the schedule's next tick goes on.
MAX_DEPTH = 10

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
                "items": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": MAX_SHARDS - 1,
                    "description": f"integers from 0 to {MAX_SHARDS - 1}",
                },
                "description": "a list of different shards",
            },
            "depth": {
                "type": "integer",
                "minimum": 0,
                "maximum": MAX_DEPTH,
                "description": f"an integer from 0 to {MAX_DEPTH}",
            },
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
    consume(event, context, lambda e, correlation_id: _sweep(e, until, correlation_id), "sweep")


def _sweep(event: dict[str, Any], until: float, correlation_id: str) -> None:
    app = application()
    detail = event.get("detail")
    try:
        _DETAIL(detail)
    except InvalidPayload as invalid:
        app.telemetry.refused(invalid.errors, "sweep", correlation_id)
        raise InvalidEvent("the event's detail is invalid") from None
    detail = detail or {}
    started = time.monotonic()
    shards = detail.get("shards", ALL_SHARDS)
    depth = detail.get("depth", 0)
    correlation_id = detail.get("correlationId", correlation_id)
    if "retry" in detail:
        report = app.sweeper.retry_rejected(detail.get("market"), shards, until, correlation_id)
        rest = [detail | {"shards": report.left}] if report.left else []
    else:
        report = app.sweeper.sweep(shards, until, correlation_id)
        # Where Elevate's rate is bounded, more sweeps would not be faster: the next tick goes on.
        rest = [] if app.settings.max_rate else [{"shards": [shard]} for shard in report.left]
    handed_over = 0
    if rest and depth < MAX_DEPTH:
        handed_over = put_sweeps(
            [r | {"depth": depth + 1, "correlationId": correlation_id} for r in rest]
        )
    _tell(report, correlation_id, handed_over, time.monotonic() - started, "retry" in detail)


def _tell(
    report: Sweep, correlation_id: str, handed_over: int, seconds: float, retry: bool
) -> None:
    telemetry = application().telemetry
    telemetry.swept(
        correlation_id,
        0 if retry else report.oldest,
        kind="retry" if retry else "sweep",
        backlog=report.backlog,
        due=report.due,
        claimed=report.claimed,
        delivered=report.delivered,
        rejected=report.rejected,
        retried=report.unavailable,
        held_back=report.unsent,
        expired=report.expired,
        skipped=report.skipped,
        unreadable=report.unreadable,
        failed=report.failed,
        stopped=report.stopped,
        left=len(report.left),
        handed_over=handed_over,
        duration_ms=round(seconds * 1000),
    )
    if retry or (report.stopped == "registry" and not report.due):
        return
    # Written by each sweep that could look, zeros too: silence is what alarms take for trouble.
    through = report.delivered + report.rejected + report.expired + report.skipped
    telemetry.count("SweepLag", report.oldest // 60)
    telemetry.count("Backlog", report.backlog)
    telemetry.count("Due", report.due)
    telemetry.count("Stuck", 0 if through else report.due)
    telemetry.count("Unreadable", report.unreadable)
    telemetry.count("HandedOver", handed_over)
