"""The APIs of Elevate, one record each: all that differs between Elevate 3 and Elevate 4.

The facts are Voyado's documentation (docs.elevate.voyado.cloud). A new API is a new record.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sessions.lifetime import elevate3_ends_at, elevate4_ends_at
from sessions.session import UUID

# No control characters and no lone surrogates: those cannot be stored or sent as UTF-8. No U+FFFD,
# which stands for bytes that were none: two keys would become one session.
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]+$"

# What a shop sends by mistake for a key that it has not got. All its visitors would share one
# session, which the first to sign out would end for good, or be one customer. In any case of
# letters, and nothing that a shop could have made for one visitor.
_PLACEHOLDERS = (
    # nothing, as programs print it
    *("undefined", "null", "none", "nil", "nan", "false", "true", "0"),
    *("[object Object]", "{}", "[]", '""', "00000000-0000-0000-0000-000000000000"),
    # nobody, as people write it
    *("anonymous", "guest", "unknown"),
)
PLACEHOLDER = {
    "type": "string",
    # Blanks alone, or one of these: it costs linear time, whatever it is compared with.
    "pattern": rf"^(?i:\s+|{'|'.join(map(re.escape, _PLACEHOLDERS))})$",
    "description": "a placeholder such as undefined",
}

# Of each userContext, whether its visitors give a key.
type Contexts = Mapping[str, Mapping[str, Literal["required", "optional", "forbidden"]]]


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """How one of Elevate's APIs is spoken.

    `identity` returns the one spelling by which the registry knows a session key. `ends_at` takes
    the last activity, whether an interactive notification was seen, and the configured limit in
    seconds; it returns when Elevate has ended the session itself.
    """

    name: str
    host: str
    path: str
    prefix: str
    key: dict[str, Any]
    identity: Callable[[str], str]
    contexts: Contexts
    sends_context: bool
    needs_limit: bool
    ends_at: Callable[[float, bool | None, int], float]


WEB_V2 = Dialect(
    name="web-v2",
    host="https://{}.api.esales.apptus.cloud",
    path="/api/v2/notifications/end",
    prefix="esales.",
    key={
        # A UUID; Elevate is itself the judge of its version.
        "type": "string",
        "pattern": f"^{UUID}$",
        "description": "a UUID: 8-4-4-4-12 hexadecimal digits",
        "not": PLACEHOLDER,
    },
    # One system of a shop prints a UUID in upper case (SQL Server), another in lower case.
    identity=str.lower,
    # Elevate 3 knows no userContext and requires both keys of every call.
    contexts={
        "PERSONALIZED": {"customerKey": "required", "sessionKey": "required"},
        "SYNTHETIC": {"customerKey": "required", "sessionKey": "required"},
    },
    sends_context=False,
    needs_limit=True,
    ends_at=elevate3_ends_at,
)

STOREFRONT_V3 = Dialect(
    name="storefront-v3",
    host="https://{}.elevate-api.cloud",
    path="/api/storefront/v3/notifications/end",
    prefix="",
    key={
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": PRINTABLE,
        "description": "1 to 255 characters, none of them a control character",
        "not": PLACEHOLDER,
    },
    identity=str,
    contexts={
        "PERSONALIZED": {"customerKey": "required", "sessionKey": "required"},
        "UNPERSONALIZED": {"customerKey": "forbidden", "sessionKey": "required"},
        "SYNTHETIC": {"customerKey": "optional", "sessionKey": "optional"},
        "ANONYMOUS": {"customerKey": "forbidden", "sessionKey": "forbidden"},
    },
    sends_context=True,
    needs_limit=False,
    ends_at=elevate4_ends_at,
)

DIALECTS = {dialect.name: dialect for dialect in (WEB_V2, STOREFRONT_V3)}
