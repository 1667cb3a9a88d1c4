"""The Session value, its state, and the JSON Schemas of what callers may send."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import fastjsonschema
from aws_lambda_powertools.utilities.validation.exceptions import SchemaValidationError

from sessions.settings import Dialect

type State = Literal["open", "ending", "retrying", "ended", "rejected", "expired"]


@dataclass(frozen=True, slots=True)
class Session:
    """What Elevate needs to know to end a session. The keys are bearer data: never in a repr."""

    market: str
    session_key: str = field(repr=False)
    customer_key: str | None = field(default=None, repr=False)
    user_context: str | None = None


@dataclass(frozen=True, slots=True)
class Activity:
    """A sign of life of a session at `at` (epoch seconds).

    `interactive` tells whether Elevate has seen an interactive notification; None is "not known".
    """

    session: Session
    at: int
    interactive: bool | None = None


class FieldError(TypedDict):
    """One bad field and what it must be. It never holds a value of the caller's."""

    field: str
    detail: str


class InvalidPayload(SchemaValidationError):
    """What a caller sent does not fit the schema; `errors` name the fields, and no value."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("invalid " + ", ".join(sorted({error["field"] for error in errors})))
        self.errors = errors


# No control characters and no lone surrogates: those cannot be stored or sent as UTF-8.
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+$"
_UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

_KEY: dict[Dialect, dict[str, Any]] = {
    # Elevate 3 wants a UUID and is itself the judge of its version.
    "web-v2": {
        "type": "string",
        "pattern": _UUID,
        "description": "a UUID: 8-4-4-4-12 hexadecimal digits",
    },
    "storefront-v3": {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": _PRINTABLE,
        "description": "1 to 255 characters, none of them a control character",
    },
}

# ANONYMOUS visitors have no session to end. UNPERSONALIZED ones have no customerKey, which
# Elevate 3 requires of every call.
_USER_CONTEXTS: dict[Dialect, list[str]] = {
    "web-v2": ["PERSONALIZED", "SYNTHETIC"],
    "storefront-v3": ["PERSONALIZED", "UNPERSONALIZED", "SYNTHETIC"],
}


def market_schema(markets: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of a market: one of `markets`, or any printable name when empty."""
    if markets:
        return {"enum": list(markets), "description": "one of the configured markets"}
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": _PRINTABLE,
        "description": "1 to 255 characters, none of them a control character",
    }


def session_schema(
    dialect: Dialect, markets: tuple[str, ...], *, key_in_body: bool = True, activity: bool = False
) -> dict[str, Any]:
    """Return the JSON Schema of a session (or, with `activity`, of a sign of life) in a payload."""
    properties: dict[str, Any] = {
        "market": market_schema(markets),
        "customerKey": _KEY[dialect],
        "userContext": {
            "enum": _USER_CONTEXTS[dialect],
            "description": "one of " + ", ".join(_USER_CONTEXTS[dialect]),
        },
    }
    required = ["market"]
    if key_in_body:
        properties["sessionKey"] = _KEY[dialect]
        required.append("sessionKey")
    if activity:
        properties["interactive"] = {"type": "boolean", "description": "true or false"}
    schema: dict[str, Any] = {
        "type": "object",
        "description": "a JSON object",
        "additionalProperties": False,
        "properties": properties,
    }
    if dialect == "web-v2":
        return schema | {"required": [*required, "customerKey"]}
    return schema | {
        "required": required,
        "allOf": [
            {
                "if": {
                    "required": ["userContext"],
                    "properties": {"userContext": {"const": "UNPERSONALIZED"}},
                },
                "then": {"properties": {"customerKey": False}},
            },
            {
                "if": {
                    "required": ["userContext"],
                    "properties": {"userContext": {"enum": ["UNPERSONALIZED", "SYNTHETIC"]}},
                },
                "else": {"required": ["customerKey"]},
            },
        ],
    }


def key_schema(dialect: Dialect) -> dict[str, Any]:
    """Return the JSON Schema of a single key, as in a path."""
    return _KEY[dialect]


class Validator:
    """A JSON Schema compiled once.

    Powertools' own `validate()` compiles the schema on each call, a thousand times the cost of the
    check itself; this calls the same engine and raises the same exception.
    """

    def __init__(self, schema: dict[str, Any], name: str = "body") -> None:
        self._check: Callable[[Any], Any] = fastjsonschema.compile(
            schema, use_default=False, fast_fail=False
        )
        self._name = name

    def __call__(self, data: Any) -> None:
        """Accept `data` or raise InvalidPayload with one entry for each bad field."""
        try:
            self._check(data)
        except fastjsonschema.JsonSchemaValuesException as invalid:
            raise InvalidPayload(_unique(self._describe(e) for e in invalid.errors)) from None

    def _describe(self, error: fastjsonschema.JsonSchemaValueException) -> list[FieldError]:
        match error.rule:
            case "required":
                missing = [name for name in error.definition["required"] if name not in error.value]
                return [{"field": name, "detail": "is required"} for name in missing]
            case "additionalProperties":
                # The names are the caller's, and a key may be among them by mistake.
                known = ", ".join(error.definition["properties"])
                return [{"field": self._name, "detail": f"may only have the fields {known}"}]
            case None:
                return [{"field": error.path[-1], "detail": "is not allowed with this userContext"}]
            case _:
                name = error.path[-1] if len(error.path) > 1 else self._name
                return [{"field": name, "detail": "must be " + error.definition["description"]}]


def _unique(errors: Iterable[list[FieldError]]) -> list[FieldError]:
    found = {(e["field"], e["detail"]): e for several in errors for e in several}
    return list(found.values())


def session_from(payload: dict[str, Any]) -> Session:
    """Return the session of a payload that its Validator has accepted."""
    return Session(
        market=payload["market"],
        session_key=payload["sessionKey"],
        customer_key=payload.get("customerKey"),
        user_context=payload.get("userContext"),
    )
