"""The embedded stack: MiniStack, a simulated Elevate, and `sam deploy` of the real template.yaml.

Everything listens on the loopback. Everything it writes is in one folder, and everything it starts
is stopped with it.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import boto3
from botocore.config import Config

from local.interface import interface
from local.simulated_elevate import markets_of

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
REGION = "eu-west-1"
STACK_NAME = "elevate-sessions"

_READY_SECONDS = 60
_STOP_SECONDS = 5


class StackError(Exception):
    """The stack cannot be started; the message says why, and what to do."""


class Stack:
    """A running stack. Use as a context manager; `deploy` it as often as wanted."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        elevate_port: int | None = None,
        markets: str = "UK,SE",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder
        self.port = free_port(port, "PORT")
        self._elevate_port = elevate_port
        self._markets = markets
        self._say = say
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock: IO[str] | None = None
        self.aws_endpoint_url = f"http://127.0.0.1:{self.port}"
        self.elevate_url = ""
        self.playground_url = ""
        self.info: dict[str, Any] = {}

    def __enter__(self) -> "Stack":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_folder()
        try:
            self._start_ministack()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start_elevate(self, seed: int | None = None) -> None:
        """Start the simulated Elevate; its address is then `elevate_url`."""
        port = free_port(self._elevate_port, "ELEVATE_PORT")
        arguments = ["-m", "local.simulated_elevate", "--port", str(port)]
        arguments += ["--seed", str(seed)] if seed is not None else []
        self._start("elevate", [sys.executable, *arguments, "--markets", self._markets])
        self.elevate_url = f"http://127.0.0.1:{port}"
        self._wait_for(f"{self.elevate_url}/_sim/fault", "The simulated Elevate")

    def build(self) -> None:
        """Build the functions as for production."""
        self._sam("build", "--cached", "--template-file", str(ROOT / "template.yaml"))

    def deploy(self, parameters: dict[str, str]) -> dict[str, Any]:
        """Deploy what was built; write and return what others need to know about the stack."""
        given = {"ElevateBaseUrl": self.elevate_url, "Markets": self._markets} | parameters
        overrides = [f'{name}="{value}"' for name, value in given.items()]
        self._sam(
            "deploy",
            "--config-file",
            str(ROOT / "samconfig.toml"),
            "--stack-name",
            STACK_NAME,
            "--no-progressbar",
            "--parameter-overrides",
            *overrides,
        )
        self.info = self._describe(given)
        self._put_gateway_responses(given)
        (self.folder / "stack.json").write_text(json.dumps(self.info, indent=2) + "\n")
        return self.info

    @property
    def ministack_pid(self) -> int:
        """Return the emulator's process, which leads the group of its functions' processes."""
        return self._processes[0].pid

    @property
    def api_id(self) -> str:
        """Return the deployed API's id, which is the first part of its host name."""
        return str(self.info["apiUrl"].split("/")[-2])

    def client(self, service: str, config: Config | None = None) -> Any:
        """Return a boto3 client of an emulated service."""
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.aws_endpoint_url,
            region_name=REGION,
            config=config,
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - the emulator takes any
        )

    def stop(self) -> None:
        """Stop everything that was started, and leave only logs and caches behind."""
        for process in self._processes:
            _end_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            _end_group(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
        for name in ("stack.json", "processes.json"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        if self._lock:
            self._lock.close()
            self._lock = None

    # -- parts -----------------------------------------------------------------------------

    def _take_folder(self) -> None:
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise StackError(
                f"A stack is running in {self.folder.name}/ already."
                " To have two: make run FOLDER=.local/second"
            ) from None
        self._lock = lock
        # What an earlier run left behind when it was killed outright.
        left = self.folder / "processes.json"
        if left.exists():
            for pid in json.loads(left.read_text()):
                if _is_ours(pid):
                    _end_group(pid, signal.SIGKILL)
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)

    def _start_ministack(self) -> None:
        (self.folder / "tmp").mkdir(exist_ok=True)
        self._start("ministack", [str(BIN / "ministack")])
        self._wait_for(f"{self.aws_endpoint_url}/_ministack/health", "MiniStack")

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        self._write_down()

    def _write_down(self) -> None:
        """Let the next run know what to stop, should this one be killed outright."""
        pids = [process.pid for process in self._processes]
        (self.folder / "processes.json").write_text(json.dumps(pids))

    def _environment(self) -> dict[str, str]:
        """Return an environment that reaches only the emulator, and no AWS configuration."""
        own = {name: v for name, v in os.environ.items() if not name.startswith("AWS_")}
        return own | {
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "AWS_ENDPOINT_URL": self.aws_endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "SAM_CLI_TELEMETRY": "0",
            # MiniStack and the SAM CLI: one port, on the loopback, and nothing outside the folder.
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_REGION": REGION,
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "TMPDIR": str(self.folder / "tmp"),
            "STATE_DIR": str(self.folder / "tmp"),
            "__SAM_CLI_APP_DIR": str(self.folder / "tmp"),
            "LOG_LEVEL": "INFO",
            # Its access log holds API Gateway's paths, and so keys; it stays in the folder.
        }

    def _wait_for(self, url: str, what: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        process = self._processes[-1]
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                return
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    logs = ", ".join(f"{self.folder}/{p.name}" for p in self.folder.glob("*.log"))
                    raise StackError(f"{what} does not start; see {logs}") from None
                time.sleep(0.05)

    def _sam(self, *arguments: str) -> None:
        """Run the SAM CLI; its output is shown only when it fails.

        It works in the stack's folder: a build clears away what it does not know in its caches,
        so two stacks that build at once must not share them.
        """
        log = self.folder / f"sam-{arguments[0]}.log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [str(BIN / "sam"), *arguments],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            ) as sam,
        ):
            self._processes.append(sam)
            self._write_down()
            try:
                code = sam.wait()
            except BaseException:
                _end_group(sam.pid, signal.SIGKILL)
                raise
            finally:
                self._processes.remove(sam)
                self._write_down()
        if code:
            self._say(log.read_text(errors="replace"))
            raise StackError(f"`sam {arguments[0]}` failed; its output is above.")

    def _put_gateway_responses(self, parameters: dict[str, str]) -> None:
        """Set the gateway's own answers, which MiniStack does not read from openapi.yaml."""
        gateway = self.client("apigateway")
        at = {"restApiId": self.api_id}
        answers = interface({"HasCorsOrigins"} if parameters.get("CorsOrigins") else ())
        for kind, answer in answers["x-amazon-apigateway-gateway-responses"].items():
            gateway.put_gateway_response(
                **at,
                responseType=kind,
                statusCode=str(answer["statusCode"]),
                responseParameters=answer["responseParameters"],
                responseTemplates=answer["responseTemplates"],
            )
        gateway.create_deployment(**at, stageName="api")

    def _describe(self, parameters: dict[str, str]) -> dict[str, Any]:
        stacks = self.client("cloudformation").describe_stacks(StackName=STACK_NAME)["Stacks"]
        outputs = {o["OutputKey"]: o["OutputValue"] for o in stacks[0]["Outputs"]}
        key_id = outputs.get("ApiKeyId")  # signed calls need none
        gateway = self.client("apigateway")
        key = gateway.get_api_key(apiKey=key_id, includeValue=True)["value"] if key_id else ""
        api_id = outputs["ApiUrl"].split("//")[1].split(".")[0]
        functions = {name: outputs[f"{name.title()}FunctionName"] for name in _FUNCTIONS}
        return {
            # MiniStack's own form: names under .localhost do not resolve everywhere.
            "apiUrl": f"{self.aws_endpoint_url}/_aws/execute-api/{api_id}/api",
            "apiKey": key,
            "elevateUrl": parameters["ElevateBaseUrl"],
            "elevateIsSimulated": bool(self.elevate_url),
            "markets": list(markets_of(parameters["Markets"])),
            "playgroundUrl": self.playground_url,
            "awsEndpointUrl": self.aws_endpoint_url,
            "region": REGION,
            "stackName": STACK_NAME,
            "tableName": outputs["TableName"],
            "eventBusName": outputs["EventBusName"],
            "functions": functions,
            "logGroups": [f"/aws/lambda/{name}" for name in functions.values()],
        }


_FUNCTIONS = ("end", "track", "sweep")


def free_port(wanted: int | None, name: str) -> int:
    """Return a free port, the wanted one if there is one; raises StackError if it is taken."""
    try:
        with socket.create_server(("127.0.0.1", wanted or 0)) as free:
            port: int = free.getsockname()[1]
            return port
    except OSError:
        raise StackError(f"Port {wanted} ({name}) is taken; choose another.") from None


def _end_group(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, how)


def _is_ours(pid: int) -> bool:
    shown = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)],  # noqa: S607 - wherever the system has it
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return any(name in shown for name in ("ministack", "local.simulated_elevate", f"{BIN}/sam "))
