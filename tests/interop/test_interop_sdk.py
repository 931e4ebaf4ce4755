"""Both official SDKs work with goclaw, over stdio and WebSocket, and never meet a bad message.

Owns the script that the agent follows. Not in here: kills (``test_interop_kill.py``), the soundness
of the harness (``test_interop_harness.py``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interop_recording as recording
import pytest
from interop_daemon import Daemon
from interop_partner import HERE, Connection, Partner, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interop_schema import Judge

pytest_plugins = ("interop_fixtures",)

TEXT = "Zeile eins\n\u4e2d\u6587 two  words\r\n\n\tlast line without an end \U0001f600"

PLAN = [
    {"content": "look", "priority": "high", "status": "completed"},
    {"content": "count", "priority": "low", "status": "in_progress"},
]

SCRIPT: list[dict[str, Any]] = [
    {
        "match": "^much",
        "steps": [
            {"think": "Let me see."},
            {"plan": PLAN},
            {"say": "abc\u00e9\u4e2d\U0001f600xyz", "chunks": 3, "delayMs": 40},
            {"call": "word-count", "args": {"file": "FILE"}},
            {"say": "Counted."},
        ],
    },
    {"match": "^count", "steps": [{"call": "word-count", "args": {"file": "FILE"}}]},
    {"match": "^missing", "steps": [{"call": "word-count", "args": {"file": "FILE.gone"}}]},
    {"match": "^wait", "steps": [{"say": "waiting"}, {"sleepMs": 60_000}, {"say": "over"}]},
    {"match": "^ask", "steps": [{"ask": "May I count?"}, {"say": "Done."}]},
    {"match": "^fail", "steps": [{"fail": "broken", "retryable": False}]},
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A working directory with a real file; its path is short enough for a socket inside."""
    folder = Path(tempfile.mkdtemp(prefix="gc-"))
    (folder / "file.txt").write_bytes(TEXT.encode())
    text = json.dumps(SCRIPT).replace("FILE", str(folder / "file.txt"))
    (folder / "script.json").write_text(text, "utf-8")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    daemon = Daemon(folder / "home", f"script:{folder / 'script.json'}")
    daemon.start()
    yield daemon
    daemon.stop()


class Editor:
    """A client as an editor would be one, in the words of the tests."""

    def __init__(self, connection: Connection, cwd: Path) -> None:
        self.connection, self.cwd = connection, str(cwd)
        self.greeting: dict[str, Any] = {}

    def initialize(self, goclaw: dict[str, Any] | None = None) -> None:
        capabilities = {} if goclaw is None else {"_meta": {"goclaw": goclaw}}
        self.greeting = self.connection.call(
            "initialize",
            protocolVersion=1,
            clientCapabilities=capabilities,
            clientInfo={"name": "interop", "version": "1"},
        )

    def new(self) -> str:
        result = self.connection.call("session/new", cwd=self.cwd, mcpServers=[])
        return str(result["sessionId"])

    def ask_again(self, how: str, session: str) -> int:
        """session/load or session/resume."""
        return self.connection.send(
            f"session/{how}", sessionId=session, cwd=self.cwd, mcpServers=[]
        )

    def again(self, how: str, session: str) -> None:
        """The same, and wait for the answer."""
        self.connection.reply(self.ask_again(how, session))

    def prompt(self, session: str, text: str, **more: Any) -> int:
        blocks = [{"type": "text", "text": text}]
        return self.connection.send("session/prompt", sessionId=session, prompt=blocks, **more)

    def turn(self, session: str, text: str, **more: Any) -> str:
        """A whole turn; its stop reason."""
        return str(self.connection.reply(self.prompt(session, text, **more))["stopReason"])

    def updates(self, session: str) -> list[dict[str, Any]]:
        return [params["update"] for params in self.connection.notes(session)]

    def ids(self, session: str) -> list[int]:
        """Event ids as they came."""
        metas = [params.get("_meta") or {} for params in self.connection.notes(session)]
        return [meta["goclaw"]["eventId"] for meta in metas if "goclaw" in meta]

    def text(self, session: str) -> str:
        return said(self.updates(session), "agent_message_chunk")

    def until(self, session: str, text: str) -> None:
        """Wait until the agent has said ``text``."""
        self.connection.wait(lambda _: text in self.text(session))


def said(updates: list[dict[str, Any]], kind: str) -> str:
    return "".join(u["content"]["text"] for u in updates if u["sessionUpdate"] == kind)


def kinds(updates: list[dict[str, Any]]) -> list[str]:
    """Kinds of updates, neighbours of one kind as one, without what every session begins with."""
    names = [u["sessionUpdate"] for u in updates]
    names = [name for name in names if name != "available_commands_update"]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


