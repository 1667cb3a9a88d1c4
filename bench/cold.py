"""Cold start: the first answer of `POST /sessions/end` under the Runtime Interface Emulator."""

import tempfile
from pathlib import Path
from typing import Any

from fixtures import YARDSTICK, end_call, new_table, package, yardstick
from local.rie import LambdaFunction
from local.stack import Stack
from results import Result, at_most, in_turns, info, taken

ROUNDS = 9


def cold(stack: Stack) -> list[Result]:
    """Measure an empty handler, ours, the lean build and the plain one, in turns."""
    environment = {
        "TABLE_NAME": new_table(),
        "ELEVATE_BASE_URL": stack.elevate_url,
        "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
        "POWERTOOLS_TRACE_DISABLED": "true",
        "POWERTOOLS_SERVICE_NAME": "bench",
        "POWERTOOLS_METRICS_NAMESPACE": "Bench",
    }

    def start(task: Path, handler: str) -> Any:
        with (
            tempfile.TemporaryDirectory() as scratch,
            LambdaFunction(task, handler, Path(scratch), environment) as function,
        ):
            event = end_call()
            return taken(lambda: answered(function, event))

    ours, others = package(stack), yardstick(stack)
    times = in_turns(
        {
            "empty": lambda: start(YARDSTICK, "empty.handle"),
            "ours": lambda: start(ours, "handler.end.handle"),
            "lean": lambda: start(others / "Lean", "app.handle"),
            "plain": lambda: start(others / "Plain", "app.handle"),
        },
        ROUNDS,
    )
    return [
        *(info(f"cold: {name}, ms", time.wall * 1000) for name, time in times.items()),
        at_most("cold: ours / plain", times["ours"].wall / times["plain"].wall, 0.35),
        at_most("cold: ours / lean", times["ours"].wall / times["lean"].wall, 0.6),
    ]


def answered(function: LambdaFunction, event: Any) -> None:
    """Invoke, and make sure that the session was ended."""
    answer = function.invoke(event)
    assert answer["statusCode"] == 204, answer
