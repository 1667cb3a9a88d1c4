"""Start a built package as Lambda starts it: the Runtime Interface Emulator, a clean interpreter.

The interpreter has the standard library and Lambda's own runtime client, and nothing else of the
development environment: what a package forgot to bring is missing here as it would be there.
"""

import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import awslambdaric
import samcli
import simplejson
import snapshot_restore_py

_MACHINE = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_RIE = (
    Path(samcli.__file__).parent
    / "local"
    / "rapid"
    / f"aws-lambda-rie-{_MACHINE[platform.machine()]}"
)
# Lambda's runtime client, linked into a folder of its own.
_CLIENT = (awslambdaric, simplejson, snapshot_restore_py)
_BOOTSTRAP = """
import sys
sys.path[:0] = [{task!r}, {client!r}]
from awslambdaric.__main__ import main
main(["bootstrap", {handler!r}])
"""


class LambdaFunction:
    """A function in a fresh execution environment; use as a context manager."""

    def __init__(
        self, package: Path, handler: str, folder: Path, environment: dict[str, str]
    ) -> None:
        client = folder / "client"
        if not client.exists():
            client.mkdir(parents=True)
            for module in _CLIENT:
                home = Path(str(module.__file__)).parent
                (client / home.name).symlink_to(home)
            for extension in Path(str(awslambdaric.__file__)).parent.parent.glob("runtime_client*"):
                (client / extension.name).symlink_to(extension)
        self._port, api_port = _free_port(), _free_port()
        code = _BOOTSTRAP.format(task=str(package), client=str(client), handler=handler)
        self._log = (folder / "function.log").open("wb")
        self._process = subprocess.Popen(
            [
                _RIE,
                "--runtime-interface-emulator-address",
                f"127.0.0.1:{self._port}",
                "--runtime-api-address",
                f"127.0.0.1:{api_port}",
                sys._base_executable,  # type: ignore[attr-defined]
                "-I",
                "-B",  # /var/task is read-only: no bytecode is written there
                "-S",
                "-c",
                code,
            ],
            cwd=package,
            env={
                "PATH": os.defpath,
                "LANG": "en_US.UTF-8",
                "AWS_REGION": "eu-west-1",
                "AWS_DEFAULT_REGION": "eu-west-1",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_LAMBDA_FUNCTION_NAME": "function",
                "AWS_LAMBDA_FUNCTION_TIMEOUT": "30",
                "LAMBDA_TASK_ROOT": str(package),
                **environment,
            },
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._wait()

    def __enter__(self) -> "LambdaFunction":
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()
        self._log.close()

    def invoke(self, event: Any) -> Any:
        """Return what the function answers to an event."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            path = "/2015-03-31/functions/function/invocations"
            connection.request("POST", path, json.dumps(event))
            return json.loads(connection.getresponse().read() or b"null")
        finally:
            connection.close()

    def _wait(self) -> None:
        """Wait until the emulator listens; the function itself starts with its first event."""
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
