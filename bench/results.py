"""What a measurement gives: lines of the table, and times taken by contenders in turns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One line of the table: a figure, what it is to be held against, and the target."""

    what: str
    figure: float
    target: str
    good: bool


def at_most(what: str, figure: float, limit: float) -> Result:
    """Return a result that must not be above its limit."""
    return Result(what, figure, f"≤ {limit:g}", figure <= limit)


def at_least(what: str, figure: float, limit: float) -> Result:
    """Return a result that must not be below its limit."""
    return Result(what, figure, f"≥ {limit:g}", figure >= limit)


def told(what: str, figure: float) -> Result:
    """Return a figure that has no target."""
    return Result(what, figure, "", True)


def show(results: list[Result]) -> None:
    """Print the table."""
    table = Table("measured", "figure", "target", "")
    table.columns[1].justify = "right"
    for result in results:
        verdict = "" if not result.target else "ok" if result.good else "MISSED"
        table.add_row(result.what, f"{result.figure:,.2f}", result.target, verdict)
    Console(width=110).print(table)


@dataclass(frozen=True)
class Taken:
    """Seconds of wall time and of this process's CPU."""

    wall: float
    cpu: float


def taken(work: Callable[[], Any]) -> Taken:
    """Return what some work takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def compare(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Taken]:
    """Let contenders take turns, so that noise meets all alike; return the median of each."""
    times: dict[str, list[Taken]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            times[name].append(taken(work))
    return {name: median(all_) for name, all_ in times.items()}


def median(times: list[Taken]) -> Taken:
    """Return the medians of wall time and of CPU, each for itself."""
    return Taken(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))
