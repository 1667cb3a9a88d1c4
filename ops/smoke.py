"""`make smoke`: does a deployed stack work? Ends two made-up sessions and checks the rest."""

import json
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import boto3
import click
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from urllib3.exceptions import HTTPError

from ops.operate import Operator, cli, command
from ops.target import Target
from sessions.session import hashed

# States after an end: delivered, or kept until Elevate is there.
OVER = ("ended", "retrying")


class Smoke:
    """Checks of a stack. Each public method is one: it returns what it saw, or raises."""

    def __init__(self, target: Target, profile: str | None, market: str | None) -> None:
        self._target = target
        name = target.outputs["EventBusName"]  # which is also the stack's name
        self._stack = target.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
        given = {p["ParameterKey"]: p["ParameterValue"] for p in self._stack["Parameters"]}
        self._market = market or unquote(given["Markets"].split(",")[0].strip()) or "UK"
        self._idle = given["SessionIdleMinutes"]
        gateway, key = target.client("apigateway"), target.outputs.get("ApiKeyId")
        # Signed calls need no key.
        self._key = key and gateway.get_api_key(apiKey=key, includeValue=True)["value"]
        self._sign: Any = None if key else boto3.Session(profile_name=profile).get_credentials()
        self._url = target.outputs["ApiUrl"]
        if target.is_embedded:  # names under localhost do not resolve everywhere
            api = self._url.split("//")[1].split(".")[0]
            self._url = f"{gateway.meta.endpoint_url}/_aws/execute-api/{api}/api"

    def the_deploy_is_complete(self) -> str:
        return expect(self._stack["StackStatus"], "CREATE_COMPLETE", "UPDATE_COMPLETE")

    def without_a_credential_nobody_gets_in(self) -> str:
        return expect(self._call("GET", "/sessions/any", known=False).status, 403)

    def a_bad_body_is_refused_by_field(self) -> str:
        answer = self._call("POST", "/sessions/end", {"sessionKey": 1})
        expect((answer.status, answer.headers["Content-Type"]), (400, "application/problem+json"))
        return ", ".join(f"{error['field']} {error['detail']}" for error in answer.json()["errors"])

    def a_tracked_session_is_open_and_an_event_ends_it(self) -> str:
        session = self._new_tracked_session()
        event = {"Source": "smoke", "DetailType": "Session Ended", "Detail": json.dumps(session)}
        entries = [event | {"EventBusName": self._stack["StackName"]}]
        expect(self._target.client("events").put_events(Entries=entries)["FailedEntryCount"], 0)
        return wait_for(lambda: (s := self._state(session)) in OVER and s, "the event's end")

    def a_sweep_ends_a_session_that_went_quiet(self) -> str:
        """Wait for it, ask for another sweep, forget the session. Only with --sweep."""
        expect(f"SessionIdleMinutes={self._idle}", "SessionIdleMinutes=1")
        session = self._new_tracked_session()
        wait_for(lambda: self._state(session) != "open", "the sweep's end", 240)
        state = expect(self._state(session), *OVER)
        asked = self._target.put_event({})
        wait_for(lambda: self._logged("sweep", asked), "the line of a sweep that was asked for")
        table, key = self._target.outputs["TableName"], ("sessionKey", "market")
        self._target.client("dynamodb").delete_item(
            TableName=table, Key={name: {"S": session[name]} for name in key}
        )
        expect(self._call("GET", f"/sessions/{session['sessionKey']}").status, 404)
        return state

    def a_call_ends_a_session_and_is_logged_without_keys(self) -> str:
        session = self._new_session()
        status = expect(self._call("POST", "/sessions/end", session).status, 204, 202)
        shown = str(hashed(session["sessionKey"]))
        line = wait_for(lambda: self._logged("end", shown), "its line in the log")
        expect([name for name in ("sessionKey", "customerKey") if session[name] in line], [])
        return f"{status}, level {expect(json.loads(line)['level'], 'INFO', 'WARNING')}"

    def the_schedule_is_on_and_sweeps_run(self) -> str:
        schedule = self._target.outputs["SweepFunctionName"]
        state = self._target.client("scheduler").get_schedule(Name=schedule)["State"]
        line = wait_for(lambda: self._logged("sweep", "backlog"), "a sweep's line in the log", 150)
        return f"{expect(state, 'ENABLED')}, level {json.loads(line)['level']}"

    def the_alarms_are_there_and_silent(self) -> str:
        deploys, name = self._target.client("cloudformation"), self._stack["StackName"]
        made = deploys.describe_stack_resources(StackName=name)["StackResources"]
        names = [r["PhysicalResourceId"] for r in made if r["ResourceType"].endswith("::Alarm")]
        found = self._target.client("cloudwatch").describe_alarms(AlarmNames=names)["MetricAlarms"]
        expect([alarm["AlarmName"] for alarm in found if alarm["StateValue"] == "ALARM"], [])
        return f"{expect(len(found), len(names))} alarms"

    def _new_session(self) -> dict[str, str]:
        keys = {name: str(uuid.uuid4()) for name in ("customerKey", "sessionKey")}
        return {"market": self._market} | keys

    def _new_tracked_session(self) -> dict[str, str]:
        session = self._new_session()
        body = {name: value for name, value in session.items() if name != "sessionKey"}
        expect(self._call("PUT", f"/sessions/{session['sessionKey']}", body).status, 204)
        expect(self._state(session), "open")
        return session

    def _call(self, method: str, path: str, body: Any = None, *, known: bool = True) -> Any:
        url, data = self._url + path, None if body is None else json.dumps(body)
        request = AWSRequest(method, url, {"Content-Type": "application/json"}, data)
        if known and self._key:
            request.headers["x-api-key"] = self._key
        elif known:
            region = self._target.client("lambda").meta.region_name
            SigV4Auth(self._sign, "execute-api", region).add_auth(request)
        return urllib3.request(method, url, body=data, headers=dict(request.headers), timeout=35)

    def _state(self, session: dict[str, str]) -> str:
        path = f"/sessions/{session['sessionKey']}?market={quote(self._market, safe='')}"
        return str(self._call("GET", path).json()["sessions"][0]["state"])

    def _logged(self, function: str, text: str) -> str:
        """Return a function's log line of the last three minutes that holds a text, if any."""
        group = next(g for g in self._target.log_groups if g.endswith(f"-{function}"))
        pages = self._target.client("logs").get_paginator("filter_log_events")
        since = int((time.time() - 180) * 1000)
        found = pages.paginate(logGroupName=group, startTime=since, filterPattern=f'"{text}"')
        lines = (str(event["message"]) for page in found for event in page["events"])
        return next((line for line in lines if text in line and '"level"' in line), "")


