"""The faults of the simulated Elevate: which there are, and what may be asked of each.

    none     answer as documented
    down     drop the connection as soon as it asks for something, without an answer
    busy     answer 503, with `Retry-After: retryAfter` when that is given
    slow     take the notification at once, answer after `seconds` (2)
    hang     take the request and never answer, until the client leaves or the fault changes
    reset    take the notification, then reset the connection in the middle of the answer
    reject   answer 400
    garbage  answer bytes that are not HTTP
    flaky    with probability `rate` (0.5) be busy, reset, down or slow, else answer as documented

`for` is how many seconds a fault lasts; for a kind without delays, `seconds` means the same.
"""

import random
from typing import Any

KINDS = ("none", "down", "busy", "slow", "hang", "reset", "reject", "garbage", "flaky")

_FLAKY = ("busy", "reset", "down", "slow")
_DELAYS = ("slow", "flaky")


def fault_of(given: Any) -> dict[str, Any]:
    """Return a fault that is understood, without what is null; raises ValueError."""
    if not isinstance(given, dict) or given.get("kind") not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}")
    fault = {name: value for name, value in given.items() if value is not None}
    for name, value in fault.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        match name:
            case "kind":
                pass
            case "seconds" | "for":
                if not (number and 0 <= value <= 86_400):
                    raise ValueError(f"{name} is a number from 0 to 86400")
            case "rate":
                if not (number and 0 <= value <= 1):
                    raise ValueError("rate is a number from 0 to 1")
            case "retryAfter":
                if not (number or isinstance(value, str)):
                    raise ValueError("retryAfter is a number or a string")
                fault[name] = str(value).strip()
                if not (fault[name].isascii() and fault[name].isprintable()):
                    raise ValueError("retryAfter is printable ASCII")
            case _:
                raise ValueError(f"there is no {name} in a fault")
    return fault


def kind_of(fault: dict[str, Any]) -> str:
    """Return how the next request fares: a flaky Elevate draws anew each time."""
    kind = str(fault["kind"])
    if kind != "flaky":
        return kind
    return random.choice(_FLAKY) if random.random() < fault.get("rate", 0.5) else "none"


def lasts(fault: dict[str, Any]) -> float | None:
    """Return for how many seconds a fault lasts; None is until the next."""
    seconds: float | None = fault.get(
        "for", None if fault["kind"] in _DELAYS else fault.get("seconds")
    )
    return seconds
