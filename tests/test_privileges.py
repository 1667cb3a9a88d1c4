"""Each function may do what it does, and nothing else: the roles against the calls on the wire."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from emulated import FakeElevate
from faulty_dynamodb import FaultyDynamoDB, faulty_dynamodb
from handler import application as shared
from handler import end, sweep, track
from handler.events import InvalidEvent
from invoking import Context, forget, sample, with_body
from registry_table import template
from sessions import aws as aws_clients
from sessions.registry import Registry
from sessions.session import Activity, Session

RESOURCES: dict[str, Any] = template()["Resources"]
# The privilege of each operation; which one a PartiQL statement needs depends on its verb.
PRIVILEGES = {
    "UpdateItem": "dynamodb:UpdateItem",
    "Query": "dynamodb:Query",
    "BatchExecuteStatement": "dynamodb:PartiQLUpdate",
    "PutEvents": "events:PutEvents",
}
# What Lambda does for a function, under the function's role: log lines and dead-letter messages.
LAMBDAS_OWN = {"logs:CreateLogStream", "logs:PutLogEvents", "sqs:SendMessage"}


def statements(role: str) -> list[Any]:
    """Return a role's statements; those on a condition are lists, as the arguments of `!If`."""
    (policy,) = RESOURCES[role]["Properties"]["Policies"]
    found: list[Any] = policy["PolicyDocument"]["Statement"]
    return found


def allowed(role: str) -> set[tuple[str, str]]:
    """Return pairs of privilege and resource that the role grants besides those for Lambda."""
    found = set()
    for statement in statements(role):
        if isinstance(statement, list):
            continue
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            if action not in LAMBDAS_OWN:
                found.add((action, str(statement["Resource"]).strip("${}").replace("}", "")))
    return found


@pytest.fixture
def others(application: shared.Application) -> Registry:
    """Return a registry whose calls bypass the recording proxy."""
    return Registry(application.settings, aws_clients.client("dynamodb"))


@pytest.fixture
def wire(aws: str, others: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyDynamoDB]:
    """Put a recording proxy between the functions and all of AWS."""
    with faulty_dynamodb(aws) as recording:
        monkeypatch.setenv("AWS_ENDPOINT_URL", recording.url)
        forget()
        yield recording


def drive_end(elevate: FakeElevate, others: Registry) -> None:
    for status in (204, 400, 503):
        elevate.statuses = [status]
        for name in ("api_end", "api_elevate_v2"):
            end.handle(sample(name), Context())
        keys = {"sessionKey": str(uuid.uuid4())}
        end.handle(with_body("api_end", **keys), Context())
        end.handle(sample("sessions_ended"), Context())
        end.handle(sample("sessions_ended"), Context(seconds=1))  # put back


def drive_track(elevate: FakeElevate, others: Registry) -> None:
    for _ in range(2):
        track.handle(sample("api_track"), Context())
        track.handle(sample("api_status"), Context())
        track.handle(sample("session_active"), Context())
    sessions = [sample("session_active")["detail"]] * 2
    track.handle(sample("session_active", detail={"sessions": sessions}), Context(seconds=1))
    with pytest.raises(InvalidEvent):
        track.handle(sample("session_active", detail={}), Context())


def drive_sweep(elevate: FakeElevate, others: Registry) -> None:
    settings = shared.application().settings
    for status in (204, 400, 503):
        elevate.statuses = [status]
        for silent_for in (1, settings.session_limit):
            at = int(time.time()) - settings.idle - silent_for
            for _ in range(3):
                others.track(Activity(Session("UK", str(uuid.uuid4()), str(uuid.uuid4())), at))
        sweep.handle(sample("scheduled_sweep"), Context(seconds=1))  # handed over
        sweep.handle(sample("scheduled_sweep"), Context())


@pytest.mark.parametrize("name", ["end", "track", "sweep"])
def test_a_role_grants_what_its_function_asks_for_and_no_more(
    name: str, wire: FaultyDynamoDB, elevate: FakeElevate, others: Registry
) -> None:
    drive = {"end": drive_end, "track": drive_track, "sweep": drive_sweep}[name]
    drive(elevate, others)
    resources = {"": "Registry.Arn", "due": "Registry.Arn/index/due"}
    used = {
        (PRIVILEGES[operation], "Bus.Arn" if operation == "PutEvents" else resources[index])
        for operation, index in wire.asked
    }
    assert used == allowed(f"{name.title()}Role")


@pytest.mark.parametrize("role", ["EndRole", "TrackRole", "SweepRole"])
def test_what_a_role_grants_only_if_a_parameter_asks_for_it(role: str) -> None:
    traced = {
        "Effect": "Allow",
        "Action": ["xray:PutTraceSegments", "xray:PutTelemetryRecords"],
        "Resource": "*",
    }
    encrypted = {
        "Effect": "Allow",
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": "KmsKeyArn",
    }
    assert [statement for statement in statements(role) if isinstance(statement, list)] == [
        ["IsTraced", traced, "AWS::NoValue"],
        ["HasKmsKey", encrypted, "AWS::NoValue"],
    ]
