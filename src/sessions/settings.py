"""Environment → one frozen dataclass, read once."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from sessions.dialects import DIALECTS, WEB_V2, Dialect
from sessions.lifetime import MINUTE

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class InvalidSettings(ValueError):
    """The environment does not make a working service; the message names the variable."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a deployment decides; times in seconds."""

    table_name: str
    event_bus_name: str
    elevate_url: str
    dialect: Dialect = WEB_V2
    connect_timeout: float = 1.0
    read_timeout: float = 3.0
    markets: tuple[str, ...] = ()
    cors_origins: frozenset[str] = frozenset()  # whose pages may send ends
    idle: int = 30 * 60
    session_limit: int = 24 * 60 * 60
    concurrency: int = 16
    retry_base: int = 30
    max_rate: float = 0.0  # notifications per second over a sweep; 0 is no limit
    log_level: str = "INFO"

    @property
    def slack(self) -> int:
        """Return how far activity may move, in seconds, before it is written down.

        Index writes are what tracking costs, and a page view a second should not write each second.
        """
        return min(60, self.idle // 10)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings from environment variables.

        Raises InvalidSettings, which names the variable.
        """
        dialect = DIALECTS.get(environment.get("ELEVATE_API") or WEB_V2.name)
        if dialect is None:
            raise InvalidSettings(f"ELEVATE_API must be {' or '.join(DIALECTS)}")
        numbers = {
            name: convert(_number(variable, environment[variable], least))
            for name, (variable, least, convert) in _NUMBERS.items()
            if environment.get(variable)
        }
        level = environment.get("POWERTOOLS_LOG_LEVEL") or "INFO"
        if level not in logging.getLevelNamesMapping():
            raise InvalidSettings("POWERTOOLS_LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR")
        settings = cls(
            table_name=_required(environment, "TABLE_NAME"),
            event_bus_name=environment.get("EVENT_BUS_NAME", ""),
            elevate_url=_elevate_url(environment, dialect),
            dialect=dialect,
            markets=_markets(environment.get("MARKETS", "")),
            cors_origins=frozenset(filter(None, environment.get("CORS_ORIGINS", "").split(","))),
            log_level=level,
            **numbers,
        )
        if dialect.needs_limit and settings.session_limit <= settings.idle:
            # Each idle session would expire before it could be ended.
            raise InvalidSettings("SESSION_LIMIT_MINUTES must be more than SESSION_IDLE_MINUTES")
        return settings


# Of each number: its variable, the least that it may be, and what makes it the setting.
_NUMBERS: dict[str, tuple[str, float, Callable[[float], Any]]] = {
    "connect_timeout": ("ELEVATE_CONNECT_TIMEOUT", 0.1, float),
    "read_timeout": ("ELEVATE_READ_TIMEOUT", 0.1, float),
    "idle": ("SESSION_IDLE_MINUTES", 1, lambda minutes: int(minutes * MINUTE)),
    "session_limit": ("SESSION_LIMIT_MINUTES", 1, lambda minutes: int(minutes * MINUTE)),
    "retry_base": ("RETRY_BASE_SECONDS", 1, int),
    "concurrency": ("SWEEP_CONCURRENCY", 1, int),
    "max_rate": ("ELEVATE_MAX_RATE", 0, float),
}


def _number(variable: str, text: str, least: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise InvalidSettings(f"{variable} must be a number of at least {least}")
    return number


def _required(environment: Mapping[str, str], name: str) -> str:
    if value := environment.get(name):
        return value
    raise InvalidSettings(f"{name} is not set")


def _markets(text: str) -> tuple[str, ...]:
    """Return the markets that are named; an empty text names none, and so accepts all."""
    markets = tuple(unquote(name.strip()) for name in text.split(",") if name.strip())
    if text and not markets:
        raise InvalidSettings("MARKETS must name markets, with commas between, or be empty")
    return markets


def _elevate_url(environment: Mapping[str, str], dialect: Dialect) -> str:
    """Return scheme, host and path prefix of the cluster: the only place that chooses the host."""
    base = environment.get("ELEVATE_BASE_URL", "")
    if not base:
        return dialect.host.format(_required(environment, "ELEVATE_CLUSTER_ID"))
    try:
        url = urlsplit(base)
        is_complete = bool(url.hostname) and url.port != 0
    except ValueError:  # no such port
        is_complete = False
    if not is_complete or url.query or url.fragment or url.username is not None:
        raise InvalidSettings("ELEVATE_BASE_URL must be scheme://host[:port][/path]")
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in _LOOPBACK):
        raise InvalidSettings("ELEVATE_BASE_URL must be https (http for loopback hosts only)")
    return base.rstrip("/")
