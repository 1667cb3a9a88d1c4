"""template.yaml against the code: what one promises the other keeps."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from local.interface import interface
from local.parameters import PARAMETERS as CHECKED_BY_MAKE_RUN
from local.parameters import parameters
from local.reference import PAGE, parameters_page
from local.stack import StackError
from registry_table import template
from sessions.settings import Settings
from sessions.statements import LEASE_SECONDS
from translation import translated

ROOT = Path(__file__).parent.parent
RESOURCES: dict[str, Any] = template()["Resources"]
PARAMETERS: dict[str, Any] = template()["Parameters"]
CONDITIONS: dict[str, Any] = template()["Conditions"]
NO_VALUE = {"Ref": "AWS::NoValue"}
FUNCTIONS = {
    name: resource["Properties"]
    for name, resource in RESOURCES.items()
    if resource["Type"] == "AWS::Serverless::Function"
}


def test_the_templates_environment_yields_the_default_settings() -> None:
    variables: dict[str, str] = template()["Globals"]["Function"]["Environment"]["Variables"]
    defaults = {
        name: str(PARAMETERS[value]["Default"])
        for name, value in variables.items()
        if value in PARAMETERS
    }
    given = {"TABLE_NAME": "t", "EVENT_BUS_NAME": "b", "ELEVATE_CLUSTER_ID": "c"}
    assert Settings.read(defaults | given) == Settings.read(given)


def test_the_largest_environment_fits_into_lambdas_4_kb() -> None:
    """Lambda measures it as JSON: "exceeded the 4KB limit. String measured: {…}"."""
    stack = "s" * (64 - len("-sweep"))  # the longest name of a function
    # Whatever CloudFormation accepts: markets of a kind, numbers as they were typed.
    markets = ('"' * 1000, "x" * 1000, "ü" * 500, "\U0001f600" * 500)
    longest = {
        "Registry": f"{stack}-Registry-{'X' * 13}",
        "Bus": stack,
        "AWS::StackName": stack,
        "ElevateClusterId": "x" * 63,
        "ElevateBaseUrl": f"https://{'x' * 192}",
        "Markets": max(markets, key=lambda value: len(json.dumps(value, ensure_ascii=False))),
        "CorsOrigins": f"https://{'x' * 992}",
    }
    for variable, name in CHECKED_BY_MAKE_RUN.items():
        if name in longest:
            assert parameters({variable: longest[name]}) == {name: longest[name]}
            with pytest.raises(StackError):
                parameters({variable: longest[name] + "x"})
    for name, rules in PARAMETERS.items():
        if rules["Type"] == "Number":
            longest[name] = "0" * 20
        elif "AllowedValues" in rules:
            longest[name] = max(rules["AllowedValues"], key=len)
    variables: dict[str, str] = template()["Globals"]["Function"]["Environment"]["Variables"]
    largest = {name: longest.get(value, value) for name, value in variables.items()}
    assert {value for value in variables.values() if value in PARAMETERS} <= set(longest)
    measured = len(json.dumps(largest, ensure_ascii=False, separators=(",", ":")).encode())
    assert measured < 4096


def test_every_pair_of_idle_time_and_limit_that_is_accepted_works() -> None:
    given = {"TABLE_NAME": "t", "ELEVATE_CLUSTER_ID": "c"}
    closest = {
        "SESSION_IDLE_MINUTES": str(PARAMETERS["SessionIdleMinutes"]["MaxValue"]),
        "SESSION_LIMIT_MINUTES": str(PARAMETERS["SessionLimitMinutes"]["MinValue"]),
    }
    settings = Settings.read(given | closest)
    assert settings.session_limit > settings.idle


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_lease_outlives_every_invocation(name: str) -> None:
    assert int(FUNCTIONS[name]["Timeout"]) < LEASE_SECONDS


def test_each_function_has_its_own_file_role_and_log_group_with_retention() -> None:
    for of in ("Handler", "Role", "LoggingConfig"):
        assert len({str(function[of]) for function in FUNCTIONS.values()}) == len(FUNCTIONS) == 3
    for function in FUNCTIONS.values():
        module = function["Handler"].rsplit(".", 1)[0].replace(".", "/")
        assert (ROOT / "src" / f"{module}.py").exists()
        group = RESOURCES[function["LoggingConfig"]["LogGroup"]]
        assert group["Properties"]["RetentionInDays"] == "LogRetentionDays"


def test_lambda_passes_lines_of_the_log_level_and_its_own_warnings() -> None:
    """Lambda drops JSON lines below a level of its own, INFO by default; metrics count as INFO."""
    assert CONDITIONS["IsDebugged"] == ["LogLevel", "DEBUG"]
    made = translated()
    for name, function in FUNCTIONS.items():
        logging = made[name]["Properties"]["LoggingConfig"]
        assert logging["ApplicationLogLevel"] == {"Fn::If": ["IsDebugged", "DEBUG", "INFO"]}
        assert (logging["LogFormat"], logging["SystemLogLevel"]) == ("JSON", "WARN")
        assert set(function["LoggingConfig"]) < set(logging)


def test_an_event_of_any_kind_has_a_rule() -> None:
    patterns = [
        event["Properties"]["Pattern"]["detail-type"][0]
        for function in FUNCTIONS.values()
        for event in function["Events"].values()
        if event["Type"] == "EventBridgeRule"
    ]
    (others,) = [pattern for pattern in patterns if isinstance(pattern, dict)]
    assert sorted(others["anything-but"]) == sorted(p for p in patterns if isinstance(p, str))


def test_every_way_to_a_function_has_a_dead_letter_queue() -> None:
    for function in FUNCTIONS.values():
        assert function["EventInvokeConfig"]["DestinationConfig"]["OnFailure"]["Type"] == "SQS"
        for event in function["Events"].values():
            assert "Arn" in event["Properties"]["DeadLetterConfig"]


def test_a_failed_or_throttled_sweep_is_given_up_before_the_next_tick_but_one() -> None:
    """Lambda would keep throttled ticks for six hours, and then start them all."""
    settings = FUNCTIONS["SweepFunction"]["EventInvokeConfig"]
    assert settings["MaximumRetryAttempts"] == 0
    assert settings["MaximumEventAgeInSeconds"] == 60
    assert settings["DestinationConfig"]["OnFailure"]["Destination"] == "MissedSweeps.Arn"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lambda_may_write_a_functions_dead_letter_messages(name: str) -> None:
    (policy,) = RESOURCES[FUNCTIONS[name]["Role"].split(".")[0]]["Properties"]["Policies"]
    granted = [
        statement["Resource"]
        for statement in policy["PolicyDocument"]["Statement"]
        if isinstance(statement, dict) and statement["Action"] == "sqs:SendMessage"
    ]
    settings = FUNCTIONS[name]["EventInvokeConfig"]
    assert granted == [settings["DestinationConfig"]["OnFailure"]["Destination"]]


def test_every_dead_letter_queue_and_function_has_alarms() -> None:
    alarms = [r["Properties"] for r in RESOURCES.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    watched = [
        (alarm["MetricName"], str(alarm["Dimensions"][0]["Value"]).split(".")[0])
        for alarm in alarms
    ]
    queues = {name for name, r in RESOURCES.items() if r["Type"] == "AWS::SQS::Queue"}
    # The next tick makes up for a missed one. If none comes, the alarm on the sweep lag fires.
    queues.remove("MissedSweeps")
    assert {("ApproximateNumberOfMessagesVisible", queue) for queue in queues} <= set(watched)
    assert {("Errors", function) for function in FUNCTIONS} <= set(watched)
    lasting = set(FUNCTIONS) - {"SweepFunction"}
    kinds = ("Throttles", "DestinationDeliveryFailures")
    assert {(kind, function) for kind in kinds for function in lasting} <= set(watched)


def test_the_fixed_cost_is_at_most_five_dollars_a_month() -> None:
    """The dashboard shows every metric (tests/test_metrics.py); itself it is free, or off."""
    prices = tomllib.loads((ROOT / "bench" / "prices.toml").read_text())["cloudwatch"]
    body = RESOURCES["StackDashboard"]["Properties"]["DashboardBody"]
    metrics = set(re.findall(r'"ElevateSessions", "(\w+)"', body))
    alarms = [r for r in RESOURCES.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    idle_sweeps = 0.25  # at most: docs/operations.md, "Cost"
    fixed = len(alarms) * prices["alarm_month"] + len(metrics) * prices["metric_month"]
    assert fixed + idle_sweeps <= 5


def test_the_dashboard_and_its_link_can_be_left_out() -> None:
    dashboards = [r for r in RESOURCES.values() if r["Type"] == "AWS::CloudWatch::Dashboard"]
    link = template()["Outputs"]["DashboardUrl"]
    assert [made["Condition"] for made in (*dashboards, link)] == ["HasDashboard"] * 2
    assert CONDITIONS["HasDashboard"] == ["Dashboard", "true"]
    assert PARAMETERS["Dashboard"]["Default"] == "true"


def test_encryption_is_billed_only_with_a_key_of_ones_own() -> None:
    assert RESOURCES["Registry"]["Properties"]["SSESpecification"] == {
        "SSEEnabled": ["HasKmsKey", True, False],
        "SSEType": ["HasKmsKey", "KMS", "AWS::NoValue"],
        "KMSMasterKeyId": ["HasKmsKey", "KmsKeyArn", "AWS::NoValue"],
    }
    for resource in RESOURCES.values():
        if resource["Type"] == "AWS::SQS::Queue":
            managed = resource["Properties"]["SqsManagedSseEnabled"]
            assert managed is True or managed == ["HasKmsKey", "AWS::NoValue", True]


def test_every_alarm_names_its_paragraph_and_notifies_somebody() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    for resource in RESOURCES.values():
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            alarm = resource["Properties"]
            (paragraph,) = re.findall('See "(.+)" in', alarm["AlarmDescription"])
            assert f"## {paragraph}\n" in manual
            assert alarm["AlarmActions"] == alarm["OKActions"] != []


def test_no_policy_allows_everything() -> None:
    for name, resource in RESOURCES.items():
        for policy in resource.get("Properties", {}).get("Policies", []):
            for statement in policy["PolicyDocument"]["Statement"]:
                if isinstance(statement, list):  # [condition, then, else]
                    assert statement[0] in {"IsTraced", "HasKmsKey"}
                    continue
                assert "*" not in str(statement["Action"]), name
                assert statement["Resource"] != "*", name


def test_every_role_has_the_boundary_even_those_that_sam_makes() -> None:
    made = translated()
    bounded = {"Fn::If": ["HasPermissionsBoundary", {"Ref": "PermissionsBoundaryArn"}, NO_VALUE]}
    for name, resource in made.items():
        if resource["Type"] == "AWS::IAM::Role":
            assert resource["Properties"]["PermissionsBoundary"] == bounded, name


@pytest.mark.parametrize("name", RESOURCES)
def test_what_holds_data_outlives_the_stack(name: str) -> None:
    kept = {"Registry", "FailedEvents", "UndeliveredEvents"}
    holds = {"AWS::DynamoDB::Table", "AWS::SQS::Queue", "AWS::Logs::LogGroup"}
    resource = RESOURCES[name]
    if resource["Type"] in holds:
        assert {"DeletionPolicy", "UpdateReplacePolicy"} <= set(resource)
    if name in kept:
        # A first deploy that fails leaves nothing behind, or the next could not tell what is whose.
        assert resource["DeletionPolicy"] == "RetainExceptOnCreate"
        assert resource["UpdateReplacePolicy"] == "Retain"


def test_the_table_of_production_cannot_be_deleted_by_accident() -> None:
    assert RESOURCES["Registry"]["Properties"]["DeletionProtectionEnabled"] == "DeletionProtection"
    assert PARAMETERS["DeletionProtection"]["Default"] == "false"
    deploys = tomllib.loads((ROOT / "samconfig.toml").read_text())
    production = deploys["production"]["deploy"]["parameters"]["parameter_overrides"]
    assert "DeletionProtection=true" in production


@pytest.mark.parametrize(
    ("partition", "console"),
    [
        ("aws", "console.aws.amazon.com"),
        ("aws-cn", "console.amazonaws.cn"),
        ("aws-us-gov", "console.amazonaws-us-gov.com"),
    ],
)
def test_the_dashboards_link_leads_to_the_partitions_console(partition: str, console: str) -> None:
    url, hosts = template()["Outputs"]["DashboardUrl"]["Value"]
    assert url.startswith("https://${Console}/cloudwatch/home?region=${AWS::Region}#")
    host = hosts["Console"]
    while isinstance(host, list):
        name, expected = CONDITIONS[host[0]]
        host = host[1 if (name, partition) == ("AWS::Partition", expected) else 2]
    assert host == console


def test_the_api_takes_no_outdated_tls() -> None:
    api = translated()["Api"]["Properties"]
    assert api["SecurityPolicy"] == "SecurityPolicy_TLS13_1_2_2021_06"
    assert api["EndpointAccessMode"] == "STRICT"


def test_open_ends_need_origins_and_markets() -> None:
    rule = template()["Rules"]["OpenEndsNeedOriginsAndMarkets"]
    assert rule["RuleCondition"] == ["ApiAuth", "NONE"]
    demanded = [assertion["Assert"] for assertion in rule["Assertions"]]
    assert demanded == [[["CorsOrigins", ""]], [["Markets", ""]]]


def test_origins_are_given_as_browsers_send_them() -> None:
    origins = re.compile(PARAMETERS["CorsOrigins"]["AllowedPattern"])
    several = "https://shop.se,https://www.shop.no:8443,http://localhost:3000,http://127.0.0.1"
    for good in ("", "https://www.shop.example", "http://localhost:3000", several):
        assert origins.fullmatch(good)
    given = {"TABLE_NAME": "t", "ELEVATE_CLUSTER_ID": "c", "CORS_ORIGINS": several}
    assert Settings.read(given).cors_origins == set(several.split(","))
    wrong = ("*", "null", "http://shop.example", "https://shop.example/", "https://Shop.example")
    for bad in (*wrong, "https://a,", ",https://a", "https://a, https://b", "https://a,*"):
        assert not origins.fullmatch(bad)


def test_only_what_always_needs_a_credential_keeps_its_limits_where_ends_are_open() -> None:
    everywhere, *single = RESOURCES["Api"]["Properties"]["MethodSettings"]
    assert (everywhere["ResourcePath"], everywhere["HttpMethod"]) == ("/*", "*")
    # Metrics of single methods cost money, and nobody reads them.
    assert not any(one.get("MetricsEnabled") for one in (everywhere, *single))
    for kind in ("Rate", "Burst"):
        limit = everywhere[f"Throttling{kind}Limit"]
        assert limit == ["EndsAreOpen", "OpenRateLimit", f"Api{kind}Limit"]
        assert {one[f"Throttling{kind}Limit"] for one in single} == {f"Api{kind}Limit"}
    needing = {
        (path, method.upper())
        for path, methods in interface({"HasApiKey", "HasCorsOrigins"})["paths"].items()
        for method, operation in methods.items()
        if method in ("get", "put", "post", "options") and operation.get("security")
    }
    named = {(o["ResourcePath"][1:].replace("~1", "/"), o["HttpMethod"]) for o in single}
    assert named == needing
    assert PARAMETERS["OpenRateLimit"]["Default"] < PARAMETERS["ApiRateLimit"]["Default"]


def test_no_concurrency_is_reserved_by_default() -> None:
    """An account may have no concurrency to spare, and then the deploy would fail."""
    for name in FUNCTIONS:
        asked = name.replace("Function", "ReservedConcurrency")
        assert PARAMETERS[asked]["Default"] == -1
        condition = name.replace("Function", "IsReserved")
        assert FUNCTIONS[name]["ReservedConcurrentExecutions"] == [condition, asked, "AWS::NoValue"]


@pytest.mark.parametrize("lock", ["requirements-dev", "requirements-scan", "src/requirements"])
def test_every_dependency_is_pinned_by_hashes(lock: str) -> None:
    text = (ROOT / f"{lock}.txt").read_text()
    pins = re.split(r"(?m)^(?=\S)", text)
    for pin in filter(str.strip, pins):
        assert re.match(r"[A-Za-z0-9._-]+(\[.+\])?==\S+", pin), pin
        assert "--hash=sha256:" in pin
    assert "://" not in text


def test_parameters_explain_themselves() -> None:
    for name, parameter in PARAMETERS.items():
        assert parameter["Description"].endswith("."), name
        assert "Default" in parameter, name


def test_the_page_of_parameters_is_what_make_docs_writes() -> None:
    assert PAGE.read_text() == parameters_page()


def test_every_parameter_is_in_one_group() -> None:
    groups = template()["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(PARAMETERS)


def test_the_readme_names_ten_parameters_with_their_defaults() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `([A-Z]\w+)` \| (?:`(.+?)`)? ?\|", readme, re.MULTILINE)
    assert len(rows) == 10
    assert {name: str(PARAMETERS[name]["Default"]) for name, _ in rows} == dict(rows)


def test_every_operation_of_the_api_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    api = interface()
    for path, operations in api["paths"].items():
        for method in set(operations) & {"get", "put", "post"}:
            assert f"`{method.upper()} {path}`" in readme
