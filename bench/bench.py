"""`make bench`: what the service takes, compared with what a user would build instead.

One run, one machine: ratios count, not milliseconds. Contenders take turns, so that noise affects
them all alike. Each part prints its table when it is done; `make bench PART=sweep` runs one, and
with `N=10000` growth sweeps no more sessions than that. A target that is not met says so in its
table; only an error makes the command fail.

    bare    the calls alone, with urllib3's pool and a boto3 client   bench/yardstick/bare.py
    lean    what an expert writes with the same packages              bench/yardstick/lean/
    plain   what most would write                                     bench/yardstick/plain/
    before  this service, as it was before its sweep was rewritten    bench/fixtures.py
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from cold import cold
from cost import cost
from growth import growth
from latency import latency
from local.stack import REGION, ROOT, Stack
from results import Part, show
from sweep import sweep
from warm import warm

PARTS: dict[str, Callable[[Stack, int], Iterable[Part]]] = {
    "cold": lambda stack, most: cold(stack),
    "warm": lambda stack, most: warm(),
    "latency": lambda stack, most: latency(),
    "sweep": lambda stack, most: sweep(),
    "growth": lambda stack, most: growth(most),
    "cost": lambda stack, most: cost(stack),
}


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return `part`, which is None for all of them, and `most`, the sessions of the largest sweep.

    Raises SystemExit, and prints what there is, for an unknown part.
    """
    parser = argparse.ArgumentParser(prog="make bench", description="Measure, and compare.")
    parser.add_argument("--part", choices=PARTS, help="the only part to run")
    parser.add_argument("most", nargs="?", type=int, default=100_000, help="sessions to sweep")
    return parser.parse_args(arguments)


def main() -> None:
    """Run all parts, or the one that is asked for."""
    asked = options(sys.argv[1:])
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "POWERTOOLS_SERVICE_NAME": "bench",
        "POWERTOOLS_METRICS_NAMESPACE": "Bench",
        "POWERTOOLS_TRACE_DISABLED": "true",
    }
    with Stack(ROOT / ".local" / "bench") as stack:
        stack.start_elevate()
        os.environ["AWS_ENDPOINT_URL"] = stack.aws_endpoint_url
        for part in [asked.part] if asked.part else PARTS:
            print(f"{part} …", file=sys.stderr, flush=True)
            show(PARTS[part](stack, asked.most))


if __name__ == "__main__":
    main()
