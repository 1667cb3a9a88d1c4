"""`make run`: bring the whole stack up on this machine, with a page to watch it, and its logs."""

import argparse
import json
import os
import shlex
import signal
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path

from botocore.exceptions import EndpointConnectionError

from local.parameters import parameters, port
from local.playground import Playground
from local.service import Service
from local.stack import ROOT, Stack, StackError, free_port
from ops.logs import as_json, follow, text_of

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run until interrupted; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder",
        default=os.environ.get("FOLDER") or ".local",
        help="folder for everything it writes",
    )
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
    given = parameters(os.environ)
    markets = given.setdefault("Markets", "UK,SE")
    # Nobody who tries an outage wants to wait for as long as production does.
    given.setdefault("RetryBaseSeconds", "5")
    # Whoever tries the service wants to see a track and a repeated end, too.
    given.setdefault("LogLevel", "DEBUG")
    playground_port = free_port(port(os.environ, "PLAYGROUND_PORT"), "PLAYGROUND_PORT")
    stack = Stack(
        folder,
        port=port(os.environ, "PORT"),
        elevate_port=port(os.environ, "ELEVATE_PORT"),
        markets=markets,
        say=print,
    )
    with stack, Playground(playground_port) as playground:
        print(f"Playground: {playground.url} shows all this in your browser.", flush=True)
        stack.playground_url = playground.url
        if not {"ElevateClusterId", "ElevateBaseUrl"} & set(given):
            stack.start_elevate()
        for phase, do in (
            ("Building the functions …", stack.build),
            ("Deploying template.yaml …", lambda: stack.deploy(given)),
        ):
            print(phase, flush=True)
            playground.say(phase)
            do()
        with closing(Service(stack.info)) as service:
            _show(service, given, time.monotonic() - started)
            playground.show(service)
            try:
                for text in follow(stack.client("logs"), stack.info["logGroups"], show=as_json):
                    line = json.loads(text)
                    playground.add_line(line)
                    print(text_of(line), flush=True)
            except EndpointConnectionError:
                raise StackError(f"MiniStack has stopped; see {folder}/ministack.log") from None


def _show(service: Service, given: dict[str, str], seconds: float) -> None:
    info = service.info
    customer, ended, tracked = (str(uuid.uuid4()) for _ in range(3))
    about = {"market": service.markets[0], "customerKey": customer}
    head = "curl -i -H \"x-api-key: $KEY\" -H 'content-type: application/json'"
    elevate = shlex.quote(info["elevateUrl"])
    idle = given.get("SessionIdleMinutes", "30")
    cluster = given.get("ElevateClusterId")
    gateway_port = info["awsEndpointUrl"].rpartition(":")[2]
    api_id = info["apiUrl"].split("/")[-2]
    print(f"""
Ready after {seconds:.0f} s. The schedule sweeps every minute and ends sessions after {idle} quiet
minutes. Ends go to {info["elevateUrl"] or f"your cluster {cluster}"}. Ctrl-C stops everything.

Open  {info["playgroundUrl"]}  or paste this into another terminal:

  export URL={info["apiUrl"]} KEY={info["apiKey"]} ELEVATE={elevate}

End a session:

  {head} -X POST "$URL/sessions/end" -d {shlex.quote(json.dumps(about | {"sessionKey": ended}))}

Track a session. It will be ended when it goes quiet:

  {head} -X PUT "$URL/sessions/{tracked}" -d {shlex.quote(json.dumps(about))}

Read its state:

  {head} "$URL/sessions/{tracked}"

Elevate's own client finds its routes at  http://{api_id}.execute-api.localhost:{gateway_port}

What the functions log:
""")


def _interrupt(*_: object) -> None:
    # A terminal and make may both send the signal, and the second must not interrupt the stop.
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
