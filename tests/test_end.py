"""The end function, called with the sample events as API Gateway and EventBridge call it."""

import base64
import json
import time
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest

from emulated import FakeElevate, Log
from handler import end, track
from handler.application import Application
from handler.events import MAX_SESSIONS, EventFailed, InvalidEvent, NotKept
from invoking import Context, forget, moment, sample, with_body
from sessions.lifetime import DAY

pytestmark = pytest.mark.usefixtures("application")


def call(event: dict[str, Any]) -> dict[str, Any]:
    answer = end.handle(event, Context())
    assert answer is not None
    return answer


def problem(answer: dict[str, Any]) -> Any:
    assert answer["headers"]["Content-Type"] == "application/problem+json"
    return json.loads(answer["body"])


def test_the_sample_call_is_delivered(elevate: FakeElevate) -> None:
    answer = call(sample("api_end"))
    assert (answer["statusCode"], answer["body"]) == (204, "")
    assert elevate.keys() == ["b106299c-eac0-4f6f-96d2-93e57c255784"]


def test_an_end_of_a_session_that_was_ended_for_another_visitor_is_counted(
    elevate: FakeElevate, capsys: pytest.CaptureFixture[str]
) -> None:
    call(sample("api_end"))
    another = with_body("api_end", customerKey="0b2d6f6e-3a54-4a6e-8f0a-5f2b4f9d8f11")
    assert call(another)["statusCode"] == 204
    assert len(elevate.received) == 1
    assert '"TrackedTooLate":[1.0]' in capsys.readouterr().out


def test_if_elevate_is_unavailable_the_answer_is_202_with_a_location(elevate: FakeElevate) -> None:
    elevate.statuses = [503]
    answer = call(sample("api_end"))
    assert answer["statusCode"] == 202
    location = "../sessions/b106299c-eac0-4f6f-96d2-93e57c255784?market=UK"
    assert answer["headers"]["Location"] == location


@pytest.mark.parametrize(
    "base",
    [
        "https://id.execute-api.eu-west-1.amazonaws.com/api",
        "https://sessions.shop.example",  # a custom domain
        "https://api.shop.example/base/path",
        "http://127.0.0.1:4566/_aws/execute-api/id/api",
    ],
)
def test_the_location_resolves_to_the_session_whatever_the_key_and_the_base_url(
    base: str, elevate: FakeElevate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELEVATE_API", "storefront-v3")
    monkeypatch.setenv("MARKETS", "")
    forget()
    elevate.statuses = [503]
    for key in ("b106299c-eac0-4f6f-96d2-93e57c255784", "a/b:c?d#e%2F/../é", "//other.example"):
        answer = call(with_body("api_end", sessionKey=key, market="A&B/ü"))
        place = urlsplit(urljoin(f"{base}/sessions/end", answer["headers"]["Location"]))
        path = f"{place.scheme}://{place.netloc}{place.path}"
        name = path.removeprefix(f"{base}/sessions/")
        assert "/" not in name
        market = parse_qs(place.query, strict_parsing=True)
        looked = sample(
            "api_status",
            pathParameters={"sessionKey": name},
            multiValueQueryStringParameters=market,
        )
        status = track.handle(looked, Context())
        assert status is not None
        assert status["statusCode"] == 200


def test_a_rejection_answers_422(elevate: FakeElevate) -> None:
    elevate.statuses = [400]
    answer = call(sample("api_end"))
    assert answer["statusCode"] == 422
    assert problem(answer)["elevateStatus"] == 400


def test_with_neither_elevate_nor_registry_the_caller_must_try_again(
    elevate: FakeElevate, nowhere: None
) -> None:
    elevate.statuses = [503]
    answer = call(sample("api_end"))
    assert answer["statusCode"] == 503
    assert int(answer["headers"]["Retry-After"]) > 0
    assert problem(answer)["title"] == "Service Unavailable"


def test_with_the_registry_alone_down_elevate_is_notified(
    elevate: FakeElevate, nowhere: None
) -> None:
    assert call(sample("api_end"))["statusCode"] == 204
    assert len(elevate.received) == 1


@pytest.fixture
def nowhere(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the registry unreachable."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget()


def test_a_base64_body_is_refused() -> None:
    body = base64.b64encode(b"{}").decode()
    answer = call(sample("api_end", body=body, isBase64Encoded=True))
    assert (answer["statusCode"], problem(answer)["errors"][0]["field"]) == (400, "body")


@pytest.mark.parametrize(
    "headers", [None, {}, {"content-type": "application/jsonp"}, {"Content-Type": ""}]
)
def test_what_is_not_declared_json_is_refused(headers: Any) -> None:
    assert call(sample("api_end", headers=headers))["statusCode"] == 415


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "text/plain;charset=UTF-8"],  # the latter is a beacon's
)
def test_a_charset_does_no_harm(content_type: str) -> None:
    headers = {"CONTENT-TYPE": content_type}
    assert call(sample("api_end", headers=headers))["statusCode"] == 204


