"""A secret is sent through every surface there is, and then looked for in everything that is left.

Owns the surfaces and the search. Not in here: the redactor by itself (``test_policy_redact.py``).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
import socket
import string
import subprocess
import sys
import threading
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import GOCLAW, ROOT, World, world

from goclaw.client.blocking import SyncClient
from goclaw.core.errors import GoclawError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("A-5", "A-6", "I-7", "G-21")

CONTROL = "control-of-the-search"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def keep(place: World, name: str, value: str, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [*GOCLAW, "secret", "set", name, *words, "--json"], env=place.environ, cwd=place.cwd,
        input=value + "\n", capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def forms(value: str) -> dict[str, bytes]:
    """Every spelling that is looked for."""
    data = value.encode()
    found = {
        "plain": data,
        "json": json.dumps(value)[1:-1].encode(),
        "json twice": json.dumps(json.dumps(value)[1:-1])[1:-1].encode(),
        "percent": urllib.parse.quote(value, safe="").encode(),
        "percent of all": "".join(f"%{byte:02X}" for byte in data).encode(),
    }
    for phase in range(3):
        text = base64.b64encode(b"\0" * phase + data)
        inner = text[-(-8 * phase // 6) : 8 * (phase + len(data)) // 6]
        found[f"base64 {phase}"] = inner
        found[f"base64url {phase}"] = inner.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def left(folder: Path, *more: bytes) -> list[tuple[str, bytes]]:
    """Everything that is kept under a folder, and what was printed."""
    found = [
        (str(file.relative_to(folder)), file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink()
    ]
    return [*found, *((f"output {number}", data) for number, data in enumerate(more))]


def hits(everything: list[tuple[str, bytes]], value: str) -> list[str]:
    return [
        f"{form} in {name}: ...{data[max(0, at - 60) : at + 60]!r}"
        for name, data in everything
        for form, text in forms(value).items()
        if (at := data.find(text)) >= 0
    ]


class Echo(threading.Thread):
    """A server that says in its answer what it was asked, head and body."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.2", 0))
        self.port = self.listener.getsockname()[1]
        self.asked: list[bytes] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    asked = connection.recv(65536)
                    self.asked.append(asked)
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(asked)}\r\n\r\n"
                    connection.sendall(head.encode() + asked)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    server.start()
    yield server
    server.listener.close()


POLICY = """
version = 1
[[rule]]
id = "all"
effect = "allow"
actions = ["protocol.call", "run.submit", "approval.answer", "admin.*", "skill.activate",
  "brain.call", "tool.call", "fs.read", "net.connect", "secret.use", "worker.claim"]
[[rule]]
id = "echo"
effect = "allow"
actions = ["net.connect"]
resources = [{ cidr = "127.0.0.2/32" }]
"""


def script(place: World, value: str, port: int) -> str:
    """A brain that lets nothing out."""
    said = f"{CONTROL} {value} and {base64.b64encode(value.encode()).decode()}"
    ansi = "".join(f"\x1b[3{n % 8}m{char}" for n, char in enumerate(value))
    url = f"http://127.0.0.2:{port}"
    quoted = urllib.parse.quote(value, safe="")
    steps: list[dict[str, Any]] = [
        {"think": said},
        {"say": said, "chunks": len(said)},
        {"say": ansi, "chunks": len(ansi)},
        {"plan": [{"content": said, "priority": "high", "status": "pending"}]},
        {"call": "json-query", "args": {"pointer": "", "json": json.dumps([said, ansi])}},
        {"call": "json-query", "args": {"pointer": "", "json": json.dumps(json.dumps(said))}},
        {"call": "word-count", "args": {"file": "notes.txt"}},
        {"call": "json-query", "args": {"pointer": "", "file": "notes.json"}},
        {"call": f"no-such-{value}", "args": {"x": said}},
        {"call": "word-count", "args": {"file": value}},
        {"call": "word-count", "args": {value: 1}},
        {"call": "http", "args": {"url": f"{url}/?q={quoted}", "headers": {"X-A": "secret:one"}}},
        {"call": "http", "args": {"url": url, "method": "POST", "body": said}},
        {"call": "http", "args": {"url": f"http://{quoted}@127.0.0.2/"}},
        {"call": "http", "args": {"url": "http://127.0.0.2:1/" + quoted}},
        {"ask": f"May I say {said}?"},
        {"fail": f"failed_{CONTROL}_{value}", "retryable": False},
    ]
    (place.cwd / "notes.txt").write_text(said)
    (place.cwd / "notes.json").write_text(json.dumps({"said": said, "ansi": ansi}))
    # its own file is the user's, and no surface
    (place.cwd / "script.json").write_text(json.dumps([{"match": "go", "steps": steps}]))
    return f"script:{place.cwd}/script.json"


