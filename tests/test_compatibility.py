"""The HTTP interface accepts and promises what its last release accepted and promised."""

import json
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from local.interface import interface

ROOT = Path(__file__).parent.parent
METHODS = ("get", "put", "post", "delete", "patch")
LOWER = ("maxLength", "maximum", "maxItems")
HIGHER = ("minLength", "minimum", "minItems")


def breaks(old: Any, new: Any) -> Iterator[str]:
    """Yield what a client written for `old` can no longer rely on in `new`."""
    old, new = _whole(old, old), _whole(new, new)
    for path, methods in old["paths"].items():
        for method in set(methods) & set(METHODS):
            name, now = f"{method.upper()} {path}", new["paths"].get(path, {}).get(method)
            if now is None:
                yield f"{name} is gone"
            else:
                yield from _operation(name, methods, methods[method], new["paths"][path], now)


def _operation(name: str, old_path: Any, old: Any, new_path: Any, new: Any) -> Iterator[str]:
    if new["security"] and any(way not in new["security"] for way in old["security"] or [{}]):
        yield f"{name} asks for other credentials"
    before, now = _arguments(old_path, old), _arguments(new_path, new)
    yield from (f"{name}: argument {one} is gone" for one in before.keys() - now.keys())
    for one, argument in now.items():
        if argument["required"] and not before.get(one, {}).get("required"):
            yield f"{name}: argument {one} is required"
        if one in before:
            yield from _accepted(f"{name}: {one}", before[one]["schema"], argument["schema"])
    body, body_now = (
        operation.get("requestBody", {}).get("content", {}) for operation in (old, new)
    )
    yield from _contents(name, body, body_now, _accepted)
    for status, answer in old["responses"].items():
        answer_now = new["responses"].get(status)
        if answer_now is None:
            yield f"{name}: {status} is gone"
            continue
        headers = answer.get("headers", {}).keys() - answer_now.get("headers", {}).keys()
        yield from (f"{name}: {status}: header {header} is gone" for header in headers)
        contents = answer.get("content", {}), answer_now.get("content", {})
        yield from _contents(f"{name}: {status}", *contents, _returned)


def _arguments(path: Any, operation: Any) -> dict[str, Any]:
    given = path.get("parameters", []) + operation.get("parameters", [])
    return {f"{one['in']} {one['name']}": {"required": False} | one for one in given}


def _contents(
    name: str, old: Any, new: Any, compare: Callable[[str, Any, Any], Iterator[str]]
) -> Iterator[str]:
    if new and not old:
        yield f"{name}: has a body now"
    for kind, content in old.items():
        if kind not in new:
            yield f"{name}: {kind} is gone"
        else:
            yield from compare(name, content["schema"], new[kind]["schema"])


def _accepted(name: str, old: Any, new: Any) -> Iterator[str]:
    """Yield the values that `old` accepted and `new` refuses."""
    if old.get("type") != new.get("type"):
        yield f"{name} has another type"
    if "enum" in new and not set(old.get("enum", [None])) <= set(new["enum"]):
        yield f"{name} takes fewer values"
    for limit in LOWER:
        if limit in new and new[limit] < old.get(limit, float("inf")):
            yield f"{name}: {limit} is lower"
    for limit in HIGHER:
        if limit in new and new[limit] > old.get(limit, 0):
            yield f"{name}: {limit} is higher"
    if new.get("pattern") not in (None, old.get("pattern")):
        yield f"{name} has another pattern"
    for field in set(new.get("required", ())) - set(old.get("required", ())):
        yield f"{name}: {field} is required"
    for field, schema in old.get("properties", {}).items():
        if field in new.get("properties", {}):
            yield from _accepted(f"{name}: {field}", schema, new["properties"][field])
        elif new.get("additionalProperties") is False:
            yield f"{name}: {field} is refused"


def _returned(name: str, old: Any, new: Any) -> Iterator[str]:
    """Yield what `old` returned and `new` does not."""
    if old.get("type") != new.get("type") or (new.get("nullable") and not old.get("nullable")):
        yield f"{name} has another type"
    for field in set(old.get("required", ())) - set(new.get("required", ())):
        yield f"{name}: {field} may be absent"
    for field, schema in old.get("properties", {}).items():
        if field not in new.get("properties", {}):
            yield f"{name}: {field} is gone"
        else:
            yield from _returned(f"{name}: {field}", schema, new["properties"][field])
    if "items" in old:
        yield from _returned(f"{name}: each", old["items"], new.get("items", {}))