PARTNERS = ("typescript stdio", "typescript ws", "python stdio", "python ws")


@pytest.fixture(params=PARTNERS)
def open_editor(
    request: pytest.FixtureRequest, daemon: Daemon, folder: Path, tmp_path: Path, judge: Judge
) -> Iterator[Callable[..., Editor]]:
    """Opens connections of one partner; at the end each is closed and judged."""
    sdk, transport = request.param.split()
    partner: Partner = request.getfixturevalue(sdk)
    before = len(partner.complaints())
    editors: list[Editor] = []

    def open_one(goclaw: dict[str, Any] | None = None) -> Editor:
        tape = tmp_path / f"tape-{len(editors)}"
        if transport == "ws":
            host, port = daemon.address
            connection = partner.open_ws(tape, host=host, port=port, path="/ws", token=daemon.token)
        else:
            connection = partner.open(tape, command=daemon.bridge, env=daemon.env)
        editor = Editor(connection, folder)
        editors.append(editor)
        editor.initialize(goclaw)
        return editor

    yield open_one
    for editor in editors:
        messages = editor.connection.end()
        assert messages
        assert judge.findings(messages) == []
        if transport == "stdio":
            assert editor.connection.exit_code == 0
    assert [text for text in partner.complaints()[before:] if UNHEARD not in text] == []


# The Python SDK does not know this notification of ACP 1.17 and logs that it dropped it.
UNHEARD = "Unhandled error while handling notification method=$/cancel_request"


@pytest.fixture
def editor(open_editor: Callable[..., Editor]) -> Editor:
    return open_editor()


@pytest.mark.req("W-1", "W-2")
def test_greeting(editor: Editor) -> None:
    greeting = editor.greeting
    assert greeting["protocolVersion"] == 1
    assert greeting["agentInfo"]["name"] == "goclaw"
    capabilities = greeting["agentCapabilities"]
    assert capabilities["loadSession"] is True
    assert capabilities["sessionCapabilities"].keys() >= {"list", "resume", "close", "delete"}
    ours = capabilities["_meta"]["goclaw"]
    assert ours["version"] == 1
    assert ours["replay"] is True


@pytest.mark.req("W-1", "K-2")
def test_a_real_file_is_counted(editor: Editor, folder: Path) -> None:
    session = editor.new()
    assert editor.turn(session, "count it") == "end_turn"
    calls = [u for u in editor.updates(session) if u["sessionUpdate"].startswith("tool_call")]
    assert calls[0]["sessionUpdate"] == "tool_call"
    assert {call["toolCallId"] for call in calls} == {calls[0]["toolCallId"]}
    assert calls[-1]["status"] == "completed"
    wc = subprocess.run(
        ["wc", "-lc", folder / "file.txt"], capture_output=True, text=True, check=True
    )
    lines, size = (int(word) for word in wc.stdout.split()[:2])
    output = calls[-1]["rawOutput"]
    assert (output["lines"], output["bytes"]) == (lines, size)


@pytest.mark.req("W-1", "B-3")
def test_updates_come_in_order_before_the_answer(editor: Editor) -> None:
    session = editor.new()
    n = editor.prompt(session, "much")
    assert editor.connection.reply(n)["stopReason"] == "end_turn"
    events = editor.connection.events
    end = next(at for at, e in enumerate(events) if e["event"] == "reply" and e["n"] == n)
    before = [e["params"]["update"] for e in events[:end] if e["event"] == "note"]
    assert before == editor.updates(session)
    assert kinds(before) == [
        "agent_thought_chunk",
        "plan",
        "agent_message_chunk",
        "tool_call",
        "tool_call_update",
        "agent_message_chunk",
    ]
    assert said(before, "agent_thought_chunk") == "Let me see."
    assert [u["entries"] for u in before if u["sessionUpdate"] == "plan"] == [PLAN]
    assert editor.text(session) == "abc\u00e9\u4e2d\U0001f600xyzCounted."
    ids = editor.ids(session)
    assert ids == sorted(set(ids))


def test_a_tool_that_fails_is_a_failed_tool(editor: Editor) -> None:
    session = editor.new()
    assert editor.turn(session, "missing") == "end_turn"
    statuses = [u.get("status") for u in editor.updates(session)]
    assert statuses[-1] == "failed"


