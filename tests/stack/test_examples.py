"""The code in examples/, run against the deployed stack as a shop would run it."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from clients import COMMANDS, EXAMPLES, Client, need
from put_events import put
from stack.conftest import Deployed, new_session, wait_for

# -- a shop's backend --------------------------------------------------------------------------


@pytest.fixture(params=COMMANDS)
def client(request: pytest.FixtureRequest, deployed: Deployed) -> Client:
    return Client(request.param, deployed.info["apiUrl"], deployed.info["apiKey"])


def test_a_visit_from_the_first_page_to_the_sign_out(deployed: Deployed, client: Client) -> None:
    visitor = new_session("Sverige & Norge/ü")
    signed_in = visitor | {"customerKey": str(uuid.uuid4())}
    calls = [("track", visitor), ("track", signed_in, True), ("end", signed_in)]
    assert client.calls(*calls) == [True, True, None]
    (received,) = deployed.received(visitor)
    assert received["query"]["esales.customerKey"] == signed_in["customerKey"]
    assert client.calls(("track", signed_in)) == [False], "its keys are used up"


def test_an_end_that_is_kept_needs_no_second_call(deployed: Deployed, client: Client) -> None:
    deployed.fault("busy")
    session = new_session()
    assert client.calls(("end", session)) == [None]
    assert client.logged == ""
    assert deployed.state(session)["state"] == "retrying"


def test_what_is_refused_is_logged_and_says_why(deployed: Deployed, client: Client) -> None:
    deployed.fault("reject")
    assert client.calls(("end", new_session())) == [None]
    assert "422" in client.logged
    assert client.calls(("track", new_session("Atlantis"))) == [True]
    assert "market" in client.logged
    client.api_key = "the key of somebody else"
    assert client.calls(("track", new_session())) == [True]
    assert "403" in client.logged


# -- a visitor's browser -----------------------------------------------------------------------

# What a browser has and Node does not; then the page's steps, and the keys after each.
_PAGE = """
import { json } from "node:stream/consumers";
const [folder, shop] = process.argv.slice(1), { stored, steps } = await json(process.stdin);
const kept = new Map(stored ? [["voyado.session", JSON.stringify(stored)]] : []);
const value = { getItem: (name) => kept.get(name) ?? null, setItem: (...to) => kept.set(...to) };
Object.defineProperty(globalThis, "localStorage", { value });
globalThis.addEventListener = () => {};
const { fetch } = globalThis, answers = [], keys = [];
globalThis.fetch = async (path, request) => {
  const answer = await fetch(new URL(path, shop), request);
  answers.push(answer.status);
  return answer;
};
const page = await import(`${folder}/browser.mjs`);
for (const [step, ...given] of steps) {
  await page[step](...given);
  keys.push(page.session());
}
console.log(JSON.stringify([answers, keys]));
"""


@contextmanager
def shop(deployed: Deployed) -> Iterator[str]:
    """Run the shop's backend."""
    need("node")
    if not (EXAMPLES / "node_modules").exists():
        pytest.skip("Elevate's own client is not installed: npm ci --prefix examples")
    settings = {"URL": deployed.info["apiUrl"], "KEY": deployed.info["apiKey"], "PORT": "0"}
    command = ["node", str(EXAMPLES / "shop.mjs")]
    environment = os.environ | settings
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.terminate()


def browse(
    deployed: Deployed, *steps: list[Any], stored: dict[str, str] | None = None
) -> tuple[list[int], list[dict[str, str]]]:
    """Take a page's steps; return what the shop answered, and the visitor's keys after each."""
    with shop(deployed) as url:
        command = ["node", "--input-type=module", "--eval", _PAGE, str(EXAMPLES), url]
        given = json.dumps({"steps": steps, "stored": stored})
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    answers, keys = json.loads(done.stdout)
    return answers, keys


