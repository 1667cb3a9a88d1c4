"""The clients in examples/, each driven in its own language."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# Each reads [[method, session, …], …] and prints what the methods returned, logging at DEBUG.
_PYTHON = """
import json, logging, sys
sys.path.insert(0, sys.argv[1])
logging.basicConfig(level=logging.DEBUG)
from elevate_sessions import ElevateSessions
client = ElevateSessions(*sys.argv[2:])
print(json.dumps([getattr(client, method)(*given) for method, *given in json.load(sys.stdin)]))
"""
_NODE = """
import { json } from "node:stream/consumers";
const [folder, ...given] = process.argv.slice(1);
const { ElevateSessions } = await import(`${folder}/elevate-sessions.mjs`);
const client = new ElevateSessions(...given), returned = [];
for (const [name, ...rest] of await json(process.stdin)) returned.push(await client[name](...rest));
console.log(JSON.stringify(returned));
"""
_PHP = """
error_reporting(E_ALL);
require "$argv[1]/ElevateSessions.php";
$client = new ElevateSessions($argv[2], $argv[3]);
foreach (json_decode(stream_get_contents(STDIN), true) as $call) {
    $returned[] = $client->{array_shift($call)}(...$call);
}
echo json_encode($returned), "\\n";
"""
COMMANDS = {
    "python": [sys.executable, "-c", _PYTHON],
    "node": ["node", "--input-type=module", "--eval", _NODE],
    "php": ["php", "-d", "display_errors=stderr", "-r", _PHP],
}


def need(program: str) -> None:
    """Skip the test where the program is missing."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@dataclass
class Client:
    """The client in one language, calling the API at `url`."""

    language: str
    url: str
    api_key: str = "a key of the API"
    logged: str = field(default="", init=False)

    def calls(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Make the calls on one client; return what they returned, and fail if a key was logged."""
        need(COMMANDS[self.language][0])
        done = subprocess.run(
            [*COMMANDS[self.language], str(EXAMPLES), self.url, self.api_key],
            input=json.dumps(calls),
            env=os.environ | {"NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        *chatter, returned = done.stdout.splitlines()
        self.logged += done.stderr + "\n".join(chatter)
        for _, session, *_ in calls:
            for name in ("customerKey", "sessionKey"):
                assert session[name] not in self.logged
        assert self.api_key not in self.logged
        return list(json.loads(returned))
