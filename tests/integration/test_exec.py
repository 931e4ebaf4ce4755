"""Programs: argument vectors, confined, and none of goclaw's own in their reach (K-1, A-9, B-6)."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from egress_support import TASK, Way, canary, lying
from roof_support import world

from goclaw.core.clock import SystemClock
from goclaw.core.decisions import Verdict
from goclaw.core.errors import InvalidParams
from goclaw.core.processes import Children
from goclaw.core.records import Session
from goclaw.core.states import EffectClass
from goclaw.policy import default
from goclaw.tools import confine
from goclaw.tools.exec import ExecTool, find_program
from goclaw.tools.gate import Gate
from goclaw.tools.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.req("K-1", "B-6"),
    pytest.mark.skipif(not confine.able(), reason="the kernel has no Landlock"),
]

POLICY = """
version = 1
[[rule]]
id = "tools"
effect = "allow"
actions = ["tool.call", "exec.run"]
obligations = ["confine"]
"""
PYTHON = "/usr/bin/python3"


class Place:
    def __init__(self, folder: Path, policy: str = POLICY) -> None:
        self.root = folder / "w"
        self.home = folder / "h"
        for made in (self.root, self.home):
            made.mkdir(exist_ok=True)
        (self.home / "auth.token").write_text("the token itself")
        self.children = Children(folder / "children", SystemClock())
        way = Way(lying("127.0.0.2"), policy)
        self.gate = Gate(Registry([ExecTool(self.children, self.home)]), way._decide)
        self.session = Session(
            1, "session_1", "stream_1", str(self.root), (str(self.root),), "direct", True, None, 0,
            1, 0, 0, False, False,
        )  # fmt: skip

    async def call(self, *command: str, **more: str) -> tuple[str, Any]:
        call = await self.gate.call(
            TASK, self.session, "direct", "exec", {"command": list(command), **more}
        )
        assert call.effect_class in (EffectClass.IRREVERSIBLE, EffectClass.PURE)
        decision = call.decision
        if decision is not None and decision.effect is not Verdict.ALLOW:
            return str(decision.effect), decision.reason
        done = await call.dispatch("key_1", asyncio.Event())
        return ("failed" if done.failed else "completed"), orjson.loads(done.output)

    def ran(self, *command: str, **more: str) -> tuple[str, Any]:
        return asyncio.run(self.call(*command, **more))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_program_runs_in_the_sessions_directory_with_an_environment_of_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "seen by nobody")
    monkeypatch.setenv("GOCLAW_HOME", str(place.home))
    status, said = place.ran("env")
    assert (status, said["exit"], said["sandbox"]) == ("completed", 0, "confined")
    names = {line.partition("=")[0] for line in said["stdout"].splitlines()}
    assert {"PATH", "HOME", "TMPDIR", "LANG", "GOCLAW_IDEMPOTENCY_KEY"} <= names
    assert not names & {"MY_SECRET", "GOCLAW_HOME", "USER"}
    assert "GOCLAW_IDEMPOTENCY_KEY=key_1" in said["stdout"]
    assert place.ran("pwd")[1]["stdout"].strip() == os.path.realpath(place.root)
    assert place.ran("cat", stdin="from stdin")[1]["stdout"] == "from stdin"


def test_there_is_no_shell(place: Place) -> None:
    (place.root / "x").write_text("")
    for word in ("$(touch made)", "`touch made`", "; touch made", "*", "| touch made", "> made"):
        assert place.ran("echo", word)[1]["stdout"] == word + "\n"
    assert sorted(os.listdir(place.root)) == ["x"]


def test_an_exit_code_is_a_failure_in_words(place: Place) -> None:
    status, said = place.ran("ls", "/none")
    assert status == "failed"
    assert said["exit"] == 2
    assert "none" in said["stderr"]
    status, said = place.ran("no-such-program")
    assert (status, said["code"]) == ("failed", "invalid_params")


def test_the_real_path_is_decided_about_and_nothing_else_runs(place: Place, tmp_path: Path) -> None:
    (place.root / "innocent").symlink_to("/usr/bin/env")

    async def scenario() -> None:
        arguments = {"command": ["./innocent"]}
        call = await place.gate.call(TASK, place.session, "direct", "exec", arguments)
        asked = [one.resource for one in call.decisions if one.action == "exec.run"]
        assert asked == [os.path.realpath("/usr/bin/env")]
        (place.root / "innocent").unlink()
        (place.root / "innocent").symlink_to("/usr/bin/id")
        done = await call.dispatch("k", asyncio.Event())
        assert done.failed
        assert b"by now" in done.output

    asyncio.run(scenario())
    with pytest.raises(InvalidParams):
        find_program("../w/none", str(place.root))


@pytest.mark.req("A-9")
def test_a_program_reads_and_writes_what_it_was_given_and_nothing_else(
    place: Place, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("private")
    (place.root / "in.txt").write_text("mine")
    (place.root / "link").symlink_to(outside)
    assert place.ran("cat", "in.txt")[1]["stdout"] == "mine"
    assert place.ran("cp", "in.txt", "out.txt")[0] == "completed"
    for path in (str(outside), "link", "../outside.txt", str(place.home / "auth.token"),
                 "/proc/1/environ"):  # fmt: skip
        status, said = place.ran("cat", path)
        assert (status, said["stdout"]) == ("failed", ""), said
    for folder in (str(tmp_path), str(place.home), "/home", "/tmp", "/proc"):
        status, said = place.ran("ls", folder)
        assert (status, said["stdout"]) == ("failed", ""), said
    for path in (str(outside), "/etc/made", "/usr/made", str(place.home / "made"), "/tmp/made"):
        assert place.ran("cp", "in.txt", path)[0] == "failed"
        assert not os.path.exists(path) or outside.read_text() == "private"
    assert place.ran("rm", "-f", str(outside))[0] == "failed"
    assert outside.exists()


@pytest.mark.req("A-4")
@pytest.mark.skipif(not os.path.exists(PYTHON), reason="there is no system Python")
def test_a_program_reaches_no_network(place: Place) -> None:
    code = """
