"""Elevate's own client for 14 simulated days: every visit ends once, or is accounted for.

replay.mjs has the vendor's real session object keep the keys of some visitors. Here their page
views and sign-outs meet the real use cases, under a clock that is set by hand and with a sweep
every minute. Elevate is down for one whole day of the 14.
"""

import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from clients import EXAMPLES, need
from emulated import Clock
from endings import ALL_SHARDS
from in_process_dynamodb import InProcessDynamoDB
from registry_table import create_table
from sessions.dialects import STOREFRONT_V3, WEB_V2, Dialect
from sessions.elevate import Elevate
from sessions.ending import BACKOFF_LIMIT, Ending
from sessions.lifetime import DAY, HOUR, MINUTE
from sessions.registry import Registry
from sessions.session import Activity, Outcome, Session
from sessions.settings import Settings
from sessions.sweeping import Sweeper
from sessions.telemetry import Telemetry
from virtual import VirtualCrew

SCRIPT = Path(__file__).with_name("replay.mjs")
CLIENT = EXAMPLES / "node_modules" / "@apptus" / "esales-api" / "dist" / "mod.mjs"
SEED = 3
FOREVER = 10**9 * 5
DOWN, UP = 6 * DAY, 7 * DAY


@dataclass(frozen=True)
class Line:
    """What a visitor does `at` a time (seconds from the start), with the keys of that moment."""

    at: int
    visit: str
    what: str
    customerKey: str
    sessionKey: str


@dataclass
class Visit:
    """A visit: its last line, the ends that Elevate accepted, and whether we refused all of it."""

    last: Line
    ends: int = 0
    is_refused: bool = True


class ReplayElevate(Elevate):
    """Elevate, as the replay has it."""

    def __init__(self, replay: "Replay") -> None:
        self._replay = replay

    def notify(self, session: Session) -> Outcome:
        if self._replay.is_down():
            return Outcome("unavailable", 503)
        self._replay.ends.append(session)
        return Outcome("delivered", 204)


