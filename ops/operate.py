"""The operator's command line, for the embedded stack or, with --stack, for one in AWS."""

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
)
from rich.console import Console
from rich.table import Table

from ops.logs import as_json, follow, line_of, readable
from ops.redrive import QUEUES, redrive_all, waiting
from ops.rejected import rejected, retry
from ops.target import Target, hint
from sessions.session import hashed
from sessions.statements import SHARDS, ended_for

# How many rows are written at once. It stays below boto3's ten connections.
WRITERS = 8
STATES = ("open", "retrying", "rejected", "ended", "expired")


class _Group(click.Group):
    """Turn AWS's errors into one clear line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BotoCoreError, ClientError) as error:
            raise click.ClickException(f"AWS: {error}{hint(error)}") from None


@dataclass(frozen=True)
class Operator:
    """The stack that a command acts on, and how it prints its answer."""

    where: tuple[str | None, str | None, str | None, str]
    as_json: bool

    @functools.cached_property
    def target(self) -> Target:
        """Return the stack."""
        return Target(*self.where)

    def show(self, value: dict[str, Any], text: Any) -> None:
        """Print an answer: as JSON with --json, else as text or a table."""
        if self.as_json:
            click.echo(json.dumps(value))
        else:
            # Elevate's texts are printed as they are, not as markup.
            Console(markup=False, emoji=False).print(text)

    def busy(self, text: str) -> AbstractContextManager[Any]:
        """Show that a command is working."""
        return Console(stderr=True).status(text)


@click.group(cls=_Group)
def cli() -> None:
    """Inspect and repair a stack. Each command says what it did, and exits with 0 if it worked."""


def command(do: Callable[..., None]) -> click.Command:
    """Turn a function into a command with the options that all commands have."""

    @functools.wraps(do)
    def run(
        stack: str | None,
        profile: str | None,
        region: str | None,
        folder: str,
        as_json: bool,
        **own: Any,
    ) -> None:
        do(Operator((stack, profile, region, folder), as_json), **own)

    decorated: Callable[..., None] = run
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--folder", default=".local", help="Folder of the embedded stack."),
        click.option("--region", help="AWS region of the stack."),
        click.option("--profile", help="AWS profile to use."),
        click.option("--stack", help="Name of a stack in AWS. Default: the embedded one."),
    ):
        decorated = option(decorated)
    return cli.command(do.__name__.replace("_", "-"))(decorated)


@command
def status(operator: Operator) -> None:
    """Show sessions by state, what is due, and dead-letter messages. Reads the whole table."""
    target = operator.target
    table = target.outputs["TableName"]
    dynamodb = target.client("dynamodb")
    now = int(time.time())
    states: Counter[str] = Counter()
    with operator.busy("Reading the registry …"):
        for page in dynamodb.get_paginator("scan").paginate(
            TableName=table,
            ProjectionExpression="#state",
            ExpressionAttributeNames={"#state": "state"},
        ):
            states.update(item.get("state", {}).get("S", "unknown") for item in page["Items"])
        due, oldest = 0, now
        for shard in range(SHARDS):
            for page in dynamodb.get_paginator("query").paginate(
                TableName=table,
                IndexName="due",
                KeyConditionExpression="sweepShard = :shard AND dueAt <= :now",
                ExpressionAttributeValues={":shard": {"N": str(shard)}, ":now": {"N": str(now)}},
                ProjectionExpression="dueAt",
            ):
                due += len(page["Items"])
                oldest = min([oldest, *(int(item["dueAt"]["N"]) for item in page["Items"])])
        dead = {name: waiting(target, output) for name, output in QUEUES.items()}
    found = {
        "states": dict(states),
        "due": due,
        "lagSeconds": now - oldest,
        "deadLetters": dead,
    }
    shown = Table("what", "how many")
    for state in dict.fromkeys((*STATES, *sorted(states))):
        shown.add_row(state, str(states.get(state, 0)))
    shown.add_section()
    shown.add_row("due now", str(due))
    shown.add_row("oldest due for", f"{now - oldest} s")
    shown.add_section()
    for name, count in dead.items():
        shown.add_row(f"dead-letter messages: {name}", str(count))
    operator.show(found, shown)


@command
@click.argument("key")
@click.option("--hours", default=24, help="How far back to look in the logs.")
def session(operator: Operator, key: str, hours: int) -> None:
    """Show a session's state in the registry and its lines in the logs."""
    target = operator.target
    key = target.identity(key)
    answer = target.client("dynamodb").query(
        TableName=target.outputs["TableName"],
        KeyConditionExpression="sessionKey = :key",
        ExpressionAttributeValues={":key": {"S": key}},
    )
    hidden = {"sessionKey", "givenKey", "customerKey", "lease"}
    rows = [
        {name: _plain(value) for name, value in item.items() if name not in hidden}
        for item in answer["Items"]
    ]
    with operator.busy("Reading the logs …"):
        lines = sorted(
            _history(target, str(hashed(key)), hours), key=lambda line: str(line.get("timestamp"))
        )
    if not rows and not lines:
        raise click.ClickException("This session is neither in the registry nor in the logs.")
    shown = Table("registry", "")
    for row in rows:
        for name, value in sorted(row.items()):
            moment = int(value or 0) if name.endswith(("At", "Until")) else 0
            at = f" ({datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC)" if moment else ""
            shown.add_row(name, "" if value is None else f"{value}{at}")
        shown.add_section()
    operator.show({"rows": rows, "log": lines}, shown)
    if not operator.as_json:
        for line in lines:
            click.echo(readable(line.pop("function"), json.dumps(line)))


