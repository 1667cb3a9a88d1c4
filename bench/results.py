"""What a measurement gives: lines of the table, and times taken by contenders in turns."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One line of the table: what was measured, the figure, and the target that it is to meet."""

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


def info(what: str, figure: float) -> Result:
    """Return a figure that has no target."""
    return Result(what, figure, "", True)


# Of what a part of the bench gives, the results go into one table.
type Part = Result | Table


def show(parts: Iterable[Part]) -> None:
    """Print the table of results, and further tables."""
    parts = list(parts)
    results = [part for part in parts if isinstance(part, Result)]
    table = Table("measured", "figure", "target", "")
    table.columns[1].justify = "right"
    for result in results:
        verdict = "" if not result.target else "met" if result.good else "NOT MET"
        table.add_row(result.what, f"{result.figure:,.2f}", result.target, verdict)
    console = Console(width=110)
    console.print(table, *(part for part in parts if isinstance(part, Table)))
    aims = [result for result in results if result.target]
    console.print(f"{sum(result.good for result in aims)} of {len(aims)} targets are met.")


@dataclass(frozen=True)
class Taken:
    """Seconds of wall time and of this process's CPU."""

    wall: float
    cpu: float


def taken(work: Callable[[], Any]) -> Taken:
    """Return what some work takes in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(contenders: Mapping[str, Callable[[], Taken]], rounds: int) -> dict[str, Taken]:
    """Let contenders take turns, so that noise affects all alike; return the median of each."""
    times: dict[str, list[Taken]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            times[name].append(work())
    return {name: median(all_) for name, all_ in times.items()}


def median(times: list[Taken]) -> Taken:
    """Return the medians of wall time and of CPU, each on its own."""
    return Taken(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))
