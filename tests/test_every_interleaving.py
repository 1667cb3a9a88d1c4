"""Every interleaving of one session's events, up to a bound, and what must be true of each.

**What is enumerated.** Up to three events happen to a session, 5 seconds or 31 minutes apart:

- it is tracked, or a late track arrives, 40 minutes old;
- its end is asked for, or such a request arrives late;
- a sweep runs.

An end or a sweep may send a notification. Elevate takes it, rejects it or is unavailable; or the
process is killed just before its POST, or just after it. While one of the notifications is in
flight, up to two more tracks and ends may arrive. Then comes a long wait: Elevate is well, and a
sweep runs each minute until nothing is due. Elevate ends a session itself after an hour: so 31
minutes outlast a lease, a retry and the idle time, and twice 31 minutes outlast the session.

Left out is what shows nothing new: a sweep that finds nothing due, and what follows an event that
was refused and wrote nothing.

**What must hold** are the rules below. They judge as an onlooker would, from what was sent and
answered, and when; not from the row. *Accepted* is a track that was not refused, and an end that
was answered: whoever got no answer, because the process was killed, asks again.

What arrives in flight arrives a second after the notification was sent. `INTERLEAVINGS=all` adds
arrivals within the same second, and events that are 2 minutes apart: they outlast a lease and a
retry only.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from heapq import nsmallest
from typing import NamedTuple

import pytest

from one_session import (
    LIMIT,
    Answered,
    Ended,
    Event,
    Expired,
    Fact,
    Left,
    OneSession,
    Row,
    Sent,
    Tracked,
    Verb,
    Written,
)
from sessions.lifetime import DAY, MINUTE

EVENTS = 3
IN_FLIGHT = 2
WAITS = [5, 31 * MINUTE]
FLIGHTS = [1]
# So many there are at least: how many in all depends on what the service sends and refuses.
ENUMERATED = 130_000
if os.environ.get("INTERLEAVINGS") == "all":
    WAITS.append(2 * MINUTE)
    FLIGHTS.append(0)
    ENUMERATED = 320_000

CALLS: tuple[Verb, ...] = ("track", "late track", "end", "late end")
VERBS: tuple[Verb, ...] = (*CALLS, "sweep")
OUTCOMES = ("delivered", "rejected", "unavailable")
# What a notification may come to. Whoever comes to one that is killed might as well come later.
ALONE: list[tuple[tuple[Verb, ...], str]] = [
    ((), outcome) for outcome in (*OUTCOMES, "crash before", "crash after")
]
MET: list[tuple[tuple[Verb, ...], str]] = [
    (in_flight, outcome)
    for count in range(1, IN_FLIGHT + 1)
    for in_flight in itertools.product(CALLS, repeat=count)
    for outcome in OUTCOMES
]

# Second notifications that nothing called for do no harm, but should stay rare.
NEEDLESS = 1 / 100

IDLE = 30 * MINUTE
SLACK = MINUTE  # activity that moves by less is not written down
LEASE = 90
RETENTION = 15 * DAY


# -- what is enumerated --------------------------------------------------------------------------


class Interleaving(NamedTuple):
    """What has happened: the time and the row after it, all that was seen, and how to tell it."""

    now: int
    row: Row = None
    facts: tuple[Fact, ...] = ()
    text: str = ""
    events: int = 0
    is_met: bool = False  # a notification met somebody
    is_dead_end: bool = False

    def then(self, session: OneSession, wait: int, event: Event) -> "Interleaving":
        """Let one more event happen, after `wait` seconds."""
        now, row, facts = session.play(self.now + wait, self.row, event)
        is_refused = any(getattr(fact, "answer", "") == "over" for fact in facts[-1:])
        return Interleaving(
            now,
            row,
            self.facts + facts,
            (f"{self.text} · {_span(wait)} · " if self.text else "") + _told(event, facts),
            self.events + 1,
            is_met=self.is_met or bool(event.in_flight),
            is_dead_end=is_refused and row == self.row,
        )


def interleavings(session: OneSession, so_far: Interleaving) -> Iterator[Interleaving]:
    """Yield every interleaving that begins like this one, up to the bound."""
    if so_far.events == EVENTS or so_far.is_dead_end:
        return
    for wait, verb in itertools.product(WAITS if so_far.events else [0], VERBS):
        first = session.play(so_far.now + wait, so_far.row, Event(verb))
        if verb == "sweep" and first.row == so_far.row:
            continue  # nothing was due
        if not any(isinstance(fact, Sent) for fact in first.facts):
            fates = ALONE[:1]
        else:
            fates = ALONE if so_far.is_met else ALONE + MET
        for in_flight, outcome in fates:
            one = so_far.then(session, wait, Event(verb, in_flight, outcome))
            yield one
            yield from interleavings(session, one)


def _told(event: Event, facts: tuple[Fact, ...]) -> str:
    others = f"[{', '.join(event.in_flight)}]" if event.in_flight else ""
    is_sent = any(isinstance(fact, Sent) for fact in facts) or event.outcome == "crash before"
    return f"{event.verb}{others} → {event.outcome}" if is_sent else event.verb


def _span(seconds: int) -> str:
    return f"{seconds // MINUTE} min" if seconds >= MINUTE else f"{seconds} s"


# -- what must hold ------------------------------------------------------------------------------


class Notification(NamedTuple):
    """A notification, with its place in all that was seen, and the place of its answer."""

    at: int
    place: int
    by: Verb
    answered: int
    outcome: str
    heard: bool

    @property
    def is_final(self) -> bool:
        """Return whether Elevate took it or refused it."""
        return self.outcome != "unavailable"


class Seen:
    """What an onlooker saw of an interleaving, sorted; each fact with its place in the order."""

    def __init__(self, facts: tuple[Fact, ...]) -> None:
        self.facts = facts
        self.tracks: list[tuple[int, Tracked]] = []  # accepted
        self.refused: list[tuple[int, Tracked]] = []
        self.ends: list[tuple[int, Ended]] = []  # accepted
        self.outdated: list[tuple[int, Ended]] = []
        self.killed: list[tuple[int, Ended]] = []
        self.notifications: list[Notification] = []
        self.expiries: list[tuple[int, Expired]] = []
        sent, sent_place = Sent(0, "sweep"), 0
        for place, fact in enumerate(facts):
            match fact:
                case Tracked():
                    (self.refused if fact.answer == "over" else self.tracks).append((place, fact))
                case Ended(answer="outdated"):
                    self.outdated.append((place, fact))
                case Ended():
                    (self.ends if fact.answer else self.killed).append((place, fact))
                case Sent():
                    sent, sent_place = fact, place
                case Answered():
                    answer = (place, fact.outcome, fact.heard)
                    self.notifications.append(Notification(sent.at, sent_place, sent.by, *answer))
                case Expired():
                    self.expiries.append((place, fact))
        self.first_asked = min((p for p, _ in self.ends + self.killed), default=len(facts))
        self.over = [one.answered for one in self.notifications if one.is_final]
        self.over += [place for place, _ in self.expiries]


def an_accepted_end_is_not_lost(seen: Seen) -> bool:
    """An accepted end is delivered, rejected or expired; one that was kept, after that."""
    last = max(seen.over, default=-1)
    return all(last > place if end.answer == "kept" else seen.over for place, end in seen.ends)


def a_refused_visitor_is_not_forgotten(seen: Seen) -> bool:
    """If a track is refused for the sake of an end whose process was killed, that end is sent.

    Before its lease has run out, nobody knows that it was killed.
    """
    for place, track in seen.refused:
        killed_at = [end.at for killed, end in seen.killed if killed < place]
        if killed_at and track.at >= killed_at[-1] + LEASE and not seen.over:
            return False
    return True


def a_visitor_is_not_left_active(seen: Seen) -> bool:
    """After the last accepted activity a notification gets through, or the session expires."""
    last = max(((one.at, one.place) for one in seen.notifications if one.is_final), default=(0, 0))
    expired = max((place for place, _ in seen.expiries), default=-1)
    return all((track.dated, place) < last or place < expired for place, track in seen.tracks)


def nothing_expires_too_early(seen: Seen) -> bool:
    """A session expires when its limit has passed since the latest accepted activity or request."""
    signs: list[tuple[int, Tracked | Ended]] = [*seen.tracks, *seen.ends]
    return all(
        expiry.at >= sign.dated + LIMIT
        for expired, expiry in seen.expiries
        for place, sign in signs
        if place < expired
    )


def no_active_session_is_ended_as_idle(seen: Seen) -> bool:
    """A sweep leaves a session alone that is not idle, unless its end was asked for."""
    return not any(
        notification.at < track.dated + IDLE - SLACK
        for notification in seen.notifications
        if notification.by == "sweep" and notification.place < seen.first_asked
        for place, track in seen.tracks
        if place < notification.place
    )


def an_explicit_end_is_final(seen: Seen) -> bool:
    """After an accepted end, each track is refused."""
    first = min((place for place, _ in seen.ends), default=len(seen.facts))
    return all(place < first for place, _ in seen.tracks)


def only_old_news_is_outdated(seen: Seen) -> bool:
    """An end is refused as outdated only if its visitor was active after it."""
    return all(
        any(track.dated > end.dated + SLACK for before, track in seen.tracks if before < place)
        for place, end in seen.outdated
    )


def one_notification_at_a_time(seen: Seen) -> bool:
    """No notification is sent while another is in flight."""
    return all(one.answered < two.place for one, two in itertools.pairwise(seen.notifications))


def every_write_has_its_ttl(seen: Seen) -> bool:
    """Each write keeps the row for 15 more days, and not for ever."""
    written = [fact.deleted_after for fact in seen.facts if isinstance(fact, Written)]
    return all(seconds and RETENTION <= seconds < RETENTION + MINUTE for seconds in written)


def nothing_is_left_to_do(seen: Seen) -> bool:
    """In the end no row is due."""
    return not any(isinstance(fact, Left) for fact in seen.facts)


RULES: tuple[Callable[[Seen], bool], ...] = (
    an_accepted_end_is_not_lost,
    a_refused_visitor_is_not_forgotten,
    a_visitor_is_not_left_active,
    nothing_expires_too_early,
    no_active_session_is_ended_as_idle,
    an_explicit_end_is_final,
    only_old_news_is_outdated,
    one_notification_at_a_time,
    every_write_has_its_ttl,
    nothing_is_left_to_do,
)


def needless(seen: Seen) -> int:
    """Count the notifications that Elevate took a second time though nothing called for them.

    What calls for another: a crash, a visitor who came back, and an explicit end after an idle one.
    """
    delivered = [one for one in seen.notifications if one.outcome == "delivered"]
    return sum(not _is_called_for(seen, *two) for two in itertools.pairwise(delivered))


def _is_called_for(seen: Seen, first: Notification, second: Notification) -> bool:
    news: list[tuple[int, Tracked | Ended]] = [*seen.tracks]
    if first.by == "sweep" and first.place < seen.first_asked:
        if second.by != "sweep":
            return True
        news += seen.ends
    return not first.heard or any(
        (fact.dated, place) > (first.at, first.place) and place < second.place
        for place, fact in news
    )


# -- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flight", FLIGHTS)
def test_every_interleaving(flight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    session = OneSession(flight, monkeypatch)
    enumerated = twice = 0
    broken: dict[str, list[str]] = defaultdict(list)
    for one in interleavings(session, Interleaving(session.now)):
        afterwards = session.wait_long(one.now, one.row)
        seen = Seen(one.facts + afterwards)
        enumerated += 1
        twice += needless(seen)
        for rule in RULES:
            if not rule(seen):
                words = (rule.__doc__ or "").splitlines()[0]
                broken[words].append(f"{one.text} · {_ending(afterwards)}")
    failures = "".join(
        f"\n\n{len(found)} of {enumerated}: {rule} For instance:"
        + "".join(f"\n    {text}" for text in nsmallest(5, found, key=len))
        for rule, found in broken.items()
    )
    print(f"{enumerated} interleavings, {twice} needless notifications")  # seen with pytest -s
    assert not failures, failures
    assert twice <= enumerated * NEEDLESS
    assert enumerated >= ENUMERATED


def _ending(facts: tuple[Fact, ...]) -> str:
    """Tell what came of the long wait."""
    came = [fact.outcome for fact in facts if isinstance(fact, Answered)]
    came += ["expired" for fact in facts if isinstance(fact, Expired)]
    return f"a long wait: {', '.join(came) or 'nothing'}"


def seen_of(session: OneSession, *events: tuple[int, Event]) -> Seen:
    """Return what was seen of events, each with the seconds before it, and of a long wait."""
    one = Interleaving(session.now)
    for wait, event in events:
        one = one.then(session, wait, event)
    return Seen(one.facts + session.wait_long(one.now, one.row))


@pytest.mark.parametrize("asked", ["end", "late end"])
def test_a_visitor_who_came_back_during_an_idle_end_is_ended_again(
    asked: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end that was asked for in flight is not what the sweep's notification was sent for."""
    seen = seen_of(
        OneSession(1, monkeypatch),
        (0, Event("track")),
        (31 * MINUTE, Event("sweep", ("track", asked), "delivered")),
    )
    assert [one.outcome for one in seen.notifications] == ["delivered", "delivered"]
    assert a_visitor_is_not_left_active(seen)


def test_a_kept_end_does_not_expire_because_of_an_older_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The late end is older than all that is known; Elevate's limit counts from the latest."""
    seen = seen_of(
        OneSession(1, monkeypatch),
        (0, Event("track")),
        (31 * MINUTE, Event("end", ("late end",), "unavailable")),
        (31 * MINUTE, Event("sweep", (), "delivered")),
    )
    assert [one.outcome for one in seen.notifications] == ["unavailable", "delivered"]
    assert not seen.expiries