def through_the_wire(place: World, client: SyncClient, value: str, brain: str) -> list[str]:
    """Every method that takes a text; what it says is returned."""
    said: list[str] = []

    def call(method: str, params: dict[str, Any]) -> Any:
        try:
            result = client.call(method, params)
        except GoclawError as error:
            said.append(f"{error}")
            return {}
        return result

    text = f"{CONTROL} {value}"
    session = client.new_session(cwd=str(place.cwd), brain=brain).session_id
    other = client.new_session(cwd=str(place.cwd)).session_id
    call("session/new", {"cwd": f"/{value}", "mcpServers": []})
    call("session/prompt", {"sessionId": value, "prompt": [{"type": "text", "text": text}]})
    call("_goclaw/session/events", {"sessionId": value})
    for method in ("_goclaw/run/get", "_goclaw/run/cancel"):
        call(method, {"runId": value})
    for method in ("_goclaw/task/get", "_goclaw/task/why", "_goclaw/task/cancel"):
        call(method, {"taskId": value})
    call("_goclaw/approvals/resolve", {"approvalId": value, "optionId": value})
    call("_goclaw/admin/policy", {
        "verb": "explain", "subject": f"run/{value}", "action": "fs.read", "resource": f"/{value}",
    })  # fmt: skip
    call("_goclaw/admin/policy", {"verb": value})
    call(f"_goclaw/{value}", {value: value})
    call("_goclaw/task/redrive", {"fingerprint": text})
    tool = {
        "sessionId": other,
        "tool": "json-query",
        "arguments": {"pointer": "", "json": f'"{CONTROL}"'},
    }
    call("_goclaw/task/submit", {**tool, "idempotencyKey": value[:40]})
    arguments = {"pointer": "", "json": json.dumps(text)}
    call("_goclaw/task/submit", {**tool, "arguments": arguments, "idempotencyKey": "again"})
    call("_goclaw/task/submit", {**tool, "tool": value, "arguments": {"x": text}})
    pool = {"sessionId": other, "pool": "mine", "payload": {"text": text}, "parallel": True}
    for end in ("complete", "fail", "none"):
        made = call("_goclaw/task/submit", pool)
        if not made:
            continue
        found = call("_goclaw/worker/claim", {"pool": "mine", "max": 1, "workerId": f"w-{value}"})
        for task in found.get("tasks", ()):
            lease = {"taskId": task["taskId"], "leaseToken": task["leaseToken"]}
            message = {"type": "text", "text": text}
            update = {"sessionUpdate": "agent_message_chunk", "content": message}
            call("_goclaw/worker/emit", {**lease, "update": update})
            effect = {**lease, "ordinal": 0, "kind": "tool", "name": f"t-{value}",
                      "requestHash": "0" * 64}  # fmt: skip
            call("_goclaw/worker/effect", {**effect, "phase": "intent", "class": "irreversible"})
            call("_goclaw/worker/effect", {**effect, "phase": "result", "result": {"t": text}})
            if end == "complete":
                call("_goclaw/worker/complete", {**lease, "result": {"t": text}})
            elif end == "fail":
                call("_goclaw/worker/fail", {
                    **lease, "code": f"c_{value}", "message": text, "retryable": False,
                    "error": {"code": f"c_{value}", "message": text},
                })  # fmt: skip
    client.accepted(client.submit(f"go {text}", session=session))
    meta = {"goclaw": {"idempotencyKey": f"k-{value}"[:60]}}
    prompt = [{"type": "text", "text": f"/sha256 {text}"}]
    call("session/prompt", {"sessionId": other, "prompt": prompt, "_meta": meta})
    return said


def random_value(seed: random.Random) -> tuple[str, str]:
    """One for places that take letters only, and one with everything that is escaped."""
    plain = "".join(seed.choices(string.ascii_letters + string.digits, k=28))
    odd = "".join(seed.choices(string.ascii_letters + string.digits + '"\\/+%&<>é€', k=24))
    return plain, f'q"\\{odd}'


