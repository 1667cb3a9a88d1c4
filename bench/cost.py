"""What a million ends, and a month, cost in dollars, compared with what a user would build.

Units come from works.py, prices from prices.toml. Requests, events, data transfer and storage are
priced, in default parameters and without free tiers.
"""

import json

from rich.table import Table

from fixtures import event, new_sessions, notification
from local.interface import interface
from local.stack import Stack
from registry_table import template
from results import Part, Result, at_most, info
from works import ASSUMED, LIST, PRICES, Work, stored, tracking_units, works

MONTH = 730 * 60 * 60  # seconds
TICKS = MONTH // 60
GATEWAY = PRICES["api"]["million_requests"]
# API Gateway's detailed metrics: calls, latency, the integration's latency, 4xx and 5xx.
DETAILED_METRICS = 5
# A dead-letter message is sent, received and deleted.
DEAD_LETTER_REQUESTS = 3

# Sessions a month, and page views of each.
MONTHS = (100_000, 1_000_000, 10_000_000)
VIEWS = (5, 10, 30)

type Parts = dict[str, float]


def cost(stack: Stack) -> list[Part]:
    """Price each entrance, the lean and plain builds, an API destination, a month, and tracking."""
    done, metrics = works(stack)
    answer = {"answer to the caller": _sent(ASSUMED["api_answer_bytes"])}
    post = {"notification": _sent(len(notification()) + ASSUMED["packet_bytes"])}
    kept = {"DynamoDB storage": _stored(*stored(stack))}
    api = {"API Gateway": GATEWAY} | answer
    one = {"EventBridge": _event(1)}
    some = {"EventBridge": _event(LIST) / LIST}
    destination = PRICES["eventbridge"]["million_api_destination_calls"]

    def ends(name: str) -> Parts:
        return done[name].parts | post | kept

    return [
        *_units(done),
        *_priced("ends by API", api | ends("end"), 5.90),
        *_priced("ends by event, one session each", one | ends("event"), 3.40),
        _sum(f"ends by event, {LIST} sessions each", some | ends("list")),
        *_priced("ends by sweep", ends("swept"), 2.00),
        _sum("ends by API, tracked before", api | ends("tracked")),
        _sum("tracks by API, new", api | done["track"].parts),
        _sum("tracks by event, new", one | done["track event"].parts),
        _sum("tracks by event, due time moves", one | done["moved"].parts),
        _sum("tracks by event, within the slack", one | done["slack"].parts),
        _sum("ends by API, lean", api | ends("lean")),
        _sum("ends by sweep, lean", ends("lean swept")),
        _sum("ends by API, plain", api | ends("plain")),
        _sum("ends by an EventBridge API destination", one | {"calls": destination} | post),
        *_fixed(done["idle"], len(metrics)),
        *_optional(),
        _tracking(done),
    ]


def _tracking(done: dict[str, Work]) -> Table:
    """Return what tracking costs, by sessions a month and their page views."""
    table = Table(
        "sessions a month",
        "page views each",
        "million write units",
        "without slack",
        "$ DynamoDB",
        "without slack",
        "$ all, by event",
        "$ all, by API",
        title=f"Tracking, a page view each {ASSUMED['page_view_seconds']} s",
    )
    answer = _sent(ASSUMED["api_answer_bytes"])
    by_event = _event(1) + _without_writes(done["track event"])
    by_api = GATEWAY + answer + _without_writes(done["track"])
    unit = PRICES["dynamodb"]["million_write_units"]
    units = {n: [tracking_units(n, slack=slack) for slack in (True, False)] for n in VIEWS}
    for sessions in MONTHS:
        for views in VIEWS:
            writes, unslacked = (sessions / 1e6 * count for count in units[views])
            calls = sessions / 1e6 * views
            dollars = writes * unit
            figures = (
                *(writes, unslacked, dollars, unslacked * unit),
                *(dollars + calls * by_event, dollars + calls * by_api),
            )
            table.add_row(f"{sessions:,}", str(views), *(f"{figure:,.2f}" for figure in figures))
    for column in table.columns:
        column.justify = "right"
    return table


