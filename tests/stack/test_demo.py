"""`make demo`: it tells the story, and its exit status is honest."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from local.service import Service
from local.stack import ROOT
from stack.conftest import Deployed


def demo(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "local.demo", "--folder", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_story_happens_on_the_running_stack(deployed: Deployed) -> None:
    deployed.fault("busy")
    done = demo(deployed.stack.folder)
    assert done.returncode == 0, done
    in_order = [
        "uses the stack",
        "Elevate goes down",
        "answers 202",
        "Elevate is back",
        "ended, after",
        "no answer",
        "204",
        "delivered exactly once",
    ]
    places = [done.stdout.find(words) for words in in_order]
    assert -1 not in places
    assert places == sorted(places)
    # It leaves Elevate as it was.
    with closing(Service(deployed.info)) as service:
        assert service.fault() == {"kind": "busy"}


def test_a_story_that_goes_wrong_fails(deployed: Deployed, tmp_path: Path) -> None:
    # Given a stack whose API refuses the call
    (tmp_path / "stack.json").write_text(json.dumps(deployed.info | {"apiKey": "wrong"}))
    done = demo(tmp_path)
    assert done.returncode == 1
    assert "answers 403" in done.stdout
    assert "went wrong: 202 was expected" in done.stderr
