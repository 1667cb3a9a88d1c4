"""The environment, and what it must not be able to do."""

import pytest

from sessions.dialects import WEB_V2
from sessions.settings import InvalidSettings, Settings

MINIMAL = {"TABLE_NAME": "table", "ELEVATE_CLUSTER_ID": "w1a2b3c4d"}


def test_a_cluster_id_and_a_table_are_enough() -> None:
    settings = Settings.read(MINIMAL)
    assert settings.elevate_url == "https://w1a2b3c4d.api.esales.apptus.cloud"
    assert (settings.dialect, settings.idle, settings.concurrency) == (WEB_V2, 1800, 16)
    assert (settings.connect_timeout, settings.read_timeout) == (1.0, 3.0)
    assert settings.markets == ()


def test_each_dialect_has_its_documented_host() -> None:
    settings = Settings.read(MINIMAL | {"ELEVATE_API": "storefront-v3"})
    assert settings.elevate_url == "https://w1a2b3c4d.elevate-api.cloud"


def test_an_empty_variable_means_its_default() -> None:
    empty = dict.fromkeys(["ELEVATE_API", "SWEEP_CONCURRENCY", "MARKETS", "ELEVATE_BASE_URL"], "")
    assert Settings.read(MINIMAL | empty) == Settings.read(MINIMAL)


def test_markets_are_a_list_whose_names_may_hold_anything() -> None:
    settings = Settings.read(MINIMAL | {"MARKETS": "UK, Sverige & Norge/ü ,A%2CB,"})
    assert settings.markets == ("UK", "Sverige & Norge/ü", "A,B")


def test_minutes_become_seconds() -> None:
    assert Settings.read(MINIMAL | {"SESSION_IDLE_MINUTES": "1.5"}).idle == 90


@pytest.mark.parametrize("none", ["", "0", "0.0"])
def test_a_rate_of_zero_is_no_limit(none: str) -> None:
    assert Settings.read(MINIMAL | {"ELEVATE_MAX_RATE": none}).max_rate == 0


def test_on_elevate_4_the_documented_rules_are_the_limit() -> None:
    late = {"ELEVATE_API": "storefront-v3", "SESSION_IDLE_MINUTES": "1440"}
    assert Settings.read(MINIMAL | late).idle == 86_400


@pytest.mark.parametrize(
    "url",
    ["https://elevate.example", "https://elevate.example:8443/proxy/", "http://127.0.0.1:8000"],
)
def test_a_base_url_replaces_the_clusters_host(url: str) -> None:
    settings = Settings.read({"TABLE_NAME": "table", "ELEVATE_BASE_URL": url})
    assert settings.elevate_url == url.rstrip("/")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"TABLE_NAME": ""}, "TABLE_NAME"),
        ({"ELEVATE_CLUSTER_ID": ""}, "ELEVATE_CLUSTER_ID"),
        ({"ELEVATE_API": "web-v1"}, "ELEVATE_API"),
        ({"SESSION_IDLE_MINUTES": "soon"}, "SESSION_IDLE_MINUTES"),
        ({"SESSION_IDLE_MINUTES": "0"}, "SESSION_IDLE_MINUTES"),
        ({"RETRY_BASE_SECONDS": "0.5"}, "RETRY_BASE_SECONDS"),
        ({"SWEEP_CONCURRENCY": "0.9"}, "SWEEP_CONCURRENCY"),
        ({"SWEEP_CONCURRENCY": "inf"}, "SWEEP_CONCURRENCY"),
        ({"MARKETS": ","}, "MARKETS"),
        ({"MARKETS": " , "}, "MARKETS"),
        ({"MARKETS": " "}, "MARKETS"),
        ({"ELEVATE_MAX_RATE": "-1"}, "ELEVATE_MAX_RATE"),
        ({"POWERTOOLS_LOG_LEVEL": "loud"}, "POWERTOOLS_LOG_LEVEL"),
        ({"SESSION_IDLE_MINUTES": "1440"}, "SESSION_LIMIT_MINUTES"),
        ({"ELEVATE_READ_TIMEOUT": "nan"}, "ELEVATE_READ_TIMEOUT"),
        ({"ELEVATE_BASE_URL": "http://elevate.example"}, "ELEVATE_BASE_URL"),
        ({"ELEVATE_BASE_URL": "http://127.0.0.1.evil.example"}, "ELEVATE_BASE_URL"),
        ({"ELEVATE_BASE_URL": "ftp://localhost"}, "ELEVATE_BASE_URL"),
        ({"ELEVATE_BASE_URL": "https://user@elevate.example"}, "ELEVATE_BASE_URL"),
        ({"ELEVATE_BASE_URL": "https://elevate.example/?to="}, "ELEVATE_BASE_URL"),
        ({"ELEVATE_BASE_URL": "elevate.example"}, "ELEVATE_BASE_URL"),
        ({"ELEVATE_BASE_URL": "https://elevate.example:99999"}, "ELEVATE_BASE_URL"),
    ],
)
def test_settings_that_cannot_work_name_the_variable(change: dict[str, str], names: str) -> None:
    with pytest.raises(InvalidSettings, match=names):
        Settings.read(MINIMAL | change)
