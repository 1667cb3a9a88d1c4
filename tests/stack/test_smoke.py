"""`make smoke` on the deployed stack: it passes where all is well, and says what is not."""

import json
import os
import subprocess
import sys
from typing import Any

from alarms import ALARMS
from local.stack import ROOT
from stack.conftest import Deployed

BROKEN = ["the schedule is on and sweeps run", "the alarms are there and silent"]


def smoke(deployed: Deployed, *options: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Run it; return its exit status, what each check saw, and its error output."""
    folder = str(deployed.stack.folder.relative_to(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "ops.smoke", "--folder", folder, "--json", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {check["check"]: check for check in checks}, done.stderr


def test_all_checks_pass_on_a_stack_that_works(deployed: Deployed) -> None:
    code, checks, errors = smoke(deployed, "--sweep")
    assert code == 0, (checks, errors)
    assert len(checks) == 8
    assert checks["a sweep ends a session that went quiet"]["seen"] == "ended"
    assert checks["a call ends a session and is logged without keys"]["seen"] == "204, level INFO"
    assert checks["the alarms are there and silent"]["seen"] == f"{len(ALARMS)} alarms"


def test_an_end_that_is_kept_because_elevate_is_unavailable_passes_too(deployed: Deployed) -> None:
    deployed.fault("busy")
    code, checks, errors = smoke(deployed)
    assert code == 0, (checks, errors)
    assert len(checks) == 7, "no wait for a sweep unless it is asked for"
    assert checks["a call ends a session and is logged without keys"]["seen"].startswith("202,")


def test_what_is_broken_is_named(deployed: Deployed) -> None:
    scheduler, cloudwatch = deployed.stack.client("scheduler"), deployed.stack.client("cloudwatch")
    schedule = scheduler.get_schedule(Name=deployed.info["functions"]["sweep"])
    kept = ("Name", "ScheduleExpression", "FlexibleTimeWindow", "Target")
    same = {name: schedule[name] for name in kept}
    alarm = cloudwatch.describe_alarms()["MetricAlarms"][0]["AlarmName"]
    scheduler.update_schedule(**same, State="DISABLED")
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="a test")
    try:
        code, checks, errors = smoke(deployed)
    finally:
        scheduler.update_schedule(**same, State="ENABLED")
        cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="OK", StateReason="a test")
    assert code == 1
    assert [name for name, check in checks.items() if check["result"] == "FAILED"] == BROKEN
    assert "The stack does not work as it should." in errors
    assert alarm in checks[BROKEN[1]]["seen"]


def test_a_market_that_elevate_does_not_know_is_reported(deployed: Deployed) -> None:
    code, checks, _ = smoke(deployed, "--market", "Atlantis")
    assert code == 1
    seen = checks["a call ends a session and is logged without keys"]["seen"]
    assert seen == "AssertionError: 400, not 204 or 202"
