"""What `make run` accepts, and what it refuses in one line before anything is built."""

import pytest

from local.parameters import parameters, port
from local.simulated_elevate import markets_of
from local.stack import StackError

SEVENTY = ",".join(f"BRAND{n}_EN-GB" for n in range(70))
VPC_ENDPOINT = (
    f"https://vpce-0123456789abcdef0-a1b2c3d4.vpce-svc-{'0' * 17}.eu-west-1.vpce.amazonaws.com"
)
OPEN = {"API_AUTH": "NONE", "CORS_ORIGINS": "https://shop.se,http://localhost:3000"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ELEVATE_API": "foo"}, "ELEVATE_API=foo is not valid: give web-v2 or storefront-v3."),
        ({"ELEVATE_BASE_URL": "http://example.com"}, "ELEVATE_BASE_URL=http://example.com is not"),
        ({"ELEVATE_CLUSTER_ID": "a b"}, "ELEVATE_CLUSTER_ID=a b is not valid: Id of the Elevate"),
        ({"SESSION_IDLE_MINUTES": "0"}, "give a whole number from 1 to 240."),
        ({"SESSION_IDLE_MINUTES": "1.5"}, "give a whole number from 1 to 240."),
        ({"SESSION_IDLE_MINUTES": "241"}, "give a whole number from 1 to 240."),
        ({"SESSION_LIMIT_MINUTES": "240"}, "give a whole number from 241 to"),
        ({"SWEEP_CONCURRENCY": "many"}, "SWEEP_CONCURRENCY=many is not valid: give a whole number"),
        ({"MARKETS": "x" * 1001}, "give at most 1000 characters."),
        ({"MARKETS": "ü" * 501}, "give at most 1,000 characters, or 500 where one is not ASCII"),
        ({"MARKETS": "UK,\t"}, "give at most 1,000 characters, or 500 where one is not ASCII"),
        ({"ELEVATE_BASE_URL": "https://" + "x" * 193}, "give at most 200 characters."),
        ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS=* is not valid: give origins as browsers send them"),
        ({"API_AUTH": "OPEN"}, "give API_KEY or AWS_IAM or NONE."),
        ({"API_AUTH": "AWS_IAM"}, "`make run` signs no calls"),
        ({"API_AUTH": "NONE"}, "API_AUTH=NONE is for browsers, so it needs CORS_ORIGINS."),
        ({"MARKETS": ""} | OPEN, "With API_AUTH=NONE anybody may call, so it needs MARKETS."),
        (
            {"MAKEFLAGS": " -- MARKET=UK"},
            "`make run` does not know MARKET: did you mean MARK",
        ),
        (
            {"MAKEFLAGS": "w -- QQ=1 PORT=1"},
            "`make run` does not know QQ: there are ELEV",
        ),
    ],
)
def test_what_is_invalid_is_refused_in_one_line(given: dict[str, str], said: str) -> None:
    with pytest.raises(StackError) as refused:
        parameters(given)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"MARKETS": ""}, {"Markets": ""}),
        ({"MARKETS": "A%2CB,SE"}, {"Markets": "A%2CB,SE"}),
        ({"MARKETS": SEVENTY}, {"Markets": SEVENTY}),
        ({"MARKETS": "Sverige & Norge/ü"}, {"Markets": "Sverige & Norge/ü"}),
        ({"ELEVATE_BASE_URL": VPC_ENDPOINT}, {"ElevateBaseUrl": VPC_ENDPOINT}),
        ({"ELEVATE_API": "", "SESSION_IDLE_MINUTES": ""}, {}),
        ({"ELEVATE_BASE_URL": "https://x.example/a"}, {"ElevateBaseUrl": "https://x.example/a"}),
        ({"SESSION_IDLE_MINUTES": "1"}, {"SessionIdleMinutes": "1"}),
        (
            {"SESSION_IDLE_MINUTES": "240", "ELEVATE_API": "storefront-v3"},
            {"SessionIdleMinutes": "240", "ElevateApi": "storefront-v3"},
        ),
        (OPEN, {"ApiAuth": "NONE", "CorsOrigins": OPEN["CORS_ORIGINS"]}),
        ({"MAKEFLAGS": r"j2 -- MARKETS=Norge\ X=1 PYTHON=python3.13"}, {}),
    ],
)
def test_what_is_valid_becomes_a_parameter(given: dict[str, str], expected: dict[str, str]) -> None:
    assert parameters(given) == expected


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1"])
def test_a_port_is_a_number(text: str) -> None:
    with pytest.raises(StackError, match=f"PORT={text} is not valid: give a port number"):
        port({"PORT": text}, "PORT")


def test_a_port_may_be_left_out() -> None:
    assert port({}, "PORT") is port({"PORT": ""}, "PORT") is None
    assert port({"PORT": "8080"}, "PORT") == 8080


def test_a_list_of_markets_reads_as_the_functions_read_it() -> None:
    assert markets_of("A%2CB, SE ,") == ("A,B", "SE")
    assert markets_of("") == ()
