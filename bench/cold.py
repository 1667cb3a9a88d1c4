"""Cold start: the first answer of `POST /sessions/end` under the Runtime Interface Emulator."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hands import end_call, new_table
from local.rie import LambdaFunction
from local.stack import BIN, ROOT, Stack
from results import Result, Taken, at_most, median, taken, told

ROUNDS = 9


def cold(stack: Stack) -> list[Result]:
    """Measure an empty handler, ours and the straightforward build in turns."""
    environment = {
        "TABLE_NAME": new_table(),
        "ELEVATE_BASE_URL": stack.elevate_url,
        "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_SERVICE_NAME": "bench",
        "POWERTOOLS_METRICS_NAMESPACE": "Bench",
    }
    contenders = {
        "empty": (ROOT / "bench" / "yardstick", "empty.handle"),
        "ours": (package(stack), "handler.end.handle"),
        "yardstick": (yardstick(stack), "app.handle"),
    }
    times: dict[str, list[Taken]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, (task, handler) in contenders.items():
            with (
                tempfile.TemporaryDirectory() as scratch,
                LambdaFunction(task, handler, Path(scratch), environment) as function,
            ):
                event = end_call()
                times[name].append(taken(lambda: answered(function, event)))  # noqa: B023
    empty, ours, straight = (median(times[name]).wall for name in contenders)
    return [
        told("cold: empty handler, ms", empty * 1000),
        told("cold: ours, ms", ours * 1000),
        told("cold: straightforward build, ms", straight * 1000),
        at_most("cold: ours / straightforward build", ours / straight, 0.3),
        at_most("cold: ours / empty handler", ours / empty, 5),
    ]


def answered(function: LambdaFunction, event: Any) -> None:
    """Invoke, and make sure that the session was ended."""
    answer = function.invoke(event)
    assert answer["statusCode"] == 204, answer


def package(stack: Stack) -> Path:
    """Make the functions' package as `sam build` does."""
    folder = stack.folder / "cold" / "ours" / "EndFunction"
    subprocess.run([sys.executable, ROOT / "src" / "package.py", folder], check=True)
    return folder


def yardstick(stack: Stack) -> Path:
    """Build the straightforward function, once."""
    folder = stack.folder / "cold" / "yardstick"
    if not folder.exists():
        template = ROOT / "bench" / "yardstick" / "template.yaml"
        command = [str(BIN / "sam"), "build", "-t", str(template), "--build-dir", str(folder)]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, check=True, env=os.environ | {"PATH": path}, capture_output=True)
    return folder / "Yardstick"
