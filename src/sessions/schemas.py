"""JSON Schemas of what callers may send, and the validator that checks them."""

from collections.abc import Callable, Iterable
from typing import Any

import fastjsonschema

from sessions.dialects import PRINTABLE, Dialect
from sessions.session import FieldError, InvalidPayload


def market_schema(markets: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of a market: one of `markets`, or any printable name when empty."""
    if markets:
        return {"enum": list(markets), "description": "one of the configured markets"}
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": PRINTABLE,
        "description": "1 to 255 characters, none of them a control character",
    }


def session_schema(
    dialect: Dialect, markets: tuple[str, ...], *, key_in_body: bool = True, activity: bool = False
) -> dict[str, Any]:
    """Return the JSON Schema of a session (or, with `activity`, of a sign of life) in a payload."""
    properties: dict[str, Any] = {
        "market": market_schema(markets),
        "customerKey": dialect.key,
        "userContext": {
            "enum": list(dialect.contexts),
            "description": "one of " + ", ".join(dialect.contexts),
        },
    }
    required = ["market"]
    if key_in_body:
        properties["sessionKey"] = dialect.key
        required.append("sessionKey")
    if activity:
        properties["interactive"] = {"type": "boolean", "description": "true or false"}
    schema: dict[str, Any] = {
        "type": "object",
        "description": "a JSON object",
        "additionalProperties": False,
        "properties": properties,
    }
    if set(dialect.contexts.values()) == {"required"}:
        return schema | {"required": [*required, "customerKey"]}
    return schema | {
        "required": required,
        "allOf": [
            {
                "if": _context_is(dialect, "forbidden"),
                "then": {"properties": {"customerKey": False}},
            },
            {
                "if": _context_is(dialect, "forbidden", "optional"),
                "else": {"required": ["customerKey"]},
            },
        ],
    }


def _context_is(dialect: Dialect, *rules: str) -> dict[str, Any]:
    contexts = [name for name, rule in dialect.contexts.items() if rule in rules]
    # No userContext is PERSONALIZED.
    return {"required": ["userContext"], "properties": {"userContext": {"enum": contexts}}}


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
