"""The clients in examples/ against an API whose every answer the test decides."""

import http.server
import json
import re
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from clients import COMMANDS, EXAMPLES, Client, need

SESSION = {
    "market": "Sverige & Norge/ü",
    "customerKey": "d9528030-509c-4e0f-b585-7168f1e9feca",
    "sessionKey": "b106299c/eac0 4f6f?96d2#93e57c255784",
}
SIGNED_IN = SESSION | {"customerKey": "2b1c9c1e-4f6f-4d0a-9f3b-0d8c6a1f7e55"}
PROBLEM = "application/problem+json"


class Api(http.server.ThreadingHTTPServer):
    """Answer each request with the next of `answers` (status, headers), then repeat the last."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = [(204, {})]
        self.received: list[tuple[str, str, Any, str | None]] = []
        self.silent = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/api"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Api
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.headers["content-type"] == "application/json"
        self.server.received.append((self.command, self.path, body, self.headers["x-api-key"]))
        if self.server.silent.is_set():
            self.connection.recv(1)  # until the client gives up
            return
        answers = self.server.answers
        status, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        # A proxy in between may echo the path; the service itself only names fields.
        own = headers.get("content-type") == PROBLEM
        text = '{"errors": [{"field": "market"}]}' if own else f"{self.path} {unquote(self.path)}"
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        if status != 204:
            self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode() if status != 204 else b"")

    do_POST = do_PUT

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(params=COMMANDS)
def client(request: pytest.FixtureRequest, api: Api) -> Client:
    return Client(request.param, api.url)


def test_requests_are_what_the_api_asks_for(api: Api, client: Client) -> None:
    assert client.calls(("track", SESSION), ("end", SESSION)) == [True, None]
    (put, path, body, key), end = api.received
    assert (put, key) == ("PUT", client.api_key)
    assert path.startswith("/api/sessions/b106299c%2F")
    assert unquote(path).endswith("/sessions/" + SESSION["sessionKey"])
    assert body == {name: SESSION[name] for name in ("market", "customerKey")}
    assert end == ("POST", "/api/sessions/end", SESSION, client.api_key)
    assert client.logged == ""


def test_a_session_is_tracked_once_a_minute_but_changes_at_once(api: Api, client: Client) -> None:
    calls = [
        ("track", SESSION),
        ("track", SESSION),
        ("track", SESSION, True),
        ("track", SESSION, True),
        ("track", SIGNED_IN),
        ("track", SIGNED_IN),
    ]
    assert client.calls(*calls) == [True] * 6
    sent = [(body["customerKey"], body.get("interactive")) for _, _, body, _ in api.received]
    assert sent == [
        (SESSION["customerKey"], None),
        (SESSION["customerKey"], True),
        (SIGNED_IN["customerKey"], None),
    ]


def test_a_session_that_was_signed_out_needs_new_keys_each_time_it_is_tracked(
    api: Api, client: Client
) -> None:
    api.answers = [(409, {"content-type": PROBLEM})]
    assert client.calls(("track", SESSION), ("track", SESSION)) == [False, False]
    assert len(api.received) == 2


def test_an_outage_neither_renews_keys_nor_slows_every_page(api: Api, client: Client) -> None:
    api.answers = [(503, {"Retry-After": "7"})]
    assert client.calls(("track", SESSION), ("track", SESSION)) == [True, True]
    assert len(api.received) == 1
    assert "503" in client.logged


@pytest.mark.parametrize(
    ("status", "headers", "again"),
    [
        (202, {"Location": "/sessions/x"}, None),
        (400, {"content-type": PROBLEM}, None),
        (403, {}, None),
        (422, {"content-type": PROBLEM}, None),
        (307, {"Location": "/elsewhere"}, None),
        (429, {}, 30),
        (500, {}, 30),
        (503, {"content-type": PROBLEM, "Retry-After": "7"}, 7),
        (504, {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 30),
    ],
)
def test_an_end_is_called_again_only_when_it_was_not_accepted(
    api: Api, client: Client, status: int, headers: dict[str, str], again: int | None
) -> None:
    api.answers = [(status, headers)]
    assert client.calls(("end", SESSION)) == [again]
    assert len(api.received) == 1, "it does not repeat a call by itself"
    assert (str(status) in client.logged) is (status != 202)
    assert ('"field": "market"' in client.logged.replace("\\", "")) is (PROBLEM in headers.values())


def test_an_api_that_cannot_be_reached_raises_nothing(api: Api, client: Client) -> None:
    client.url = client.url.replace(f":{api.server_port}", ":9")
    assert client.calls(("track", SESSION), ("end", SESSION)) == [True, 30]
    assert client.logged


@pytest.mark.parametrize("language", COMMANDS)
def test_an_api_that_never_answers_holds_up_no_page(api: Api, language: str) -> None:
    api.silent.set()
    # The driver itself is given 60 seconds.
    assert Client(language, api.url).calls(("track", SESSION)) == [True]
    assert len(api.received) == 1


# What a page has and Node has not: here a localStorage that is full, and cookies. It prints what
# the page posted, the keys that it has then, and what the next page will find.
_PAGE = """
const [module, stored, ...steps] = JSON.parse(process.argv[1]);
const value = {
  kept: stored,
  getItem: () => value.kept,
  setItem: () => { throw new DOMException("full", "QuotaExceededError"); },
  removeItem: () => { value.kept = null; },
};
Object.defineProperty(globalThis, "localStorage", { value });
const cookies = new Map([["other", "1"]]), attributes = [];
globalThis.location = { hostname: "www.shop.example", protocol: "https:" };
globalThis.document = {
  get cookie() { return [...cookies].map((pair) => pair.join("=")).join("; "); },
  set cookie(text) {
    const [pair, ...more] = text.split("; ");
    cookies.set(...pair.split("="));
    attributes.push(more.join("; "));
  },
};
globalThis.addEventListener = () => {};
const posted = [];
globalThis.fetch = async (path, { body }) => { posted.push([path, JSON.parse(body)]); return {}; };
const page = await import(module);
for (const [name, ...given] of steps) await page[name](...given);
const next = [value.kept, Object.fromEntries(cookies), attributes];
console.log(JSON.stringify([posted, page.session(), next]));
"""


def browse(module: Path, stored: str | None, *steps: list[Any]) -> Any:
    """Take a page's steps; return what it posted, its keys, and what the next page will find."""
    need("node")
    given = json.dumps([str(module), stored, *steps])
    command = ["node", "--input-type=module", "--eval", _PAGE, given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sign_out_is_told_where_localstorage_is_full() -> None:
    """The vendor's reset() throws there, after it has renewed the keys in memory."""
    if not (EXAMPLES / "node_modules").exists():
        pytest.skip("Elevate's own client is not installed: npm ci --prefix examples")
    old = {name: SIGNED_IN[name] for name in ("customerKey", "sessionKey")}
    kept = json.dumps(old | {"customerKey": "anonymous"}, separators=(",", ":"))
    steps = ["signedIn", old["customerKey"]], ["signedOut"]
    posted, keys, (left, _, _) = browse(EXAMPLES / "browser.mjs", kept, *steps)
    assert posted == [["/elevate/track", old | {"interactive": False}], ["/elevate/end", old]]
    assert not set(keys.values()) & set(old.values())
    assert left is None, "the next page would be in the session that has ended"


def test_on_elevate_3_the_keys_are_in_cookies(tmp_path: Path) -> None:
    # Given browser.mjs with the import that its comment names
    shutil.copy(EXAMPLES / "elevate-3.mjs", tmp_path)
    written = (EXAMPLES / "browser.mjs").read_text()
    changed, count = re.subn(r"import .*\n// On Elevate 3: (import .*)", r"\1", written)
    assert count == 1
    (module := tmp_path / "browser.mjs").write_text(changed)
    # When a visitor looks around, signs in and signs out
    customer = str(uuid.uuid4())
    steps = ["track"], ["signedIn", customer], ["signedOut"]
    posted, keys, (_, cookies, attributes) = browse(module, None, *steps)
    # Then the session of the first page is ended under the customer's key, and both keys are new.
    (_, first), (_, signed_in), (path, ended) = posted
    assert path == "/elevate/end"
    assert ended == {"customerKey": customer, "sessionKey": first["sessionKey"]}
    assert signed_in == ended | {"interactive": False}
    assert not set(keys.values()) & {*first.values(), customer}
    assert all(uuid.UUID(key).version == 4 for key in keys.values())
    # Then the library finds them where Voyado says that it looks.
    named = {f"apptus.{name}": key for name, key in keys.items()}
    assert cookies == {"other": "1"} | named
    place = "domain=www.shop.example; path=/"
    assert set(attributes) == {f"{place}; max-age=31536000; secure", f"{place}; secure"}


@pytest.mark.parametrize(
    "name", ["elevate_sessions.py", "elevate-sessions.mjs", "ElevateSessions.php"]
)
def test_a_client_is_short_enough_to_paste(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 60


def test_examples_hold_no_file_that_the_readme_does_not_name() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    apart = {"README.md", "node_modules", "package.json", "package-lock.json", "__pycache__"}
    assert all(f"]({p.name})" in readme for p in Path(EXAMPLES).iterdir() if p.name not in apart)
