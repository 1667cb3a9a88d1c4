"""`make bench`: what the service takes, compared with what a user would build instead.

One run, one machine: ratios count, not milliseconds. Contenders take turns, so that noise affects
them all alike. `make bench N=10000` sweeps no more sessions than that, and takes a minute less.
A target that is not met says so in the table; only an error makes the command fail.

    bare    the calls alone, with urllib3's pool and a boto3 client   bench/yardstick/bare.py
    lean    what an expert writes with the same packages              bench/yardstick/lean/
    plain   what most would write                                     bench/yardstick/plain/
"""

import os
import sys

from cold import cold
from cost import cost, tracking
from growth import growth
from latency import latency
from local.stack import REGION, ROOT, Stack
from results import Result, show
from sweep import sweep
from warm import warm
from works import works


def main() -> None:
    """Run all measurements and print their tables."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "POWERTOOLS_SERVICE_NAME": "bench",
        "POWERTOOLS_METRICS_NAMESPACE": "Bench",
        "POWERTOOLS_TRACE_DISABLED": "true",
    }
    results: list[Result] = []
    with Stack(ROOT / ".local" / "bench") as stack:
        stack.start_elevate()
        os.environ["AWS_ENDPOINT_URL"] = stack.aws_endpoint_url
        say("Cold start …")
        results += cold(stack)
        say("Warm path …")
        results += warm()
        say("Latency …")
        results += latency()
        say("Sweeps …")
        results += sweep()
        say("Growth …")
        results += growth(most)
        say("Cost …")
        done, metrics = works(stack)
        results += cost(done, metrics, stack)
        show(results, tracking(done))


def say(text: str) -> None:
    """Print what is being measured."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
