"""Invoke a function in a process of its own: `python -P -B invoke.py PACKAGE HANDLER LOG [TABLE]`.

Each line of stdin is a list of events; each is answered with the time they took, and the peak of
the process's memory so far. What the function writes goes to the file LOG. With TABLE, the request
units of its DynamoDB calls are counted, which takes so long that nothing else can be measured.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Context:
    """The part of Lambda's context object that functions use."""

    function_name = "bench"
    function_version = "1"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:eu-west-1:000000000000:function:bench"
    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def get_remaining_time_in_millis(self) -> int:
        """Return the time an invocation has left: hours, so that a sweep of any size ends."""
        return 10_000_000


def peak_memory() -> float:
    """Return the most memory this process has had, in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Not ru_maxrss: on Linux a process inherits that of the one that started it.
    (peak,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) / 1024


def meter_of(table: str) -> Any:
    """Return the meter of all clients that the function will make from boto3's default session."""
    import boto3

    sys.path += [str(HERE), str(HERE.parent / "tests")]
    from units import Meter

    boto3.setup_default_session()
    assert boto3.DEFAULT_SESSION
    return Meter(boto3.DEFAULT_SESSION.events, table)


def main() -> None:
    """Serve until stdin ends."""
    package, handler, log, *table = sys.argv[1:]
    sys.path.insert(0, package)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    meter = meter_of(*table) if table else None
    module, _, name = handler.rpartition(".")
    handle = getattr(importlib.import_module(module), name)
    context = Context()
    for line in sys.stdin:
        events, walls = json.loads(line), []
        wall, cpu = time.perf_counter(), time.process_time()
        for event in events:
            started = time.perf_counter()
            answer = handle(event, context)
            walls.append(time.perf_counter() - started)
            assert answer is None or answer["statusCode"] == 204, answer
        sys.stdout.flush()
        taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        units = meter.read() if meter else {}
        print(
            json.dumps({**taken, "walls": walls, "peak": peak_memory(), "units": units}),
            file=answers,
        )


if __name__ == "__main__":
    main()
