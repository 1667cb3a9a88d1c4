"""Metrics and the dashboard that shows them."""

import json
import re
from typing import Any

import pytest

from emulated import Log
from registry_table import template
from world import World, emitted, metrics_of, names, rows_of

RESOURCES: dict[str, Any] = template()["Resources"]


def test_every_metric_is_documented_and_every_documented_one_is_written(
    all_that_happens: World, capsys: pytest.CaptureFixture[str]
) -> None:
    documented = set().union(*(names(row[0]) for row in rows_of("metric")))
    blobs = emitted(capsys)
    assert set().union(*map(metrics_of, blobs)) == documented
    for blob in blobs:
        (written,) = blob["_aws"]["CloudWatchMetrics"]
        assert written["Namespace"] == "ElevateSessions"
        assert written["Dimensions"] == [["service"]]


def test_each_latency_of_a_large_sweep_is_written_once(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.due(230)
    capsys.readouterr()
    world.sweep()
    blobs = emitted(capsys)
    assert sum(len(blob["ElevateLatency"]) for blob in blobs) == 230
    assert all(len(blob["ElevateLatency"]) <= 100 for blob in blobs)
    assert sum(sum(blob.get("Delivered", [])) for blob in blobs) == 230


def test_the_dashboard_shows_exactly_the_metrics_that_are_written(
    all_that_happens: World, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    written = set().union(*map(metrics_of, emitted(capsys)))
    fields = set().union(*log())
    widgets = json.loads(RESOURCES["StackDashboard"]["Properties"]["DashboardBody"])["widgets"]
    first = min(widgets, key=lambda w: (w["y"], w["x"]))
    assert first["properties"]["title"] == "Are sessions being ended?"
    shown = set()
    for widget in widgets:
        for metric in widget["properties"].get("metrics", []):
            if metric[0] == "ElevateSessions":
                assert metric[2:4] == ["service", "${AWS::StackName}"]
                shown.add(metric[1])
        if query := widget["properties"].get("query"):
            log_groups = re.findall(r"SOURCE '\$\{(\w+)\}'", query)
            assert {RESOURCES[group]["Type"] for group in log_groups} == {"AWS::Logs::LogGroup"}
            asked = set(re.findall(r"\b([a-z]+(?:_[a-z]+)*)\b(?=[,) ]|$)", query.split("|", 2)[2]))
            words = {
                "filter",
                "ispresent",
                "and",
                "stats",
                "count",
                "as",
                "ends",
                "latest",
                "one",
                "by",
            }
            words |= {"sort", "desc", "display", "timestamp", "limit"}
            assert asked - words <= fields
    assert shown == written