@pytest.mark.req("W-8", "A-7")
@pytest.mark.parametrize(("kind", "text"), [("allow_once", "Done."), ("reject_once", "")])
def test_a_permission_is_asked_and_answered(editor: Editor, kind: str, text: str) -> None:
    session = editor.new()
    n = editor.prompt(session, "ask me")
    asked = editor.connection.ask(1)["params"]
    assert asked["sessionId"] == session
    assert asked["toolCall"]["title"] == "May I count?"
    (option,) = [option for option in asked["options"] if option["kind"] == kind]
    outcome = {"outcome": "selected", "optionId": option["optionId"]}
    editor.connection.answer(1, {"outcome": outcome})
    editor.connection.reply(n)
    assert editor.text(session) == text
    assert editor.turn(session, "count") == "end_turn"


@pytest.mark.req("W-7", "Q-11")
def test_cancel_in_the_middle_of_a_turn(editor: Editor) -> None:
    session = editor.new()
    n = editor.prompt(session, "wait")
    editor.until(session, "waiting")
    editor.connection.notify("session/cancel", sessionId=session)
    assert editor.connection.reply(n)["stopReason"] == "cancelled"
    assert editor.turn(session, "count") == "end_turn"
    assert "over" not in editor.text(session)


@pytest.mark.req("W-7", "W-8")
def test_cancel_while_a_permission_is_open(editor: Editor) -> None:
    session = editor.new()
    n = editor.prompt(session, "ask me")
    editor.connection.ask(1)
    editor.connection.notify("session/cancel", sessionId=session)
    assert editor.connection.reply(n)["stopReason"] == "cancelled"
    # an editor answers all it was asked, perhaps after our answer
    if not any(e["event"] == "unasked" for e in editor.connection.events):
        editor.connection.answer(1, {"outcome": {"outcome": "cancelled"}})
    assert editor.turn(session, "count") == "end_turn"


@pytest.mark.req("W-7")
def test_prompts_queue(editor: Editor) -> None:
    session = editor.new()
    first, second = editor.prompt(session, "much"), editor.prompt(session, "echo this")
    assert editor.connection.reply(second)["stopReason"] == "end_turn"
    replies = [e["n"] for e in editor.connection.events if e["event"] == "reply"]
    assert replies[-2:] == [first, second]
    assert editor.text(session).endswith("Counted.echo this")


@pytest.mark.req("W-10")
def test_load_tells_the_whole_conversation_first(
    open_editor: Callable[..., Editor], folder: Path
) -> None:
    one = open_editor()
    session = one.new()
    assert one.turn(session, "much of it") == "end_turn"
    two = open_editor()
    two.again("load", session)
    told = two.updates(session)
    assert said(told, "user_message_chunk") == "much of it"
    assert said(told, "agent_message_chunk") == one.text(session)
    assert [u["status"] for u in told if u["sessionUpdate"].startswith("tool_call")] == [
        "completed"
    ]
    events = two.connection.events
    assert events[-1]["event"] == "reply", "something was told after the answer"
    assert two.turn(session, "echo again") == "end_turn"
    assert two.text(session).endswith("echo again")
    # the first editor is still there, and hears of it
    one.until(session, "echo again")


@pytest.mark.req("W-10")
def test_load_in_the_middle_of_a_turn(open_editor: Callable[..., Editor]) -> None:
    one = open_editor()
    session = one.new()
    n = one.prompt(session, "ask me")
    one.connection.ask(1)
    two = open_editor()
    two.again("load", session)
    asked = two.connection.ask(1)["params"]
    first = one.connection.ask(1)["params"]
    assert asked["toolCall"]["toolCallId"] == first["toolCall"]["toolCallId"]
    (option,) = [option for option in asked["options"] if option["kind"] == "allow_once"]
    outcome = {"outcome": "selected", "optionId": option["optionId"]}
    two.connection.answer(1, {"outcome": outcome})
    assert one.connection.reply(n)["stopReason"] == "end_turn"
    two.until(session, "Done.")
    if one.connection.partner.sdk == "typescript":  # the other SDK does not know $/cancel_request
        one.connection.wait(lambda events: any(e["event"] == "unasked" for e in events))


@pytest.mark.req("W-10")
def test_resume_tells_nothing_old(open_editor: Callable[..., Editor]) -> None:
    one = open_editor()
    session = one.new()
    assert one.turn(session, "echo old") == "end_turn"
    two = open_editor()
    two.again("resume", session)
    assert kinds(two.updates(session)) == []
    assert two.turn(session, "echo new") == "end_turn"
    assert two.text(session) == "echo new"


@pytest.mark.req("W-10")
def test_a_prompt_needs_no_load(open_editor: Callable[..., Editor]) -> None:
    session = open_editor().new()
    two = open_editor()
    assert two.turn(session, "much") == "end_turn"
    assert two.text(session).endswith("Counted.")


