"""docs/parameters.md: all parameters of template.yaml, written by `make docs`."""

from typing import Any

from samcli.yamlhelper import yaml_parse

from local.stack import ROOT

PAGE = ROOT / "docs" / "parameters.md"

_HEAD = """# Parameters

`make docs` writes this page from [template.yaml](../template.yaml): change the descriptions there.
The [README](../README.md#choose-your-parameters) has the ten that matter, and how to set them.
One of `ElevateClusterId` and `ElevateBaseUrl` is required; all others have a default.
"""


def parameters_page() -> str:
    """Return the page: one table for each group of parameters."""
    template = yaml_parse((ROOT / "template.yaml").read_text())
    parameters = template["Parameters"]
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    return "\n".join([_HEAD, *(_table(group, parameters) for group in groups)])


def _table(group: dict[str, Any], parameters: dict[str, Any]) -> str:
    rows = [_row(name, parameters[name]) for name in group["Parameters"]]
    head = ["| parameter | default | values | what it decides |", "|---|---|---|---|"]
    return "\n".join([f"## {group['Label']['default']}", "", *head, *rows, ""])


def _row(name: str, rules: dict[str, Any]) -> str:
    default = f"`{rules['Default']}`" if str(rules["Default"]) else ""
    return f"| `{name}` | {default} | {_values(rules)} | {rules['Description']} |"


def _values(rules: dict[str, Any]) -> str:
    """Return the values a parameter may have, where that can be said briefly."""
    if allowed := rules.get("AllowedValues"):
        return ", ".join(f"`{value}`" for value in allowed)
    least, most = rules.get("MinValue"), rules.get("MaxValue")
    if least is None:
        return ""
    return f"{least} or more" if most is None else f"{least} to {most}"


if __name__ == "__main__":
    PAGE.write_text(parameters_page())
    print(f"Written: {PAGE.relative_to(ROOT)}")