def expect(seen: Any, *wanted: Any) -> str:
    """Return what was seen, as text; raises AssertionError if it was not wanted."""
    if seen not in wanted:
        raise AssertionError(f"{seen}, not {' or '.join(map(str, wanted))}")
    return str(seen)


def wait_for(found: Callable[[], str | bool], what: str, seconds: float = 60) -> str:
    """Return what `found` returns, once it is something; raises AssertionError if not in time."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(1)
    return str(result)


@command
@click.option("--market", help="Market to end sessions in. Default: the first of Markets, or UK.")
@click.option("--sweep", is_flag=True, help="See a sweep end one, too; SessionIdleMinutes=1.")
def smoke(operator: Operator, market: str | None, sweep: bool) -> None:
    """Check that a stack works. Two made-up sessions are ended at Elevate; with --sweep three."""
    stack, failed = Smoke(operator.target, operator.where[1], market), 0
    checks = {name: check for name, check in vars(Smoke).items() if not name.startswith("_")}
    if not sweep:
        del checks["a_sweep_ends_a_session_that_went_quiet"]
    for name, check in checks.items():
        try:
            result, seen = "ok", check(stack)
        except (AssertionError, LookupError, ValueError, HTTPError, ClientError) as error:
            result, seen, failed = "FAILED", f"{type(error).__name__}: {error}", failed + 1
        line = {"check": name.replace("_", " "), "result": result, "seen": seen}
        click.echo(
            json.dumps(line) if operator.as_json else "{result:6} {check}: {seen}".format(**line)
        )
    if failed:
        raise click.ClickException("The stack does not work as it should.")


if __name__ == "__main__":
    sys.exit(cli(["smoke", *sys.argv[1:]], prog_name="ops.smoke"))
