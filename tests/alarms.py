"""The template's alarms, evaluated as CloudWatch does."""

from collections.abc import Callable
from typing import Any

from registry_table import template

ALARMS: dict[str, dict[str, Any]] = {
    name: resource["Properties"]
    for name, resource in template()["Resources"].items()
    if resource["Type"] == "AWS::CloudWatch::Alarm"
}
DEFAULTS = {name: p["Default"] for name, p in template()["Parameters"].items()}
STATISTICS: dict[str, Callable[[list[float]], float]] = {"Maximum": max, "Minimum": min, "Sum": sum}


def fires(alarm: dict[str, Any], periods: list[list[float]]) -> bool:
    """Tell whether an alarm goes off over periods that each hold some data points, or none."""
    statistic = STATISTICS[alarm["Statistic"]]
    assert alarm["ComparisonOperator"] == "GreaterThanThreshold"
    assert alarm["TreatMissingData"] in ("breaching", "notBreaching")
    missing = alarm["TreatMissingData"] == "breaching"
    breaching = [
        statistic(points) > _number(alarm["Threshold"]) if points else missing
        for points in periods[-int(_number(alarm["EvaluationPeriods"])) :]
    ]
    return breaching.count(True) >= needed(alarm)


def needed(alarm: dict[str, Any]) -> int:
    """Return how many of its periods must be breaching."""
    return int(_number(alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"])))


def _number(value: Any) -> float:
    return float(DEFAULTS.get(value, value))