class Replay:
    """The service and its visitors, from line to line."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.clock = settings, Clock()
        self.start = self.clock.now
        self.registry = Registry(settings, InProcessDynamoDB(), self.clock)
        self.telemetry = Telemetry()
        parts = (settings, self.registry, ReplayElevate(self), self.telemetry)
        self.ending = Ending(*parts, self.clock)
        self.sweeper = Sweeper(*parts, len, self.clock, VirtualCrew)
        self.ends: list[Session] = []  # that Elevate has accepted since the last check
        self.visits: dict[str, Visit] = {}  # by visitor
        self.kept: dict[str, Visit] = {}  # by session key: signed out, and waiting for Elevate
        self.signed_out: set[str] = set()
        self.over: set[str] = set()  # ended as idle, which is a guess
        self.fates: Counter[str] = Counter()
        self.tracked: Counter[str] = Counter()

    @property
    def at(self) -> int:
        """Return the seconds from the start."""
        return int(self.clock.now - self.start)

    def step(self, line: Line) -> None:
        """Do what a visitor does, and compare the answer with the expected one."""
        self.sweep_until(line.at)
        visitor = line.visit.split("/")[0]
        is_first = visitor not in self.visits or self.visits[visitor].last.visit != line.visit
        if is_first:
            if visitor in self.visits:
                self.close(self.visits.pop(visitor), line)
            self.visits[visitor] = Visit(line)
        visit = self.visits[visitor]
        visit.last = line
        is_over = line.sessionKey in self.signed_out
        session = Session("UK", line.sessionKey, line.customerKey)
        if line.what == "sign-out":
            self.signed_out.add(line.sessionKey)
            end = self.ending.end(session, int(self.clock.now), "api")
            sent = "kept" if self.is_down() else "delivered"
            assert end.result == ("over" if is_over else sent)
            self.check_ends()
        else:
            activity = Activity(session, int(self.clock.now), line.what == "click")
            tracked = self.ending.track(activity)
            is_back = line.sessionKey in self.over
            assert tracked == ("over" if is_over else "reopened" if is_back else "tracked")
            self.tracked[tracked] += 1
        self.over.discard(line.sessionKey)
        visit.is_refused = visit.is_refused and is_over

    def sweep_until(self, at: int) -> None:
        """Sweep every minute, except for the minutes in which nothing is due."""
        while rows := [row for s in ALL_SHARDS for row in self.registry.due(s, FOREVER).rows]:
            due_at = max(self.clock.now, min(row.due_at or 0 for row in rows))
            next_tick = (due_at // MINUTE + 1) * MINUTE
            if next_tick > self.start + at:
                break
            self.clock.now = next_tick
            self.sweeper.sweep(ALL_SHARDS, FOREVER)
            self.check_ends()
        self.clock.now = self.start + at

    def is_down(self) -> bool:
        return DOWN <= self.at < UP

    def check_ends(self) -> None:
        """Check each end that Elevate accepted: whose it is, and that it was due."""
        while self.ends:
            session = self.ends.pop()
            key = session.session_key
            of_key = [visit for visit in self.visits.values() if visit.last.sessionKey == key]
            visit = self.kept.get(key) or of_key[0]
            visit.ends += 1
            assert session.customer_key == visit.last.customerKey
            if key in self.signed_out:
                continue
            quiet, idle = self.at - visit.last.at, self.settings.idle
            assert quiet >= idle - self.settings.slack, "an active visit was ended"
            was_up = not DOWN - MINUTE <= visit.last.at + idle < UP
            assert quiet <= idle + MINUTE or not was_up, "a visit was ended late"

    def close(self, visit: Visit, following: Line | None = None) -> None:
        """Record the fate of a visit, once its visitor is back or the replay is over."""
        key = visit.last.sessionKey
        (status,) = self.ending.status(key)
        fate: str = "refused" if visit.is_refused else status.state
        if fate in ("open", "retrying"):
            assert DOWN <= self.at < UP + BACKOFF_LIMIT + MINUTE, "a visit was forgotten"
            if key in self.signed_out:
                self.kept[key] = visit
                return
            assert following
            assert following.sessionKey == key
            fate = "went on"
        assert visit.ends == (fate == "ended")
        assert fate != "expired" or self.may_expire(visit)
        if fate in ("ended", "expired") and key not in self.signed_out:
            self.over.add(key)
        self.fates[fate] += 1

    def may_expire(self, visit: Visit) -> bool:
        """Return whether Elevate may have ended a visit by itself before it could be notified."""
        due = visit.last.at + self.settings.idle * (visit.last.what != "sign-out")
        midnight = (self.start + due + MINUTE) // DAY * DAY - self.start
        is_over_at_midnight = self.settings.dialect is STOREFRONT_V3 and visit.last.at < midnight
        return DOWN - MINUTE <= due < UP or is_over_at_midnight


def timeline(idle: int) -> list[Line]:
    need("node")
    if not CLIENT.exists():
        pytest.skip("Elevate's own client is not installed: npm ci --prefix examples")
    command = ["node", str(SCRIPT), CLIENT.as_uri(), str(idle), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [Line(**json.loads(line)) for line in done.stdout.splitlines()]


def metrics(output: str) -> Counter[str]:
    """Return the sums of all metrics that were written."""
    sums: Counter[str] = Counter()
    for blob in (json.loads(line) for line in output.splitlines() if '"_aws"' in line):
        for metric in blob["_aws"]["CloudWatchMetrics"][0]["Metrics"]:
            sums[metric["Name"]] += sum(blob[metric["Name"]])
    return sums


@pytest.mark.parametrize(
    ("dialect", "idle"),
    [(WEB_V2, 30 * MINUTE), (STOREFRONT_V3, 10 * MINUTE)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_visit_of_14_days_ends_once_or_is_accounted_for(
    dialect: Dialect, idle: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = timeline(idle)
    settings = Settings(
        table_name=f"replay-{dialect.name}",
        event_bus_name="",
        elevate_url="",
        dialect=dialect,
        idle=idle,
        session_limit=4 * HOUR,
        concurrency=1,
    )
    create_table(InProcessDynamoDB(), settings.table_name)
    replay = Replay(settings)
    for line in lines:
        replay.step(line)
    replay.sweep_until(lines[-1].at + DAY)
    assert not any(replay.registry.due(shard, FOREVER).rows for shard in ALL_SHARDS)
    for visit in (*replay.visits.values(), *replay.kept.values()):
        replay.close(visit)

    # Each of these fates occurs, and no other.
    assert replay.fates.total() == len({line.visit for line in lines})
    assert set(replay.fates) == {"ended", "expired", "refused", "went on"}
    replay.telemetry.flush()
    counted = metrics(capsys.readouterr().out)
    assert counted["Delivered"] == replay.fates["ended"]
    assert counted["Expired"] == replay.fates["expired"]
    assert counted["Reopened"] == replay.tracked["reopened"] > 0
    assert counted["TrackedTooLate"] == replay.tracked["over"] > 0
