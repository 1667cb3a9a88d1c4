"""Warm path: one `POST /sessions/end` against one bare POST and two bare writes.

The database is one that answers at once and Elevate is on the loopback: what is measured is the
function's own work, and not what it waits for.
"""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fixtures import LEAN, OURS, YARDSTICK, before, end_call
from processes import Function, elevate, instant_dynamodb
from results import Result, at_most, in_turns, info

ROUNDS = 9
TIMES = 200


def contenders() -> dict[str, tuple[str, Path]]:
    """Return handlers that end a session by API, each with its package."""
    return {
        "ours": ("handler.end.handle", OURS),
        "before": ("handler.end.handle", before()),
        "lean": ("app.handle", LEAN),
        "bare": ("bare.end", YARDSTICK),
    }


def warm() -> list[Result]:
    """Measure all contenders in turns."""
    with ExitStack() as stack:
        stack.enter_context(instant_dynamodb())
        environment = {
            "TABLE_NAME": "due-0",
            "ELEVATE_BASE_URL": stack.enter_context(elevate()),
        }
        functions = {
            name: stack.enter_context(Function(handler, environment, package))
            for name, (handler, package) in contenders().items()
        }
        calls = [end_call() for _ in range(TIMES)]
        for function in functions.values():
            function.invoke(*calls)
        turns = {name: partial(function.invoke, *calls) for name, function in functions.items()}
        times = in_turns(turns, ROUNDS)
    bare = times["bare"]
    what = "/ bare POST and two writes"
    return [
        *(info(f"warm: {name}, ms of CPU", t.cpu / TIMES * 1000) for name, t in times.items()),
        at_most(f"warm: CPU, ours {what}", times["ours"].cpu / bare.cpu, 1.25),
        info(f"warm: CPU, before {what}", times["before"].cpu / bare.cpu),
        info(f"warm: CPU, lean {what}", times["lean"].cpu / bare.cpu),
        info(f"warm: wall, ours {what}", times["ours"].wall / bare.wall),
    ]
