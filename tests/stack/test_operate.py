"""Dead letters, redrive and the operator's commands on the deployed stack."""

import json
import os
import subprocess
import sys
from typing import Any

from local.stack import ROOT
from stack.conftest import Deployed, new_session, wait_for


def letters(deployed: Deployed) -> dict[str, int]:
    found: dict[str, int] = deployed.operate_json("status")["deadLetters"]
    return found


def test_an_event_that_a_function_fails_becomes_a_dead_letter_and_can_be_redriven(
    deployed: Deployed,
) -> None:
    good, bad = new_session(), new_session("Atlantis")
    event = {"detail-type": "Session Ended", "id": "e", "detail": {"sessions": [good, bad]}}
    deployed.invoke("end", event)
    wait_for(lambda: letters(deployed)["failed events"] == 1, 30)
    assert len(deployed.received(good)) == 1, "what was valid in it is done, and once"

    # Invalid still, it comes back rather than vanish.
    assert deployed.operate_json("redrive") == {"redriven": {"failed events": 1}}
    assert letters(deployed)["failed events"] == 0
    wait_for(lambda: letters(deployed)["failed events"] == 1, 30)

    # Mended (as a deploy with the market would), it is done and gone.
    sqs, queue = deployed.stack.client("sqs"), queue_url(deployed, "FailedEventsUrl")
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    body = json.loads(message["Body"])
    assert body["requestPayload"] == event
    body["requestPayload"]["detail"]["sessions"][1]["market"] = "SE"
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(body))
    deployed.operate_json("redrive")
    wait_for(lambda: deployed.received(bad))
    assert letters(deployed)["failed events"] == 0


def test_what_the_bus_or_the_schedule_could_not_deliver_can_be_redriven(deployed: Deployed) -> None:
    session = new_session()
    sqs = deployed.stack.client("sqs")
    undelivered = {"detail-type": "Session Ended", "id": "e", "detail": session}
    missed = {"detail-type": "Session Sweep", "detail": {}}
    for output, event in (("UndeliveredEventsUrl", undelivered), ("MissedSweepsUrl", missed)):
        sqs.send_message(QueueUrl=queue_url(deployed, output), MessageBody=json.dumps(event))
    redriven = deployed.operate_json("redrive")["redriven"]
    assert redriven == {"undelivered events": 1, "missed sweeps": 1}
    wait_for(lambda: deployed.received(session))


def queue_url(deployed: Deployed, output: str) -> str:
    described: Any = deployed.stack.client("cloudformation").describe_stacks()
    (stack,) = [s for s in described["Stacks"] if s["StackName"] == deployed.info["stackName"]]
    return str({o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}[output])


def test_the_operator_sees_a_session_by_its_key_and_no_keys(deployed: Deployed) -> None:
    session = new_session()
    deployed.end(session)
    shown = wait_for(
        lambda: [
            line
            for line in deployed.operate_json("session", session["sessionKey"])["log"]
            if line["message"] == "notification"
        ]
    )
    assert shown[0]["outcome"] == "delivered"
    code, text = deployed.operate("session", session["sessionKey"])
    assert code == 0
    assert "ended" in text
    assert session["customerKey"] not in text
    hashed = deployed.operate_json("session-hash", session["sessionKey"])["hash"]
    assert shown[0]["session"] == hashed


def test_the_operator_can_forget_a_session(deployed: Deployed) -> None:
    session = new_session()
    deployed.end(session)
    assert deployed.operate_json("forget", session["sessionKey"]) == {"forgotten": ["UK"]}
    code, text = deployed.operate("forget", session["sessionKey"])
    assert (code, "not in the registry" in text) == (1, True)


def test_the_operator_sweeps_and_retries(deployed: Deployed) -> None:
    session = new_session("SE")
    deployed.fault("reject")
    deployed.end(session)
    deployed.fault("none")
    code, text = deployed.operate("status")
    assert code == 0
    assert "rejected" in text
    deployed.operate_json("retry-rejected", "--market", "SE")
    wait_for(lambda: deployed.state(session)["state"] != "rejected")
    before = len(deployed.log_lines("sweep"))
    deployed.operate_json("sweep")
    wait_for(lambda: len(deployed.log_lines("sweep")) > before)


def test_clear_errors_when_there_is_nothing_to_operate(deployed: Deployed) -> None:
    code, text = deployed.operate("session", "nobody")
    assert (code, "neither in the registry nor in the logs" in text) == (1, True)
    command = [sys.executable, "-m", "local.operate"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for arguments, said in (
        (["--folder", ".local/nowhere", "status"], "make run"),
        (["--stack", "x", "--profile", "nobody", "status"], "AWS: "),
    ):
        done = subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
