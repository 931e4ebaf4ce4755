"""The daemon under `goclaw acp` is killed in the middle of a turn; the SDK's client sees one turn.

Owns the kills between clients of the SDKs and the answer. Not in here: kills at random moments and
at every commit boundary, which the fault tests have.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from interop_daemon import Daemon
from interop_partner import RpcError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop_partner import Connection, Partner
    from interop_schema import Judge

STEPS = 20
KILLS = (3, 11)  # after so many finished tools; a third crash would use up the task's budget


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A home where nothing runs, and a script of twenty steps."""
    folder = Path(tempfile.mkdtemp(prefix="gc-"))
    file = folder / "file.txt"
    file.write_text("one two\n", "utf-8")
    steps: list[dict[str, Any]] = []
    for number in range(STEPS):
        steps.append({"say": f"Step {number}.", "chunks": 2, "delayMs": 5})
        steps.append({"call": "word-count", "args": {"file": str(file)}})
    steps.append({"say": "The end."})
    (folder / "script.json").write_text(json.dumps([{"match": "go", "steps": steps}]), "utf-8")
    daemon = Daemon(folder / "home", f"script:{folder / 'script.json'}")
    yield daemon
    daemon.stop()
    shutil.rmtree(folder)


@pytest.mark.req("W-13", "U-3", "I-3", "I-4")
@pytest.mark.parametrize("sdk", ["typescript", "python"])
def test_the_client_notices_nothing(
    request: pytest.FixtureRequest, sdk: str, daemon: Daemon, tmp_path: Path, judge: Judge
) -> None:
    partner: Partner = request.getfixturevalue(sdk)
    complaints = len(partner.complaints())
    connection, session, turn = begin(partner, daemon, tmp_path)
    boots = [kill_after(connection, daemon, tools, turn) for tools in KILLS]
    assert connection.reply(turn)["stopReason"] == "end_turn"
    # the bridge goes on as if nothing had been, also for what is asked next
    listed = connection.call("session/list")["sessions"]
    assert session in [entry["sessionId"] for entry in listed]
    messages = connection.end()
    assert connection.exit_code == 0
    assert len({*boots, daemon.record["bootId"]}) == len(KILLS) + 1
    assert judge.findings(messages) == []
    assert partner.complaints()[complaints:] == []

    ids = [
        params["_meta"]["goclaw"]["eventId"]
        for params in connection.notes(session)
        if params["update"]["sessionUpdate"] != "available_commands_update"  # no event
    ]
    assert ids == sorted(set(ids))
    statuses = Counter(
        (update["toolCallId"], update.get("status"))
        for update in updates(connection)
        if update["sessionUpdate"].startswith("tool_call")
    )
    assert set(statuses.values()) == {1}
    assert sum(status == "completed" for _, status in statuses) == STEPS
    assert len({tool for tool, _ in statuses}) == STEPS
    assert whole_messages(connection) == [f"Step {n}." for n in range(STEPS)] + ["The end."]


@pytest.mark.req("Q-5", "W-13")
def test_a_turn_that_outlives_no_daemon_says_so(
    typescript: Partner, daemon: Daemon, tmp_path: Path, judge: Judge
) -> None:
    """At the crash budget the turn ends with an error; the session and the bridge go on."""
    connection, session, turn = begin(typescript, daemon, tmp_path)
    for tools in (2, 4, 6):
        kill_after(connection, daemon, tools, turn)
    with pytest.raises(RpcError) as failed:
        connection.reply(turn)
    assert failed.value.data["code"] == "crashes_exhausted"
    assert "ended without a word" in failed.value.message
    again = connection.send("session/prompt", sessionId=session, prompt=block("hello"))
    assert connection.reply(again)["stopReason"] == "end_turn"
    assert judge.findings(connection.end()) == []


def begin(partner: Partner, daemon: Daemon, folder: Path) -> tuple[Connection, str, int]:
    """A bridge, a session on it, and the number of the prompt that was sent."""
    connection = partner.open(folder / "tape", command=daemon.bridge, env=daemon.env)
    connection.call("initialize", protocolVersion=1, clientCapabilities={})
    cwd = str(daemon.home.parent)
    session = str(connection.call("session/new", cwd=cwd, mcpServers=[])["sessionId"])
    turn = connection.send("session/prompt", sessionId=session, prompt=block("go"))
    return connection, session, turn


def block(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def kill_after(connection: Connection, daemon: Daemon, tools: int, turn: int) -> str:
    """Kill the daemon once so many tools have finished, in the middle of the turn; its bootId."""
    connection.wait(lambda _: finished(connection) >= tools)
    assert not [e for e in connection.events if e["event"] == "reply" and e["n"] == turn]
    return daemon.kill()


def updates(connection: Connection) -> list[dict[str, Any]]:
    return [params["update"] for params in connection.notes()]


def finished(connection: Connection) -> int:
    return sum(update.get("status") == "completed" for update in updates(connection))


def whole_messages(connection: Connection) -> list[str]:
    """What was said, by message; a message that a kill cut short gives way to its repetition."""
    by_id: dict[str, str] = {}
    for update in updates(connection):
        if update["sessionUpdate"] == "agent_message_chunk":
            name = update["messageId"]
            by_id[name] = by_id.get(name, "") + update["content"]["text"]
    said = list(by_id.values())
    return [
        text
        for at, text in enumerate(said)
        if at + 1 == len(said) or not said[at + 1].startswith(text)
    ]
