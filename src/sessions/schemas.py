"""What callers may send: JSON Schemas, the rules of userContexts, and what checks both."""

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cached_property
from typing import Any

import fastjsonschema

from sessions.dialects import DIALECTS, PRINTABLE, WEB_V2, Contexts, Dialect
from sessions.session import FieldError, InvalidPayload, Session


def market_schema(markets: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of a market: one of `markets`, or any printable name when empty.

    A UUID is no market but a key in the wrong field, and markets are written to the log.
    """
    if markets:
        return {"enum": list(markets), "description": "one of the configured markets"}
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": PRINTABLE,
        "description": "1 to 255 characters, none of them a control character",
        "not": {"type": "string", "pattern": WEB_V2.key["pattern"], "description": "a UUID"},
    }


def session_schema(
    dialect: Dialect,
    contexts: Iterable[str],
    markets: tuple[str, ...],
    *,
    key_in_body: bool = True,
    activity: bool = False,
) -> dict[str, Any]:
    """Return the schema of a session (or, with `activity`, of a sign of life) in a payload."""
    properties: dict[str, Any] = {
        "market": market_schema(markets),
        "customerKey": dialect.key,
        "userContext": {"enum": list(contexts), "description": "one of " + ", ".join(contexts)},
    }
    required = ["market"]
    if key_in_body:
        properties["sessionKey"] = dialect.key
        required.append("sessionKey")
    if activity:
        properties["interactive"] = {"type": "boolean", "description": "true or false"}
        properties["at"] = {
            "type": "string",
            "format": "date-time",
            "description": "an ISO 8601 time with its offset, such as 2001-11-23T12:00:00.250Z",
        }
    return {
        "type": "object",
        "description": "a JSON object",
        "additionalProperties": False,
        "properties": properties,
        "required": required,
    }


def moment_of(text: str) -> float:
    """Return an ISO 8601 time with its offset from UTC as epoch seconds; raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without its offset may be any")
    return moment.timestamp()


def _is_moment(text: str) -> bool:
    try:
        moment_of(text)
    except ValueError:
        return False
    return True


def key_errors(contexts: Contexts, payload: dict[str, Any]) -> list[FieldError]:
    """Return which keys of a payload do not go with its userContext."""
    context = payload.get("userContext")
    if not isinstance(context, str) or context not in contexts:
        context = "PERSONALIZED"
    errors: list[FieldError] = []
    for name, rule in contexts[context].items():
        if rule == "required" and name not in payload:
            errors.append({"field": name, "detail": "is required"})
        if rule == "forbidden" and name in payload:
            errors.append({"field": name, "detail": "is not allowed with this userContext"})
    return errors


def renamed(prefix: str, errors: Iterable[FieldError]) -> list[FieldError]:
    """Return errors with their fields named as the caller wrote them, after a prefix."""
    return [{"field": prefix + error["field"], "detail": error["detail"]} for error in errors]


def session_from(payload: dict[str, Any], dialect: Dialect) -> Session:
    """Return the session of a payload that its Validator has accepted.

    The registry knows it by its key's identity. Elevate is sent the key as it was given here.
    """
    given = payload["sessionKey"]
    identity = dialect.identity(given)
    return Session(
        market=payload["market"],
        session_key=identity,
        customer_key=payload.get("customerKey"),
        user_context=payload.get("userContext"),
        given_key=given if given != identity else None,
    )


class Validator:
    """A JSON Schema, compiled when it is first needed, and what `contexts` say of the keys.

    Powertools' own `validate()` compiles the schema on each call, a thousand times the cost of the
    check itself; this calls the same engine and raises the same exception.
    """

    def __init__(self, schema: dict[str, Any], name: str, contexts: Contexts | None = None) -> None:
        self.schema = schema
        self._name = name
        self._contexts = contexts

    def __call__(self, data: Any) -> None:
        """Accept `data` or raise InvalidPayload with one entry for each bad field."""
        if errors := self.errors(data):
            raise InvalidPayload(errors)

    def errors(self, data: Any) -> list[FieldError]:
        """Return one entry for each bad field of `data`."""
        found: list[FieldError] = []
        try:
            self._check(data)
        except fastjsonschema.JsonSchemaValuesException as invalid:
            for error in invalid.errors:
                found += self._describe(error)
        if self._contexts and isinstance(data, dict):
            found += key_errors(self._contexts, data)
        # A value that breaks two rules of its field is described once.
        return list({(entry["field"], entry["detail"]): entry for entry in found}.values())

    @cached_property
    def _check(self) -> Callable[[Any], Any]:
        check: Callable[[Any], Any] = fastjsonschema.compile(
            self.schema, formats={"date-time": _is_moment}, use_default=False, fast_fail=False
        )
        return check

    def _describe(self, error: fastjsonschema.JsonSchemaValueException) -> list[FieldError]:
        match error.rule:
            case "required":
                missing = [name for name in error.definition["required"] if name not in error.value]
                return [{"field": name, "detail": "is required"} for name in missing]
            case "additionalProperties":
                # The names are the caller's, and a key may be among them by mistake.
                known = ", ".join(error.definition["properties"])
                return [{"field": self._name, "detail": f"may only have the fields {known}"}]
            case rule:
                name = error.path[-1] if len(error.path) > 1 else self._name
                detail = "must be " + error.definition["description"]
                if rule == "not":
                    detail = "must not be " + error.definition["not"]["description"]
                return [{"field": name, "detail": detail}]


class Validators:
    """What checks each kind of input, for the configured dialect and markets.

    `session` is one to end. `activity` is a sign of life, `keyless_activity` one whose session key
    is in the path.
    """

    def __init__(self, dialect: Dialect, markets: tuple[str, ...]) -> None:
        # Only who has a session can end it, and gives its key whatever the userContext.
        contexts: Contexts = {
            name: {"customerKey": keys["customerKey"]}
            for name, keys in dialect.contexts.items()
            if keys["sessionKey"] != "forbidden"
        }

        self._dialect = dialect

        def session(**parts: bool) -> Validator:
            return Validator(session_schema(dialect, contexts, markets, **parts), "body", contexts)

        self.session = session()
        self.activity = session(activity=True)
        self.keyless_activity = session(activity=True, key_in_body=False)
        self.key = Validator(dialect.key, "sessionKey")
        self.market = Validator(market_schema(markets), "market")
        self._visitors = {}
        for spoken in DIALECTS.values():
            schema = session_schema(spoken, spoken.contexts, markets) | {"required": ["market"]}
            self._visitors[spoken] = Validator(schema, "query", spoken.contexts)

    def session_of(self, visitor: dict[str, Any], spoken: Dialect) -> Session | None:
        """Return a visitor's session, None for one without; `spoken` is the dialect it came in.

        Raises InvalidPayload, also for what the configured dialect has no words for.
        """
        self._visitors[spoken](visitor)
        if "sessionKey" not in visitor:
            return None
        self.session(visitor)
        return session_from(visitor, self._dialect)
