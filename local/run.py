"""`make run`: bring the whole stack up on this machine, show how to call it, follow its logs."""

import argparse
import json
import os
import shlex
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from botocore.exceptions import EndpointConnectionError

from local.logs import follow
from local.stack import ROOT, Stack, StackError

# Environment variables (as in `make run MARKETS=…`) that become parameters of the template.
_PARAMETERS = {
    "ELEVATE_CLUSTER_ID": "ElevateClusterId",
    "ELEVATE_BASE_URL": "ElevateBaseUrl",
    "ELEVATE_API": "ElevateApi",
    "SESSION_IDLE_MINUTES": "SessionIdleMinutes",
    "SWEEP_SHARDS": "SweepShards",
    "SWEEP_CONCURRENCY": "SweepConcurrency",
}

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run until interrupted; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=".local", help="where it keeps what it makes")
    folder = ROOT / parser.parse_args().folder
    for number in _STOPPING:
        signal.signal(number, _interrupt)
    try:
        _run(folder)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


def _run(folder: Path) -> None:
    started = time.monotonic()
    parameters = {p: os.environ[v] for v, p in _PARAMETERS.items() if os.environ.get(v)}
    markets = os.environ.get("MARKETS", "UK,SE")
    stack = Stack(
        folder,
        port=_port("PORT"),
        elevate_port=_port("ELEVATE_PORT"),
        markets=markets,
        say=print,
    )
    print("Starting MiniStack …", flush=True)
    with stack:
        if not {"ElevateClusterId", "ElevateBaseUrl"} & set(parameters):
            stack.start_elevate()
        print("Building …", flush=True)
        stack.build()
        print("Deploying template.yaml …", flush=True)
        info = stack.deploy(parameters)
        _show(info, markets.split(",")[0], parameters, time.monotonic() - started)
        try:
            for line in follow(stack.client("logs"), info["logGroups"]):
                print(line, flush=True)
        except EndpointConnectionError:
            raise StackError(f"MiniStack has stopped; see {folder}/ministack.log") from None


def _show(info: dict[str, Any], market: str, parameters: dict[str, str], seconds: float) -> None:
    api, key = info["apiUrl"], info["apiKey"]
    customer, ended, tracked = (str(uuid.uuid4()) for _ in range(3))
    about = {"market": market, "customerKey": customer}
    head = f"curl -i -H 'x-api-key: {key}' -H 'content-type: application/json'"
    idle = parameters.get("SessionIdleMinutes", "30")
    elevate = info["elevateUrl"] or f"cluster {parameters.get('ElevateClusterId')}"
    print(f"""
Ready after {seconds:.0f} s. The schedule sweeps every minute; a session is ended after {idle} quiet
minutes (make run SESSION_IDLE_MINUTES=1 for less patience). Ctrl-C stops everything.

  API      {api}
  key      {key}
  Elevate  {elevate}

End a session:

  {head} -X POST {api}/sessions/end -d {shlex.quote(json.dumps(about | {"sessionKey": ended}))}

Track one, so that it is ended when it goes quiet:

  {head} -X PUT {api}/sessions/{tracked} -d {shlex.quote(json.dumps(about))}

Ask for its state:

  {head} {api}/sessions/{tracked}

What the functions log:
""")


def _port(name: str) -> int | None:
    text = os.environ.get(name, "")
    if text and not (text.isdecimal() and 0 < int(text) < 65536):
        raise StackError(f"{name} is no port number.")
    return int(text) if text else None


def _interrupt(*_: object) -> None:
    # A terminal and make may both pass it on, and stopping must not be stopped halfway.
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
