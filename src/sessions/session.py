"""The values that every module may import: a session, what is known of it, and the errors."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from aws_lambda_powertools.utilities.validation.exceptions import SchemaValidationError

# A UUID of any version, as a regular expression.
UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

type State = Literal["open", "retrying", "ending", "ended", "rejected", "expired"]
type Source = Literal["api", "event", "sweep"]


@dataclass(frozen=True, slots=True)
class Session:
    """What Elevate needs to know to end a session. The keys are bearer data: never in a repr.

    `given_key` is how the caller spelled the session key, where that is not how the registry does.
    """

    market: str
    session_key: str = field(repr=False)
    customer_key: str | None = field(default=None, repr=False)
    user_context: str | None = None
    given_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Activity:
    """A sign of life of a session at `at` (epoch seconds, with milliseconds if its reporter knows).

    `interactive` tells whether Elevate has seen an interactive notification; None is "not known".
    """

    session: Session
    at: float
    interactive: bool | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A session with what a decision about it needs; times in epoch seconds."""

    session: Session
    due_at: int | None  # None: not in the index
    active_at: float
    shard: int = 0
    attempts: int = 0
    interactive: bool | None = None
    requested_at: float | None = None

    @property
    def alive_at(self) -> float:
        """Return the last moment at which the session is known to have been alive."""
        return max(self.active_at, self.requested_at or 0)


@dataclass(frozen=True, slots=True)
class Claim:
    """A row under our lease, taken at `at` (epoch seconds)."""

    row: Row
    lease: str
    at: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one notification.

    `sent` is False when the breaker was open and nothing was sent; `timed_out` says that Elevate
    kept the caller waiting for as long as it may. `reason` is safe to log and to
    store: at most 1 KB, plain words only. `retry_after` is what Elevate asked for, in seconds.
    """

    kind: Literal["delivered", "rejected", "unavailable"]
    status: int | None = None
    reason: str = ""
    retry_after: int | None = None
    latency_ms: float = 0.0
    sent: bool = True
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to write about a claimed session; `open` gives it back. `due_at` is for `retrying`."""

    state: State
    due_at: int | None = None
    attempts: int = 0
    status: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """What may be shown of a session: everything but the customerKey."""

    market: str
    state: State
    due_at: int | None
    attempts: int
    last_status: int | None
    last_reason: str | None


def hashed(key: str | None) -> str | None:
    """Return what stands for a key in logs: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else None


class FieldError(TypedDict):
    """One bad field and what it must be. It never holds a value of the caller's."""

    field: str
    detail: str


class InvalidPayload(SchemaValidationError):
    """What a caller sent does not fit the schema; `errors` name the fields, and no value."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("invalid " + ", ".join(sorted({error["field"] for error in errors})))
        self.errors = errors


class RegistryUnavailable(Exception):
    """DynamoDB did not take a call, retries included; the message names the error only."""


class UnreadableRow(Exception):
    """A row has attributes or a state that this version does not understand."""
