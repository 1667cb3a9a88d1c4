"""openapi.yaml is the interface: what it says, the functions and the README say too."""

import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate

from handler import end, track
from local.interface import BY_DEFAULT, interface, main, page
from sessions.dialects import DIALECTS
from sessions.schemas import Validators

ROOT = Path(__file__).parent.parent
API: dict[str, Any] = interface()
SCHEMAS: dict[str, Any] = API["components"]["schemas"]
METHODS = {"get", "put", "post"}
ELEVATES = {dialect.path.removeprefix("/api") for dialect in DIALECTS.values()}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in API["paths"].items():
        for method in set(methods) & METHODS:
            yield method.upper(), path, methods[method]


def resolved(part: Any) -> Any:
    """Follow a reference."""
    if isinstance(part, dict) and "$ref" in part:
        *_, section, name = part["$ref"].split("/")
        return API["components"][section][name]
    return part


def whole(schema: Any) -> Any:
    """Return a schema with all its references followed."""
    schema = resolved(schema)
    if isinstance(schema, list):
        return [whole(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: whole(part) for name, part in schema.items()}


SIGNED = frozenset({"CallsAreSigned"})
TO_BROWSERS = frozenset({"HasApiKey", "HasCorsOrigins"})
ENDS = {"endSession", "endAsWebV2", "endAsStorefrontV3"}


@pytest.mark.parametrize("conditions", [BY_DEFAULT, SIGNED, TO_BROWSERS])
def test_it_is_valid_whatever_the_parameters(conditions: frozenset[str]) -> None:
    validate(interface(conditions))


@pytest.mark.parametrize(
    ("conditions", "ends", "others"),
    [
        (BY_DEFAULT, [{"apiKey": []}], [{"apiKey": []}]),
        (SIGNED, [{"signature": []}], [{"signature": []}]),
        (TO_BROWSERS, [], [{"apiKey": []}]),
    ],
)
def test_only_ends_are_ever_open(
    conditions: frozenset[str], ends: list[Any], others: list[Any]
) -> None:
    for methods in interface(conditions)["paths"].values():
        for method in set(methods) & METHODS:
            operation = methods[method]
            asked = ends if operation["operationId"] in ENDS else others
            assert operation["security"] == asked


def test_browsers_are_let_in_only_where_an_origin_is_set() -> None:
    def preflights(conditions: frozenset[str]) -> set[str]:
        return {p for p, methods in interface(conditions)["paths"].items() if "options" in methods}

    assert preflights(BY_DEFAULT) == preflights(SIGNED) == set()
    assert preflights(TO_BROWSERS) == {
        path for _, path, operation in operations() if operation["operationId"] in ENDS
    }
    for conditions, origin in ((BY_DEFAULT, None), (TO_BROWSERS, "'*'")):
        for answer in interface(conditions)["x-amazon-apigateway-gateway-responses"].values():
            header = "gatewayresponse.header.Access-Control-Allow-Origin"
            assert answer["responseParameters"].get(header) == origin


def test_every_operation_is_in_a_group() -> None:
    groups = {path: o["tags"] for _, path, o in operations()}
    assert set(groups) == set(API["paths"])
    assert {path for path, tags in groups.items() if tags == ["Elevate routes"]} == ELEVATES
    own = {path for path, tags in groups.items() if tags == ["Sessions"]}
    assert own == set(groups) - ELEVATES


def test_each_function_has_the_routes_that_it_is_called_for() -> None:
    called: dict[str, set[tuple[str, str]]] = {"EndFunction": set(), "TrackFunction": set()}
    for path, methods in interface(TO_BROWSERS)["paths"].items():
        for method in set(methods) & (METHODS | {"options"}):
            uri = str(methods[method]["x-amazon-apigateway-integration"]["uri"])
            (function,) = (name for name in called if name in uri)
            called[function].add((method.upper(), path))
    assert called == {"EndFunction": set(end.ROUTES), "TrackFunction": set(track.ROUTES)}


def test_the_page_shows_the_interface_and_fetches_nothing() -> None:
    written = page()
    for _, _, operation in operations():
        assert operation["operationId"] in written
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", written.split("<script>")[0])
    assert "sourceMappingURL" not in written
    assert "validatorUrl: null" in written


def test_make_docs_writes_the_page_and_plain_openapi_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main()
    assert "index.html" in capsys.readouterr().out
    folder = ROOT / ".local" / "docs"
    assert (folder / "index.html").read_text() == page()
    plain = (folder / "openapi.json").read_text()
    assert json.loads(plain)["servers"][0]["url"].endswith("/api")
    assert "x-amazon-" not in plain
    assert "Fn::" not in plain
    validate(json.loads(plain))


@pytest.mark.parametrize(
    ("name", "checked_by"), [("Session", "session"), ("Activity", "keyless_activity")]
)
def test_the_functions_schemas_equal_it(name: str, checked_by: str) -> None:
    said = SCHEMAS[name]
    enforced = [
        getattr(Validators(dialect, ()), checked_by).schema for dialect in DIALECTS.values()
    ]
    contexts: set[str] = set()
    for schema in enforced:
        assert set(schema["properties"]) == set(said["properties"])
        assert schema["additionalProperties"] is said["additionalProperties"] is False
        # What only one dialect requires is described in words.
        assert set(said["required"]) <= set(schema["required"])
        contexts |= set(schema["properties"]["userContext"]["enum"])
        for field, rule in schema["properties"].items():
            described = resolved(said["properties"][field])
            for limit in ("minLength", "maxLength"):
                if limit in rule:
                    assert described[limit] == rule[limit], field
            assert described["type"] == rule.get("type", "string")
    assert contexts == set(said["properties"]["userContext"]["enum"])
    common = set.intersection(*(set(schema["required"]) for schema in enforced))
    assert common == set(said["required"])


def test_each_request_has_an_example_that_is_accepted() -> None:
    for _, path, operation in operations():
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]["application/json"]
            keyed = "{" not in path
            for dialect in DIALECTS.values():
                validators = Validators(dialect, ())
                check = validators.session if keyed else validators.keyless_activity
                check(content["example"])


