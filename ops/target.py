"""The stack that an operator's command acts on: the embedded one, or one in AWS."""

import json
from pathlib import Path
from typing import Any

import boto3
import click
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)

from sessions.dialects import DIALECTS

ROOT = Path(__file__).parent.parent

# How often (seconds) the logs are polled: CloudWatch allows few such calls a second.
_POLL, _POLL_AWS = 0.5, 2.0

_NO_STACK = "No stack is running here. Start one with `make run`, or name one with --stack."


class Target:
    """A deployed stack: its AWS clients, its parameters and its outputs."""

    def __init__(
        self, stack: str | None, profile: str | None, region: str | None, folder: str
    ) -> None:
        if stack:
            self._session = boto3.Session(profile_name=profile, region_name=region)
            self._endpoint, self._config = None, None
            self.poll = _POLL_AWS
        else:
            if profile or region:
                raise click.UsageError("--profile and --region need --stack.")
            embedded = ROOT / folder / "stack.json"
            if not embedded.exists():
                raise click.ClickException(_NO_STACK)
            info = json.loads(embedded.read_text())
            stack, self._endpoint = info["stackName"], info["awsEndpointUrl"]
            # It answers at once, or it is not running.
            self._config = Config(retries={"total_max_attempts": 1})
            self.poll = _POLL
            self._session = boto3.Session(
                aws_access_key_id="test",
                aws_secret_access_key="test",  # noqa: S106 - the emulator takes any
                region_name=info["region"],
            )
        self.is_embedded = self._endpoint is not None
        try:
            described = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
        except EndpointConnectionError:
            if self.is_embedded:
                raise click.ClickException(_NO_STACK) from None
            raise
        given = {p["ParameterKey"]: p["ParameterValue"] for p in described.get("Parameters", [])}
        self.parameters: dict[str, str] = given
        self.outputs = {o["OutputKey"]: o["OutputValue"] for o in described.get("Outputs", [])}
        if "TableName" not in self.outputs:
            raise click.ClickException(f"{stack} is not a stack of this service.")

    def client(self, service: str) -> Any:
        """Return a client of a service."""
        return self._session.client(  # type: ignore[call-overload]
            service, endpoint_url=self._endpoint, config=self._config
        )

    def invoke(self, function: str, event: Any) -> None:
        """Invoke a function asynchronously, so that Lambda retries it."""
        self.client("lambda").invoke(
            FunctionName=function, InvocationType="Event", Payload=json.dumps(event)
        )

    def identity(self, session_key: str) -> str:
        """Return the key by which the registry and the logs know a session, however spelled."""
        return DIALECTS[self.parameters["ElevateApi"]].identity(session_key)

    @property
    def functions(self) -> list[str]:
        """Return the functions' names."""
        return [self.outputs[f"{name}FunctionName"] for name in ("End", "Track", "Sweep")]

    @property
    def log_groups(self) -> list[str]:
        """Return the functions' log groups."""
        return [f"/aws/lambda/{name}" for name in self.functions]

    def put_event(self, detail: dict[str, Any]) -> str:
        """Put a `Session Sweep` event on the stack's bus; return its id."""
        entry = {
            "EventBusName": self.outputs["EventBusName"],
            "Source": "operator",
            "DetailType": "Session Sweep",
            "Detail": json.dumps(detail),
        }
        answer = self.client("events").put_events(Entries=[entry])
        if answer["FailedEntryCount"]:
            raise click.ClickException(f"The bus refused the event: {answer['Entries'][0]}")
        return str(answer["Entries"][0]["EventId"])


def hint(error: Exception) -> str:
    """Return what to do about an error from AWS."""
    match error:
        case NoRegionError():
            return " Give --region, or set AWS_REGION."
        case NoCredentialsError() | PartialCredentialsError() | ProfileNotFound():
            return " Give --profile, or sign in (`aws configure`, `aws sso login`)."
        case ClientError(response={"Error": {"Code": "ValidationError"}}):
            return ". Is it the right --stack, --region and --profile?"
    return ""