import socket, sys
for family, kind in ((2, 1), (2, 2), (10, 1), (10, 2), (16, 3), (17, 3), (40, 1)):
    try:
        socket.socket(family, kind)
    except OSError as error:
        print(family, error.errno)
    else:
        print(family, "open")
socket.socketpair()
"""

    async def scenario() -> None:
        async with canary() as bird:
            url = f"http://127.0.0.1:{bird.port}/"
            status, said = await place.call(PYTHON, "-c", code)
            assert status == "completed", said
            assert "open" not in said["stdout"]
            assert said["stdout"].count(" 1\n") == 7
            await place.call(PYTHON, "-c", f"import urllib.request as u; u.urlopen({url!r})")
            assert await bird.settled() == 0

    asyncio.run(scenario())


@pytest.mark.skipif(not os.path.exists(PYTHON), reason="there is no system Python")
def test_a_program_has_bounds(place: Place) -> None:
    status, said = place.ran(PYTHON, "-c", "print('a' * 300_000)")
    assert status == "completed"
    assert len(said["stdout"]) == 64 * 1024
    status, said = place.ran(PYTHON, "-c", "x = bytearray(6 << 30)")
    assert status == "failed"
    assert "MemoryError" in said["stderr"]


@pytest.mark.req("Q-4", "Q-11")
def test_whoever_waits_no_more_ends_the_whole_group(place: Place) -> None:
    async def scenario() -> None:
        before = _sleepers()
        running = asyncio.ensure_future(place.call("sh", "-c", "sleep 4321 & sleep 4321"))
        await _until(lambda: len(_sleepers() - before) == 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await _until(lambda: not _sleepers() - before)

    asyncio.run(scenario())


async def _until(holds: Callable[[], bool]) -> None:
    """Other processes tell nobody when they begin and end."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0)


