"""Put events on the stack's bus. In AWS with your credentials; on the embedded stack see README."""

import json
import os
from collections.abc import Iterable
from typing import Any

import boto3

ENTRIES_PER_CALL = 10  # EventBridge accepts no more


def put(bus: str, detail_type: str, details: Iterable[dict[str, Any]]) -> None:
    """Put one event for each detail; raises RuntimeError if the bus has not taken all of them."""
    entries = [
        {
            "EventBusName": bus,
            "Source": "shop",
            "DetailType": detail_type,
            "Detail": json.dumps(detail),
        }
        for detail in details
    ]
    events = boto3.client("events")
    for start in range(0, len(entries), ENTRIES_PER_CALL):
        answer = events.put_events(Entries=entries[start : start + ENTRIES_PER_CALL])
        if answer["FailedEntryCount"]:  # the call itself succeeds all the same
            codes = {entry["ErrorCode"] for entry in answer["Entries"] if "ErrorCode" in entry}
            raise RuntimeError(f"{answer['FailedEntryCount']} events not taken: {codes}")


if __name__ == "__main__":
    session = {
        "market": "UK",
        "customerKey": os.environ["CUSTOMER"],
        "sessionKey": os.environ["SESSION"],
    }
    put(os.environ["BUS"], "Session Active", [session | {"interactive": True}])
    # One event may carry many sessions: cheaper than one each.
    put(os.environ["BUS"], "Session Ended", [{"sessions": [session]}])
    put(os.environ["BUS"], "Session Sweep", [{}])
