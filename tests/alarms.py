"""The template's alarms, evaluated as CloudWatch does."""

import operator
from collections.abc import Callable
from typing import Any

from registry_table import template

ALARMS: dict[str, dict[str, Any]] = {
    name: resource["Properties"]
    for name, resource in template()["Resources"].items()
    if resource["Type"] == "AWS::CloudWatch::Alarm"
}
DEFAULTS = {name: p["Default"] for name, p in template()["Parameters"].items()}
STATISTICS: dict[str, Callable[[list[float]], float]] = {"Maximum": max, "Sum": sum}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "LessThanOrEqualToThreshold": operator.le,
}


def fires(alarm: dict[str, Any], periods: list[list[float]]) -> bool:
    """Return whether an alarm fires over periods that each hold some data points, or none."""
    return state(alarm, periods) == "ALARM"


def state(alarm: dict[str, Any], periods: list[list[float]], *, is_new: bool = False) -> str:
    """Return the state that CloudWatch gives an alarm.

    As the alarm says, a period without data is breaching or not. A new alarm, if it warms up, is
    not evaluated before each of its periods has data.
    """
    statistic = STATISTICS[alarm["Statistic"]]
    count = int(_number(alarm["EvaluationPeriods"]))
    is_breach = COMPARISONS[alarm["ComparisonOperator"]]
    missing = {"breaching": True, "notBreaching": False}[alarm["TreatMissingData"]]
    last = periods[-count:]
    if is_new and "WarmUpConfiguration" in alarm and not (len(last) == count and all(last)):
        return "INSUFFICIENT_DATA"
    breaching = [
        is_breach(statistic(points), _number(alarm["Threshold"])) if points else missing
        for points in last
    ]
    return "ALARM" if breaching.count(True) >= needed(alarm) else "OK"


def notifies(alarm: dict[str, Any], before: str, after: str) -> bool:
    """Return whether a change of state notifies anybody; a new alarm is INSUFFICIENT_DATA."""
    actions = {"ALARM": "Alarm", "OK": "OK", "INSUFFICIENT_DATA": "InsufficientData"}
    return before != after and bool(alarm.get(f"{actions[after]}Actions"))


def needed(alarm: dict[str, Any]) -> int:
    """Return how many of its periods must be breaching."""
    return int(_number(alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"])))


def _number(value: Any) -> float:
    return float(DEFAULTS.get(value, value))