def _sleepers() -> set[str]:
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read() == b"sleep\x004321\x00":
                    found.add(pid)
        except OSError:
            continue
    return found


@pytest.mark.req("A-1")
def test_where_nothing_confines_a_rule_that_wants_it_denies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confine, "able", lambda: False)
    place = Place(tmp_path)
    assert place.ran("env")[0] == "deny"
    assert "confine cannot be fulfilled" in place.ran("env")[1]
    assert 'obligations = ["confine"]' in default.TEXT
    place = Place(tmp_path, POLICY.replace('obligations = ["confine"]', ""))
    status, said = place.ran("env")
    assert (status, said["sandbox"]) == ("completed", "none")


def test_a_confinement_that_fails_runs_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goclaw.core.limits.EXEC_FILES_MAX", 2**70)
    status, said = place.ran("touch", "made")
    assert (status, said["code"]) == ("failed", "not_confined")
    assert os.listdir(place.root) == []


def test_goclaws_own_directory_inside_of_a_root_means_no_program(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.session = Session(
        1, "session_1", "stream_1", str(tmp_path), (str(tmp_path),), "direct", True, None, 0, 1, 0,
        0, False, False,
    )  # fmt: skip
    status, said = place.ran("env")
    assert (status, said["code"]) == ("failed", "policy_denied")


REBEL = """
import json, socket, sys
path, token = sys.argv[1:3]
try:
    print("token", open(token).read())
except OSError as error:
    print("token", error.errno)
link = socket.socket(socket.AF_UNIX)
try:
    link.connect(path)
except OSError as error:
    raise SystemExit(f"connect {error.errno}")
lines = link.makefile("rw")
meta = {"goclaw": {"version": 1}}
calls = [("initialize", {"protocolVersion": 1, "clientCapabilities": {"_meta": meta}})]
calls += [("_goclaw/approvals/resolve", {"approvalId": "approval_1", "optionId": "allow"}),
          ("_goclaw/admin/policy", {"verb": "reload"}), ("_goclaw/admin/secret", {"verb": "list"}),
          ("_goclaw/admin/token", {"verb": "rotate"})]
for number, (method, params) in enumerate(calls):
    lines.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))
    lines.write("\\n")
    lines.flush()
    while True:
        answer = json.loads(lines.readline() or '{"id": %d, "closed": true}' % number)
        if answer.get("id") == number:
            break
    print(method, answer.get("error", {}).get("data", {}).get("name", list(answer)))
"""


@pytest.mark.req("A-9")
@pytest.mark.skipif(not os.path.exists(PYTHON), reason="there is no system Python")
def test_a_program_cannot_approve_administer_or_read_the_token(tmp_path: Path) -> None:
    with world(tmp_path) as roof:
        roof.home.root.mkdir(mode=0o700)
        clients = '\n[[rule]]\nid = "c"\neffect = "allow"\nactions = ["protocol.call",'
        clients += ' "run.submit", "brain.call", "approval.answer", "admin.*"]\n'
        roof.home.policy.write_text(POLICY + clients)
        roof.serve()
        (roof.cwd / "rebel.py").write_text(REBEL)
        record = roof.home.read_daemon_json()
        assert record is not None
        command = [PYTHON, "rebel.py", record.socket, str(roof.home.auth_token)]
        words = orjson.dumps({"command": command}).decode()
        *_events, result = roof.lines("run", f"/exec {words}", code=None)
        (tool,) = result["tools"]
        said = tool["output"]["stdout"] + tool["output"]["stderr"]
        assert "token 13" in said, said
        assert roof.home.auth_token.read_text().strip() not in said
        for method in ("approvals/resolve", "admin/policy", "admin/secret", "admin/token"):
            assert f"_goclaw/{method} ['" not in said, said
        assert "scope_missing" in said or "connect" in said, said
