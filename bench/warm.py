"""Warm path: one `POST /sessions/end` against one bare POST and two bare writes.

The database is one that answers at once and Elevate is on the loopback: what is measured is the
function's own work, and not what it waits for.
"""

from contextlib import ExitStack
from functools import partial

from fixtures import LEAN, YARDSTICK, end_call
from local.stack import ROOT
from processes import Function, elevate, instant_dynamodb
from results import Result, at_most, in_turns, info

ROUNDS = 9
TIMES = 200

# Handlers, each with its package.
CONTENDERS = {
    "ours": ("handler.end.handle", ROOT / "src"),
    "lean": ("app.handle", LEAN),
    "bare": ("bare.end", YARDSTICK),
}


def warm() -> list[Result]:
    """Measure ours, the lean function and the bare calls, in turns."""
    with ExitStack() as stack:
        stack.enter_context(instant_dynamodb())
        environment = {
            "TABLE_NAME": "due-0",
            "ELEVATE_BASE_URL": stack.enter_context(elevate()),
        }
        functions = {
            name: stack.enter_context(Function(handler, environment, package))
            for name, (handler, package) in CONTENDERS.items()
        }
        calls = [end_call() for _ in range(TIMES)]
        for function in functions.values():
            function.invoke(*calls)
        turns = {name: partial(function.invoke, *calls) for name, function in functions.items()}
        times = in_turns(turns, ROUNDS)
    ours, lean, bare = (times[name] for name in CONTENDERS)
    return [
        *(info(f"warm: {name}, ms of CPU", t.cpu / TIMES * 1000) for name, t in times.items()),
        at_most("warm: CPU, ours / bare POST and two writes", ours.cpu / bare.cpu, 1.25),
        at_most("warm: wall, ours / bare POST and two writes", ours.wall / bare.wall, 1.25),
        info("warm: CPU, lean / bare POST and two writes", lean.cpu / bare.cpu),
    ]
