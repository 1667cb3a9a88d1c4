"""What all tests share: fixtures, scheduling and settings."""

import os
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = [
    "browser",
    "emulated",
    "endings",
    "faulty_dynamodb",
    "invoking",
    "simulated",
    "world",
]


# Where all tests share one deployed stack.
STACKS = ("tests/access/", "tests/stack/")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Spread the tests over the workers, but keep those on a deployed stack together."""

    def _split_scope(self, nodeid: str) -> str:
        return next((stack for stack in STACKS if nodeid.startswith(stack)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests marked `waits` last: what they wait for happens by itself meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("waits") is not None)


os.environ["POWERTOOLS_METRICS_NAMESPACE"] = "ElevateSessions"
os.environ["POWERTOOLS_SERVICE_NAME"] = "tests"

# Machines are noisy: a slow example is not a failure, and the first run builds Unicode tables.
patient: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
# The same examples in every run, so that a failure means a change; `make explore` tries new ones.
hypothesis.settings.register_profile("here", derandomize=True, **patient)
hypothesis.settings.register_profile("explore", max_examples=1000, **patient)
hypothesis.settings.load_profile("here")
