"""`make verify`: drive sessions through the deployed stack while things break, then check each.

Sessions come over the API, as events and as tracked sessions that go quiet, while Elevate's faults
come and go, function processes are killed and the stack is deployed again with other settings. Then
everything is repaired, and when the registry has nothing left to do, the simulated Elevate is
asked about every session that was accepted.

    lost        accepted, but neither delivered nor rejected nor expired: must be 0
    sent twice  delivered more than once, although Elevate's first answer arrived: only a function
                killed between its notification and its settlement may do that, so the bound is
                what can be in flight in the processes that were killed

A seed fixes the order of the calls, Elevate's flaky answers and the process that each kill picks.
How threads and processes interleave is up to the machine.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.config import Config

from local.stack import ROOT, Stack, StackError
from ops.redrive import redrive_all
from ops.target import Target

CONCURRENCY = 8
# What a killed sweep may have sent without having settled it, beside what is in flight.
UNSETTLED = 100
BATCH = 25
# A lease has to run out before a killed function's sessions are due again.
DRAIN_SECONDS = 600
SETTINGS = {
    "SessionIdleMinutes": "1",
    "RetryBaseSeconds": "2",
    "ElevateConnectTimeout": "0.5",
    "ElevateReadTimeout": "1",
    "SweepConcurrency": str(CONCURRENCY),
    "ApiRateLimit": "10000",
    "ApiBurstLimit": "5000",
}
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "busy", "retryAfter": 2},
    {"kind": "none"},
    {"kind": "flaky", "rate": 0.5, "seconds": 0.2},
    {"kind": "reset"},
    {"kind": "none"},
    {"kind": "down"},
    {"kind": "hang"},
    {"kind": "none"},
    {"kind": "garbage"},
    {"kind": "slow", "seconds": 1.5},
    {"kind": "none"},
)


# Each fault lasts this long; a run lasts at least as long as all of them together.
_FAULT_SECONDS = 1.5
_KILL_SECONDS = 2
# A call that gets no answer for this long does not count as accepted.
_PATIENCE_SECONDS = 120
_LEAST_SECONDS = _FAULT_SECONDS * len(FAULTS)


class Verification:
    """One run against a deployed stack."""

    def __init__(self, stack: Stack, sessions: int, seed: int, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._seed = seed
        self._count = sessions
        self._say = say
        self._info = stack.info
        self._accepted: set[str] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._kills = 0
        self._redriven = 0
        self._lambda = stack.client("lambda", Config(max_pool_connections=32))

    def run(self) -> dict[str, Any]:
        """Drive, break, repair, wait, and count."""
        works = (self._break, self._kill, self._redeploy)
        breaking = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in breaking:
            thread.start()
        started = time.monotonic()
        self._drive()
        driven = time.monotonic() - started
        self._over.set()
        for thread in breaking:
            thread.join()
        self._fault({"kind": "none"})
        self._say(
            f"{len(self._accepted)} sessions accepted in {driven:.0f} s; everything is repaired …"
        )
        drained = self._drain()
        return self._count_all() | {"drivenSeconds": round(driven), "drainSeconds": round(drained)}

    # -- driving ---------------------------------------------------------------------------

    def _drive(self) -> None:
        api, event, quiet = self._count * 4 // 10, self._count * 3 // 10, 0
        quiet = self._count - api - event
        jobs: list[Callable[[], None]] = [self._end_over_the_api for _ in range(api)]
        jobs += [self._job(self._end_by_event, n) for n in _batches(event)]
        jobs += [self._job(self._track_by_event, n) for n in _batches(quiet // 2)]
        jobs += [self._track_over_the_api for _ in range(quiet - quiet // 2)]
        random.Random(self._seed).shuffle(jobs)
        started, pace = time.monotonic(), _LEAST_SECONDS / len(jobs)

        def paced(numbered: tuple[int, Callable[[], None]]) -> None:
            number, job = numbered
            time.sleep(max(0.0, started + number * pace - time.monotonic()))
            job()

        with ThreadPoolExecutor(CONCURRENCY) as threads:
            for done, _ in enumerate(threads.map(paced, enumerate(jobs)), 1):
                if done % 1000 == 0:
                    self._say(f"{done} of {len(jobs)} calls made …")

    def _job(self, work: Callable[[int], None], argument: int) -> Callable[[], None]:
        return lambda: work(argument)

    def _end_over_the_api(self) -> None:
        session = _session()
        self._until_taken("POST", "/sessions/end", session, {202, 204, 422}, session)

    def _track_over_the_api(self) -> None:
        session = _session()
        body = {name: value for name, value in session.items() if name != "sessionKey"}
        path = f"/sessions/{session['sessionKey']}"
        # 409: a sweep found it quiet and ended it, so an earlier call was accepted.
        self._until_taken("PUT", path, body, {204, 409}, session)

    def _until_taken(
        self,
        method: str,
        path: str,
        body: dict[str, str],
        taken: set[int],
        session: dict[str, str],
    ) -> None:
        """Call as a backend would: try again on 503 or when there is no answer."""
        patience = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < patience:
            if self._call(method, path, body) in taken:
                self._accept([session])
                return
            time.sleep(0.2)

    def _end_by_event(self, count: int) -> None:
        self._invoke("end", "Session Ended", [_session() for _ in range(count)])

    def _track_by_event(self, count: int) -> None:
        self._invoke("track", "Session Active", [_session() for _ in range(count)])

    def _invoke(self, function: str, kind: str, sessions: list[dict[str, str]]) -> None:
        """Invoke asynchronously, as EventBridge does: the emulator's own rules never retry."""
        event = {"detail-type": kind, "id": str(uuid.uuid4()), "detail": {"sessions": sessions}}
        answer = self._lambda.invoke(
            FunctionName=self._info["functions"][function],
            InvocationType="Event",
            Payload=json.dumps(event).encode(),
        )
        if answer["StatusCode"] == 202:
            self._accept(sessions)

    def _accept(self, sessions: list[dict[str, str]]) -> None:
        with self._lock:
            self._accepted.update(session["sessionKey"] for session in sessions)

    def _call(self, method: str, path: str, body: dict[str, str]) -> int | None:
        headers = {"x-api-key": self._info["apiKey"], "content-type": "application/json"}
        request = urllib.request.Request(
            self._info["apiUrl"] + path, json.dumps(body).encode(), headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return None

    # -- breaking --------------------------------------------------------------------------

    def _break(self) -> None:
        for fault in itertools.cycle(FAULTS):
            self._fault(fault)
            if self._over.wait(_FAULT_SECONDS):
                return

    def _kill(self) -> None:
        draw = random.Random(self._seed)
        while not self._over.wait(_KILL_SECONDS):
            if workers := self._workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    self._kills += 1

    def _redeploy(self) -> None:
        """Change settings in the middle of the run."""
        if not self._over.wait(_LEAST_SECONDS / 3):
            self._stack.deploy(SETTINGS | {"SweepConcurrency": "4"})

    def _workers(self) -> list[int]:
        """Return the processes of Lambda functions, MiniStack's children, that have started.

        They wait: for an event, or in one, for an answer. One that is killed while it still starts
        makes MiniStack drop all others of its function, those that start too; on a busy machine
        that went on for ever.
        """
        shown = subprocess.run(
            ["ps", "-ww", "-A", "-o", "pid=,pgid=,stat=,command="],  # noqa: S607 - found on the PATH
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        rows = [line.split(None, 3) for line in shown.splitlines()]
        group = str(self._stack.ministack_pid)
        return [
            int(pid)
            for pid, of, status, command in rows
            if of == group and status.startswith("S") and "_worker.py" in command
        ]

    def _fault(self, fault: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self._info['elevateUrl']}/_sim/fault", json.dumps(fault).encode(), method="PUT"
        )
        urllib.request.urlopen(request, timeout=10).close()

    # -- counting --------------------------------------------------------------------------

    def _drain(self) -> float:
        """Wait until nothing is left to do; return how many seconds that took."""
        started = time.monotonic()
        target = Target(None, None, None, str(self._stack.folder.relative_to(ROOT)))
        while time.monotonic() - started < DRAIN_SECONDS:
            # An event whose function was killed three times in a row waits for an operator.
            self._redriven += redrive_all(target)[0].total()
            left = sum(self._states().get(state, 0) for state in ("open", "retrying"))
            if not left and not self._missing():
                return time.monotonic() - started
            time.sleep(2)
        return time.monotonic() - started

    def _states(self) -> Counter[str]:
        return Counter(item["state"]["S"] for item in self._rows())

    def _rows(self) -> Iterator[dict[str, Any]]:
        pages = (
            self._stack.client("dynamodb")
            .get_paginator("scan")
            .paginate(
                TableName=self._info["tableName"],
                ProjectionExpression="sessionKey, #state",
                ExpressionAttributeNames={"#state": "state"},
            )
        )
        for page in pages:
            yield from page["Items"]

    def _missing(self) -> set[str]:
        return self._accepted - {item["sessionKey"]["S"] for item in self._rows()}

    def _received(self) -> Iterator[dict[str, Any]]:
        after: int | None = 0
        while after is not None:
            url = f"{self._info['elevateUrl']}/_sim/notifications?after={after}&limit=5000"
            with urllib.request.urlopen(url, timeout=60) as answer:
                page = json.load(answer)
            yield from page["notifications"]
            after = page.get("next")

    def _count_all(self) -> dict[str, Any]:
        delivered: Counter[str] = Counter()
        unheard: Counter[str] = Counter()
        for notification in self._received():
            if notification["status"] == 204:
                key = notification["query"]["esales.sessionKey"]
                delivered[key] += 1
                # Elevate took it, but its answer was lost to a reset or came too late.
                unheard[key] += notification.get("fault") in ("reset", "slow")
        states = {item["sessionKey"]["S"]: item["state"]["S"] for item in self._rows()}
        ended = {key for key, state in states.items() if state in ("rejected", "expired")}
        lost = self._accepted - set(delivered) - ended
        twice = sum(1 for key, n in delivered.items() if n - unheard[key] > 1)
        return {
            "seed": self._seed,
            "accepted": len(self._accepted),
            "delivered": len(self._accepted & set(delivered)),
            "rejected": sum(states.get(key) == "rejected" for key in self._accepted),
            "expired": sum(states.get(key) == "expired" for key in self._accepted),
            "lost": len(lost),
            "notDrained": sum(states.get(k) in ("open", "retrying") for k in self._accepted),
            "kills": self._kills,
            "redriven": self._redriven,
            "sentTwice": twice,
            "sentTwiceBound": self._kills * (CONCURRENCY + UNSETTLED),
            "sentAgainUnheard": sum(1 for key, n in delivered.items() if n > 1) - twice,
        }


def verify(folder: str, sessions: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Deploy a stack of its own, run a verification, and return its table."""
    with Stack(ROOT / ".local" / folder, say=say) as stack:
        stack.start_elevate(seed)
        stack.build()
        stack.deploy(SETTINGS)
        return Verification(stack, sessions, seed, say).run()


def passed(table: dict[str, Any]) -> bool:
    """Return whether a verification's table shows that it passed."""
    return bool(
        table["lost"] == table["notDrained"] == 0
        and table["accepted"] > 0
        and table["sentTwice"] <= table["sentTwiceBound"]
    )


def _session() -> dict[str, str]:
    return {"market": "UK", "customerKey": str(uuid.uuid4()), "sessionKey": str(uuid.uuid4())}


def _batches(count: int) -> list[int]:
    whole, rest = divmod(count, BATCH)
    return [BATCH] * whole + [rest] * bool(rest)


_ROWS = {
    "seed": "seed",
    "accepted": "accepted",
    "delivered": "delivered",
    "rejected": "rejected",
    "expired": "expired",
    "lost": "lost (must be 0)",
    "notDrained": "still open after the wait (must be 0)",
    "kills": "function processes killed",
    "redriven": "dead-letter messages redriven",
    "sentTwice": "sent twice",
    "sentTwiceBound": "  at most (kills · what one may leave)",
    "sentAgainUnheard": "sent again because the answer was lost",
    "drivenSeconds": "seconds of load and faults",
    "drainSeconds": "seconds to drain after recovery",
}


def main() -> int:
    """Verify, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description="Show that no accepted session is lost.")
    parser.add_argument("sessions", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=random.getrandbits(32))
    parser.add_argument("--folder", default="verify", help="folder below .local/")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args()
    say = (lambda text: None) if options.json else (lambda text: print(text, flush=True))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        table = verify(options.folder, options.sessions, options.seed, say)
    except StackError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(table))
    else:
        for name, text in _ROWS.items():
            print(f"  {text:42} {table[name]:>9}")
    return 0 if passed(table) else 1


if __name__ == "__main__":
    sys.exit(main())
