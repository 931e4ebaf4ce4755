"""bridges/splice.py: what an editor's lines become, and what it is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from goclaw.bridges.splice import Splice
from goclaw.client.link import Link
from goclaw.core import limits
from goclaw.core.errors import DaemonGone


class Editor:
    """A splice whose daemon the test plays."""

    def __init__(self, brain: str | None = None) -> None:
        self.link = Link(lambda: "made-key")
        self.splice = Splice(self.link, "bridge_1", brain)
        self.link.connected()

    def say(self, *lines: bytes | dict[str, Any]) -> list[dict[str, Any]]:
        """The messages that reach the daemon."""
        for line in lines:
            text = (
                line if isinstance(line, bytes) else json.dumps({"jsonrpc": "2.0", **line}).encode()
            )
            self.splice.from_editor(text)
        return [json.loads(line) for line in self.link.take()]

    def hear(self, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages that reach the editor."""
        for message in messages:
            line = json.dumps({"jsonrpc": "2.0", **message}).encode()
            self.splice.from_daemon(self.link.receive(line))
        lines = [json.loads(line) for line in self.splice.to_editor]
        self.splice.to_editor.clear()
        return lines

    def greet(self, **capabilities: Any) -> None:
        params = {"protocolVersion": 1, "clientCapabilities": capabilities}
        (sent,) = self.say({"id": "hello", "method": "initialize", "params": params})
        self.hear({"id": sent["id"], "result": {"protocolVersion": 1}})

    def session(self) -> None:
        (sent,) = self.say({"id": 0, "method": "session/new", "params": {"cwd": "/"}})
        block = {"streamId": "x", "headEventId": 0}
        self.hear({"id": sent["id"], "result": {"sessionId": "s", "_meta": {"goclaw": block}}})


def event(event_id: int, **update: Any) -> dict[str, Any]:
    meta = {"goclaw": {"eventId": event_id, "at": 1000}}
    params = {"sessionId": "s", "update": update, "_meta": meta}
    return {"method": "session/update", "params": params}


def own_event(event_id: int, kind: str) -> dict[str, Any]:
    meta = {"goclaw": {"eventId": event_id, "at": 1000}}
    params = {"sessionId": "s", "event": {"type": kind}, "_meta": meta}
    return {"method": "_goclaw/session/event", "params": params}


OPTED_IN = {"_meta": {"goclaw": {"version": 1, "notifications": True, "clientId": "me"}}}


# -- from the editor ------------------------------------------------------------------------------


@pytest.mark.req("W-13")
def test_the_greeting_opts_in_and_keeps_what_the_editor_can() -> None:
    editor = Editor()
    capabilities = {"fs": {"readTextFile": True}, "_meta": {"other": 1}}
    params = {"protocolVersion": 1, "clientCapabilities": capabilities, "_meta": {"mine": 2}}
    (sent,) = editor.say({"id": 5, "method": "initialize", "params": params})
    assert sent["params"]["_meta"] == {"mine": 2}
    assert sent["params"]["clientCapabilities"] == {
        "fs": {"readTextFile": True},
        "_meta": {
            "other": 1,
            "goclaw": {"version": 1, "notifications": True, "clientId": "bridge_1"},
        },
    }


@pytest.mark.req("W-13")
def test_an_editor_that_has_a_client_id_keeps_it() -> None:
    editor = Editor()
    params = {"clientCapabilities": OPTED_IN}
    (sent,) = editor.say({"id": 5, "method": "initialize", "params": params})
    assert sent["params"]["clientCapabilities"]["_meta"]["goclaw"]["clientId"] == "me"


@pytest.mark.req("W-13", "W-6")
def test_sessions_and_prompts_leave_with_a_key_and_their_own_meta() -> None:
    editor = Editor(brain="direct")
    (new,) = editor.say(
        {"id": 1, "method": "session/new", "params": {"cwd": "/", "_meta": {"x": 1}}}
    )
    assert new["params"]["_meta"] == {
        "x": 1, "goclaw": {"brain": "direct", "idempotencyKey": "made-key"}
    }  # fmt: skip
    params = {"sessionId": "s", "prompt": [], "_meta": {"traceparent": "t"}}
    editor.session()
    (prompt,) = editor.say({"id": 2, "method": "session/prompt", "params": params})
    expected = {"traceparent": "t", "goclaw": {"idempotencyKey": "made-key"}}
    assert prompt["params"]["_meta"] == expected