def _whole(part: Any, document: Any) -> Any:
    """Return a part with all its references followed."""
    if isinstance(part, list):
        return [_whole(one, document) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        *_, section, name = part["$ref"].split("/")
        return _whole(document["components"][section][name], document)
    return {name: _whole(one, document) for name, one in part.items()}


def test_it_is_compatible_with_its_last_release() -> None:
    (file,) = (ROOT / "docs").glob("openapi-*.json")
    released = json.loads(file.read_text())
    version = released["info"]["version"]
    assert file.name == f"openapi-{version}.json"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Only a new major version may break what clients rely on.
    if project["version"].split(".")[0] == version.split(".")[0]:
        assert sorted(breaks(released, interface())) == []


# -- the comparison itself ---------------------------------------------------------------------

END = ("paths", "/sessions/end", "post")
READ = ("paths", "/sessions/{sessionKey}", "get")
SESSION = ("components", "schemas", "Session")
STATE = ("components", "schemas", "Sessions", "properties", "sessions", "items")
Change = tuple[tuple[str | int, ...], Callable[[Any], Any], str]
BREAKING: list[Change] = [
    (("paths",), lambda paths: paths.pop("/sessions/end"), "POST /sessions/end is gone"),
    (READ[:2], lambda path: path.pop("get"), "GET /sessions/{sessionKey} is gone"),
    (END, lambda end: end.update(security=[{"token": []}]), "asks for other credentials"),
    ((*READ, "parameters", 0), lambda one: one.update(required=True), "query market is required"),
    ((*READ, "parameters"), lambda given: given.pop(), "query market is gone"),
    ((*END, "requestBody", "content"), lambda kinds: kinds.clear(), "application/json is gone"),
    ((*END, "responses"), lambda answers: answers.pop("202"), "202 is gone"),
    ((*END, "responses", "202", "headers"), lambda all_: all_.clear(), "header Location is gone"),
    ((*SESSION, "required"), lambda names: names.append("userContext"), "userContext is required"),
    ((*SESSION, "properties"), lambda fields: fields.pop("userContext"), "userContext is refused"),
    ((*SESSION, "properties", "market"), lambda one: one.update(maxLength=9), "maxLength is lower"),
    (
        (*SESSION, "properties", "market"),
        lambda one: one.update(minLength=2),
        "minLength is higher",
    ),
    ((*SESSION, "properties", "market"), lambda one: one.update(enum=["UK"]), "takes fewer values"),
    ((*SESSION, "properties", "market"), lambda one: one.update(pattern="^U"), "another pattern"),
    ((*SESSION, "properties", "market"), lambda one: one.update(type="integer"), "another type"),
    ((*STATE, "properties"), lambda fields: fields.pop("dueAt"), "dueAt is gone"),
    ((*STATE, "properties", "state"), lambda one: one.update(nullable=True), "another type"),
    ((*STATE, "required"), lambda names: names.remove("state"), "state may be absent"),
]
COMPATIBLE: list[tuple[tuple[str | int, ...], Callable[[Any], Any]]] = [
    (("paths",), lambda paths: paths.update({"/new": {}})),
    (END, lambda end: end.update(security=[*end["security"], {"token": []}])),
    (END, lambda end: end.update(security=[])),
    (READ, lambda get: get["parameters"].append({"in": "query", "name": "since", "schema": {}})),
    ((*END, "responses"), lambda answers: answers.update({"207": {}})),
    ((*SESSION, "properties"), lambda fields: fields.update(note={"type": "string"})),
    ((*SESSION, "properties", "market"), lambda one: one.update(maxLength=999)),
    ((*SESSION, "properties", "userContext", "enum"), lambda values: values.append("NEW")),
    ((*STATE, "properties"), lambda fields: fields.update(note={"type": "string"})),
    ((*STATE, "properties", "state", "enum"), lambda values: values.append("paused")),
]


def changed(where: tuple[str | int, ...], change: Callable[[Any], Any]) -> Any:
    """Return the interface with one change."""
    document = deepcopy(interface())
    part: Any = document
    for name in where:
        part = part[name]
    change(part)
    return document


@pytest.mark.parametrize(("where", "change", "found"), BREAKING)
def test_what_breaks_a_client_is_found(
    where: tuple[str | int, ...], change: Callable[[Any], Any], found: str
) -> None:
    broken = list(breaks(interface(), changed(where, change)))
    assert any(found in one for one in broken), broken


@pytest.mark.parametrize(("where", "change"), COMPATIBLE)
def test_what_breaks_no_client_is_allowed(
    where: tuple[str | int, ...], change: Callable[[Any], Any]
) -> None:
    assert list(breaks(interface(), changed(where, change))) == []
