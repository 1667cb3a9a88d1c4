"""`make run`, as a user starts and stops it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from local.stack import ROOT
from stack.conftest import wait_for

FOLDER = Path(".local/test-run")


class Run:
    """A `make run` in a folder of its own."""

    def __init__(self, log: Path, **settings: str) -> None:
        self.folder = ROOT / FOLDER
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local.run", "--folder", str(FOLDER)],
                cwd=ROOT,
                env=os.environ | settings,
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def processes(self) -> list[int]:
        """Return the leaders of the process groups that it has started."""
        file = self.folder / "processes.json"
        try:
            return list(json.loads(file.read_text()))
        except (FileNotFoundError, ValueError):
            return []

    def says(self, text: str) -> bool:
        """Return whether it has printed a text; fail if it never will."""
        if text in self.output:
            return True
        assert self.process.poll() is None, self.output
        return False


@contextmanager
def run(log: Path, **settings: str) -> Iterator[Run]:
    """Start it, and leave nothing of it behind, whatever happens."""
    started = Run(log, **settings)
    try:
        yield started
    finally:
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(20)


def is_running(group: int) -> bool:
    """Return whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_run_shows_how_to_call_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # Given a run that was killed outright
    with run(tmp_path / "killed") as killed:
        wait_for(lambda: killed.says("Building"), 60)
        # the emulator, the simulated Elevate, and the build
        wait_for(lambda: len(killed.processes()) == 3)
        left = killed.processes()
        killed.process.kill()
        killed.process.wait()
    assert all(is_running(group) for group in left)

    # When it is run again
    open_to_pages = {"API_AUTH": "NONE", "CORS_ORIGINS": "http://localhost:3000"}
    with run(tmp_path / "second", SESSION_IDLE_MINUTES="7", **open_to_pages) as second:
        wait_for(lambda: second.says("Building"), 60)
        # Then what was left is gone,
        wait_for(lambda: not any(is_running(group) for group in left))
        wait_for(lambda: second.says("What the functions log:"), 180)
        # the lines it shows work when pasted,
        (exports,) = re.findall(r"^  (export URL=.* KEY=.* ELEVATE=.*)$", second.output, re.M)
        lines = re.findall(r"^  (curl .*)$", second.output, re.M)
        answered = [curl(f"{exports}; {line}") for line in lines]
        assert [status for status, _ in answered] == [204, 204, 200]
        assert '"open"' in answered[2][1]
        # what the functions log is shown,
        wait_for(lambda: second.says("outcome=delivered"))
        wait_for(lambda: second.says("result=tracked"))
        # and other tools find the stack through its file.
        info = json.loads((second.folder / "stack.json").read_text())
        assert set(info) == {
            *("apiUrl", "apiKey", "elevateUrl", "awsEndpointUrl", "region", "stackName"),
            *("tableName", "eventBusName", "functions", "logGroups", "markets"),
            *("elevateIsSimulated", "playgroundUrl"),
        }
        # The page is named first, and shows what runs.
        assert second.output.startswith(f"Playground: {info['playgroundUrl']} ")
        with urllib.request.urlopen(f"{info['playgroundUrl']}/state", timeout=20) as answer:
            state = json.load(answer)
        assert {session["state"] for session in state["sessions"]} == {"open", "ended"}
        assert [line["outcome"] for line in state["log"] if "outcome" in line] == ["delivered"]
        # A client of Elevate's finds its route at the address for it, without a key.
        (origin,) = re.findall(r"routes at {2}(http://\S+)\n", second.output)
        asked = urllib.request.Request(
            f"{info['awsEndpointUrl']}/api/storefront/v3/notifications/end",
            headers={"Host": urlsplit(origin).netloc},
            method="POST",
        )
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(asked, timeout=20)
        assert urlsplit(origin).port == urlsplit(info["awsEndpointUrl"]).port
        assert info["apiUrl"] in second.output
        assert info["apiKey"] in second.output

        # When a third is started alongside it
        with run(tmp_path / "third") as third:
            # Then that one says why it cannot be.
            assert third.process.wait(30) == 1
        assert "running in test-run/ already. To have two: make run FOLDER=" in third.output
        assert (second.folder / "stack.json").exists()

        # When it is stopped, by a terminal and by make at once
        groups = second.processes()
        assert len(groups) == 2
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            second.process.send_signal(number)
        # Then everything is gone but logs and caches.
        assert second.process.wait(20) == 0
        wait_for(lambda: not any(is_running(group) for group in groups))
        urls = [info[name] for name in ("awsEndpointUrl", "elevateUrl", "playgroundUrl")]
        ports = [int(url.rsplit(":", 1)[1]) for url in urls]
        assert not any(answers(port) for port in ports)
        left_files = {path.name for path in second.folder.iterdir()}
        assert not left_files & {"stack.json", "processes.json", "tmp"}


@pytest.mark.parametrize("name", ["PORT", "ELEVATE_PORT", "PLAYGROUND_PORT"])
def test_run_says_which_port_is_taken(name: str, tmp_path: Path) -> None:
    # Given a port that somebody listens on
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        # When it is asked to use that
        with run(tmp_path / "log", **{name: port}) as refused:
            status = refused.process.wait(30)
    # Then it says so, and nothing is left.
    assert status == 1
    assert f"Port {port} ({name}) is taken" in refused.output
    assert refused.processes() == []


def test_run_refuses_what_is_invalid_before_it_builds(tmp_path: Path) -> None:
    with run(tmp_path / "log", ELEVATE_API="nonsense") as refused:
        assert refused.process.wait(30) == 1
    assert refused.output.splitlines() == [
        "ELEVATE_API=nonsense is not valid: give web-v2 or storefront-v3."
    ]
    assert refused.processes() == []


def test_run_shows_why_a_build_fails(tmp_path: Path) -> None:
    # Given a first build, and no package index
    shutil.rmtree(ROOT / FOLDER / ".aws-sam", ignore_errors=True)
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    with run(tmp_path / "log", **unreachable) as failed:
        status = failed.process.wait(120)
    # Then it shows what was wrong, and nothing is left.
    assert status == 1
    assert "`sam build` failed; its output is above." in failed.output
    assert "No matching distribution found" in failed.output
    assert failed.processes() == []


def curl(line: str) -> tuple[int, str]:
    """Run a line as pasted; return the status and the rest of the answer."""
    # These tests are about README's own lines; what the calls do is tested without curl.
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shown = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, check=True
    ).stdout
    return int(shown.split()[1]), shown