def _units(done: dict[str, Work]) -> list[Result]:
    names = ("end", "event", "swept", "track", "idle", "lean", "plain")
    return [
        at_most(
            "cost: write units of an end of a session not tracked", done["end"].units["writes"], 2
        ),
        at_most(
            "cost: write units of an end of a tracked session", done["tracked"].units["writes"], 3
        ),
        at_most("cost: write units of an end by sweep", done["swept"].units["writes"], 3),
        at_most("cost: read units of an end by sweep", done["swept"].units["reads"], 0.05),
        at_most("cost: read units of an idle sweep", done["idle"].units["reads"], 4),
        at_most("cost: write units of a new track", done["track"].units["writes"], 2),
        at_most("cost: write units of a track, due time moves", done["moved"].units["writes"], 3),
        at_most("cost: write units of a track within the slack", done["slack"].units["writes"], 1),
        info("cost: write units of an end, lean", done["lean"].units["writes"]),
        info("cost: write units of an end by sweep, lean", done["lean swept"].units["writes"]),
        info("cost: write units of an end, plain", done["plain"].units["writes"]),
        *(info(f"cost: billed ms, {name}", done[name].ms) for name in names),
        *(info(f"cost: bytes of log, {name}", done[name].log_bytes) for name in names),
    ]


def _fixed(idle: Work, metrics: int) -> list[Result]:
    """Price the fixed monthly costs with default parameters."""
    cloudwatch, resources = PRICES["cloudwatch"], template()["Resources"]
    alarms = [r["Type"] for r in resources.values()].count("AWS::CloudWatch::Alarm")
    settings = resources["Api"]["Properties"].get("MethodSettings", [])
    is_detailed = any(each.get("MetricsEnabled") for each in settings)
    methods = sum(len(path.keys() & _METHODS) for path in interface()["paths"].values())
    detailed = methods * DETAILED_METRICS * is_detailed
    sweeps = PRICES["eventbridge"]["million_schedules"] + sum(idle.parts.values())
    parts = {
        f"{alarms} alarms": alarms * cloudwatch["alarm_month"],
        f"{metrics} metrics": metrics * cloudwatch["metric_month"],
        f"{detailed} detailed metrics of API Gateway": detailed * cloudwatch["metric_month"],
        "idle sweeps": sweeps * TICKS / 1e6,
    }
    return [
        *(info(f"cost: $ a month, {name}", dollars) for name, dollars in parts.items()),
        at_most("cost: $ a month, all that is fixed", sum(parts.values()), 5),
        info(
            "cost: $ a month, dashboard, from the account's 4th on", cloudwatch["dashboard_month"]
        ),
    ]


_METHODS = {"get", "put", "post", "options"}


def _optional() -> list[Result]:
    """Price what a failure or a parameter adds."""
    messages = DEAD_LETTER_REQUESTS * PRICES["sqs"]["million_requests"]
    return [
        info("cost: $ a million dead-letter messages, SQS", messages),
        info("cost: $ a million traces, X-Ray", PRICES["xray"]["million_traces"]),
        info("cost: $ a month, a KMS key of yours", PRICES["kms"]["key_month"]),
    ]


def _priced(what: str, parts: Parts, limit: float) -> list[Result]:
    """Return the sum, which has a limit, and its parts."""
    total = at_most(f"cost: $ a million {what}", sum(parts.values()), limit)
    return [total, *(info(f"cost:   of it {name}", dollars) for name, dollars in parts.items())]


def _sum(what: str, parts: Parts) -> Result:
    return info(f"cost: $ a million {what}", sum(parts.values()))


def _sent(count: int) -> float:
    """Return what it costs to send so many bytes to the internet a million times."""
    return count / 1000 * float(PRICES["transfer"]["out_gb"])


def _stored(count: int, seconds: float) -> float:
    """Return what a million rows of so many bytes cost until they are deleted."""
    months = seconds / (30 * 24 * 60 * 60)
    price = PRICES["dynamodb"]["storage_gb_month"] + PRICES["dynamodb"]["recovery_gb_month"]
    return float((count + ASSUMED["item_overhead_bytes"]) / 1000 * months * price)


def _event(sessions: int) -> float:
    """Return what a million events cost with so many sessions each; each started 64 KB counts."""
    size = len(json.dumps(event("session_ended", new_sessions(sessions))).encode())
    return float(-(-size // 65_536) * PRICES["eventbridge"]["million_chunks"])


def _without_writes(work: Work) -> float:
    return sum(dollars for name, dollars in work.parts.items() if name != "DynamoDB requests")
