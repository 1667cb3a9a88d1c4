"""What SAM makes of template.yaml."""

from typing import Any

from boto3 import Session
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

from registry_table import TEMPLATE


def translated(text: str | None = None, **parameters: str) -> dict[str, Any]:
    """Return the resources that SAM makes of template.yaml, or of another text of it."""
    whole = yaml_parse(text or TEMPLATE.read_text())
    whole["Globals"]["Function"]["CodeUri"] = "s3://any/package"  # as it is once it is packaged
    translator = Translator({}, Parser(), boto_session=Session(region_name="eu-west-1"))
    made: dict[str, Any] = translator.translate(whole, parameters)["Resources"]
    return made
