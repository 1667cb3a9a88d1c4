"""Elevate's rules for an end notification, in both dialects: what is accepted, what is refused."""

import re
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import parse_qsl

WEB_V2 = "/api/v2/notifications/end"
STOREFRONT_V3 = "/api/storefront/v3/notifications/end"

_UUID4 = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE
)


class Answer(NamedTuple):
    """An answer, as it goes over the wire."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def judge(method: str, target: str, markets: Collection[str]) -> Answer:
    """Return Elevate's answer to a request; without any markets, it accepts each."""
    path, _, query = target.partition("?")
    if path not in (WEB_V2, STOREFRONT_V3):
        return Answer(404, b"No such resource.")
    if method != "POST":
        return Answer(405, b"Use POST.", (("Allow", "POST"),))
    arguments = _arguments(query)
    if arguments is None:
        return Answer(400, b"The query is not percent-encoded UTF-8.")
    given = dict(arguments)
    if len(given) != len(arguments):
        return Answer(400, b"An argument is given twice.")
    wrong = _web_v2(given, markets) if path == WEB_V2 else _storefront_v3(given, markets)
    return Answer(400, wrong.encode()) if wrong else Answer(204)


def session_key(target: str) -> str:
    """Return the session key in a request's target, or nothing."""
    for name, value in _arguments(target.partition("?")[2]) or ():
        if name in ("esales.sessionKey", "sessionKey"):
            return value
    return ""


def _arguments(query: str) -> list[tuple[str, str]] | None:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        return None


def _web_v2(given: dict[str, str], markets: Collection[str]) -> str:
    if given.keys() != {"esales.market", "esales.customerKey", "esales.sessionKey"}:
        return "Required are esales.market, esales.customerKey and esales.sessionKey."
    if markets and given["esales.market"] not in markets:
        return "The market is not configured."
    for name in ("esales.customerKey", "esales.sessionKey"):
        if not _UUID4.fullmatch(given[name]):
            return f"The argument {name} is not a UUID v4."
    return ""


def _storefront_v3(given: dict[str, str], markets: Collection[str]) -> str:
    keys = {"customerKey", "sessionKey"}
    match given.get("userContext", "PERSONALIZED"):
        case "PERSONALIZED":
            wanted, allowed = keys, keys
        case "UNPERSONALIZED":
            wanted, allowed = {"sessionKey"}, {"sessionKey"}
        case "ANONYMOUS":
            wanted, allowed = set(), set()
        case "SYNTHETIC":
            wanted, allowed = set(), keys
        case _:
            return "The userContext is unknown."
    names = given.keys() - {"userContext"}
    if not {"market", *wanted} <= names <= {"market", *allowed}:
        return "The arguments do not fit the userContext."
    if markets and given["market"] not in markets:
        return "The market is not configured."
    if any(not 1 <= len(given[name]) <= 255 for name in names & keys):
        return "A key has 1 to 255 characters."
    return ""
