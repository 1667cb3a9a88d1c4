"""When a session is over: this service's idle rule, and Elevate's own. Arithmetic on epoch seconds.

Elevate 4 documents its rules (docs.elevate.voyado.cloud, "Sessions"). Elevate 3 says only that
there is a "duration time", so there the limit is a setting.
"""

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def idle_at(active_at: float, idle: int) -> int:
    """Return when a session last active at `active_at` counts as left, after `idle` seconds."""
    return int(active_at) + idle


def elevate3_ends_at(active_at: float, interactive: bool | None, limit: int) -> float:
    """Return when Elevate 3 will have ended a session, `limit` seconds after its last activity."""
    return active_at + limit


def elevate4_ends_at(active_at: float, interactive: bool | None, limit: int = 0) -> float:
    """Return when Elevate 4 ends a session last active at `active_at`; it knows no `limit`.

    The rules: 15 minutes after the last activity while no interactive notification was seen, else
    after one whole idle clock hour, and at 00:00 UTC in any case. Where it is not known whether one
    was seen (None), the later moment holds.
    """
    idle_hour_over = active_at - active_at % HOUR + 2 * HOUR
    idle_end = active_at + 15 * MINUTE if interactive is False else idle_hour_over
    midnight = active_at - active_at % DAY + DAY
    return min(idle_end, midnight)
