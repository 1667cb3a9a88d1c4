"""The operator's command line, for the embedded stack or, with --stack, for one in AWS."""

import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import click
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.table import Table

from local.logs import follow, readable
from local.stack import ROOT
from sessions.settings import MAX_SHARDS
from sessions.telemetry import hashed

QUEUES = {
    "failed events": "FailedEventsUrl",
    "undelivered events": "UndeliveredEventsUrl",
    "missed sweeps": "MissedSweepsUrl",
}


class Target:
    """A deployed stack: its AWS clients and its outputs."""

    def __init__(
        self, stack: str | None, profile: str | None, region: str | None, folder: str
    ) -> None:
        if stack:
            self._session = boto3.Session(profile_name=profile, region_name=region)
            self._endpoint = None
            # The alias that all traffic goes to; retries and dead letters are set for it alone.
            self._alias = ":live"
        else:
            embedded = ROOT / folder / "stack.json"
            if not embedded.exists():
                raise click.ClickException(
                    "No stack runs here. Start one with `make run`, or name one with --stack."
                )
            info = json.loads(embedded.read_text())
            stack, self._endpoint = info["stackName"], info["awsEndpointUrl"]
            # MiniStack forgets them where a version is called.
            self._alias = ""
            self._session = boto3.Session(
                aws_access_key_id="test",
                aws_secret_access_key="test",  # noqa: S106 - the emulator takes any
                region_name=info["region"],
            )
        described = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
        self.outputs = {o["OutputKey"]: o["OutputValue"] for o in described.get("Outputs", [])}
        if "TableName" not in self.outputs:
            raise click.ClickException(f"The stack {stack} is not one of this service.")

    def client(self, service: str) -> Any:
        """Return a client of a service."""
        return self._session.client(service, endpoint_url=self._endpoint)  # type: ignore[call-overload]

    def invoke(self, function: str, event: Any) -> None:
        """Invoke a function asynchronously, so that Lambda retries it."""
        self.client("lambda").invoke(
            FunctionName=function + self._alias, InvocationType="Event", Payload=json.dumps(event)
        )

    @property
    def log_groups(self) -> list[str]:
        """Return the functions' log groups."""
        return [
            f"/aws/lambda/{self.outputs[f'{name}FunctionName']}"
            for name in ("End", "Track", "Sweep")
        ]

    def put_event(self, detail: dict[str, Any]) -> None:
        """Put a `Session Sweep` event on the stack's bus."""
        entry = {
            "EventBusName": self.outputs["EventBusName"],
            "Source": "operator",
            "DetailType": "Session Sweep",
            "Detail": json.dumps(detail),
        }
        answer = self.client("events").put_events(Entries=[entry])
        if answer["FailedEntryCount"]:
            raise click.ClickException(f"The bus refused the event: {answer['Entries'][0]}")