def test_a_browser_with_elevates_own_client(deployed: Deployed) -> None:
    # Given a visitor who looks around, signs in and signs out
    customer = str(uuid.uuid4())
    steps = (["track"], ["signedIn", customer], ["track", True], ["signedOut"])
    answers, (first, signed_in, clicked, next_visitor) = browse(deployed, *steps)
    assert answers == [204, 204, 204, 204]
    assert signed_in == clicked == {"customerKey": customer, "sessionKey": first["sessionKey"]}
    # Then Elevate is told that the customer's session has ended, and both keys are new.
    (received,) = deployed.received(first)
    assert received["query"]["esales.customerKey"] == customer
    assert not set(next_visitor.values()) & {*first.values(), customer}

    # When a page still has the old keys
    answers, (renewed,) = browse(deployed, ["track"], stored=signed_in)
    # Then it gets a 409, renews them, and the visitor is tracked under the new ones.
    assert answers == [409, 204]
    assert not set(renewed.values()) & {*first.values(), customer}
    assert deployed.state(renewed | {"market": "UK"})["state"] == "open"


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/elevate/end", "application/json", {"customerKey": "undefined"}, 400),
        ("/elevate/track", "application/json", None, 400),
        ("/elevate/end", "text/plain", new_session(), 415),
        ("/elsewhere", "application/json", new_session(), 404),
    ],
)
def test_the_shop_passes_on_nothing_else(
    deployed: Deployed, path: str, kind: str, body: Any, status: int
) -> None:
    with shop(deployed) as url:
        fields = {"body": json.dumps(body), "headers": {"content-type": kind}}
        assert urllib3.request("POST", url + path, **fields).status == status  # type: ignore[arg-type]


# -- events ------------------------------------------------------------------------------------

# Stands in for the AWS CLI: takes the same command line, and puts the same events on the bus.
_AWS = f"""#!{sys.executable}
import json, sys
import boto3
*command, entries = sys.argv[1:]
expected = "events put-events --query FailedEntryCount --output text --entries"
assert " ".join(command) == expected, command
with open(__file__ + ".entries", "a") as sent:
    print(entries, file=sent)
print(boto3.client("events").put_events(Entries=json.loads(entries))["FailedEntryCount"])
"""


@pytest.fixture
def environment(deployed: Deployed) -> dict[str, str]:
    """Return what an example needs to find the embedded stack's bus."""
    return {
        "PATH": os.environ["PATH"],
        "AWS_ENDPOINT_URL": deployed.info["awsEndpointUrl"],
        "AWS_DEFAULT_REGION": deployed.info["region"],
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "BUS": deployed.info["eventBusName"],
    }


def test_events_from_python(
    deployed: Deployed, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sessions = [new_session() for _ in range(11)]
    put(environment["BUS"], "Session Active", sessions)
    for session in sessions:
        path = f"/sessions/{session['sessionKey']}"
        wait_for(lambda path=path: deployed.call("GET", path).status == 200)  # type: ignore[misc]
    put(environment["BUS"], "Session Ended", [{"sessions": sessions}])
    wait_for(lambda: all(deployed.received(session) for session in sessions))


@pytest.mark.parametrize("command", [[sys.executable, "put_events.py"], ["sh", "put-events.sh"]])
def test_each_kind_of_event_by_its_script(
    deployed: Deployed, environment: dict[str, str], command: list[str], tmp_path: Path
) -> None:
    session = new_session()
    aws = tmp_path / "aws"
    aws.write_text(_AWS)
    aws.chmod(0o755)
    environment |= {"CUSTOMER": session["customerKey"], "SESSION": session["sessionKey"]}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    subprocess.run(command, cwd=EXAMPLES, env=environment, check=True, timeout=60)
    wait_for(lambda: deployed.received(session))
    if command[0] == "sh":
        lines = (tmp_path / "aws.entries").read_text().splitlines()
        sent = [
            (e["DetailType"], json.loads(e["Detail"])) for line in lines for e in json.loads(line)
        ]
        assert sent == [
            ("Session Active", session | {"interactive": True}),
            ("Session Ended", session),
            ("Session Sweep", {}),
        ]