def test_each_parameter_and_header_has_an_example_that_fits_its_schema() -> None:
    parameters = [p for methods in API["paths"].values() for p in methods.get("parameters", [])]
    headers: list[Any] = []
    for methods in interface(TO_BROWSERS)["paths"].values():
        for operation in (methods[method] for method in METHODS | {"options"} if method in methods):
            parameters += operation.get("parameters", [])
            for answer in operation["responses"].values():
                headers += resolved(answer).get("headers", {}).values()
    assert parameters
    assert headers
    for one in parameters + headers:
        OAS30Validator(whole(one["schema"])).validate(one["example"])


def test_each_answer_has_an_example_of_its_own_that_fits_its_schema() -> None:
    for method, path, operation in operations():
        for status, answer in operation["responses"].items():
            for content in resolved(answer).get("content", {}).values():
                OAS30Validator(whole(content["schema"])).validate(content["example"])
                if int(status) >= 400:
                    of_the_status(int(status), content["example"])
            assert status in ("202", "204") or "content" in resolved(answer), (method, path)


def of_the_status(status: int, problem: dict[str, Any]) -> None:
    """Check that a problem is valid and has this status."""
    OAS30Validator(whole(SCHEMAS["Problem"])).validate(problem)
    assert (problem["status"], problem["title"]) == (status, HTTPStatus(status).phrase)


def test_the_gateways_own_answers_are_problems_whatever_their_type() -> None:
    answers = API["x-amazon-apigateway-gateway-responses"]
    gateway = botocore.session.get_session().get_service_model("apigateway")
    assert set(answers) == set(gateway.shape_for("GatewayResponseType").metadata["enum"])
    for answer in answers.values():
        body = answer["responseTemplates"]["application/json"]
        of_the_status(answer["statusCode"], json.loads(body.replace("$context.requestId", "c6af")))
        assert "$" not in body.replace("$context.requestId", "")
        header = answer["responseParameters"]["gatewayresponse.header.Content-Type"]
        assert header == "'application/problem+json'"


def test_api_gateway_can_import_it() -> None:
    """It takes references to schemas only; AWS::Include takes no YAML aliases."""
    text = (ROOT / "openapi.yaml").read_text()
    assert set(re.findall(r"\$ref: \"#/components/(\w+)/", text)) == {"schemas"}
    assert "responses" not in API["components"]
    assert not re.search(r"[:\-\[{,] [&*]\w", text)


def test_a_problem_is_the_same_at_each_operation() -> None:
    problems: dict[str, Any] = {}
    for method, path, operation in operations():
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                assert problems.setdefault(status, answer) == answer, (method, path, status)


def test_the_gateways_answer_to_a_missing_credential_fits_both_its_meanings() -> None:
    """The gateway has one type for both an unknown path and a call without a signature."""
    answer = API["x-amazon-apigateway-gateway-responses"]["MISSING_AUTHENTICATION_TOKEN"]
    detail = json.loads(answer["responseTemplates"]["application/json"])["detail"]
    assert "no such path" in detail
    assert "not signed" in detail


def test_every_problem_is_described() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src" / "handler").glob("*.py"))
    used = set(re.findall(r'(?:HTTPStatus\.[A-Z_]+, |status, |kind: str = )"([a-z-]+)"', code))
    kinds = {kind.rsplit(":", 1)[1] for kind in SCHEMAS["Problem"]["properties"]["type"]["enum"]}
    assert used | {"gateway"} == kinds
    for kind in kinds:
        assert kind in SCHEMAS["Problem"]["properties"]["type"]["description"]


def test_the_readme_says_the_same() -> None:
    readme = (ROOT / "README.md").read_text()
    everywhere = {"400", "403", "413", "415", "429", "500", "502", "503", "504"}
    rows = dict(re.findall(r"^\| `((?:GET|PUT|POST) \S+)` \|.*\| (.*) \|$", readme, re.MULTILINE))
    assert set(rows) == {f"{method} {path}" for method, path, _ in operations()}
    for method, path, operation in operations():
        stated = set(re.findall(r"\b[2-5]\d\d\b", rows[f"{method} {path}"]))
        assert stated | everywhere == set(operation["responses"]) | everywhere, (method, path)
