"""Processes besides the measuring one: servers that are no bottleneck, and functions."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.stack import ROOT
from results import Taken

HERE = Path(__file__).parent


@contextlib.contextmanager
def server(*command: str) -> Iterator[str]:
    """Run a server that prints its URL; yield that."""
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def elevate(latency_ms: int = 0) -> contextlib.AbstractContextManager[str]:
    """Run a simulated Elevate of its own."""
    return server("-m", "local.simulated_elevate", "--latency-ms", str(latency_ms))


@contextlib.contextmanager
def instant_dynamodb(latency_ms: int = 0) -> Iterator[str]:
    """Put a DynamoDB that accepts everything, and at once, in the emulator's place."""
    emulator = os.environ["AWS_ENDPOINT_URL"]
    with server(str(HERE / "instant_dynamodb.py"), str(latency_ms)) as url:
        os.environ["AWS_ENDPOINT_URL"] = url
        try:
            yield url
        finally:
            os.environ["AWS_ENDPOINT_URL"] = emulator


@dataclass(frozen=True)
class Invoked(Taken):
    """What invocations took, together and each; the process's peak memory in MB; what they wrote.

    `units` are DynamoDB's `writes`, `reads` and `calls`, if the function is metered.
    """

    walls: list[float]
    peak: float
    units: dict[str, float]
    written: str

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines written."""
        return [json.loads(line) for line in self.written.splitlines()]


class Function:
    """A function in a fresh process; use as a context manager.

    `package` is put before the environment's own packages. `metered` counts request units.
    """

    def __init__(
        self,
        handler: str,
        environment: dict[str, str],
        package: Path = ROOT / "src",
        *,
        metered: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        log = Path(self._folder.name) / "log"
        log.touch()
        self._log = log.open()
        # No bytecode is left in packages whose cold start is measured.
        command = [sys.executable, "-PB", str(HERE / "invoke.py"), str(package), handler, str(log)]
        command += [environment["TABLE_NAME"]] * metered
        # Only the package, and nothing of this bench; the other packages stand for Lambda's.
        inherited = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            command,
            env=inherited | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Function":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()
        self._folder.cleanup()

    def start(self, *events: Any) -> None:
        """Invoke it with one event after another, without waiting."""
        assert self._process.stdin
        print(json.dumps(events), file=self._process.stdin, flush=True)

    def finish(self) -> Invoked:
        """Wait for what was started."""
        assert self._process.stdout
        return Invoked(**json.loads(self._process.stdout.readline()), written=self._log.read())

    def invoke(self, *events: Any) -> Invoked:
        """Invoke it with one event after another."""
        self.start(*events)
        return self.finish()