class _Group(click.Group):
    """Turns AWS's errors into one clear line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BotoCoreError, ClientError) as error:
            raise click.ClickException(f"AWS: {error}") from None


@click.group(cls=_Group)
@click.option("--stack", help="Name of a stack in AWS; without it, the embedded one.")
@click.option("--profile", help="AWS profile.")
@click.option("--region", help="AWS region.")
@click.option("--folder", default=".local", help="Where the embedded stack runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def cli(
    ctx: click.Context,
    stack: str | None,
    profile: str | None,
    region: str | None,
    folder: str,
    as_json: bool,
) -> None:
    """See and act at night. Every command says what it did; the exit status is 0 if it worked."""
    ctx.obj = {"target": (stack, profile, region, folder), "json": as_json}


def _target(ctx: click.Context) -> Target:
    return Target(*ctx.obj["target"])


def _print(ctx: click.Context, value: dict[str, Any], text: Any) -> None:
    if ctx.obj["json"]:
        click.echo(json.dumps(value))
    else:
        Console().print(text)


@cli.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show sessions by state, what is due, how late it is, and dead letters. Reads the table."""
    target = _target(ctx)
    table = target.outputs["TableName"]
    dynamodb = target.client("dynamodb")
    now = int(time.time())
    states: Counter[str] = Counter()
    with Console(stderr=True).status("Reading the registry …"):
        for page in dynamodb.get_paginator("scan").paginate(
            TableName=table,
            ProjectionExpression="#state",
            ExpressionAttributeNames={"#state": "state"},
        ):
            states.update(item.get("state", {}).get("S", "?") for item in page["Items"])
    due, oldest = 0, now
    for shard in range(MAX_SHARDS):
        for page in dynamodb.get_paginator("query").paginate(
            TableName=table,
            IndexName="due",
            KeyConditionExpression="sweepShard = :shard AND dueAt <= :now",
            ExpressionAttributeValues={":shard": {"N": str(shard)}, ":now": {"N": str(now)}},
            ProjectionExpression="dueAt",
        ):
            due += len(page["Items"])
            oldest = min([oldest, *(int(item["dueAt"]["N"]) for item in page["Items"])])
    letters = {name: _letters(target, output) for name, output in QUEUES.items()}
    found = {
        "states": dict(states),
        "due": due,
        "lagSeconds": now - oldest,
        "deadLetters": letters,
    }
    shown = Table("what", "how many")
    for state in ("open", "retrying", "rejected", "ended", "expired"):
        shown.add_row(state, str(states.get(state, 0)))
    shown.add_section()
    shown.add_row("due now", str(due))
    shown.add_row("oldest is late by", f"{now - oldest} s")
    shown.add_section()
    for name, count in letters.items():
        shown.add_row(f"dead letters: {name}", str(count))
    _print(ctx, found, shown)


def _letters(target: Target, output: str) -> int:
    attributes = target.client("sqs").get_queue_attributes(
        QueueUrl=target.outputs[output], AttributeNames=["ApproximateNumberOfMessages"]
    )["Attributes"]
    return int(attributes["ApproximateNumberOfMessages"])


@cli.command()
@click.argument("key")
@click.option("--hours", default=24, help="How far back to look in the logs.")
@click.pass_context
def session(ctx: click.Context, key: str, hours: int) -> None:
    """Show a session's state in the registry, and its lines in the logs."""
    target = _target(ctx)
    answer = target.client("dynamodb").query(
        TableName=target.outputs["TableName"],
        KeyConditionExpression="sessionKey = :key",
        ExpressionAttributeValues={":key": {"S": key}},
    )
    hidden = {"sessionKey", "customerKey", "lease"}
    rows = [
        {name: next(iter(value.values())) for name, value in item.items() if name not in hidden}
        for item in answer["Items"]
    ]
    lines = list(_history(target, str(hashed(key)), hours))
    if not rows and not lines:
        raise click.ClickException("This session is neither in the registry nor in the logs.")
    shown = Table("registry", "")
    for row in rows:
        for name, value in sorted(row.items()):
            moment = int(value) if name.endswith(("At", "Until")) and int(value) else None
            at = f" ({datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC)" if moment else ""
            shown.add_row(name, f"{value}{at}")
        shown.add_section()
    _print(ctx, {"rows": rows, "log": lines}, shown)
    if not ctx.obj["json"]:
        for line in lines:
            click.echo(readable(line["function"], json.dumps(line)))


@cli.command()
@click.argument("key")
@click.pass_context
def forget(ctx: click.Context, key: str) -> None:
    """Delete what the registry holds of a session, in all markets. Its end is not sent any more."""
    target = _target(ctx)
    dynamodb, table = target.client("dynamodb"), target.outputs["TableName"]
    answer = dynamodb.query(
        TableName=table,
        KeyConditionExpression="sessionKey = :key",
        ExpressionAttributeValues={":key": {"S": key}},
        ProjectionExpression="sessionKey, market",
        ConsistentRead=True,
    )
    for item in answer["Items"]:
        dynamodb.delete_item(TableName=table, Key=item)
    markets = [item["market"]["S"] for item in answer["Items"]]
    if not markets:
        raise click.ClickException("This session is not in the registry.")
    told = "Forgotten in " + ", ".join(markets) + ". Dead letters may hold it for 14 days at most."
    _print(ctx, {"forgotten": markets}, told)


