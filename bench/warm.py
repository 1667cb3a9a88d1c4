"""Warm path: one end through the handler against one POST and two writes by bare clients."""

import os
from collections.abc import Callable

import urllib3

from hands import dynamodb, end_call, new_session, new_table, silence, url_of
from invoke import Context
from local.stack import Stack
from results import Result, at_most, compare, told

ROUNDS = 9
TIMES = 200


def warm(stack: Stack) -> list[Result]:
    """Measure both in turns."""
    os.environ |= {"TABLE_NAME": new_table(), "ELEVATE_BASE_URL": stack.elevate_url}
    from handler import end

    client = dynamodb()
    pool = urllib3.PoolManager()
    table = os.environ["TABLE_NAME"]
    context = Context()

    def bare() -> None:
        session = new_session()
        key = {"sessionKey": {"S": session.session_key}, "market": {"S": session.market}}
        for state in ("ending", "ended"):
            client.update_item(
                TableName=table,
                Key=key,
                UpdateExpression="SET #s = :s",
                ExpressionAttributeNames={"#s": "state"},
                ExpressionAttributeValues={":s": {"S": state}},
            )
            if state == "ending":
                pool.request("POST", url_of(stack.elevate_url, session))

    def ours() -> None:
        answer = end.handle(end_call(), context)
        assert answer is not None
        assert answer["statusCode"] == 204

    with silence():
        times = compare(
            {
                "ours": lambda: repeat(ours),
                "bare": lambda: repeat(bare),
            },
            ROUNDS,
        )
    us, least = times["ours"], times["bare"]
    return [
        told("warm: ours, ms of CPU", us.cpu / TIMES * 1000),
        at_most("warm: CPU, ours / bare POST and two writes", us.cpu / least.cpu, 1.25),
        at_most("warm: wall, ours / bare POST and two writes", us.wall / least.wall, 1.25),
    ]


def repeat(work: Callable[[], None]) -> None:
    """Work often enough to be measured."""
    for _ in range(TIMES):
        work()
