"""The documents' shell blocks, run as pasted, on the embedded stack."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import need
from local.stack import ROOT
from stack.conftest import Deployed, new_session, wait_for

DOCUMENTS = ("README.md", "docs/api.md", "docs/operations.md", "examples/README.md")
_BLOCK = re.compile(r"(<!-- needs AWS -->\n)?```sh\n(.*?)```", re.DOTALL)

# A pasted line that fails must fail here. What starts a stack or tests of its own is started
# elsewhere; here it must be a target of the Makefile.
_SHELL = """set -eu
curl() { command curl --silent --show-error --fail "$@"; }
make() {
    case "$1" in
        run | demo | test) command make --dry-run "$1" > make.log ;;
        *) command make --old-file .venv/installed "$@" ;;
    esac
}
"""

# Stands in for the AWS CLI: it knows botocore's operations and parameters, and no others.
_AWS = f"""#!{sys.executable}
import json, sys
from pathlib import Path
import boto3, jmespath
from botocore import xform_name

service, operation, *words = sys.argv[1:]
client = boto3.client(service)
name = client.meta.method_to_api_mapping[operation.replace("-", "_")]
members = client.meta.service_model.operation_model(name).input_shape.members
options = {{"--" + xform_name(member, "-"): member for member in members}}
given, own, files = {{}}, {{"--query": "@"}}, []
words = iter(words)
for word in words:
    if word in options:
        text = next(words)
        text = Path(text[7:]).read_text() if text.startswith("file://") else text
        shape = members[options[word]]
        is_json = shape.type_name in ("structure", "map", "list")
        given[options[word]] = json.loads(text) if is_json else text
    elif word in ("--query", "--cli-binary-format"):
        own[word] = next(words)
    else:
        files.append(word)
answer = getattr(client, xform_name(name))(**given)
if "Payload" in answer:  # goes to a file, which must be named
    Path(*files).write_bytes(answer.pop("Payload").read())
else:
    assert not files, files
print(json.dumps(jmespath.search(own["--query"], answer), default=str))
"""


def blocks(document: str) -> Iterator[tuple[str, bool]]:
    """Yield a document's shell blocks, and whether each needs AWS."""
    for marker, block in _BLOCK.findall((ROOT / document).read_text()):
        yield block, bool(marker)


RUN = [
    pytest.param(block, id=f"{document}:{block.split(maxsplit=2)[1]}")
    for document in DOCUMENTS
    for block, needs_aws in blocks(document)
    if not needs_aws
]


@pytest.fixture
def environment(deployed: Deployed, tmp_path: Path) -> dict[str, str]:
    """Return the variables a reader has set; make a copy of the repository to paste lines in."""
    for path in ROOT.iterdir():
        (tmp_path / path.name).symlink_to(path)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "aws").write_text(_AWS)
    (programs / "aws").chmod(0o755)
    (stack,) = deployed.stack.client("cloudformation").describe_stacks(
        StackName=deployed.info["stackName"]
    )["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    return {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        # As `make run` prints them.
        "URL": deployed.info["apiUrl"],
        "KEY": deployed.info["apiKey"],
        "ELEVATE": deployed.info["elevateUrl"],
        # As the text around the lines says.
        "TABLE": outputs["TableName"],
        "FAILED_EVENTS_URL": outputs["FailedEventsUrl"],
        "OPTIONS": f"--folder {deployed.stack.folder.relative_to(ROOT)}",
        "AWS_ENDPOINT_URL": deployed.info["awsEndpointUrl"],
        "AWS_DEFAULT_REGION": deployed.info["region"],
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }


def paste(block: str, environment: dict[str, str], folder: Path) -> str:
    """Run a block in a shell; return what it prints, and fail when a line of it fails."""
    for program in ("curl", "jq", "make"):
        if re.search(rf"\b{program}\b", block):
            need(program)
    here = environment["OPTIONS"].split()[1]
    script = _SHELL + block.replace(".local/stack.json", f"{here}/stack.json")
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.parametrize("block", RUN)
def test_a_block_runs_as_pasted(
    block: str, deployed: Deployed, environment: dict[str, str], tmp_path: Path
) -> None:
    # Given a dead-letter message, which some of the blocks are about
    session = new_session()
    event = {"detail-type": "Session Ended", "id": "an event", "detail": session}
    arn = f"arn:aws:lambda:eu-west-1:000000000000:function:{deployed.info['functions']['end']}:1"
    message = {"requestContext": {"functionArn": arn}, "requestPayload": event}
    sqs, queue = deployed.stack.client("sqs"), environment["FAILED_EVENTS_URL"]
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(message))
    try:
        paste(block, environment, tmp_path)
        # Then a block that sends it again has done so.
        if "redrive" in block or "receive-message" in block:
            wait_for(lambda: deployed.received(session))
    finally:
        sqs.purge_queue(QueueUrl=queue)


def test_the_readmes_calls_answer_what_it_says(
    deployed: Deployed, environment: dict[str, str], tmp_path: Path
) -> None:
    (calls,) = [block for block, _ in blocks("README.md") if "/sessions/end" in block]
    shown = paste(calls, environment, tmp_path)
    assert re.findall(r"^HTTP/\S+ (\d+)", shown, re.MULTILINE) == ["204", "204"]
    assert '"state": "ended"' in shown


def test_no_shell_block_is_overlooked() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        fences = re.findall(r"^ *```(?:sh|bash|shell|console)\b", text, re.MULTILINE)
        assert len(fences) == len(list(blocks(document))), document
