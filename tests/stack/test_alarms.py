"""Alarms on AWS's own metrics: the fault is caused, and what AWS would count is counted here.

MiniStack's own metrics of functions and queues are not those of AWS, so an alarm is evaluated on
how many invocations failed or were throttled, and on the dead-letter messages in the queue.
"""

import json

import pytest
from botocore.exceptions import ClientError

from alarms import ALARMS, fires
from stack.conftest import Deployed, wait_for


def test_an_event_that_becomes_a_dead_letter_fires_the_alarm(deployed: Deployed) -> None:
    sqs = deployed.stack.client("sqs")
    (queue,) = [url for url in sqs.list_queues()["QueueUrls"] if "FailedEvents" in url]

    def messages() -> list[float]:
        names = ["ApproximateNumberOfMessages"]
        found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
        return [float(count) for count in found.values()]

    alarm = ALARMS["FailedEventsAlarm"]
    assert not fires(alarm, [messages()])
    deployed.invoke("end", {"id": "an event", "detail": {"no": "session"}})
    wait_for(lambda: messages() != [0.0], 30)
    assert fires(alarm, [messages()])
    sqs.purge_queue(QueueUrl=queue)


@pytest.mark.parametrize("function", ["end", "track", "sweep"])
def test_a_failed_invocation_fires_the_alarm(function: str, deployed: Deployed) -> None:
    def errors(detail: object) -> float:
        answer = deployed.lambda_.invoke(
            FunctionName=deployed.info["functions"][function],
            Payload=json.dumps({"id": "an event", "detail": detail}).encode(),
        )
        return float("FunctionError" in answer)

    alarm = ALARMS[f"{function.title()}ErrorsAlarm"]
    assert not fires(
        alarm, [[errors({"sessions": []} if function != "sweep" else {"shards": [7]})]]
    )
    assert fires(alarm, [[errors({"no": "session"})]])


def test_a_throttled_invocation_fires_the_alarm(deployed: Deployed) -> None:
    name = deployed.info["functions"]["track"]
    deployed.lambda_.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    try:
        with pytest.raises(ClientError) as refused:
            deployed.lambda_.invoke(FunctionName=name, Payload=b"{}")
    finally:
        deployed.lambda_.delete_function_concurrency(FunctionName=name)
    assert refused.value.response["Error"]["Code"] == "TooManyRequestsException"
    assert fires(ALARMS["TrackThrottlesAlarm"], [[1.0]])