def test_tracking_takes_no_plain_text() -> None:
    """No page tracks by a beacon, which cannot carry the key."""
    answer = track.handle(sample("api_track", headers={"Content-Type": "text/plain"}), Context())
    assert answer is not None
    assert answer["statusCode"] == 415


CORS = "Access-Control-"
SHOPS = ("https://shop.se", "https://shop.no")


@pytest.fixture
def shops(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the origins of a shop with two sites."""
    monkeypatch.setenv("CORS_ORIGINS", ",".join(SHOPS))
    forget()


def cors(answer: dict[str, Any]) -> dict[str, str]:
    """Return what an answer says to a browser."""
    return {n: value for n, value in answer["headers"].items() if n.startswith(CORS)}


@pytest.mark.usefixtures("shops")
@pytest.mark.parametrize("origin", SHOPS)
@pytest.mark.parametrize("body", [None, sample("api_end")["body"]], ids=["refused", "ended"])
def test_a_page_of_a_shop_may_read_every_answer(origin: str, body: str | None) -> None:
    headers = {"content-type": "application/json", "origin": origin}
    answer = call(sample("api_end", headers=headers, body=body))
    assert answer["statusCode"] == (204 if body else 400)
    assert answer["headers"]["Vary"] == "Origin"
    assert cors(answer) == {
        f"{CORS}Allow-Origin": origin,
        f"{CORS}Allow-Credentials": "true",
        f"{CORS}Expose-Headers": "Location, Retry-After",
    }


@pytest.mark.usefixtures("shops")
def test_a_page_of_a_shop_may_ask_before_it_sends() -> None:
    answer = call(sample("api_end", httpMethod="OPTIONS", headers={"Origin": SHOPS[1]}))
    asked = cors(answer)
    assert (answer["statusCode"], asked[f"{CORS}Allow-Methods"]) == (204, "POST")
    assert (asked[f"{CORS}Allow-Origin"], asked[f"{CORS}Allow-Credentials"]) == (SHOPS[1], "true")
    assert "content-type" in asked[f"{CORS}Allow-Headers"]


@pytest.mark.usefixtures("shops")
@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
@pytest.mark.parametrize(
    "origin", ["https://shop.example", "https://shop.s", "null", "", ",".join(SHOPS), None]
)
def test_a_page_of_others_reads_nothing(origin: str | None, method: str) -> None:
    headers = {"Content-Type": "application/json"} | ({"Origin": origin} if origin else {})
    answer = call(sample("api_end", httpMethod=method, headers=headers))
    assert (answer["statusCode"], cors(answer)) == (204, {})
    assert answer["headers"]["Vary"] == "Origin"


def test_without_origins_no_answer_speaks_to_browsers() -> None:
    headers = {"Content-Type": "application/json", "Origin": ""}
    answer = call(sample("api_end", headers=headers))
    assert (cors(answer), "Vary" in answer["headers"]) == ({}, False)


@pytest.mark.parametrize("body", [None, "", "null", "{", "[]", '{"a":1,"a":1}', "1e999", "\ud800"])
def test_what_is_not_a_session_is_refused(body: Any, elevate: FakeElevate) -> None:
    assert call(sample("api_end", body=body))["statusCode"] == 400
    assert elevate.received == []


def test_16_kb_are_accepted_and_one_byte_more_is_not() -> None:
    body = sample("api_end")["body"]
    largest = body + " " * (16 * 1024 - len(body))
    assert call(sample("api_end", body=largest))["statusCode"] == 204
    assert call(sample("api_end", body=largest + " "))["statusCode"] == 413


def test_the_limit_counts_bytes_not_characters() -> None:
    body = json.dumps({"market": "ü" * 9000}, ensure_ascii=False)
    assert call(sample("api_end", body=body))["statusCode"] == 413


def test_a_name_that_is_given_twice_is_refused(elevate: FakeElevate) -> None:
    """Parsers disagree on which of the two counts."""
    body = sample("api_end")["body"].rstrip().removesuffix("}") + ', "market": "UK"}'
    answer = call(sample("api_end", body=body))
    detail = "must be valid JSON, with each name given once"
    assert answer["statusCode"] == 400
    assert problem(answer)["errors"] == [{"field": "body", "detail": detail}]
    assert elevate.received == []


@pytest.mark.parametrize(
    "changes",
    [{"body": "{"}, {"body": " " * 20_000}, {"headers": {}}, {"isBase64Encoded": True}],
    ids=["not JSON", "too large", "not declared JSON", "base64"],
)
def test_what_is_refused_before_the_schema_is_checked_is_counted_too(
    changes: dict[str, Any], capsys: pytest.CaptureFixture[str], log: Log
) -> None:
    assert call(sample("api_end", **changes))["statusCode"] in (400, 413, 415)
    assert '"Invalid":[1.0]' in capsys.readouterr().out
    assert [line["message"] for line in log()] == ["refused"]


def test_a_route_that_the_template_has_and_the_function_has_not_is_a_defect(log: Log) -> None:
    answer = call(sample("api_end", resource="/sessions/stop"))
    assert (answer["statusCode"], [line["message"] for line in log()]) == (500, ["crashed"])


def test_a_bug_of_ours_is_a_500_that_reveals_nothing(
    application: Application, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("b106299c-eac0-4f6f-96d2-93e57c255784")

    monkeypatch.setattr(application.ending, "end", broken)
    answer = call(sample("api_end"))
    assert answer["statusCode"] == 500
    assert "b106299c" not in answer["body"]
    (crash,) = [line for line in log() if line.get("message") == "crashed"]
    assert crash["error"] == "KeyError"
    assert "b106299c" not in json.dumps(crash)


# -- events ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("session_ended", 1), ("sessions_ended", 2)])
def test_the_sample_events_are_delivered(elevate: FakeElevate, name: str, count: int) -> None:
    end.handle(sample(name), Context())
    assert len(elevate.received) == count


@pytest.mark.parametrize(("days", "count"), [(0.9, 1), (1.1, 0)])
def test_an_event_counts_from_its_own_time(elevate: FakeElevate, days: float, count: int) -> None:
    """After a day, the limit here, Elevate must have ended the session itself."""
    end.handle(sample("session_ended", time=moment(time.time() - days * DAY)), Context())
    assert len(elevate.received) == count


def test_an_event_delivered_twice_ends_the_session_once(elevate: FakeElevate) -> None:
    for _ in range(2):
        end.handle(sample("session_ended"), Context())
    assert len(elevate.received) == 1


def test_the_valid_part_of_an_event_is_processed_and_the_event_is_dead_lettered(
    elevate: FakeElevate,
) -> None:
    event = sample("sessions_ended")
    event["detail"]["sessions"].append({"market": "UK"})
    with pytest.raises(InvalidEvent, match=r"sessions\[2\]\.sessionKey"):
        end.handle(event, Context())
    assert len(elevate.received) == 2


def test_what_is_valid_in_a_list_of_junk_is_done_first_and_the_junk_is_one_line(
    elevate: FakeElevate, log: Log
) -> None:
    event = sample("sessions_ended")
    event["detail"]["sessions"][:0] = [0] * 19_998
    with pytest.raises(InvalidEvent):
        end.handle(event, Context())
    assert len(elevate.received) == 2
    *done, refused = log()
    assert [line["message"] for line in done] == ["notification"] * 2
    assert refused["message"] == "refused"
    *described, others = refused["errors"]
    assert described == [
        {"field": f"sessions[{n}].body", "detail": "must be a JSON object"} for n in range(10)
    ]
    assert others == {"field": "sessions", "detail": "19988 more are invalid"}


def test_a_list_that_is_too_long_for_sessions_is_refused_as_it_is(
    elevate: FakeElevate, log: Log
) -> None:
    event = sample("sessions_ended")
    (session, _) = event["detail"]["sessions"]
    event["detail"]["sessions"] = [session] + [0] * 20_000
    with pytest.raises(InvalidEvent):
        end.handle(event, Context())
    assert elevate.received == []
    (refused,) = log()
    detail = "must be a list of at most 20000 sessions"
    assert refused["errors"] == [{"field": "sessions", "detail": detail}]


def test_an_event_full_of_sessions_has_no_list_that_is_too_long() -> None:
    """EventBridge takes 1 MiB, and these are smaller than what any shop sends."""
    session = {"market": "M", "customerKey": "c", "sessionKey": "xyz"}
    text = json.dumps([session] * MAX_SESSIONS, separators=(",", ":"))
    assert len(text) > 0.99 * 1024 * 1024


@pytest.mark.parametrize("detail", [None, [], "x", {}, {"sessions": None}, {"sessions": [1, None]}])
def test_an_event_without_a_session_is_invalid(detail: Any) -> None:
    with pytest.raises(InvalidEvent):
        end.handle(sample("session_ended", detail=detail), Context())


def test_an_event_without_any_sessions_in_its_list_is_fine(elevate: FakeElevate) -> None:
    end.handle(sample("session_ended", detail={"sessions": []}), Context())
    assert elevate.received == []


@pytest.mark.parametrize("event", [{}, {"Records": []}, {"detail-type": "Session Ended"}])
def test_an_event_of_another_shape_is_invalid(event: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        end.handle(event, Context())


def test_an_event_that_was_not_kept_is_delivered_again(elevate: FakeElevate, nowhere: None) -> None:
    elevate.statuses = [503]
    with pytest.raises(NotKept):
        end.handle(sample("session_ended"), Context())


def test_what_is_lost_is_delivered_again_even_if_part_is_invalid(
    elevate: FakeElevate, nowhere: None
) -> None:
    """NotKept asks for another delivery, so it takes precedence over InvalidEvent."""
    elevate.statuses = [503]
    event = sample("sessions_ended")
    event["detail"]["sessions"].append({"market": "UK"})
    with pytest.raises(NotKept, match="2 of 2"):
        end.handle(event, Context())


def test_an_unexpected_error_names_no_key(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("b106299c-eac0-4f6f-96d2-93e57c255784")

    monkeypatch.setattr(application.ending, "end_all", broken)
    with pytest.raises(EventFailed, match=r"^ValueError$") as failed:
        end.handle(sample("session_ended"), Context())
    assert failed.value.__cause__ is None


def test_a_web_v2_cluster_does_not_know_unpersonalized_visitors() -> None:
    answer = call(with_body("api_end", userContext="UNPERSONALIZED"))
    assert [error["field"] for error in problem(answer)["errors"]] == ["userContext"]
