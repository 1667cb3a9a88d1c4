"""When Elevate ends a session by itself: its documented examples, and what always holds."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.dialects import STOREFRONT_V3
from sessions.ending import is_past
from sessions.lifetime import DAY, HOUR, MINUTE, elevate4_ends_at
from sessions.session import Row, Session
from sessions.settings import Settings

MOMENTS = st.integers(min_value=0, max_value=4_000_000_000)


def at(clock: str, day: int = 23) -> int:
    return int(datetime.fromisoformat(f"2001-11-{day}T{clock}").replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("last_activity", "interactive", "ends"),
    [
        # The four examples of Elevate's documentation.
        (at("13:00"), False, at("13:15")),
        (at("13:05"), False, at("13:20")),
        (at("13:05"), True, at("15:00")),
        (at("23:58"), True, at("00:00", 24)),
        # The edges of a clock hour.
        (at("12:59:59"), True, at("14:00")),
        (at("13:00:00"), True, at("15:00")),
        (at("13:00:01"), True, at("15:00")),
        # The edges of a day.
        (at("23:44:59"), False, at("23:59:59")),
        (at("23:45:00"), False, at("00:00", 24)),
        (at("23:59:59"), False, at("00:00", 24)),
        (at("00:00:00", 24), False, at("00:15", 24)),
        (at("22:00:00"), True, at("00:00", 24)),
        (at("21:59:59"), True, at("23:00")),
    ],
)
def test_elevate_4_ends_a_session(last_activity: int, interactive: bool, ends: int) -> None:
    assert elevate4_ends_at(last_activity, interactive=interactive) == ends


@given(MOMENTS, st.booleans())
def test_a_session_ends_after_its_activity_and_never_past_midnight(
    active_at: int, interactive: bool
) -> None:
    ends = elevate4_ends_at(active_at, interactive=interactive)
    assert active_at < ends <= active_at - active_at % DAY + DAY
    assert ends - active_at <= 2 * HOUR


@given(MOMENTS)
def test_interaction_never_shortens_a_session(active_at: int) -> None:
    passive = elevate4_ends_at(active_at, interactive=False)
    assert passive <= elevate4_ends_at(active_at, interactive=True)


@given(MOMENTS)
def test_an_interactive_session_has_one_whole_idle_clock_hour_or_meets_midnight(
    active_at: int,
) -> None:
    ends = elevate4_ends_at(active_at, interactive=True)
    assert ends % HOUR == 0
    assert ends - active_at > HOUR or ends % DAY == 0


@given(MOMENTS, st.integers(min_value=0, max_value=DAY), st.booleans())
def test_later_activity_never_ends_earlier(active_at: int, later: int, interactive: bool) -> None:
    first = elevate4_ends_at(active_at, interactive=interactive)
    assert first <= elevate4_ends_at(active_at + later, interactive=interactive)


def settings(**changes: object) -> Settings:
    return Settings("table", "bus", "http://localhost", **changes)  # type: ignore[arg-type]


def row(active_at: int, interactive: bool | None) -> Row:
    return Row(Session("UK", "session"), 0, active_at, interactive=interactive)


def test_elevate_3_has_ended_a_session_the_configured_limit_after_the_last_activity() -> None:
    elevate3 = settings(session_limit=60 * MINUTE, idle=10 * MINUTE)
    quiet = row(at("13:00"), False)
    assert not is_past(quiet, at("14:01") - 1, elevate3)
    assert is_past(quiet, at("14:01"), elevate3)


@given(MOMENTS)
def test_unknown_interactivity_counts_as_interactive(active_at: int) -> None:
    assert elevate4_ends_at(active_at, None) == elevate4_ends_at(active_at, True)


@given(MOMENTS, st.integers(min_value=0, max_value=60), st.booleans())
def test_the_deadline_holds_for_activity_within_the_slack(
    active_at: int, unnoted: int, interactive: bool
) -> None:
    """A row may be older than the last activity by the slack; Elevate counts the activity."""
    elevate4 = settings(dialect=STOREFRONT_V3)
    actual_end = elevate4_ends_at(active_at + unnoted, interactive=interactive)
    assert not is_past(row(active_at, interactive), actual_end - 1, elevate4)