def test_nothing_that_is_kept_holds_a_secret(place: World, echo: Echo) -> None:
    """Home, WAL, logs, backups, what commands print and what a killed daemon leaves."""
    values = random_value(random.SystemRandom())
    place.goclaw("status", code=1)
    place.home.root.mkdir(mode=0o700, exist_ok=True)
    place.home.policy.write_text(POLICY)
    place.home.policy.chmod(0o600)
    for name, value in zip(("one", "two"), values, strict=True):
        keep(place, name, value, "--host", "127.0.0.2")
    stderr = place.cwd.parent / "stderr"
    printed: list[bytes] = []
    with stderr.open("wb") as file:
        child = place.popen("serve", stderr=file)
        assert child.stdout is not None
        assert child.stdout.readline().startswith("goclaw ready")
        for value in values:
            brain = script(place, value, echo.port)
            with SyncClient(place.home) as client:
                printed += [line.encode() for line in through_the_wire(place, client, value, brain)]
            for run in (
                ["run", f"go {CONTROL} {value}", "--brain", brain, "--json"],
                ["run", f'/json-query {{"pointer": "", "json": "\\"{CONTROL}\\""}} {value}'],
                ["run", f"/{value}"],
                ["run", f"say {CONTROL} {value}", "--key", f"key-{value}"[:60]],
            ):
                done = place.goclaw(*run, code=None)
                printed += [done.stdout.encode(), done.stderr.encode()]
            done = place.goclaw("run", "/sleep 60", "--detach", "--json")
            place.goclaw("cancel", json.loads(done.stdout.splitlines()[-1])["runId"], code=None)
        printed.append(place.goclaw("task", "list", "--json").stdout.encode())
        sessions = {json.loads(line)["sessionId"] for line in printed[-1].splitlines()}
        for session in sessions:
            printed.append(place.goclaw("events", session, "--json").stdout.encode())
        place.goclaw("backup", "create", code=None)
        place.goclaw("secret", "rotate", "one", code=2)  # no value on stdin
        assert any(values[0].encode() in asked for asked in echo.asked), "it was never put in"
        wal = left(place.home.root)
        place.end(signal.SIGKILL)
    everything = [*wal, *left(place.home.root), *left(stderr.parent / "none")]
    everything += [("stderr", stderr.read_bytes()), *(("printed", one) for one in printed)]
    kept = b"\n".join(data for _name, data in everything)
    assert kept.count(CONTROL.encode()) > 100, "the surfaces were not there"
    assert kept.count(b"secret:one#") > 50
    for value in values:
        found = hits(everything, value)
        assert not found, "\n".join(found)


def test_a_crash_prints_no_secret(place: World) -> None:
    """An error that nobody expected, with the value in it: in a thread, in a task, at the top."""
    value = random_value(random.SystemRandom())[0]
    keep(place, "one", value, "--tool", "exec")
    code = f"""
import asyncio, logging, sys, threading
from goclaw.core import log
from goclaw.core.clock import SystemClock
from goclaw.core.home import Home
from goclaw.policy.redact import Redactor, Registered
from pathlib import Path
log.clean_with(Redactor([Registered("one", "0" * 12, sys.argv[1])]).data)
sys.stderr = log.CleanErrors(sys.stderr)
system = log.SystemLog(Path({str(place.home.logs)!r}) / "system.jsonl", SystemClock())
value = sys.argv[1]
def fails():
    raise RuntimeError("in a thread: " + value)
thread = threading.Thread(target=fails)
thread.start()
thread.join()
try:
    raise ValueError(value)
except ValueError:
    log.logger("x").exception("it was %s", value, extra={{"data": {{"v": value}}}})
print("plain", value, file=sys.stderr)
system.close()
raise SystemExit(f"the end: {{value}}") if len(sys.argv) > 2 else RuntimeError(value)
"""
    for more in ([], ["exit"]):
        done = subprocess.run(
            [sys.executable, "-c", code, value, *more], env=place.environ, cwd=ROOT,
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.count(b"secret:one#") >= 3
        assert hits([("stderr", done.stderr)], value) == []
    logged = (place.home.logs / "system.jsonl").read_bytes()
    assert logged.count(b"secret:one#") >= 3
    assert hits(left(place.home.root), value) == []


def test_without_its_key_a_home_tells_nothing(place: World) -> None:
    """The file of the key is apart, 0600; with another one nothing opens and all else works."""
    value = random_value(random.SystemRandom())[0]
    kept = keep(place, "one", value, "--host", "api.example.org")
    key = place.home.root / "secrets.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert value not in key.read_text()
    assert hits(left(place.home.root), value) == []
    assert kept["reference"].startswith("secret:one#")
    (listed,) = place.lines("secret", "list")
    assert listed == kept
    key.write_bytes(base64.b64encode(os.urandom(32)))
    (listed,) = place.lines("secret", "list")
    assert listed["name"] == "one"
    place.goclaw("secret", "rm", "one")
    assert place.lines("secret", "list") == []


def test_a_value_is_never_an_argument(place: World) -> None:
    done = place.goclaw("secret", "set", "one", "the-value-itself", code=2)
    assert "unrecognized" in done.stderr.lower()
    place.goclaw("secret", "set", "one", "--value", "the-value-itself", code=2)
    done = place.goclaw("secret", "set", "one", "--host", "a.example", code=2)  # empty stdin
    assert "There is no value" in done.stderr
