"""Send dead-letter messages to their functions again."""

import json
import uuid
from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import track as progress

from ops.target import Target

QUEUES = {
    "failed events": "FailedEventsUrl",
    "undelivered events": "UndeliveredEventsUrl",
    "missed sweeps": "MissedSweepsUrl",
}

# How long (seconds) a message that was read stays hidden while others are redriven.
_HIDDEN = 600


def waiting(target: Target, output: str) -> int:
    """Return about how many messages a dead-letter queue holds."""
    attributes = target.client("sqs").get_queue_attributes(
        QueueUrl=target.outputs[output], AttributeNames=["ApproximateNumberOfMessages"]
    )["Attributes"]
    return int(attributes["ApproximateNumberOfMessages"])


def redrive_all(target: Target) -> tuple[Counter[str], Counter[str]]:
    """Send each dead-letter message to its function again.

    Of missed sweeps one is sent, and the others are deleted.
    Returns how many messages of each queue are gone, and how many cannot be read and were left.
    """
    sqs, screen = target.client("sqs"), Console(stderr=True)
    done: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for name, output in QUEUES.items():
        queue, hidden = target.outputs[output], list[str]()
        count = waiting(target, output)
        try:
            for _ in progress(range(count), name, console=screen, disable=not screen.is_terminal):
                received = sqs.receive_message(
                    QueueUrl=queue,
                    MaxNumberOfMessages=1,
                    MessageAttributeNames=["All"],
                    # A short poll asks only a few of a queue's servers.
                    WaitTimeSeconds=0 if target.is_embedded else 5,
                    # A message that is left must not come back before all others have been read.
                    VisibilityTimeout=_HIDDEN,
                )
                for message in received.get("Messages", []):
                    hidden.append(message["ReceiptHandle"])
                    try:
                        function, event = _addressee(target, output, message)
                    except (ValueError, LookupError, TypeError, AttributeError):
                        left[name] += 1
                        continue
                    # One sweep makes up for all that were missed; many at once would flood Elevate.
                    if output != "MissedSweepsUrl" or not done[name]:
                        target.invoke(function, event)
                    sqs.delete_message(QueueUrl=queue, ReceiptHandle=hidden.pop())
                    done[name] += 1
        finally:
            for handle in hidden:
                sqs.change_message_visibility(
                    QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=0
                )
    return done, left


def _addressee(target: Target, output: str, message: dict[str, Any]) -> tuple[str, Any]:
    """Return the function that a dead-letter message was meant for, and the event to send it."""
    body = json.loads(message["Body"])
    if "requestContext" in body:  # Lambda's own record around the event
        name = body["requestContext"]["functionArn"].split(":")[6]
        return target.functions[target.functions.index(name)], body["requestPayload"]
    if output == "UndeliveredEventsUrl":
        names = {"Session Ended": "EndFunctionName", "Session Sweep": "SweepFunctionName"}
        return target.outputs[names.get(body["detail-type"], "TrackFunctionName")], body
    return target.outputs["SweepFunctionName"], {"id": str(uuid.uuid4())} | body
