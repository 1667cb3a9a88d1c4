"""How long callers of `POST /sessions/end` wait beyond Elevate's latency, by callers at once.

Each caller has a warm process of its own, as each has an execution environment in Lambda, and calls
again as soon as it is answered. The database answers at once. Elevate takes longer the more callers
there are, so that they wait for it and not for this machine's processors. Only the handler is
measured, without API Gateway and Lambda's own overhead. The bare POST and two writes show how much
is due to this machine and the servers here. A p99 needs a quiet machine, with 8 GB of memory.
"""

import statistics
import time
from contextlib import ExitStack

from fixtures import end_call
from processes import Function, elevate, instant_dynamodb
from results import Result, at_most, info
from warm import contenders

# Callers at once, with Elevate's latency in ms.
LEVELS = {1: 25, 8: 100, 32: 400}
ROUNDS = 3
SAMPLES = 160  # calls of each contender in a round


def latency() -> list[Result]:
    """Measure all contenders in turns, with 1, 8 and 32 callers."""
    results = []
    with instant_dynamodb():
        for callers, elevate_ms in LEVELS.items():
            added = _added(callers, elevate_ms)
            for name, percentiles in added.items():
                what = f"latency: ms above Elevate's, {callers} at once, {name}"
                results += [info(f"{what}, {p}", ms) for p, ms in percentiles.items()]
            for p, ms in added["ours"].items():
                what = f"latency: ours / lean, {callers} at once, {p}"
                results.append(at_most(what, ms / added["lean"][p], 1.1))
    return results


def _added(callers: int, elevate_ms: int) -> dict[str, dict[str, float]]:
    """Return the p50 and p99 of what each contender adds to Elevate's latency, in ms."""
    walls: dict[str, list[float]] = {}
    with elevate(elevate_ms) as url, ExitStack() as stack:
        environment = {"TABLE_NAME": "due-0", "ELEVATE_BASE_URL": url}
        functions = {
            name: [
                stack.enter_context(Function(handler, environment, package)) for _ in range(callers)
            ]
            for name, (handler, package) in contenders().items()
        }
        for some in functions.values():
            _call(some, 2, 0)
        for _ in range(ROUNDS):
            for name, some in functions.items():
                # Visitors do not leave in step.
                apart = elevate_ms / 1000 / callers
                walls.setdefault(name, []).extend(_call(some, -(-SAMPLES // callers), apart))
    percentiles = {
        name: statistics.quantiles([wall * 1000 - elevate_ms for wall in all_], n=100)
        for name, all_ in walls.items()
    }
    return {name: {"p50": each[49], "p99": each[98]} for name, each in percentiles.items()}


def _call(functions: list[Function], times: int, apart: float) -> list[float]:
    """Invoke all, some seconds apart; return how long each call takes, in seconds."""
    for function in functions:
        function.start(*(end_call() for _ in range(times)))
        time.sleep(apart)
    return [wall for function in functions for wall in function.finish().walls]
