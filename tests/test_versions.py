"""Whatever is changed in a function reaches its alias: SAM and CloudFormation publish a version."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from registry_table import TEMPLATE, template
from translation import translated

PARAMETERS: dict[str, Any] = template()["Parameters"]
CONDITIONS: dict[str, Any] = template()["Conditions"]
FUNCTIONS = {
    name: resource["Properties"]
    for name, resource in template()["Resources"].items()
    if resource["Type"] == "AWS::Serverless::Function"
}

# Properties that belong to the alias or to the function itself, not to a version. A version has a
# description of its own, and the code has a hash.
NO_PART_OF_A_VERSION = {
    *("AutoPublishAlias", "CodeUri", "DeploymentPreference", "Description", "EventInvokeConfig"),
    *("Events", "FunctionName", "ReservedConcurrentExecutions", "VersionDescription"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_is_changed_in_a_function_is_published(name: str) -> None:
    """SAM hashes few properties, and references rather than values; CloudFormation replaces a
    version when its text changes."""
    root = yaml.compose(TEMPLATE.read_text())
    assert root
    own, shared = at(root, "Resources", name, "Properties"), at(root, "Globals", "Function")
    resources = at(root, "Resources")
    resources.value = [(k, v) for k, v in resources.value if k.value == name]  # to be quick
    described = set(_names(FUNCTIONS[name]["VersionDescription"]))
    described |= set(_names([CONDITIONS.get(word, "") for word in described]))
    before = version(root, name)
    changed = set()
    # What a function sets of these is added to the shared values.
    added_to = {"Environment", "LoggingConfig"}
    overridden = {key.value for key, _ in own.value} - added_to
    inherited = [(k, v) for k, v in shared.value if k.value not in overridden]
    for key, value in (*inherited, *own.value):
        if key.value in NO_PART_OF_A_VERSION:
            continue
        for leaf in leaves(value):
            if leaf.value in PARAMETERS:
                assert leaf.value in described, leaf.value
            elif leaf.value not in (*CONDITIONS, "AWS::NoValue"):
                kept, leaf.value = leaf.value, leaf.value + "0"
                assert version(root, name) != before, kept
                leaf.value = kept
                changed.add(key.value)
    assert {"Handler", "Runtime", "Timeout", "MemorySize", "LoggingConfig", "Role"} <= changed


def test_the_settings_in_a_versions_description_are_whole_and_fit() -> None:
    variables = template()["Globals"]["Function"]["Environment"]["Variables"]
    used = {v for v in variables.values() if v in PARAMETERS}
    for function in FUNCTIONS.values():
        separator, values = function["VersionDescription"]
        assert used | {"KmsKeyArn"} <= set(_names(values))
        for marker in (["IsTraced", "traced", ""], ["IsSnapStarted", "snap", ""]):
            assert marker in values
        assert sum(map(_longest, values)) + len(values) * len(separator) <= 256


def version(root: yaml.Node, name: str) -> Any:
    """Return the version that SAM makes of a function, with the name that SAM gives it."""
    made = translated(yaml.serialize(root)).items()
    of_function = f"{name}Version"
    return [(key, resource) for key, resource in made if key.startswith(of_function)]


def at(node: yaml.Node, *path: str) -> yaml.MappingNode:
    """Return the mapping at a place in a document."""
    for name in path:
        assert isinstance(node, yaml.MappingNode)
        node = next(value for key, value in node.value if key.value == name)
    assert isinstance(node, yaml.MappingNode)
    return node


def leaves(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Yield every value in a piece of a document."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from leaves(value)
    else:
        for value in node.value:
            yield from leaves(value)


def _names(part: Any) -> Iterator[str]:
    """Yield every word of a piece of template."""
    if isinstance(part, list):
        for one in part:
            yield from _names(one)
    else:
        yield str(part)


def _longest(value: Any) -> int:
    """Return the most characters that a value, a parameter's or a condition's, can have."""
    if isinstance(value, list) and value[1] == ["/", "KmsKeyArn"]:
        return 36  # the id of a key
    if isinstance(value, list):
        return max(map(_longest, value[1:]))
    if value not in PARAMETERS:
        return len(value)
    about = PARAMETERS[value]
    if "MaxLength" in about:
        return int(about["MaxLength"])
    if "AllowedValues" in about:
        return max(len(str(value)) for value in about["AllowedValues"])
    if about["Type"] == "Number":
        return len(str(about["MaxValue"])) + (3 if float(about["MinValue"]) < 1 else 0)
    assert value == "ElevateClusterId"
    return 63
