"""The readable log: what is shown of a line, and that none is missed or shown twice."""

import itertools
import json
import time
from typing import Any

import pytest

from local.logs import as_json, follow, readable

OURS = {
    "level": "INFO",
    "message": "notification",
    "timestamp": "2001-11-24T09:25:51.000+00:00",
    "correlation_id": "c1",
    "status": 204,
}
TIME_OUT = {
    "time": "2001-11-24T09:25:51.000Z",
    "type": "platform.report",
    "record": {"requestId": "r1", "status": "timeout", "metrics": {}},
}
FAILED = {
    "timestamp": "2001-11-24T09:25:51Z",
    "level": "ERROR",
    "errorMessage": "no session d9528030-509c-4e0f-b585-7168f1e9feca",
    "errorType": "KeyError",
    "stackTrace": [],
}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (OURS, "09:25:51 end   INFO    notification correlation_id=c1 status=204"),
        (TIME_OUT, "09:25:51 end   ERROR   platform.report status=timeout requestId=r1"),
        (FAILED, "09:25:51 end   ERROR   failed errorType=KeyError"),
        (TIME_OUT | {"record": {"status": "success"}}, ""),
        (TIME_OUT | {"type": "platform.start", "record": {"requestId": "r1"}}, ""),
        ({"_aws": {}, "Delivered": [1.0]}, ""),
        ({"other": 1}, ""),
        ([], ""),
    ],
)
def test_a_line_is_shown_as_text(line: Any, shown: str) -> None:
    assert readable("end", json.dumps(line)) == shown


def test_what_is_not_json_is_shown_as_it_is_except_lambdas_frame() -> None:
    assert readable("end", "Task timed out after 30 s\n") == "end   Task timed out after 30 s"
    assert readable("end", "START RequestId: r1") == ""


def test_a_line_as_json_names_its_function_and_omits_the_text_of_exceptions() -> None:
    assert json.loads(as_json("end", json.dumps(OURS))) == {"function": "end"} | OURS
    shown = json.loads(as_json("end", json.dumps(FAILED)))
    assert (shown["function"], shown["errorType"]) == ("end", "KeyError")
    assert "d9528030" not in str(shown)
    assert as_json("end", json.dumps({"_aws": {}})) == as_json("end", "REPORT RequestId") == ""


class FakeLogs:
    """A CloudWatch Logs that returns each poll's events, as far back as it is asked for."""

    class exceptions:
        ResourceNotFoundException = KeyError

    def __init__(self, *written: list[tuple[int, str]]) -> None:
        self._written = itertools.accumulate(written)

    def get_paginator(self, name: str) -> "FakeLogs":
        return self

    def paginate(self, logGroupName: str, startTime: int) -> list[dict[str, Any]]:
        events = next(self._written)
        found = [{"timestamp": at, "message": m} for at, m in events if at >= startTime]
        return [{"events": found}]


def test_no_line_is_missed_or_shown_twice_even_if_it_comes_late() -> None:
    now = int(time.time() * 1000)
    before, first, late, same = (now - 60_000, "b"), (now + 9000, "1"), (now + 5000, "2"), "3"
    logs = FakeLogs([before, first], [], [late], [(now + 9500, same)], [(now + 9500, same)])
    lines = follow(logs, ["/aws/lambda/stack-end"], 0, lambda _, message: message)
    assert list(itertools.islice(lines, 4)) == ["1", "2", same, same]


TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/var/task/handler/end.py", line 9, in handle',
    "    b = a[key]",
    "        ~^^^^^",
    '  File "/var/task/handler/a.py", line 9, in find',
    "    b = a[key]",
    "        ~^^^^^",
    "KeyError: 'market'",
]


def test_a_traceback_reads_as_written_and_is_not_repeated_by_each_retry() -> None:
    now = int(time.time() * 1000)
    first = [(now + 1000, line) for line in TRACEBACK]
    retry = [(now + 2000, line) for line in [*TRACEBACK, "after"]]
    lines = follow(FakeLogs(first, retry), ["stack-end"], 0, lambda _, message: message)
    again = "KeyError: 'market' (again; its traceback is above)"
    assert list(itertools.islice(lines, len(TRACEBACK) + 2)) == [*TRACEBACK, again, "after"]
