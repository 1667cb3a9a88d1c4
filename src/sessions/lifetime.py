"""When Elevate ends a session by itself. Pure arithmetic on epoch seconds (UTC).

Elevate 4 documents its rules (docs.elevate.voyado.cloud, "Sessions"); Elevate 3 says only that
there is a "duration time", so in web-v2 the limit is a setting.
"""

from sessions.settings import Settings

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def elevate4_ends_at(active_at: int, *, interactive: bool) -> int:
    """Return when Elevate 4 ends a session last active at `active_at` (epoch seconds).

    The rules: 15 minutes after the last activity while no interactive notification was seen, else
    after one whole idle clock hour, and at 00:00 UTC in any case.
    """
    idle_hour_over = active_at - active_at % HOUR + 2 * HOUR
    idle_end = idle_hour_over if interactive else active_at + 15 * MINUTE
    midnight = active_at - active_at % DAY + DAY
    return min(idle_end, midnight)


def deadline(active_at: int, interactive: bool | None, settings: Settings) -> int:
    """Return the moment by which Elevate must have ended the session itself (epoch seconds).

    It errs to the late side: an unknown `interactive` counts as seen, and the last activity may be
    younger than the one written down by the tracking slack.
    """
    latest_activity = active_at + settings.slack
    if settings.dialect == "web-v2":
        return latest_activity + settings.session_limit
    return elevate4_ends_at(latest_activity, interactive=interactive is not False)
