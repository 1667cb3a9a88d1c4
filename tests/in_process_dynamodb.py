"""The emulator's DynamoDB as plain function calls: the same code, without the network."""

import json
from typing import Any

from botocore.exceptions import ClientError
from ministack.services import dynamodb


class InProcessDynamoDB:
    """A client with the operations the registry uses."""

    def __getattr__(self, operation: str) -> Any:
        action = "".join(word.title() for word in operation.split("_"))
        return lambda **arguments: _call(action, arguments)


def _call(action: str, arguments: dict[str, Any]) -> dict[str, Any]:
    headers = {"x-amz-target": f"DynamoDB_20120810.{action}"}
    request = dynamodb.handle_request("POST", "/", headers, json.dumps(arguments).encode(), {})
    try:
        request.send(None)
    except StopIteration as done:
        status, _, body = done.value
    answer: dict[str, Any] = json.loads(body)
    if status >= 400:
        code = str(answer.get("__type", "")).rsplit("#", 1)[-1]
        error: Any = {"Error": {"Code": code, "Message": answer.get("message", "")}} | answer
        raise ClientError(error, action)
    return answer
