"""DynamoDB's items, in and out: what the registry holds, as the values of session.py."""

from typing import Any

from sessions.session import Row, Session, Status, UnreadableRow

type Item = dict[str, dict[str, Any]]


def wire(value: Any) -> dict[str, Any]:
    """Return a value as DynamoDB writes it."""
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case int():
            return {"N": str(value)}
        case _:
            return {"S": value}


def row_of(item: Item) -> Row:
    """Return a row to decide about; raises UnreadableRow."""
    try:
        return Row(
            session=Session(
                market=item["market"]["S"],
                session_key=item["sessionKey"]["S"],
                customer_key=item["customerKey"]["S"] if "customerKey" in item else None,
                user_context=item["userContext"]["S"] if "userContext" in item else None,
            ),
            due_at=_optional_int(item, "dueAt"),
            active_at=int(item["activeAt"]["N"]),
            shard=_optional_int(item, "sweepShard") or 0,
            attempts=int(item["attempts"]["N"]),
            interactive=item["interactive"]["BOOL"] if "interactive" in item else None,
            requested_at=_optional_int(item, "requestedAt"),
        )
    except (KeyError, TypeError, ValueError):
        raise UnreadableRow("a row cannot be read") from None


def status_of(item: Item, now: float) -> Status:
    """Return what may be shown of a row at `now` (epoch seconds); raises UnreadableRow."""
    try:
        state: Any = item["state"]["S"]
        is_over = state in ("ended", "expired")
        is_leased = int(item["leaseUntil"]["N"]) > now
        return Status(
            market=item["market"]["S"],
            state="ending" if is_leased and not is_over else state,
            due_at=None if is_over or state == "rejected" else _optional_int(item, "dueAt"),
            attempts=int(item["attempts"]["N"]),
            last_status=_optional_int(item, "lastStatus"),
            last_reason=item["lastReason"]["S"] or None if "lastReason" in item else None,
        )
    except (KeyError, TypeError, ValueError):
        raise UnreadableRow("a row of the session cannot be read") from None


def _optional_int(item: Item, name: str) -> int | None:
    return int(item[name]["N"]) if "N" in item.get(name, {}) else None
