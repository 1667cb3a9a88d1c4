"""`make bench`: what it takes, beside what a user would pick instead.

One run, one machine: ratios count, not milliseconds. Contenders take turns, so that noise meets all
of them alike. `make bench N=10000` sweeps no more sessions than that, and is done a minute earlier.
"""

import os
import sys

from cold import cold
from cost import cost
from growth import growth
from local.stack import REGION, ROOT, Stack
from results import Result, show
from sweep import sweep
from warm import warm


def main() -> int:
    """Run all measurements; return 0 if every target is met."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "POWERTOOLS_SERVICE_NAME": "bench",
        "POWERTOOLS_METRICS_NAMESPACE": "Bench",
    }
    results: list[Result] = []
    with Stack(ROOT / ".local" / "bench") as stack:
        stack.start_elevate()
        os.environ["AWS_ENDPOINT_URL"] = stack.aws_endpoint_url
        say("Cold start …")
        results += cold(stack)
        say("Warm path …")
        results += warm(stack)
        say("Sweeps …")
        results += sweep(stack)
        say("Growth …")
        results += growth(most)
        say("Cost …")
        results += cost(stack)
    show(results)
    return 0 if all(result.good for result in results) else 1


def say(text: str) -> None:
    """Tell what is under way."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