def _history(target: Target, session_hash: str, hours: int) -> Iterator[dict[str, Any]]:
    logs = target.client("logs")
    since = int((time.time() - hours * 3600) * 1000)
    for group in target.log_groups:
        try:
            for page in logs.get_paginator("filter_log_events").paginate(
                logGroupName=group, startTime=since, filterPattern=f'"{session_hash}"'
            ):
                for event in page["events"]:
                    if session_hash in event["message"]:
                        yield {"function": group.rsplit("-", 1)[-1]} | json.loads(event["message"])
        except logs.exceptions.ResourceNotFoundException:
            continue


@cli.command()
@click.pass_context
def sweep(ctx: click.Context) -> None:
    """Sweep now, without waiting for the schedule."""
    _target(ctx).put_event({})
    _print(ctx, {"asked": True}, "A sweep was asked for; `tail` shows it.")


@cli.command("retry-rejected")
@click.option("--market", help="Only sessions of this market.")
@click.pass_context
def retry_rejected(ctx: click.Context, market: str | None) -> None:
    """Make rejected sessions due again, once the reason is mended."""
    _target(ctx).put_event({"retry": "rejected"} | ({"market": market} if market else {}))
    _print(ctx, {"asked": True}, "Rejected sessions become due again within a minute.")


@cli.command()
@click.pass_context
def redrive(ctx: click.Context) -> None:
    """Give dead letters to their functions once more; each goes back if it fails again."""
    done = redrive_all(_target(ctx))
    shown = ", ".join(f"{count} {name}" for name, count in done.items()) or "There were none."
    _print(ctx, {"redriven": dict(done)}, f"Redriven: {shown}")


def redrive_all(target: Target) -> Counter[str]:
    """Give each dead letter to its function again; return how many of which queue."""
    sqs = target.client("sqs")
    done: Counter[str] = Counter()
    for name, output in QUEUES.items():
        queue = target.outputs[output]
        for _ in range(_letters(target, output)):
            received = sqs.receive_message(
                QueueUrl=queue, MaxNumberOfMessages=1, MessageAttributeNames=["All"]
            )
            for message in received.get("Messages", []):
                function, event = _addressee(target, output, message)
                target.invoke(function, event)
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
                done[name] += 1
    return done


def _addressee(target: Target, output: str, message: dict[str, Any]) -> tuple[str, Any]:
    """Return the function that a dead letter was meant for, and the event it shall get."""
    body = json.loads(message["Body"])
    if output == "FailedEventsUrl":  # Lambda's own record around the event
        arn = body["requestContext"]["functionArn"]
        return ":".join(arn.split(":")[:7]), body["requestPayload"]
    if output == "UndeliveredEventsUrl":
        names = {
            "Session Ended": "EndFunctionName",
            "Session Active": "TrackFunctionName",
            "Session Sweep": "SweepFunctionName",
        }
        return target.outputs[names[body["detail-type"]]], body
    return target.outputs["SweepFunctionName"], {"id": str(uuid.uuid4())} | body


@cli.command()
@click.pass_context
def tail(ctx: click.Context) -> None:
    """Follow the functions' logs."""
    target = _target(ctx)
    for line in follow(target.client("logs"), target.log_groups):
        click.echo(line)


@cli.command("session-hash")
@click.argument("key")
@click.pass_context
def session_hash(ctx: click.Context, key: str) -> None:
    """Print what stands for a key in the logs."""
    _print(ctx, {"hash": hashed(key)}, hashed(key))


if __name__ == "__main__":
    sys.exit(cli(prog_name="operate"))
