"""What callers may send: accepted as it is, or refused by field and without an echo."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.dialects import STOREFRONT_V3, WEB_V2
from sessions.schemas import Validator, Validators, session_from
from sessions.session import InvalidPayload, Session

CUSTOMER = "d9528030-509c-4e0f-b585-7168f1e9feca"
SESSION = "b106299c-eac0-4f6f-96d2-93e57c255784"
VALID = {"market": "UK", "customerKey": CUSTOMER, "sessionKey": SESSION}

web_v2 = Validators(WEB_V2, ()).session
storefront = Validators(STOREFRONT_V3, ()).session
activity = Validators(WEB_V2, ("UK", "SE")).keyless_activity


def refusal(validator: Validator, payload: Any) -> dict[str, str]:
    with pytest.raises(InvalidPayload) as refused:
        validator(payload)
    return {error["field"]: error["detail"] for error in refused.value.errors}


def test_a_valid_payload_becomes_a_session() -> None:
    web_v2(VALID)
    assert session_from(VALID, WEB_V2) == Session("UK", SESSION, CUSTOMER)


def test_the_case_of_a_uuid_makes_no_other_session_of_it() -> None:
    """SQL Server prints upper case, browsers lower; Elevate is sent what was given."""
    given = VALID | {"sessionKey": SESSION.upper(), "customerKey": CUSTOMER.upper()}
    expected = Session("UK", SESSION, CUSTOMER.upper(), given_key=SESSION.upper())
    assert session_from(given, WEB_V2) == expected


def test_a_key_of_elevate_4_is_kept_as_it_is() -> None:
    given = VALID | {"sessionKey": SESSION.upper()}
    assert session_from(given, STOREFRONT_V3) == Session("UK", SESSION.upper(), CUSTOMER)


def test_a_session_does_not_show_its_keys() -> None:
    upper = VALID | {"sessionKey": SESSION.upper()}
    shown = repr(session_from(upper, WEB_V2))
    assert SESSION not in shown.lower()
    assert CUSTOMER not in shown


@pytest.mark.parametrize("key", [SESSION.upper(), SESSION.replace("4f6f", "1f6f")])
def test_web_v2_takes_a_uuid_of_any_case_and_version(key: str) -> None:
    web_v2(VALID | {"sessionKey": key})


@pytest.mark.parametrize(
    "key",
    ["", " ", SESSION[:-1], SESSION + "\n", SESSION.replace("-", ""), "{" + SESSION + "}", 7, None],
)
def test_web_v2_refuses_what_is_not_a_uuid(key: object) -> None:
    detail = "must be a UUID: 8-4-4-4-12 hexadecimal digits"
    assert {"field": "sessionKey", "detail": detail} in web_v2.errors(VALID | {"sessionKey": key})


@pytest.mark.parametrize("key", ["x", "ü/?&=", "\U0001d4b3" * 255, "שלום", "a b", "null-1", "00"])
def test_storefront_takes_any_printable_key(key: str) -> None:
    storefront(VALID | {"sessionKey": key, "customerKey": key})


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x00b", "a\r\nb", "\x7f", "\x85", "\ud800", []])
def test_storefront_refuses_what_cannot_be_a_key(key: object) -> None:
    assert list(refusal(storefront, VALID | {"customerKey": key})) == ["customerKey"]


@pytest.mark.parametrize("name", ["customerKey", "sessionKey"])
@pytest.mark.parametrize(
    "key",
    [
        *(
            "undefined",
            "null",
            "NULL",
            "None",
            "nil",
            "NaN",
            "true",
            "False",
            "0",
            '""',
            "{}",
            "[]",
        ),
        *(
            "[object Object]",
            "anonymous",
            "Guest",
            "unknown",
            " ",
            "\u00a0 \u2003",
            str(UUID(int=0)),
        ),
    ],
)
def test_a_placeholder_is_no_key(name: str, key: str) -> None:
    """All visitors would share it: the second one's sign-out would end nothing."""
    detail = {"field": name, "detail": "must not be a placeholder such as undefined"}
    assert storefront.errors(VALID | {name: key}) == [detail]
    assert detail in web_v2.errors(VALID | {name: key})


