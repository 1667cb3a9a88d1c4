"""The real template.yaml, deployed: from its URL and its bus to Elevate."""

import uuid
from datetime import datetime
from typing import Any
from urllib.parse import urlencode, urljoin

import pytest

from stack.conftest import Deployed, new_session, wait_for

WEB_V2 = "/api/v2/notifications/end"
SCHEDULE_SECONDS = 60
EMULATOR_TICK_SECONDS = 10


@pytest.fixture(scope="module", autouse=True)
def left_alone(deployed: Deployed) -> dict[str, str]:
    """Track a session before all other tests, so that it goes quiet while they run."""
    session = new_session("Sverige & Norge/ü")
    assert deployed.track(session).status == 204
    return session | {"dueAt": deployed.state(session)["dueAt"]}


# -- ending over the API -----------------------------------------------------------------------


def test_an_end_reaches_elevate_as_documented_and_once(deployed: Deployed) -> None:
    session = new_session()
    assert [deployed.end(session).status for _ in range(2)] == [204, 204]
    (received,) = deployed.received(session)
    assert (received["method"], received["path"], received["status"]) == ("POST", WEB_V2, 204)
    assert received["rawQuery"] == (
        f"esales.market=UK&esales.customerKey={session['customerKey']}"
        f"&esales.sessionKey={session['sessionKey']}"
    )
    assert deployed.state(session)["state"] == "ended"


def test_elevates_own_routes_deliver_what_was_meant_for_elevate(deployed: Deployed) -> None:
    """The request that Elevate documents, market encoded, at its path under our stage."""
    for path, prefix in (("/v2", "esales."), ("/storefront/v3", "")):
        session = new_session("Sverige & Norge/ü")
        query = urlencode({prefix + name: value for name, value in session.items()})
        answer = deployed.call("POST", f"{path}/notifications/end?{query}")
        assert (answer.status, answer.body) == (204, "")
        (received,) = deployed.received(session)
        assert received["status"] == 204
        refused = deployed.call("POST", f"{path}/notifications/end")
        assert refused.status == 400
        assert refused.json["errors"][0]["field"].startswith(prefix)


def test_an_end_that_elevate_cannot_take_is_kept_and_delivered_later(deployed: Deployed) -> None:
    session = new_session()
    deployed.fault("busy", retryAfter=1)
    answer = deployed.end(session)
    assert answer.status == 202
    url = deployed.info["apiUrl"]
    location = urljoin(f"{url}/sessions/end", answer.headers["Location"])
    status = deployed.call("GET", location.removeprefix(url)).json["sessions"][0]
    assert (status["state"], status["attempts"], status["lastStatus"]) == ("retrying", 1, 503)
    deployed.fault("none")

    def delivered() -> bool:
        deployed.put_event("Session Sweep", {})
        return bool(deployed.state(session)["state"] == "ended")

    wait_for(delivered, 60)
    assert [n["status"] for n in deployed.received(session)] == [503, 204]


def test_a_rejected_end_is_reported_and_can_be_retried(deployed: Deployed) -> None:
    session = new_session("SE")
    deployed.fault("reject")
    answer = deployed.end(session)
    assert (answer.status, answer.json["elevateStatus"]) == (422, 400)
    assert answer.headers["Content-Type"] == "application/problem+json"
    # On a busy machine the emulator may be too slow for the outcome to be written; then the session
    # is due again after its lease.
    wait_for(lambda: deployed.state(session)["state"] == "rejected", 180)
    deployed.fault("none")
    assert deployed.operate_json("retry-rejected", "--market", "SE")["retried"] > 0
    assert deployed.state(session)["state"] != "rejected"


# -- tracking ----------------------------------------------------------------------------------


def test_sign_in_replaces_the_customer_key(deployed: Deployed) -> None:
    visitor = new_session()
    signed_in = visitor | {"customerKey": str(uuid.uuid4())}
    assert deployed.track(visitor).status == 204
    assert deployed.track(signed_in, interactive=True).status == 204
    assert deployed.received(visitor) == [], "signing in ends nothing"
    assert deployed.end(signed_in).status == 204
    (received,) = deployed.received(visitor)
    assert received["query"]["esales.customerKey"] == signed_in["customerKey"]


def test_an_ended_session_cannot_be_tracked(deployed: Deployed) -> None:
    session = new_session()
    deployed.end(session)
    answer = deployed.track(session)
    assert (answer.status, answer.json["type"]) == (
        409,
        "urn:elevate-sessions:problem:session-over",
    )


def test_a_status_has_every_market_and_no_customer_key(deployed: Deployed) -> None:
    british = new_session()
    swedish = british | {"market": "SE"}
    deployed.track(british)
    deployed.track(swedish)
    answer = deployed.call("GET", f"/sessions/{british['sessionKey']}")
    assert {state["market"] for state in answer.json["sessions"]} == {"UK", "SE"}
    assert british["customerKey"] not in answer.body
    assert deployed.state(swedish)["market"] == "SE"


def test_an_unknown_session_is_not_found(deployed: Deployed) -> None:
    session = new_session()
    assert deployed.call("GET", f"/sessions/{session['sessionKey']}").status == 404


# -- events ------------------------------------------------------------------------------------


def test_an_event_ends_a_session(deployed: Deployed) -> None:
    session = new_session()
    deployed.put_event("Session Ended", session)
    wait_for(lambda: deployed.received(session))


