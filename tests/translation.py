"""What SAM makes of template.yaml."""

from typing import Any

from boto3 import Session
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

from registry_table import TEMPLATE


def translated() -> dict[str, Any]:
    """Return the resources that SAM makes of template.yaml."""
    whole = yaml_parse(TEMPLATE.read_text())
    whole["Globals"]["Function"]["CodeUri"] = "s3://any/package"  # as it is once it is packaged
    translator = Translator({}, Parser(), boto_session=Session(region_name="eu-west-1"))
    made: dict[str, Any] = translator.translate(whole, {})["Resources"]
    return made
