"""Each alarm fires on its fault, and is silent when all is well."""

from typing import Any

import pytest

from alarms import ALARMS, fires, needed, notifies, state
from handler import end, track
from world import World, emitted


def points(alarm: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[float]:
    """Return what has been written of the alarm's metric under exactly its dimensions."""
    found: list[float] = []
    for blob in emitted(capsys):
        (written,) = blob["_aws"]["CloudWatchMetrics"]
        assert written["Namespace"] == alarm["Namespace"]
        assert [d["Name"] for d in alarm["Dimensions"]] in written["Dimensions"]
        found += blob.get(alarm["MetricName"], [])
    return found


def down(world: World) -> None:
    world.elevate.statuses = [503]
    world.due()
    world.sweep()


def late(world: World) -> None:
    world.due(silent_for=3600)
    world.sweep()


def rejecting(world: World) -> None:
    world.elevate.statuses = [400]
    world.end()


def reusing_keys(world: World, views: int = 101) -> None:
    """Sign out, then view more pages with the same keys."""
    session = world.session()
    world.event(end, "session_ended", session)
    world.event(track, "session_active", *[session] * views)


FAULTS = {
    "SweepLagAlarm": late,
    "RejectedAlarm": rejecting,
    "UnavailableAlarm": down,
    "ReusedKeysAlarm": reusing_keys,
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_alarm_fires_on_its_fault_and_is_silent_when_all_is_well(
    name: str,
    world: World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alarm = ALARMS[name]
    world.end()
    world.due(2)
    capsys.readouterr()
    world.sweep()
    well = points(alarm, capsys)
    FAULTS[name](world)
    ill = points(alarm, capsys)
    count = needed(alarm)
    assert not fires(alarm, [well] * count)
    assert fires(alarm, [ill] * count)
    if count > 1:
        assert not fires(alarm, [ill] * (count - 1) + [well])


def test_an_outage_seen_by_a_single_session_fires_the_alarm(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small shop sends nothing between the retries of its one session."""
    alarm = ALARMS["UnavailableAlarm"]
    down(world)
    ill = points(alarm, capsys)
    assert fires(alarm, [ill, [], ill, *[[]] * 3, ill, *[[]] * 7, ill, *[[]] * 14, ill])
    assert not fires(alarm, [ill, ill, *[[]] * 30, ill, ill, ill])


def test_an_alarm_stays_silent_while_some_notifications_get_through(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm = ALARMS["UnavailableAlarm"]
    world.elevate.statuses = [503, 204]
    world.due(2)
    world.sweep()
    some = points(alarm, capsys)
    assert some == [1]
    assert not fires(alarm, [some] * 30)


def test_a_claim_that_the_registry_refuses_shows_as_lag(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The call succeeds, but none of its statements does."""
    world.dynamo.statement_errors = lambda batch: dict.fromkeys(range(len(batch)), "AccessDenied")
    late(world)
    alarm = ALARMS["SweepLagAlarm"]
    assert fires(alarm, [points(alarm, capsys)] * needed(alarm))


def test_a_page_view_that_comes_after_the_sign_out_is_normal(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    reusing_keys(world, views=3)
    late_ones = points(ALARMS["ReusedKeysAlarm"], capsys)
    assert sum(late_ones) == 3
    assert not fires(ALARMS["ReusedKeysAlarm"], [late_ones])


def test_sweeps_that_stop_notify_somebody_and_those_that_have_not_begun_do_not(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep that cannot read the registry writes no lag; nor does one that does not run."""
    alarm = ALARMS["SweepLagAlarm"]
    world.sweep()
    looked = points(alarm, capsys)
    world.without_registry()
    world.sweep()
    without = [points(alarm, capsys)] * 10
    first = state(alarm, without, is_new=True)
    assert not notifies(alarm, "INSUFFICIENT_DATA", first), "the first deploy"
    running, stopped = state(alarm, [looked] * 5), state(alarm, without)
    assert (running, stopped) == ("OK", "ALARM")
    assert notifies(alarm, running, stopped)
    assert state(alarm, [*without, looked]) == "OK"


def test_the_warm_up_of_an_alarm_outlasts_a_first_deploy() -> None:
    """A deploy takes about five minutes; what the alarm counts comes only after it."""
    for alarm in ALARMS.values():
        is_awaited = alarm["TreatMissingData"] == "breaching"
        minutes = alarm.get("WarmUpConfiguration", {}).get("WarmUpPeriodDurationInMinutes", 0)
        assert (minutes >= 15) is is_awaited


@pytest.mark.parametrize("name", sorted(set(ALARMS) - set(FAULTS)))
def test_alarms_on_awss_own_metrics_fire_at_one(name: str) -> None:
    """One throttle, error or dead-letter message is enough; see also tests/stack/test_alarms.py."""
    assert ALARMS[name]["Namespace"] in ("AWS/Lambda", "AWS/SQS")
    assert fires(ALARMS[name], [[1.0]])
    assert not fires(ALARMS[name], [[]])
