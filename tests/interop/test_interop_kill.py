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

pytest_plugins = ("interop_fixtures",)

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
    ask = [{"say": "Well."}, {"ask": "May I?"}, {"say": "Thank you."}]
    script = [{"match": "go", "steps": steps}, {"match": "ask", "steps": ask}]
    (folder / "script.json").write_text(json.dumps(script), "utf-8")
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


@pytest.mark.req("W-8", "W-13", "A-7")
@pytest.mark.parametrize("sdk", ["typescript", "python"])
def test_an_open_dialog_stays_open(
    request: pytest.FixtureRequest, sdk: str, daemon: Daemon, tmp_path: Path, judge: Judge
) -> None:
    """The daemon that comes back asks again; the editor's one dialog answers it."""
    connection, session, turn = begin(request.getfixturevalue(sdk), daemon, tmp_path, "ask")
    asked = connection.ask(1)["params"]
    daemon.kill()
    # answered only once a new daemon has taken the session up: what else is asked waits for that
    connection.call("session/list")
    (option,) = [option for option in asked["options"] if option["kind"] == "allow_once"]
    outcome = {"outcome": "selected", "optionId": option["optionId"]}
    connection.answer(1, {"outcome": outcome})
    assert connection.reply(turn)["stopReason"] == "end_turn"
    said = [
        update["content"]["text"]
        for update in updates(connection)
        if update["sessionUpdate"] == "agent_message_chunk"
    ]
    assert said == ["Well.", "Thank you."]
    assert [event["event"] for event in connection.events].count("ask") == 1
    assert "unasked" not in [event["event"] for event in connection.events]
    assert judge.findings(connection.end()) == []
    assert session


@pytest.mark.req("W-13", "R-3")
def test_a_daemon_that_is_stopped_hands_the_turn_over(
    typescript: Partner, daemon: Daemon, tmp_path: Path, judge: Judge
) -> None:
    """SIGTERM more than once, so that it does not wait for the turn: the next daemon goes on."""
    connection, _, turn = begin(typescript, daemon, tmp_path)
    connection.wait(lambda _: finished(connection) >= 2)
    daemon.stop(hurry=True)
    assert not replied(connection, turn)
    assert connection.reply(turn)["stopReason"] == "end_turn"
    assert finished(connection) == STEPS
    assert whole_messages(connection) == [f"Step {n}." for n in range(STEPS)] + ["The end."]
    assert judge.findings(connection.end()) == []


@pytest.mark.req("W-10")
@pytest.mark.parametrize("sdk", ["typescript", "python"])
def test_a_websocket_client_comes_back(
    request: pytest.FixtureRequest, sdk: str, daemon: Daemon, tmp_path: Path, judge: Judge
) -> None:
    """No bridge: the client sees the loss, connects again and loads; the turn goes on meanwhile."""
    partner: Partner = request.getfixturevalue(sdk)
    daemon.start()
    one, session, turn = talk(dial(partner, daemon, tmp_path / "one"), daemon, "go")
    kill_after(one, daemon, 3, turn)
    with pytest.raises(RpcError):  # of the SDK's making: nobody answered
        one.reply(turn)
    daemon.start()
    two = dial(partner, daemon, tmp_path / "two")
    two.call("initialize", protocolVersion=1, clientCapabilities={})
    two.call("session/load", sessionId=session, cwd=str(daemon.home.parent), mcpServers=[])
    two.wait(lambda _: updates(two)[-1]["sessionUpdate"] == "session_info_update")
    assert len(completed(two)) == STEPS
    assert whole_messages(two) == [f"Step {n}." for n in range(STEPS)] + ["The end."]
    assert judge.findings(two.end()) == []
    one.close()


def dial(partner: Partner, daemon: Daemon, tape: Path) -> Connection:
    host, port = daemon.address
    return partner.open_ws(tape, host=host, port=port, path="/ws", token=daemon.token)


def begin(
    partner: Partner, daemon: Daemon, folder: Path, text: str = "go"
) -> tuple[Connection, str, int]:
    """A bridge, a session on it, and the number of the prompt that was sent."""
    connection = partner.open(folder / "tape", command=daemon.bridge, env=daemon.env)
    return talk(connection, daemon, text)


def talk(connection: Connection, daemon: Daemon, text: str) -> tuple[Connection, str, int]:
    connection.call("initialize", protocolVersion=1, clientCapabilities={})
    cwd = str(daemon.home.parent)
    session = str(connection.call("session/new", cwd=cwd, mcpServers=[])["sessionId"])
    turn = connection.send("session/prompt", sessionId=session, prompt=block(text))
    return connection, session, turn


def block(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def kill_after(connection: Connection, daemon: Daemon, tools: int, turn: int) -> str:
    """Kill the daemon once so many tools have finished, in the middle of the turn; its bootId."""
    connection.wait(lambda _: finished(connection) >= tools)
    assert not replied(connection, turn)
    return daemon.kill()


def replied(connection: Connection, turn: int) -> bool:
    return any(e["event"] == "reply" and e["n"] == turn for e in connection.events)


def updates(connection: Connection) -> list[dict[str, Any]]:
    return [params["update"] for params in connection.notes()]


def completed(connection: Connection) -> set[str]:
    """Ids of the tool calls that were seen to complete."""
    done = [update for update in updates(connection) if update.get("status") == "completed"]
    return {update["toolCallId"] for update in done}


def finished(connection: Connection) -> int:
    return len(completed(connection))


def whole_messages(connection: Connection) -> list[str]:
    """What was said, by message; one that a kill cut short gives way to its repetition, which a
    load tells apart."""
    by_id: dict[str, str] = {}
    for update in updates(connection):
        if update["sessionUpdate"] == "agent_message_chunk":
            name = update["messageId"]
            by_id[name] = by_id.get(name, "") + update["content"]["text"]
    said = list(by_id.values())
    return [
        text
        for at, text in enumerate(said)
        if at + 1 == len(said) or not said[at + 1].startswith(text.removesuffix(" (interrupted)"))
    ]