def test_list_and_close(open_editor: Callable[..., Editor], folder: Path) -> None:
    one = open_editor()
    session, other = one.new(), one.new()
    listed = listing(one, cwd=str(folder))
    assert listed[session]["cwd"] == str(folder)
    assert other in listed
    assert session not in listing(one, cwd="/nowhere")
    n = one.prompt(session, "wait")
    one.until(session, "waiting")
    one.connection.call("session/close", sessionId=session)
    assert one.connection.reply(n)["stopReason"] == "cancelled"
    assert one.turn(other, "count") == "end_turn"


def test_delete(typescript: Partner, daemon: Daemon, folder: Path, tmp_path: Path) -> None:
    """The Python SDK has no session/delete."""
    connection = typescript.open(tmp_path / "tape", command=daemon.bridge, env=daemon.env)
    editor = Editor(connection, folder)
    editor.initialize()
    session = editor.new()
    assert session in listing(editor)
    for _ in range(2):
        assert connection.call("session/delete", sessionId=session) == {}
    assert session not in listing(editor)
    with pytest.raises(RpcError) as refused:
        editor.turn(session, "count")
    assert refused.value.code == -32002
    connection.end()


def listing(editor: Editor, **query: Any) -> dict[str, dict[str, Any]]:
    """All pages of session/list."""
    found: dict[str, dict[str, Any]] = {}
    while True:
        page = editor.connection.call("session/list", **query)
        found |= {entry["sessionId"]: entry for entry in page["sessions"]}
        if not page.get("nextCursor"):
            return found
        query["cursor"] = page["nextCursor"]


@pytest.mark.req("W-5")
@pytest.mark.parametrize("how", ["prompt", "load", "resume"])
def test_an_unknown_session_is_said_to_be_one(editor: Editor, how: str) -> None:
    ask = editor.prompt("nobody", "hello") if how == "prompt" else editor.ask_again(how, "nobody")
    with pytest.raises(RpcError) as refused:
        editor.connection.reply(ask)
    assert refused.value.code == -32002
    assert refused.value.data["sessionId"] == "nobody"
    assert editor.turn(editor.new(), "count") == "end_turn"


def test_a_failed_turn_is_an_answer(editor: Editor) -> None:
    session = editor.new()
    with pytest.raises(RpcError) as failed:
        editor.turn(session, "fail")
    assert failed.value.code != -32002
    assert "not found" not in failed.value.message
    assert editor.turn(session, "count") == "end_turn"


def test_a_relative_directory_is_refused(editor: Editor) -> None:
    with pytest.raises(RpcError) as refused:
        editor.connection.call("session/new", cwd="here", mcpServers=[])
    assert refused.value.code == -32602


def test_a_prompt_of_megabytes(editor: Editor) -> None:
    session = editor.new()
    long = '\u00e9\u4e2d\U0001f600\\"\n' * 200_000
    assert editor.turn(session, "echo" + long) == "end_turn"
    assert editor.text(session) == "echo" + long


@pytest.mark.req("W-1")
def test_blocks_other_than_text(editor: Editor, folder: Path) -> None:
    """A link, which every agent must take, and an embedded resource, which goclaw advertises."""
    session = editor.new()
    uri = (folder / "file.txt").as_uri()
    blocks = [
        {"type": "text", "text": "echo "},
        {"type": "resource_link", "name": "file.txt", "uri": uri},
        {"type": "resource", "resource": {"uri": uri, "text": " inside"}},
    ]
    n = editor.connection.send("session/prompt", sessionId=session, prompt=blocks)
    assert editor.connection.reply(n)["stopReason"] == "end_turn"
    assert editor.text(session) == f"echo {uri} inside"


def test_a_server_that_cannot_start_is_no_obstacle(editor: Editor, folder: Path) -> None:
    server = {"name": "none", "command": "/nowhere/server", "args": [], "env": []}
    result = editor.connection.call("session/new", cwd=str(folder), mcpServers=[server])
    (skipped,) = result["_meta"]["goclaw"]["mcpSkipped"]
    assert skipped["name"] == "none"
    assert editor.turn(result["sessionId"], "count") == "end_turn"


@pytest.mark.req("W-6", "E-6")
def test_a_prompt_sent_again_runs_once(editor: Editor) -> None:
    session = editor.new()
    meta = {"goclaw": {"idempotencyKey": "k-1"}}
    assert editor.turn(session, "echo once", _meta=meta) == "end_turn"
    again = editor.connection.reply(editor.prompt(session, "echo once", _meta=meta))
    assert again["stopReason"] == "end_turn"
    assert again["_meta"]["goclaw"]["duplicate"] is True
    assert editor.text(session) == "echo once"
    with pytest.raises(RpcError) as conflict:
        editor.turn(session, "echo other", _meta=meta)
    assert conflict.value.code == -31003