def test_to_look_for_placeholders_costs_linear_time() -> None:
    """A regular expression that goes back over blanks would take hours for these."""
    for key in (" " * 10**6 + "x", "undefined" * 10**5, "[object " * 10**5):
        assert storefront.errors(VALID | {"sessionKey": key})


def test_a_field_that_breaks_two_rules_is_named_once() -> None:
    """An empty text is too short, and matches no pattern."""
    detail = "must be 1 to 255 characters, none of them a control character"
    assert storefront.errors(VALID | {"customerKey": ""}) == [
        {"field": "customerKey", "detail": detail}
    ]


def test_every_bad_field_is_named() -> None:
    payload = {"customerKey": "nobody", "sessionKey": SESSION, "more": 1}
    assert refusal(web_v2, payload) == {
        "market": "is required",
        "customerKey": "must be a UUID: 8-4-4-4-12 hexadecimal digits",
        "body": "may only have the fields market, customerKey, userContext, sessionKey",
    }


@pytest.mark.parametrize("payload", [None, [], "x", 1, True, [VALID]])
def test_what_is_not_an_object_is_refused(payload: object) -> None:
    assert refusal(web_v2, payload) == {"body": "must be a JSON object"}


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"userContext": "UNPERSONALIZED", "customerKey": CUSTOMER}, "customerKey"),
        ({"userContext": "PERSONALIZED"}, "customerKey"),
        ({}, "customerKey"),
        ({"userContext": "ANONYMOUS", "customerKey": CUSTOMER}, "userContext"),
        ({"userContext": None, "customerKey": CUSTOMER}, "userContext"),
    ],
)
def test_storefront_refuses_a_user_context_that_does_not_fit(
    payload: dict[str, Any], field: str
) -> None:
    assert list(refusal(storefront, {"market": "UK", "sessionKey": "s"} | payload)) == [field]


@pytest.mark.parametrize(
    "payload",
    [
        {"userContext": "UNPERSONALIZED"},
        {"userContext": "SYNTHETIC"},
        {"userContext": "SYNTHETIC", "customerKey": "c"},
        {"userContext": "PERSONALIZED", "customerKey": "c"},
    ],
)
def test_storefront_takes_the_documented_user_contexts(payload: dict[str, Any]) -> None:
    storefront({"market": "UK", "sessionKey": "s"} | payload)


def test_web_v2_cannot_end_an_unpersonalized_session() -> None:
    fields = refusal(
        web_v2, {"market": "UK", "sessionKey": SESSION} | {"userContext": "UNPERSONALIZED"}
    )
    assert set(fields) == {"customerKey", "userContext"}


@pytest.mark.parametrize("market", ["uk", "NO", "", 1, True, None, "UK "])
def test_only_configured_markets_are_accepted(market: object) -> None:
    payload = {"market": market, "customerKey": CUSTOMER}
    assert refusal(activity, payload) == {"market": "must be one of the configured markets"}


@pytest.mark.parametrize("validator", [web_v2, storefront])
def test_a_uuid_is_no_market(validator: Validator) -> None:
    """It would be a key in the wrong field, and markets are written to the log."""
    payload = VALID | {"market": SESSION}
    assert refusal(validator, payload) == {"market": "must not be a UUID"}


@pytest.mark.parametrize("interactive", ["true", 1, None])
def test_interactive_is_a_boolean(interactive: object) -> None:
    payload = {"market": "UK", "customerKey": CUSTOMER, "interactive": interactive}
    assert refusal(activity, payload) == {"interactive": "must be true or false"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={name: JSON for name in (*VALID, "userContext", "x")}))
def test_whatever_is_sent_is_accepted_or_refused_by_field(payload: dict[str, Any]) -> None:
    for validator in (web_v2, storefront, activity):
        known = {*VALID, "userContext", "interactive", "body"}
        assert {error["field"] for error in validator.errors(payload)} <= known


@given(st.text(min_size=20))
def test_a_refusal_echoes_nothing(secret: str) -> None:
    """Not even as the name of a field, where a key may end up by mistake."""
    with pytest.raises(InvalidPayload) as refused:
        web_v2({"market": "UK", "customerKey": secret, "sessionKey": secret, secret: secret})
    assert secret not in json.dumps(refused.value.errors, ensure_ascii=False)
    assert secret not in str(refused.value)