@pytest.mark.req("W-13")
@pytest.mark.parametrize("editor_id", [0, -3, 2**70, "", "seven", None])
def test_ids_are_translated_both_ways(editor_id: Any) -> None:
    editor = Editor()
    (sent,) = editor.say({"id": editor_id, "method": "session/list"})
    assert type(sent["id"]) is int
    (answer,) = editor.hear({"id": sent["id"], "result": {"sessions": []}})
    assert answer == {"jsonrpc": "2.0", "id": editor_id, "result": {"sessions": []}}
    (cancel, *_) = editor.say(
        {"id": editor_id, "method": "session/list"},
        {"method": "$/cancel_request", "params": {"requestId": editor_id}},
    )
    assert cancel["method"] == "session/list"


def test_a_cancel_request_names_the_daemons_id() -> None:
    editor = Editor()
    listing, cancel = editor.say(
        {"id": "a", "method": "session/list"},
        {"method": "$/cancel_request", "params": {"requestId": "a"}},
    )
    assert cancel["params"] == {"requestId": listing["id"]}
    assert editor.say({"method": "$/cancel_request", "params": {"requestId": "b"}}) == []


@pytest.mark.req("W-1", "A-14")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", -32700),
        (b"\xff", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":"\\ud800"}}', -32700),
        (b"[" * 100_000, -32700),
        (b"\xef\xbb\xbf{}", -32700),
        (b"[]", -32600),
        (b'[{"jsonrpc":"2.0","id":1,"method":"x"}]', -32600),
        (b"7", -32600),
        (b"null", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"x"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":7}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"x"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"x"}', -32600),
    ],
)
def test_what_is_no_message_is_answered_and_goes_no_further(line: bytes, code: int) -> None:
    editor = Editor()
    assert editor.say(line) == []
    (answer,) = editor.hear()
    assert answer["error"]["code"] == code
    assert answer["id"] in (None, 1)


@pytest.mark.req("I-5")
def test_a_line_beyond_the_bound_is_refused() -> None:
    editor = Editor()
    assert editor.say(b'{"x":"' + b"a" * limits.FRAME_BYTES_MAX + b'"}') == []
    assert editor.hear()[0]["error"]["code"] == -31017


def test_an_id_that_is_still_open_is_refused() -> None:
    editor = Editor()
    editor.say({"id": 1, "method": "session/list"})
    assert editor.say({"id": 1, "method": "session/list"}) == []
    (answer,) = editor.hear()
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)


@pytest.mark.req("I-5")
def test_too_many_open_requests_are_refused_one_by_one() -> None:
    editor = Editor()
    for number in range(limits.REQUESTS_MAX):
        editor.say({"id": number, "method": "session/list"})
    assert editor.say({"id": "more", "method": "session/list"}) == []
    (answer,) = editor.hear()
    assert (answer["id"], answer["error"]["code"]) == ("more", -31012)


# -- from the daemon ------------------------------------------------------------------------------


@pytest.mark.req("W-10", "W-13")
def test_a_vanilla_editor_is_shown_the_standard_only() -> None:
    editor = Editor()
    editor.greet()
    editor.session()
    shown = editor.hear(
        own_event(1, "run.accepted"),
        event(2, sessionUpdate="user_message_chunk"),
        event(3, sessionUpdate="agent_message_chunk"),
        {"method": "_goclaw/approval/resolved", "params": {}},
        {"method": "_goclaw/backpressure", "params": {}},
        {"method": "future/thing", "params": {}},
    )
    assert [message["method"] for message in shown] == ["session/update", "future/thing"]
    assert shown[0]["params"]["_meta"]["goclaw"]["eventId"] == 3


@pytest.mark.req("W-13")
def test_an_editor_that_opted_in_is_shown_everything_but_our_own_connection() -> None:
    editor = Editor()
    editor.greet(**OPTED_IN)
    editor.session()
    shown = editor.hear(
        own_event(1, "run.accepted"),
        event(2, sessionUpdate="user_message_chunk"),
        {"method": "_goclaw/approval/resolved", "params": {}},
        {"method": "_goclaw/backpressure", "params": {}},
        {"method": "_goclaw/shutdown", "params": {}},
    )
    assert [message["method"] for message in shown] == [
        "_goclaw/session/event", "session/update", "_goclaw/approval/resolved",
    ]  # fmt: skip


