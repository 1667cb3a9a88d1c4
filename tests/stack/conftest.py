"""The deployed stack, shared by all tests here, and helpers to use it."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from local.stack import ROOT, Stack

MARKETS = "UK,SE,Sverige & Norge/ü"


@dataclass(frozen=True)
class Answer:
    """What the API answered."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Deployed:
    """The running stack as its users see it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.info = stack.info
        self._events = stack.client("events")
        self._logs = stack.client("logs")
        self.lambda_ = stack.client("lambda")

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Call the API as a shop's backend would."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        head = {"x-api-key": self.info["apiKey"]}
        if data is not None:
            head["Content-Type"] = "application/json"
        request = urllib.request.Request(
            self.info["apiUrl"] + path, data, head | (headers or {}), method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read().decode())
        except urllib.error.HTTPError as answer:
            with answer:
                return Answer(answer.code, dict(answer.headers), answer.read().decode())

    def end(self, session: dict[str, str]) -> Answer:
        return self.call("POST", "/sessions/end", session)

    def track(self, session: dict[str, str], **more: Any) -> Answer:
        body = {name: value for name, value in session.items() if name != "sessionKey"} | more
        return self.call("PUT", f"/sessions/{session['sessionKey']}", body)

    def state(self, session: dict[str, str]) -> dict[str, Any]:
        """Return the state of a session in its market."""
        market = quote(session["market"], safe="")
        answer = self.call("GET", f"/sessions/{session['sessionKey']}?market={market}")
        (state,) = answer.json["sessions"]
        return dict(state)

    def put_event(self, kind: str, detail: Any) -> None:
        """Put an event on the stack's bus."""
        entry = {
            "EventBusName": self.info["eventBusName"],
            "Source": "shop",
            "DetailType": kind,
            "Detail": json.dumps(detail),
        }
        assert self._events.put_events(Entries=[entry])["FailedEntryCount"] == 0

    def invoke(self, function: str, event: Any) -> None:
        """Invoke asynchronously, with the retries and dead-letter queue that rules lack here."""
        self.lambda_.invoke(
            FunctionName=self.info["functions"][function],
            InvocationType="Event",
            Payload=json.dumps(event).encode(),
        )

    def operate(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run the operator's command line; return its exit status and output."""
        if "--stack" not in arguments:
            command, *rest = arguments
            arguments = (command, "--folder", str(self.stack.folder.relative_to(ROOT)), *rest)
        done = subprocess.run(
            [sys.executable, "-m", "ops.operate", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def operate_json(self, command: str, *arguments: str) -> Any:
        """Run a command with --json; return what it prints."""
        code, output = self.operate(command, "--json", *arguments)
        assert code == 0, output
        return json.loads(output)

    def received(self, session: dict[str, str]) -> list[dict[str, Any]]:
        """Return the notifications Elevate received for a session."""
        url = f"{self.info['elevateUrl']}/_sim/notifications?sessionKey={session['sessionKey']}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["notifications"]
            return found

    def fault(self, kind: str, **more: Any) -> None:
        """Switch the simulated Elevate's fault."""
        request = urllib.request.Request(
            f"{self.info['elevateUrl']}/_sim/fault",
            json.dumps({"kind": kind} | more).encode(),
            method="PUT",
        )
        urllib.request.urlopen(request, timeout=10).close()

    def log_text(self) -> str:
        """Return everything that the functions have logged."""
        texts = []
        for group in self.info["logGroups"]:
            pages = self._logs.get_paginator("filter_log_events").paginate(logGroupName=group)
            texts += [event["message"] for page in pages for event in page["events"]]
        return "\n".join(texts)

    def log_lines(self, message: str) -> list[dict[str, Any]]:
        """Return the functions' structured lines of one kind."""
        found = []
        for text in self.log_text().splitlines():
            if text.startswith("{"):
                line = json.loads(text)
                if line.get("message") == message:
                    found.append(line)
        return found


def new_session(market: str = "UK") -> dict[str, str]:
    """Return a payload with fresh keys."""
    return {
        "market": market,
        "customerKey": str(uuid.uuid4()),
        "sessionKey": str(uuid.uuid4()),
    }


def wait_for[T](found: Callable[[], T], seconds: float = 180) -> T:
    """Return what `found` returns once that is true; fail if it is not by the deadline."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.1)
    return result


@pytest.fixture(scope="session", autouse=True)
def verification() -> Iterator["subprocess.Popen[str]"]:
    """Start a short `make verify` at once: it mostly waits, while the other tests run."""
    command = [sys.executable, "-m", "local.verify", "400", "--folder", "test-verify", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.terminate()


@pytest.fixture(scope="session")
def deployed() -> Iterator[Deployed]:
    """Deploy template.yaml, with one minute of idle time so that the schedule can be seen."""
    with Stack(ROOT / ".local" / "test", markets=MARKETS, say=print) as stack:
        stack.start_elevate()
        stack.build()
        stack.deploy({"SessionIdleMinutes": "1", "RetryBaseSeconds": "2"})
        yield Deployed(stack)


@pytest.fixture(autouse=True)
def no_fault(deployed: Deployed) -> Iterator[None]:
    """Leave Elevate without a fault."""
    yield
    deployed.fault("none")
