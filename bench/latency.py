"""How long callers of `POST /sessions/end` wait beyond Elevate's latency, by callers at once.

Each caller has a warm process of its own, as each has an execution environment in Lambda, and calls
again as soon as it is answered. The database answers at once. Elevate takes longer the more callers
there are, so that they wait for it and not for this machine's processors. Only the handler is
measured, without API Gateway and Lambda's own overhead. The bare POST and two writes show how much
is due to this machine and the servers here. So many processes cannot take turns: a quiet machine is
needed.
"""

import statistics
import time
from contextlib import ExitStack

from fixtures import end_call
from processes import Function, elevate, instant_dynamodb
from results import Result, info
from warm import CONTENDERS

# Callers at once, with Elevate's latency in ms.
LEVELS = {1: 25, 8: 100, 32: 400}
SAMPLES = 320


def latency() -> list[Result]:
    """Measure 1, 8 and 32 callers."""
    results = []
    with instant_dynamodb():
        for callers, elevate_ms in LEVELS.items():
            with elevate(elevate_ms) as url:
                for name in CONTENDERS:
                    added = [wall * 1000 - elevate_ms for wall in _walls(name, callers, url)]
                    percentiles = statistics.quantiles(added, n=100)
                    what = f"latency: ms above Elevate's, {callers} at once, {name}"
                    results.append(info(f"{what}, p50", percentiles[49]))
                    results.append(info(f"{what}, p99", percentiles[98]))
    return results


def _walls(name: str, callers: int, url: str) -> list[float]:
    """Return how long each call takes, in seconds."""
    handler, package = CONTENDERS[name]
    environment = {"TABLE_NAME": "due-0", "ELEVATE_BASE_URL": url}
    with ExitStack() as stack:
        functions = [
            stack.enter_context(Function(handler, environment, package)) for _ in range(callers)
        ]
        for function in functions:
            function.start(end_call(), end_call())
        for function in functions:
            function.finish()
        for function in functions:
            function.start(*(end_call() for _ in range(-(-SAMPLES // callers))))
            # Visitors do not leave in step.
            time.sleep(LEVELS[callers] / 1000 / callers)
        return [wall for function in functions for wall in function.finish().walls]