@pytest.mark.req("W-10")
def test_the_end_of_a_turn_that_has_no_request_is_shown() -> None:
    editor = Editor()
    editor.greet()
    editor.session()
    (shown,) = editor.hear(own_event(1, "run.ended"))
    assert shown["params"]["update"] == {
        "sessionUpdate": "session_info_update", "updatedAt": "1970-01-01T00:00:01.000Z",
    }  # fmt: skip
    editor.say({"id": 1, "method": "session/prompt", "params": {"sessionId": "s", "prompt": []}})
    assert editor.hear(own_event(2, "run.ended")) == []


@pytest.mark.req("W-13", "W-10")
def test_a_history_is_held_until_it_is_whole_and_told_once() -> None:
    editor = Editor()
    editor.greet()
    load = {"id": "load", "method": "session/load", "params": {"sessionId": "s", "cwd": "/"}}
    editor.say(load)
    assert editor.hear(event(0, sessionUpdate="user_message_chunk")) == []
    editor.splice.from_daemon(editor.link.lost())
    editor.splice.restart_histories()
    editor.link.connected()
    hello = json.loads(editor.link.take()[0])
    editor.hear({"id": hello["id"], "result": {}})
    (again,) = [json.loads(line) for line in editor.link.take()]
    assert again["method"] == "session/load"
    assert editor.hear(event(0, sessionUpdate="user_message_chunk")) == []
    shown = editor.hear({"id": again["id"], "result": {"_meta": {"goclaw": {"headEventId": 9}}}})
    assert [message.get("method") for message in shown] == ["session/update", None]
    assert shown[1]["id"] == "load"
    assert editor.link.cursor("s") == 9
    assert len(editor.hear(event(10, sessionUpdate="plan"))) == 1


@pytest.mark.req("I-5")
def test_a_huge_history_flows_instead_of_being_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOAD_BYTES_MAX", 1000)
    editor = Editor()
    editor.greet()
    editor.say({"id": 1, "method": "session/load", "params": {"sessionId": "s", "cwd": "/"}})
    text = "x" * 600
    assert editor.hear(event(0, sessionUpdate="plan", text=text)) == []
    assert len(editor.hear(event(0, sessionUpdate="plan", text=text))) == 2


@pytest.mark.req("W-8", "W-13")
def test_a_question_goes_through_with_an_id_of_ours() -> None:
    editor = Editor()
    editor.greet()
    params = {"sessionId": "s", "_meta": {"goclaw": {"approvalId": "a"}}}
    question = {"id": 77, "method": "session/request_permission", "params": params}
    (asked,) = editor.hear(question)
    assert asked["id"] == 1
    (answer,) = editor.say({"id": 1, "result": {"outcome": {"outcome": "cancelled"}}})
    assert answer == {"jsonrpc": "2.0", "id": 77, "result": {"outcome": {"outcome": "cancelled"}}}
    assert editor.hear(question) == []  # asked again: answered from here
    assert json.loads(editor.link.take()[0])["id"] == 77
    assert editor.say({"id": 1, "result": 1}) == []
    assert editor.say({"id": "x", "error": {"code": 1}}) == []


@pytest.mark.req("W-8")
def test_a_question_that_is_settled_elsewhere_is_taken_back() -> None:
    editor = Editor()
    editor.greet()
    params = {"sessionId": "s", "_meta": {"goclaw": {"approvalId": "a"}}}
    editor.hear({"id": 77, "method": "session/request_permission", "params": params})
    (taken,) = editor.hear({"method": "$/cancel_request", "params": {"requestId": 77}})
    assert taken["params"] == {"requestId": 1}


@pytest.mark.req("W-4", "W-13")
def test_lost_events_are_said_in_the_session_and_on_stderr() -> None:
    editor = Editor()
    editor.greet()
    editor.session()
    editor.splice.from_daemon(editor.link.lost())
    editor.link.connected()
    hello = json.loads(editor.link.take()[0])
    editor.hear({"id": hello["id"], "result": {}})
    (subscribe,) = [json.loads(line) for line in editor.link.take()]
    error = {"code": -31001, "message": "They are gone.", "data": {}}
    (thought,) = editor.hear({"id": subscribe["id"], "error": error})
    assert "They are gone." in thought["params"]["update"]["content"]["text"]
    assert len(editor.splice.warnings) == 1


def test_a_daemon_that_refuses_us_ends_the_bridge() -> None:
    editor = Editor()
    editor.greet()
    editor.splice.from_daemon(editor.link.lost())
    editor.link.connected()
    hello = json.loads(editor.link.take()[0])
    with pytest.raises(DaemonGone, match="refused us: no"):
        editor.hear({"id": hello["id"], "error": {"code": -32600, "message": "no"}})
