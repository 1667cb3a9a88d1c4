"""Dead-letter messages, redrive and the operator's commands on the deployed stack."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from local.stack import REGION, ROOT
from stack.conftest import Deployed, new_session, wait_for


def dead_letter_messages(deployed: Deployed) -> dict[str, int]:
    found: dict[str, int] = deployed.operate_json("status")["deadLetters"]
    return found


def test_an_event_that_fails_becomes_a_dead_letter_and_can_be_redriven(
    deployed: Deployed,
) -> None:
    good, bad = new_session(), new_session("Atlantis")
    event = {"detail-type": "Session Ended", "id": "e", "detail": {"sessions": [good, bad]}}
    deployed.invoke("end", event)
    wait_for(lambda: dead_letter_messages(deployed)["failed events"] == 1, 30)
    assert len(deployed.received(good)) == 1, "what was valid in it is processed, once"

    # Still invalid, it comes back rather than vanishing.
    assert deployed.operate_json("redrive") == {"redriven": {"failed events": 1}, "unreadable": {}}
    assert dead_letter_messages(deployed)["failed events"] == 0
    wait_for(lambda: dead_letter_messages(deployed)["failed events"] == 1, 30)

    # Once it is fixed, as deploying with the market would do, it is processed and gone.
    sqs, queue = deployed.stack.client("sqs"), queue_url(deployed, "FailedEventsUrl")
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    body = json.loads(message["Body"])
    assert body["requestPayload"] == event
    body["requestPayload"]["detail"]["sessions"][1]["market"] = "SE"
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(body))
    deployed.operate_json("redrive")
    wait_for(lambda: deployed.received(bad))
    assert dead_letter_messages(deployed)["failed events"] == 0


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


def test_a_sweep_that_fails_is_not_retried_and_one_makes_up_for_all_that_were_missed(
    deployed: Deployed,
) -> None:
    def ran(kind: str, event: dict[str, Any]) -> list[dict[str, Any]]:
        lines = deployed.log_lines(kind)
        return [line for line in lines if line["correlation_id"] == event["id"]]

    events = [{"id": str(uuid.uuid4()), "detail": {"no": "sweep"}} for _ in range(2)]
    for event in events:
        deployed.invoke("sweep", event)
    wait_for(lambda: dead_letter_messages(deployed)["missed sweeps"] == 2, 30)
    assert [len(ran("refused", event)) for event in events] == [1, 1]
    assert dead_letter_messages(deployed)["failed events"] == 0

    sqs, queue = deployed.stack.client("sqs"), queue_url(deployed, "MissedSweepsUrl")
    for _ in events:
        (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
        body = json.loads(message["Body"])
        body["requestPayload"]["detail"] = {}
        sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(body))
    assert deployed.operate_json("redrive")["redriven"] == {"missed sweeps": 2}
    wait_for(lambda: [event for event in events if ran("sweep", event)], 60)
    assert len([event for event in events if ran("sweep", event)]) == 1


def test_a_dead_letter_that_is_not_an_event_does_not_stop_the_others(deployed: Deployed) -> None:
    session = new_session()
    sqs, queue = deployed.stack.client("sqs"), queue_url(deployed, "UndeliveredEventsUrl")
    for message in ("not JSON", json.dumps([]), json.dumps({"detail": {}})):
        sqs.send_message(QueueUrl=queue, MessageBody=message)
    elsewhere = {"functionArn": f"arn:aws:lambda:{REGION}:000000000000:function:of-another:1"}
    message = json.dumps({"requestContext": elsewhere, "requestPayload": {}})
    failed = queue_url(deployed, "FailedEventsUrl")
    sqs.send_message(QueueUrl=failed, MessageBody=message)
    event = {"detail-type": "Session Ended", "id": "e", "detail": session}
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(event))
    code, output = deployed.operate("redrive", "--json")
    assert code == 1
    assert "because they are not events: 1 failed events, 3 undelivered events" in output
    assert '"redriven": {"undelivered events": 1}' in output
    wait_for(lambda: deployed.received(session))
    left = dead_letter_messages(deployed)
    assert (left["failed events"], left["undelivered events"]) == (1, 3), "they are visible again"
    for url in (queue, failed):
        sqs.purge_queue(QueueUrl=url)


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
    code, text = deployed.operate("session", session["sessionKey"].upper())
    assert code == 0
    assert "ended" in text
    assert session["customerKey"] not in text
    hashed = deployed.operate_json("session-hash", session["sessionKey"])["hash"]
    assert shown[0]["session"] == hashed
    upper = session["sessionKey"].upper()
    assert deployed.operate_json("session-hash", upper)["hash"] == hashed
    hashed = deployed.operate_json("session-hash", "--customer", session["customerKey"])["hash"]
    assert shown[0]["customer"] == hashed


def test_a_status_that_elevate_has_not_given_is_shown_as_none(deployed: Deployed) -> None:
    deployed.fault("down")
    session = new_session()
    deployed.end(session)
    (row,) = deployed.operate_json("session", session["sessionKey"])["rows"]
    assert row["lastStatus"] is None
    assert row["lastReason"]
    _, text = deployed.operate("session", session["sessionKey"])
    (shown,) = [line for line in text.splitlines() if "lastStatus" in line]
    assert "True" not in shown
    assert "None" not in shown


def test_the_operator_can_forget_a_session_or_a_visitor(deployed: Deployed) -> None:
    session = new_session()
    deployed.end(session)
    assert deployed.operate_json("forget", session["sessionKey"].upper()) == {"forgotten": ["UK"]}
    code, text = deployed.operate("forget", session["sessionKey"])
    assert (code, "holds no such session" in text) == (1, True)
    visits = [new_session() | {"customerKey": session["customerKey"]} for _ in range(2)]
    for visit in visits:
        deployed.track(visit)
    deployed.end(visits[1])
    customer = ("--customer", session["customerKey"])
    assert deployed.operate_json("forget", *customer) == {"forgotten": ["UK", "UK"]}
    assert deployed.call("GET", f"/sessions/{visits[0]['sessionKey']}").status == 404
    assert deployed.operate("forget")[0] == 2


def test_the_operator_can_follow_the_logs(deployed: Deployed) -> None:
    folder = str(deployed.stack.folder.relative_to(ROOT))
    session = new_session()
    for options in ((), ("--json",)):
        command = [
            sys.executable,
            "-u",
            "-m",
            "ops.operate",
            "tail",
            "--folder",
            folder,
            *options,
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as tail:
            assert tail.stdout

            def make_noise(done: threading.Event) -> None:
                # Lines written before it starts to follow are not shown.
                while not done.wait(0.5):
                    deployed.call("POST", "/sessions/end", session | {"market": "Atlantis"})

            done = threading.Event()
            noise = threading.Thread(target=make_noise, args=(done,))
            noise.start()
            line = next(line for line in tail.stdout if "refused" in line)
            done.set()
            noise.join()
            tail.terminate()
        assert "correlation_id" in line
        assert session["sessionKey"] not in line
        assert line.startswith("{") is bool(options)


def test_the_operator_sweeps_and_retries(deployed: Deployed) -> None:
    session = new_session("SE")
    deployed.fault("reject")
    deployed.end(session)
    deployed.fault("none")
    code, text = deployed.operate("status")
    assert code == 0
    assert "rejected" in text
    deployed.operate_json("retry-rejected", "--market", "UK")
    assert deployed.state(session)["state"] == "rejected"
    assert deployed.operate_json("retry-rejected", "--market", "SE")["retried"] >= 1
    assert deployed.state(session)["state"] != "rejected"
    before = len(deployed.log_lines("sweep"))
    deployed.operate_json("sweep")
    wait_for(lambda: len(deployed.log_lines("sweep")) > before)


def test_a_stack_in_aws_is_operated_by_its_name(deployed: Deployed) -> None:
    """The emulator stands in for AWS, but is reached as AWS is: by name, credentials and region."""
    aws = {
        "AWS_ENDPOINT_URL": deployed.info["awsEndpointUrl"],
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }
    named = ("--stack", deployed.info["stackName"], "--json")
    session = new_session()
    deployed.end(session)
    message = {"detail-type": "Session Ended", "id": "e", "detail": (undelivered := new_session())}
    queue = queue_url(deployed, "UndeliveredEventsUrl")
    deployed.stack.client("sqs").send_message(QueueUrl=queue, MessageBody=json.dumps(message))
    for command in ("status", "sweep", "redrive"):
        code, output = deployed.operate(command, *named, **aws)
        assert (code, output[:1]) == (0, "{"), output
    wait_for(lambda: deployed.received(undelivered))
    code, output = deployed.operate("session", *named, session["sessionKey"], **aws)
    assert json.loads(output)["rows"][0]["state"] == "ended"

    code, output = deployed.operate("status", "--stack", "nobodys", **aws)
    assert (code, "nobodys does not exist" in output) == (1, True), output
    assert "Is it the right --stack, --region and --profile?" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--folder", ".local/nowhere"], "make run"),
        (["--folder", ".local/stale"], "make run"),
        (["--stack", "x", "--profile", "nobody"], "Give --profile"),
        (["--stack", "x"], "Give --region"),
        (["--stack", "x", "--region", REGION], "Give --profile"),
    ],
    ids=["no stack", "a stack that has stopped", "no profile", "no region", "no credentials"],
)
def test_clear_errors_when_there_is_nothing_to_operate(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    stale = ROOT / ".local" / "stale"
    stale.mkdir(parents=True, exist_ok=True)
    gone = {"stackName": "x", "awsEndpointUrl": "http://127.0.0.1:9", "region": REGION}
    (stale / "stack.json").write_text(json.dumps(gone))
    nothing = {
        "PYTHONPATH": str(ROOT / "src"),
        "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ops.operate", "status", *arguments],
        cwd=ROOT,
        env={n: v for n, v in os.environ.items() if not n.startswith("AWS")} | nothing,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 10


def test_an_unknown_session_is_an_error(deployed: Deployed) -> None:
    code, text = deployed.operate("session", "nobody")
    assert (code, "neither in the registry nor in the logs" in text) == (1, True)