def test_an_event_ends_many_sessions_and_the_valid_ones_of_a_partly_invalid_list(
    deployed: Deployed,
) -> None:
    sessions = [new_session() for _ in range(30)]
    bad = new_session("Atlantis")
    deployed.put_event("Session Ended", {"sessions": [*sessions, bad]})
    wait_for(lambda: all(deployed.received(session) for session in sessions))
    assert deployed.received(bad) == []


def test_an_event_tracks_a_session(deployed: Deployed) -> None:
    session = new_session()
    deployed.put_event("Session Active", session | {"interactive": True})
    path = f"/sessions/{session['sessionKey']}"
    wait_for(lambda: deployed.call("GET", path).status == 200)
    assert deployed.state(session)["state"] == "open"


# -- bad input --------------------------------------------------------------------------------

GOOD = new_session()
KEY = GOOD["sessionKey"]
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "not JSON": ({"raw": b"{"}, 400, "body"),
    "not an object": ({"body": [GOOD]}, 400, "body"),
    "empty": ({"raw": b""}, 400, "body"),
    "NaN": ({"raw": b'{"market": NaN}'}, 400, "body"),
    "a name twice": ({"raw": b'{"market": "UK", "market": "SE"}'}, 400, "body"),
    "wrong type": ({"body": GOOD | {"market": 7}}, 400, "market"),
    "missing": ({"body": {"market": "UK", "sessionKey": KEY}}, 400, "customerKey"),
    "extra": ({"body": GOOD | {"extra": KEY}}, 400, "body"),
    "a key as a name": ({"body": GOOD | {KEY: 1}}, 400, "body"),
    "empty field": ({"body": GOOD | {"sessionKey": ""}}, 400, "sessionKey"),
    "over-long field": ({"body": GOOD | {"customerKey": KEY * 2}}, 400, "customerKey"),
    "unknown market": ({"body": GOOD | {"market": "uk"}}, 400, "market"),
    "control character": ({"body": GOOD | {"sessionKey": KEY + "\n"}}, 400, "sessionKey"),
    "lone surrogate": ({"raw": b'{"market": "\\ud800"}'}, 400, "market"),
    "deep nesting": ({"raw": b"[" * 8000}, 400, "body"),
    "too large": ({"body": GOOD | {"market": "x" * 16_384}}, 413, "body"),
    "wrong content type": (
        {"body": GOOD, "headers": {"Content-Type": "text/html"}},
        415,
        "content-type",
    ),
}


@pytest.mark.parametrize(("arguments", "status", "field"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_by_field_and_changes_nothing(
    deployed: Deployed, arguments: dict[str, Any], status: int, field: str
) -> None:
    answer = deployed.call("POST", "/sessions/end", **arguments)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert field in {error["field"] for error in answer.json["errors"]}
    for key in (GOOD["sessionKey"], GOOD["customerKey"]):
        assert key not in answer.body
    assert deployed.received(GOOD) == []
    assert deployed.call("GET", f"/sessions/{GOOD['sessionKey']}").status == 404


def test_a_bad_path_query_and_activity_are_refused(deployed: Deployed) -> None:
    key = new_session()["sessionKey"]
    track = deployed.call("PUT", "/sessions/nobody", {"market": "UK", "interactive": 1})
    fields = {error["field"] for error in track.json["errors"]}
    assert (track.status, fields) == (400, {"sessionKey", "customerKey", "interactive"})
    assert deployed.call("GET", "/sessions/nobody").status == 400
    assert deployed.call("GET", f"/sessions/{key}?market=Atlantis").status == 400
    assert deployed.call("GET", f"/sessions/{key}?market=UK&market=SE").status == 400


def test_callers_without_a_valid_key_get_nothing(deployed: Deployed) -> None:
    session = new_session()
    for headers in ({"x-api-key": ""}, {"x-api-key": "guess"}):
        answer = deployed.call("POST", "/sessions/end", session, headers=headers)
        assert answer.status == 403
    assert deployed.received(session) == []


def test_an_event_of_an_unknown_kind_does_not_vanish(deployed: Deployed) -> None:
    kind, session = f"Session ended {uuid.uuid4().hex[:12]}", new_session()
    deployed.put_event(kind, session)
    wait_for(
        lambda: [
            line for line in deployed.log_lines("unknown event") if line["detail_type"] == kind
        ]
    )
    assert deployed.received(session) == []
    # The known kinds do not end up here.
    deployed.put_event("Session Ended", session)
    wait_for(lambda: deployed.received(session))
    assert {line["detail_type"] for line in deployed.log_lines("unknown event")} == {kind}


# -- the schedule, and what was written --------------------------------------------------------


@pytest.mark.waits
def test_a_session_left_alone_is_ended_by_the_schedule_within_two_ticks_and_once(
    deployed: Deployed, left_alone: dict[str, str]
) -> None:
    due_at = datetime.fromisoformat(left_alone["dueAt"]).timestamp()
    (received,) = wait_for(lambda: deployed.received(left_alone), 200)
    assert received["query"]["esales.market"] == "Sverige & Norge/ü"
    assert due_at <= received["time"] <= due_at + 2 * (SCHEDULE_SECONDS + EMULATOR_TICK_SECONDS)
    wait_for(lambda: deployed.state(left_alone)["state"] == "ended")
    assert len(deployed.received(left_alone)) == 1


def test_no_key_is_in_any_log(deployed: Deployed, left_alone: dict[str, str]) -> None:
    session = new_session()
    deployed.end(session)
    wait_for(lambda: len(deployed.log_lines("notification")) > 30)
    text = deployed.log_text()
    for keys in (session, left_alone, GOOD):
        assert keys["sessionKey"] not in text
        assert keys["customerKey"] not in text
