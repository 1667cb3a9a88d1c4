"""`make verify`, short: nothing that was accepted is lost, whatever breaks."""

import json
import subprocess

import pytest


@pytest.mark.waits
def test_nothing_is_lost(verification: "subprocess.Popen[str]") -> None:
    output, _ = verification.communicate(timeout=400)
    table = json.loads(output)
    assert verification.returncode == 0, table
    assert table["accepted"] == table["delivered"] + table["rejected"] + table["expired"]
    # A caller whose function is killed again and again may give up; that end is not accepted.
    assert table["accepted"] >= 360
    assert table["lost"] == 0
    assert table["kills"] > 0
