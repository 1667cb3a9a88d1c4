"""`make demo`: an outage of Elevate in the terminal. Exits with 0 only if the end is delivered."""

import argparse
import json
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from local.service import Service, new_session
from local.stack import ROOT, Stack, StackError

# How long (seconds) the kept end may take: its wait of a minute at most, and a sweep.
_PATIENCE = 80
# How often (seconds) to ask for a sweep once the end is due.
_SWEEP_EVERY = 3


class WrongTurn(Exception):
    """The story went wrong; the message says where."""


def main() -> int:
    """Tell the story; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=".local", help="folder of a stack that may be running")
    folder = ROOT / parser.parse_args().folder
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with _stack(folder) as info, closing(Service(info)) as service:
            _outage(service)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    except WrongTurn as error:
        print(f"\nThe story went wrong: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 1
    return 0


def _outage(service: Service) -> None:
    before = service.fault()
    session = new_session(service.markets[0])
    try:
        _tell("1. Elevate goes down: every connection to it is dropped.")
        service.set_fault({"kind": "down"})

        _tell("2. A visitor signs out, and the shop ends the session.")
        answer = service.end(session)
        _show(f"POST /sessions/end answers {answer.status}.")
        if answer.status != 202:
            raise WrongTurn("202 was expected, because Elevate is down.")
        row = service.session(session)
        if not row or row["state"] != "retrying":
            raise WrongTurn("the registry does not keep the end.")
        wait = max(0, row["dueAt"] - time.time())
        _show("Accepted: Elevate cannot be reached, so the end is kept in the registry.")
        _show(f"It is due again in {wait:.0f} s. The wait is random; its limit doubles each time.")

        _tell("3. Elevate is back.")
        service.set_fault({"kind": "none"})

        _tell("4. The next sweep after the end is due delivers it.")
        _show("The schedule sweeps every minute. To save time, an event requests one.")
        row = _until_ended(service, session)
        _show(f"The registry says: {row['state']}, after {row['attempts']:.0f} attempts.")
    finally:
        service.set_fault(before)
    _tell("What Elevate received for this session:")
    received = service.received(f"sessionKey={session['sessionKey']}")
    for notification in received:
        at = time.strftime("%H:%M:%S", time.localtime(notification["time"]))
        _show(f"{at}  POST {notification['path']}  →  {notification['status'] or 'no answer'}")
    delivered = sum(notification["status"] == 204 for notification in received)
    if delivered != 1:
        raise WrongTurn(f"the end was delivered {delivered} times.")
    _tell("The end outlived the outage and was delivered exactly once.")


def _until_ended(service: Service, session: dict[str, str]) -> dict[str, Any]:
    """Wait until the end is delivered, and ask for sweeps from when it is due."""
    deadline = time.monotonic() + _PATIENCE
    asked = 0.0
    while True:
        row = service.session(session)
        if not row or row["state"] not in ("retrying", "ending", "ended"):
            raise WrongTurn(f"the session is {row['state'] if row else 'not in the registry'}.")
        if row["state"] == "ended":
            return row
        now = time.monotonic()
        if now > deadline:
            raise WrongTurn(f"the end was not delivered within {_PATIENCE} s.")
        if time.time() >= row["dueAt"] and now - asked > _SWEEP_EVERY:
            asked = now
            service.put_event("Session Sweep", {})
        time.sleep(0.2)


@contextmanager
def _stack(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the stack of `make run` if one is running, or start one and stop it afterwards."""
    if info := _running(folder):
        _tell("This uses the stack that `make run` has started.")
        yield info
        return
    _tell("Starting a stack: an AWS emulator, a simulated Elevate, and a deploy of template.yaml.")
    started = time.monotonic()
    with Stack(folder / "demo", say=print) as stack:
        stack.start_elevate()
        stack.build()
        info = stack.deploy({"RetryBaseSeconds": "5"})
        _show(f"Ready after {time.monotonic() - started:.0f} s.")
        yield info


def _running(folder: Path) -> dict[str, Any] | None:
    """Return what `make run` wrote about its stack, if that runs and simulates an Elevate."""
    try:
        info: dict[str, Any] = json.loads((folder / "stack.json").read_text())
        urllib.request.urlopen(f"{info['awsEndpointUrl']}/_ministack/health", timeout=5).close()
    except (OSError, ValueError):
        return None
    return info if info["elevateIsSimulated"] else None


def _tell(text: str) -> None:
    print(f"\n{text}", flush=True)


def _show(text: str) -> None:
    print(f"   {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
