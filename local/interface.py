"""`make docs`: the HTTP interface as one page to read, with nothing fetched from elsewhere.

openapi.yaml holds CloudFormation's conditions, because who may call is decided by parameters. Here
they are decided for one way to deploy; what is left is plain OpenAPI.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import aws_lambda_powertools
import yaml

ROOT = Path(__file__).parent.parent

# API Gateway has an address of its own, and so takes none from the document.
_SERVER = {
    "url": "https://{host}/api",
    "variables": {
        "host": {
            "default": "your-api.execute-api.eu-west-1.amazonaws.com",
            "description": "The host in the stack's output ApiUrl, or your own domain's.",
        }
    },
}

# The conditions of template.yaml that hold by default.
BY_DEFAULT = frozenset({"HasApiKey", "EndsNeedApiKey"})

_NOTHING = object()
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>{style}</style>
<div id="interface"></div>
<script>{script}</script>
<script>
SwaggerUIBundle({{dom_id: "#interface", spec: {spec}, supportedSubmitMethods: [],
  validatorUrl: null}})
</script>
</html>
"""


def interface(conditions: Collection[str] = BY_DEFAULT) -> dict[str, Any]:
    """Return openapi.yaml as it is where these conditions of template.yaml hold."""
    decided: dict[str, Any] = _decide(
        yaml.safe_load((ROOT / "openapi.yaml").read_text()), conditions
    )
    return decided


def _decide(part: Any, conditions: Collection[str]) -> Any:
    if isinstance(part, list):
        kept = (_decide(one, conditions) for one in part)
        return [one for one in kept if one is not _NOTHING]
    if not isinstance(part, dict):
        return part
    if part == {"Ref": "AWS::NoValue"}:
        return _NOTHING
    if list(part) == ["Fn::If"]:
        condition, then, otherwise = part["Fn::If"]
        return _decide(then if condition in conditions else otherwise, conditions)
    decided = {name: _decide(one, conditions) for name, one in part.items()}
    return {name: one for name, one in decided.items() if one is not _NOTHING}


def _without_extensions(part: Any) -> Any:
    if isinstance(part, list):
        return [_without_extensions(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {n: _without_extensions(p) for n, p in part.items() if not n.startswith("x-amazon-")}


def document() -> dict[str, Any]:
    """Return the interface as plain OpenAPI, with an address to put in front of its paths."""
    plain: dict[str, Any] = _without_extensions(interface())
    return plain | {"servers": [_SERVER]}


def page() -> str:
    """Return the page: Swagger UI, its style and the interface, all in one."""
    plain = document()
    return _PAGE.format(
        title=plain["info"]["title"],
        style=_asset("swagger-ui.min.css"),
        script=_asset("swagger-ui-bundle.min.js"),
        # Otherwise a string that holds "</script>" would end the script.
        spec=json.dumps(plain).replace("<", "\\u003c"),
    )


def _asset(name: str) -> str:
    # Powertools brings Swagger UI along.
    home = Path(aws_lambda_powertools.__file__).parent
    text = (home / "event_handler" / "openapi" / "swagger_ui" / name).read_text()
    # The source maps that browsers would fetch for their debuggers are not in the page.
    return re.sub(r"(//|/\*)# sourceMappingURL=.*", "", text)


def main() -> None:
    """Write the page and say where."""
    folder = ROOT / ".local" / "docs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(page())
    (folder / "openapi.json").write_text(json.dumps(document(), indent=2))
    print(f"Written: {(folder / 'index.html').relative_to(ROOT)} and openapi.json beside it.")


if __name__ == "__main__":
    main()
