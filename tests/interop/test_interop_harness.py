"""Proves the harness itself: that a sound agent passes, and each planted fault is found.

Owns the planted faults. Not in here: goclaw, which is not even started.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import interop_recording as recording
import pytest
from interop_partner import HERE, RpcError
from interop_recording import FramingError, Sent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from interop_partner import Connection, Partner
    from interop_schema import Judge


pytest_plugins = ("interop_fixtures",)


@pytest.fixture(params=["typescript", "python"])
def example(
    request: pytest.FixtureRequest, node_modules: Path, tmp_path: Path
) -> tuple[Partner, Connection]:
    """A connection of each SDK to the example agent, with a session."""
    partner: Partner = request.getfixturevalue(request.param)
    connection = partner.open(
        tmp_path / "tape",
        command=["node", str(HERE / "example_agent.mjs")],
        env={"GOCLAW_NODE_MODULES": str(node_modules)},
    )
    connection.call("initialize", protocolVersion=1, clientCapabilities={})
    assert connection.call("session/new", cwd="/", mcpServers=[])["sessionId"] == "s1"
    return partner, connection


def prompt(connection: Connection, text: str) -> int:
    return connection.send(
        "session/prompt", sessionId="s1", prompt=[{"type": "text", "text": text}]
    )


def update(**fields: Any) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "method": "session/update",
        "params": {"sessionId": "s1", "update": fields},
    }


SOUND = update(
    sessionUpdate="agent_message_chunk", content={"type": "text", "text": "h\u00e9"}, messageId="m"
)


def test_a_sound_agent_passes(example: tuple[Partner, Connection], judge: Judge) -> None:
    _, connection = example
    asked = prompt(connection, "ask")
    assert connection.ask(1)["params"]["toolCall"]["title"] == "May I?"
    connection.answer(1, {"outcome": {"outcome": "selected", "optionId": "yes"}})
    assert connection.reply(asked)["stopReason"] == "end_turn"
    assert connection.reply(prompt(connection, json.dumps([SOUND, SOUND])))
    assert [note["update"]["content"]["text"] for note in connection.notes("s1")] == ["h\u00e9"] * 2
    with pytest.raises(RpcError) as refused:
        connection.call("_no/such")
    assert refused.value.code == -32601
    messages = connection.end()
    assert connection.exit_code == 0
    assert judge.findings(messages) == []
    assert sum(sent.side == "client" for sent in messages) >= 6


FAULTS: dict[str, tuple[Any, str]] = {
    "unknown kind of update": (update(sessionUpdate="news"), "no SessionNotification"),
    "a chunk without content": (
        update(sessionUpdate="agent_message_chunk"),
        "no SessionNotification",
    ),
    "a wrong enum value": (
        update(sessionUpdate="tool_call", toolCallId="t", title="t", status="cancelled"),
        "no SessionNotification",
    ),
    "a field outside _meta": (
        update(sessionUpdate="plan", entries=[], eventId=7),
        "'eventId' was unexpected",
    ),
    "a field beside the update": (
        {**SOUND, "params": {**SOUND["params"], "eventId": 7}},
        "'eventId' was unexpected",
    ),
    "a field beside params": ({**SOUND, "eventId": 7}, "unknown members ['eventId']"),
    "a session nobody named": (
        {**SOUND, "params": {**SOUND["params"], "sessionId": "s2"}},
        "does not know yet",
    ),
    "an update with an id": ({**SOUND, "id": 1}, "session/update is no request"),
    "our notification, not asked for": (
        {"jsonrpc": "2.0", "method": "_goclaw/session/event", "params": {}},
        "did not opt in",
    ),
    "a permission without options": (
        {
            "jsonrpc": "2.0",
            "id": "p",
            "method": "session/request_permission",
            "params": {"sessionId": "s1", "toolCall": {"toolCallId": "t"}},
        },
        "'options' is a required property",
    ),
    "a file read that is no method of the client": (
        {"jsonrpc": "2.0", "id": "p", "method": "fs/delete", "params": {}},
        "fs/delete is no request",
    ),
    "an answer twice": ({"jsonrpc": "2.0", "id": 1, "result": {}}, "no open request"),
    "an answer to nobody": (
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "x"}},
        "an answer to nobody",
    ),
    "both result and error": (
        {"jsonrpc": "2.0", "id": 9, "result": {}, "error": {"code": 1, "message": "x"}},
        "neither a result nor an error alone",
    ),
    "another version": ({**SOUND, "jsonrpc": "1.0"}, "no JSON-RPC 2.0 object"),
    "a batch": ([SOUND], "no JSON-RPC 2.0 object"),
    "a log line": ("starting up ...", "not JSON in UTF-8"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, judge: Judge) -> None:
    fault, words = FAULTS[name]
    raw = fault if isinstance(fault, str) else json.dumps(fault)
    (finding,) = judge.findings([*greeting(), *sent("agent", raw)])
    assert words in finding
    assert raw[:20] in finding


def test_an_answer_is_held_to_its_method(judge: Judge) -> None:
    answer = {"jsonrpc": "2.0", "id": 2, "result": {"stopReason": "done"}}
    asked = {"jsonrpc": "2.0", "id": 2, "method": "session/prompt", "params": {"sessionId": "s1"}}
    (finding,) = judge.findings(
        [*greeting(), *sent("client", json.dumps(asked)), *sent("agent", json.dumps(answer))]
    )
    assert "session/prompt: no PromptResponse" in finding
    assert "'done'" in finding


def event(number: int, method: str = "session/update") -> str:
    meta = {"goclaw": {"eventId": number}}
    return json.dumps({**SOUND, "method": method, "params": {**SOUND["params"], "_meta": meta}})


TURN_ASKED = '{"jsonrpc":"2.0","id":2,"method":"session/prompt","params":{"sessionId":"s1"}}'
TURN_ENDED = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 2,
        "result": {"stopReason": "end_turn", "_meta": {"goclaw": {"eventId": 5}}},
    }
)


@pytest.mark.parametrize(
    ("opted_in", "agent", "words"),
    [
        (False, [event(3), event(4), TURN_ENDED, event(6)], ""),
        (False, [event(3), event(4), event(4)], "event 4 after event or barrier 4"),
        (False, [event(4), event(3)], "event 3 after event or barrier 4"),
        (False, [event(4), TURN_ENDED, event(5)], "event 5 after event or barrier 5"),
        (False, [event(1), event(3)], ""),
        (True, [event(4), event(5), TURN_ENDED, event(6)], ""),
        (True, [event(1), event(3)], "event 3 right after event 1"),
        (True, [event(4), TURN_ENDED], "an answer of barrier 5 after event 4"),
    ],
)
def test_events_out_of_place_are_found(
    judge: Judge, opted_in: bool, agent: list[str], words: str
) -> None:
    hello = greeting()
    if opted_in:
        capabilities = b'{"clientCapabilities":{"_meta":{"goclaw":{"notifications":true}}}}'
        hello[0] = Sent(0, "client", hello[0].raw.replace(b"{}", capabilities))
    messages = [*hello, *sent("client", TURN_ASKED)]
    findings = judge.findings([*messages, *(one for raw in agent for one in sent("agent", raw))])
    assert len(findings) == bool(words)
    assert all(words in finding for finding in findings)


def test_a_fault_is_found_on_the_tape(example: tuple[Partner, Connection], judge: Judge) -> None:
    partner, connection = example
    before = len(partner.complaints())
    bad = update(sessionUpdate="agent_message_chunk", content={"type": "text"})
    assert connection.reply(prompt(connection, json.dumps([bad])))
    (finding,) = judge.findings(connection.end())
    assert "no SessionNotification" in finding
    # ... and by the SDK itself, whose word the tests of goclaw watch as well
    assert len(partner.complaints()) == before + 1
    partner.forgive(before)


def sent(side: recording.Side, raw: str) -> Iterator[Sent]:
    yield Sent(99, side, raw.encode())


def greeting() -> list[Sent]:
    return [
        Sent(0, "client", b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}'),
        Sent(1, "agent", b'{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":1}}'),
        Sent(2, "client", b'{"jsonrpc":"2.0","id":1,"method":"session/new","params":{}}'),
        Sent(3, "agent", b'{"jsonrpc":"2.0","id":1,"result":{"sessionId":"s1"}}'),
    ]


UPGRADE = b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def test_frames_are_cut_wherever_chunks_end() -> None:
    long = b"x" * 300
    agent = SWITCHED + b"\x81\x02{}" + b"\x89\x01p" + b"\x81\x7e\x01\x2c" + long
    masked = b"\x81\x85\x01\x02\x03\x04" + bytes(
        byte ^ key for byte, key in zip(b"hello", b"\x01\x02\x03\x04\x01", strict=True)
    )
    client = UPGRADE + masked + b"\x88\x80\x00\x00\x00\x00"
    for step in (1, 2, 7, 1000):
        chunks = [
            (side, text[at : at + step])
            for side, text in (("client", client), ("agent", agent))
            for at in range(0, len(text), step)
        ]
        cut = [(one.side, one.raw) for one in recording.frames(iter(chunks))]  # type: ignore[arg-type]
        assert cut == [("client", b"hello"), ("agent", b"{}"), ("agent", long)]


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (SWITCHED + b"\x01\x01{", "fragmented"),
        (SWITCHED + b"\x82\x01{", "opcode 2"),
        (SWITCHED + b"\xc1\x01{", "reserved bits"),
        (SWITCHED + b"\x81\x05{", "inside a message"),
        (SWITCHED[:-2] + b"Sec-WebSocket-Extensions: x\r\n\r\n", "extension"),
    ],
)
def test_a_frame_that_may_not_be_is_found(agent: bytes, words: str) -> None:
    with pytest.raises(FramingError, match=words):
        recording.frames(iter([("client", UPGRADE), ("agent", agent)]))


def test_a_line_without_an_end_is_found() -> None:
    with pytest.raises(FramingError, match="inside a message"):
        recording.lines(iter([("agent", b"{}\n{")]))


def test_the_schema_is_of_the_pinned_version(node_modules: Path) -> None:
    package = node_modules / "@agentclientprotocol" / "sdk" / "package.json"
    wanted = json.loads((HERE / "package.json").read_text("utf-8"))["dependencies"]
    assert json.loads(package.read_text("utf-8"))["version"] == "2.4.0"
    assert wanted["@agentclientprotocol/sdk"] == "2.4.0"


def test_the_lock_names_no_address() -> None:
    lock = json.loads((HERE / "package-lock.json").read_text("utf-8"))
    assert lock["packages"]
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
