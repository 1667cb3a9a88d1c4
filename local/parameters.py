"""What `make run` accepts, checked against template.yaml before anything is built."""

import difflib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from samcli.yamlhelper import yaml_parse

from local.stack import ROOT, StackError

# Environment variables (as in `make run SESSION_IDLE_MINUTES=1`) and their parameters.
PARAMETERS = {
    "ELEVATE_CLUSTER_ID": "ElevateClusterId",
    "ELEVATE_BASE_URL": "ElevateBaseUrl",
    "ELEVATE_API": "ElevateApi",
    "MARKETS": "Markets",
    "SESSION_IDLE_MINUTES": "SessionIdleMinutes",
    "SESSION_LIMIT_MINUTES": "SessionLimitMinutes",
    "RETRY_BASE_SECONDS": "RetryBaseSeconds",
    "SWEEP_CONCURRENCY": "SweepConcurrency",
    "API_AUTH": "ApiAuth",
    "CORS_ORIGINS": "CorsOrigins",
}
_OTHERS = ("PORT", "ELEVATE_PORT", "PLAYGROUND_PORT", "FOLDER")
# What make itself accepts.
_OF_MAKE = ("PYTHON", "VENV", "BIN", "PATH")


def parameters(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the template's parameters that are given; raises StackError with one line."""
    _refuse_unknown(environment.get("MAKEFLAGS", ""))
    template = yaml_parse((ROOT / "template.yaml").read_text())["Parameters"]
    given = {}
    for variable, name in PARAMETERS.items():
        value = environment.get(variable)
        if value is None or (not value and variable != "MARKETS"):
            continue
        if wrong := _wrong(value, template[name]):
            raise StackError(f"{variable}={value} is not valid: {wrong}")
        given[name] = value
    _refuse_auth(given)
    return given


def port(environment: Mapping[str, str], name: str) -> int | None:
    """Return a port, or None where none is given; raises StackError."""
    text = environment.get(name, "")
    if text and not (text.isdecimal() and 0 < int(text) < 65536):
        raise StackError(f"{name}={text} is not valid: give a port number.")
    return int(text) if text else None


def _wrong(value: str, rules: dict[str, Any]) -> str:
    """Return what a parameter's rules say against a value; nothing if they allow it."""
    allowed = rules.get("AllowedValues")
    if allowed and value not in allowed:
        return f"give {' or '.join(allowed)}."
    if rules["Type"] == "Number":
        least, most = rules["MinValue"], rules["MaxValue"]
        if not (re.fullmatch(r"[0-9]{1,9}", value) and least <= int(value) <= most):
            return f"give a whole number from {least} to {most}."
    if not re.fullmatch(rules.get("AllowedPattern", ".*"), value):
        return str(rules.get("ConstraintDescription", rules["Description"]))
    if len(value) > rules.get("MaxLength", len(value)):
        return f"give at most {rules['MaxLength']} characters."
    return ""


def _refuse_auth(given: dict[str, str]) -> None:
    """Refuse what the template's rules refuse, and what the playground cannot do."""
    match given.get("ApiAuth"):
        case "AWS_IAM":
            raise StackError("`make run` signs no calls: give API_AUTH=API_KEY or NONE.")
        case "NONE" if "CorsOrigins" not in given:
            raise StackError("API_AUTH=NONE is for browsers, so it needs CORS_ORIGINS.")
        case "NONE" if given.get("Markets") == "":
            raise StackError("With API_AUTH=NONE anybody may call, so it needs MARKETS.")


def _refuse_unknown(makeflags: str) -> None:
    """Refuse a misspelled variable on make's command line, which make itself would ignore."""
    _, _, variables = f" {makeflags}".partition(" -- ")
    known = [*PARAMETERS, *_OTHERS]
    for word in shlex.split(variables):
        name = word.partition("=")[0]
        if name not in (*known, *_OF_MAKE):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            raise StackError(f"`make run` does not know {name}: {hint}")