@pytest.mark.req("W-2", "W-3", "W-4")
def test_a_client_that_knows_goclaw_sees_every_id(open_editor: Callable[..., Editor]) -> None:
    editor = open_editor({"version": 1, "notifications": True})
    session = editor.new()
    barrier = event_id(editor.connection.reply(editor.prompt(session, "much")))
    seen = editor.connection.wait(lambda _: events_up_to(editor.connection, session, barrier))
    first = event_id(seen[0])
    assert [event_id(params) for params in seen] == list(range(first, barrier + 1))
    page = editor.connection.call(
        "_goclaw/session/events", sessionId=session, fromEventId=first - 1, limit=len(seen)
    )
    assert [event_id(params) for params in page["events"]] == [event_id(p) for p in seen]
    if editor.connection.partner.sdk == "typescript":  # the other SDK re-writes what it read
        assert page["events"] == seen


def events_up_to(connection: Connection, session: str, barrier: int) -> list[dict[str, Any]]:
    """All events by id; none before the last is there, for an SDK may hand an answer out first."""
    ours = connection.notes(session, "_goclaw/session/event")
    standard = [p for p in connection.notes(session) if "goclaw" in (p.get("_meta") or {})]
    seen = sorted([*ours, *standard], key=event_id)
    return [params for params in seen if seen and event_id(seen[-1]) >= barrier]


def event_id(params: dict[str, Any]) -> int:
    return int(params["_meta"]["goclaw"]["eventId"])


@pytest.mark.req("W-7")
@pytest.mark.parametrize("transport", ["stdio", "ws"])
def test_the_typescript_sdk_cancels_a_request(
    typescript: Partner,
    daemon: Daemon,
    folder: Path,
    tmp_path: Path,
    judge: Judge,
    transport: str,
) -> None:
    """``$/cancel_request``, which the Python SDK does not have."""
    tape = tmp_path / "tape"
    if transport == "ws":
        host, port = daemon.address
        # the same handler answers at both paths
        connection = typescript.open_ws(tape, host=host, port=port, path="/acp", token=daemon.token)
    else:
        connection = typescript.open(tape, command=daemon.bridge, env=daemon.env)
    editor = Editor(connection, folder)
    editor.initialize()
    session = editor.new()
    running, queued = editor.prompt(session, "wait"), editor.prompt(session, "echo queued")
    editor.until(session, "waiting")
    connection.cancel_request(queued)
    assert connection.reply(queued)["stopReason"] == "cancelled"
    connection.cancel_request(running)
    assert connection.reply(running)["stopReason"] == "cancelled"
    assert editor.turn(session, "count") == "end_turn"
    assert "queued" not in editor.text(session)
    assert judge.findings(connection.end()) == []


@pytest.mark.req("A-9")
@pytest.mark.parametrize("sdk", ["typescript", "python"])
def test_a_wrong_token_gets_nowhere(
    request: pytest.FixtureRequest, sdk: str, daemon: Daemon, tmp_path: Path
) -> None:
    partner: Partner = request.getfixturevalue(sdk)
    before = len(partner.complaints())
    host, port = daemon.address
    connection = partner.open_ws(tmp_path / "tape", host=host, port=port, path="/ws", token="wrong")
    n = connection.send("initialize", protocolVersion=1, clientCapabilities={})
    with pytest.raises(RpcError):
        connection.reply(n)
    assert b"HTTP/1.1 401" in agent_bytes(connection)
    partner.forgive(before)


def agent_bytes(connection: Connection) -> bytes:
    return b"".join(
        chunk for side, chunk in recording.read_tape(connection.tape) if side == "agent"
    )


def test_the_sdks_own_session_helper(
    node_modules: Path, folder: Path, tmp_path: Path, judge: Judge
) -> None:
    """A program as its README would have it, against a home where nothing runs yet."""
    home = Daemon(folder / "new")
    try:
        done = subprocess.run(
            ["node", str(HERE / "count_words.mjs"), str(folder / "file.txt"), *home.bridge],
            env={**os.environ, **home.env, "GOCLAW_NODE_MODULES": str(node_modules)},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["stopReason"] == "end_turn"
        assert told["output"]["bytes"] == len(TEXT.encode())
        assert str(len(TEXT.encode())) in told["text"]
    finally:
        home.stop()