def _plain(value: dict[str, Any]) -> Any:
    """Return a DynamoDB value without its type."""
    ((kind, plain),) = value.items()
    return None if kind == "NULL" else plain


def _history(target: Target, session_hash: str, hours: int) -> Iterator[dict[str, Any]]:
    logs = target.client("logs")
    since = int((time.time() - hours * 3600) * 1000)
    for group in target.log_groups:
        try:
            for page in logs.get_paginator("filter_log_events").paginate(
                logGroupName=group, startTime=since, filterPattern=f'"{session_hash}"'
            ):
                for event in page["events"]:
                    if session_hash in event["message"] and (line := line_of(event["message"])):
                        yield {"function": group.rsplit("-", 1)[-1]} | line
        except logs.exceptions.ResourceNotFoundException:
            continue


@command
@click.argument("key", required=False)
@click.option("--customer", help="Delete all sessions of this customerKey. Reads the whole table.")
def forget(operator: Operator, key: str | None, customer: str | None) -> None:
    """Delete a session from the registry, in all markets. Its end will not be sent."""
    if (key is None) == (customer is None):
        raise click.UsageError("Give the session's key, or --customer.")
    target = operator.target
    dynamodb, table = target.client("dynamodb"), target.outputs["TableName"]
    asked: dict[str, Any] = {
        "TableName": table,
        "ProjectionExpression": "sessionKey, market",
        "ConsistentRead": True,
    }
    if key:
        asked["KeyConditionExpression"] = "sessionKey = :key"
        asked["ExpressionAttributeValues"] = {":key": {"S": target.identity(key)}}
    else:
        asked["FilterExpression"] = "customerKey = :key OR endedFor = :hash"
        values = {":key": {"S": customer}, ":hash": {"S": ended_for(customer)}}
        asked["ExpressionAttributeValues"] = values
    pages = dynamodb.get_paginator("query" if key else "scan")
    markets = []
    with operator.busy("Reading the registry …"):
        for page in pages.paginate(**asked):
            for item in page["Items"]:
                dynamodb.delete_item(TableName=table, Key=item)
                markets.append(item["market"]["S"])
    if not markets:
        raise click.ClickException("The registry holds no such session.")
    text = f"Deleted in {', '.join(markets)}. Dead-letter messages may hold it for up to 14 days."
    operator.show({"forgotten": markets}, text)


@command
def sweep(operator: Operator) -> None:
    """Sweep now, without waiting for the schedule."""
    operator.target.put_event({})
    operator.show({"asked": True}, "A sweep was requested. `tail` shows it.")


@command
@click.option("--market", help="Only sessions of this market.")
def retry_rejected(operator: Operator, market: str | None) -> None:
    """Make rejected sessions due again. First fix the reason for the rejection."""
    target, now = operator.target, int(time.time())
    dynamodb, table = target.client("dynamodb"), target.outputs["TableName"]
    with operator.busy("Making them due again …"), ThreadPoolExecutor(WRITERS) as threads:
        found = rejected(dynamodb, table, market or None)
        due = sum(threads.map(lambda row: retry(dynamodb, table, row, now), found))
    text = f"{due} rejected sessions are due again within a minute." if due else "None is rejected."
    operator.show({"retried": due}, text)


@command
def redrive(operator: Operator) -> None:
    """Send dead-letter messages to their functions again. Those that fail again come back."""
    done, left = redrive_all(operator.target)
    shown = ", ".join(f"{count} {name}" for name, count in done.items()) or "nothing"
    operator.show({"redriven": dict(done), "unreadable": dict(left)}, f"Redriven: {shown}.")
    if left:
        shown = ", ".join(f"{count} {name}" for name, count in left.items())
        raise click.ClickException(f"Left in their queues, because they are not events: {shown}")


@command
def tail(operator: Operator) -> None:
    """Follow the functions' logs."""
    target = operator.target
    show = as_json if operator.as_json else readable
    for line in follow(target.client("logs"), target.log_groups, target.poll, show):
        click.echo(line)


@command
@click.argument("key")
@click.option("--customer", is_flag=True, help="It is a customerKey.")
def session_hash(operator: Operator, key: str, customer: bool) -> None:
    """Print the hash that stands for a key in the logs."""
    shown = hashed(key if customer else operator.target.identity(key))
    operator.show({"hash": shown}, shown)


if __name__ == "__main__":
    sys.exit(cli(prog_name="operate"))
