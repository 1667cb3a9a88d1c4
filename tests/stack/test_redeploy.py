"""Deploys in the middle of work. Last of the stack tests, for they change the stack."""

import threading

import pytest

from stack.conftest import Deployed, new_session, wait_for

# It is deployed once.
pytestmark = pytest.mark.xdist_group("stack")


def test_a_deploy_in_the_middle_of_a_sweep_with_other_settings_loses_nothing(
    deployed: Deployed,
) -> None:
    sessions = [new_session() for _ in range(60)]
    deployed.fault("busy")
    deployed.invoke(
        "end", {"detail-type": "Session Ended", "id": "e", "detail": {"sessions": sessions}}
    )
    wait_for(lambda: all(deployed.received(session) for session in sessions), 60)
    deployed.fault("slow", seconds=0.3)
    stop = threading.Event()

    def sweep_on() -> None:
        while not stop.wait(1):
            deployed.put_event("Session Sweep", {})

    sweeping = threading.Thread(target=sweep_on)
    sweeping.start()
    try:
        settings = {"RetryBaseSeconds": "3", "SweepShards": "2", "SweepConcurrency": "4"}
        deployed.stack.deploy(settings)
        wait_for(
            lambda: all(deployed.state(session)["state"] == "ended" for session in sessions), 150
        )
    finally:
        stop.set()
        sweeping.join()
    for session in sessions:
        assert [n["status"] for n in deployed.received(session)].count(204) >= 1
