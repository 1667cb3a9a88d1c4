"""What every test runs under."""

import os

import hypothesis

pytest_plugins = ["emulated", "handlers"]

os.environ["POWERTOOLS_METRICS_NAMESPACE"] = "ElevateSessions"
os.environ["POWERTOOLS_SERVICE_NAME"] = "tests"

# Machines are noisy: a slow example is no failure, and the first run builds Unicode tables.
hypothesis.settings.register_profile(
    "here",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("here")
