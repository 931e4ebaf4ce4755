"""client/link.py: against a daemon that forgets everything but its disk, at any moment."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goclaw.client.link import Answered, Asked, Happened, Link, Missed, Refused, Told, Withdrawn
from goclaw.core import limits
from goclaw.core.errors import RateLimited, ShuttingDown

HELLO = {"clientCapabilities": {"_meta": {"goclaw": {"version": 1, "notifications": True}}}}


def goclaw(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = value.get("_meta", {}).get("goclaw", {})
    return found


class Disk:
    """What survives: sessions with their events, runs by their key, open questions."""

    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.session_keys: dict[str, str] = {}
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.questions: dict[str, str | None] = {}
        self.oldest: dict[str, int] = {}

    def append(self, session: str, kind: str, run: str = "", **fields: Any) -> int:
        events = self.events[session]
        event_id = len(events) + 1
        meta = {"goclaw": {"eventId": event_id, "runId": run}}
        if kind == "update":
            params = {"sessionId": session, "update": fields, "_meta": meta}
            method = "session/update"
        else:
            event = {"type": kind, "runId": run, **fields}
            params = {"sessionId": session, "event": event, "_meta": meta}
            method = "_goclaw/session/event"
        events.append({"method": method, "params": params})
        return event_id

    def end(self, run: dict[str, Any], reason: str) -> None:
        if run["end"] is None:
            run["reason"] = reason
            run["end"] = self.append(run["session"], "run.ended", run["id"])

    def work(self) -> None:
        """One step of the first run that has not ended; questions hold it up."""
        for run in self.runs.values():
            if run["end"] is not None or self.questions.get(run["id"], "") is None:
                continue
            run["steps"] -= 1
            if run["asks"] and run["steps"] == 1 and run["id"] not in self.questions:
                self.questions[run["id"]] = None
                self.append(run["session"], "approval.opened", run["id"], approvalId=run["id"])
            elif run["steps"] <= 0:
                self.end(run, "end_turn")
            else:
                self.append(run["session"], "update", run["id"], sessionUpdate="tool_call")
            return

    def resolve(self, approval: str) -> None:
        if self.questions[approval] is None:
            self.questions[approval] = "allow"
            session = next(r["session"] for r in self.runs.values() if r["id"] == approval)
            self.append(session, "approval.resolved", approval, approvalId=approval)


class Daemon:
    """One life: a connection's books, gone with it."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.out: deque[bytes] = deque()
        self.greeted = False
        self.cursors: dict[str, int] = {}
        self.waiting: list[tuple[int, dict[str, Any]]] = []
        self.asked: dict[int, str] = {}
        self.stopping = False
        self.saw: list[tuple[str, dict[str, Any]]] = []

    def send(self, **message: Any) -> None:
        self.out.append(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def receive(self, line: bytes) -> None:
        message = json.loads(line)
        method, params = message.get("method"), message.get("params", {})
        if method is None:
            approval = self.asked.pop(message["id"], None)
            if approval is not None and "result" in message:
                self.disk.resolve(approval)
            self.pump()
            return
        self.saw.append((method, params))
        if "id" not in message:
            self.notified(method, params)
        elif self.stopping:
            self.send(id=message["id"], error={"code": ShuttingDown.rpc, "message": "stopping"})
        else:
            self.requested(message["id"], method, params)
        self.pump()

    def requested(self, request_id: int, method: str, params: dict[str, Any]) -> None:
        disk = self.disk
        if method == "initialize":
            assert not self.greeted
            self.greeted = True
            self.send(id=request_id, result={"protocolVersion": 1})
            return
        assert self.greeted, method
        if method == "session/new":
            key = goclaw(params)["idempotencyKey"]
            session = disk.session_keys.setdefault(key, f"s{len(disk.session_keys)}")
            disk.events.setdefault(session, [])
            self.cursors[session] = len(disk.events[session])
            self.send(id=request_id, result={"sessionId": session, **self.block(session)})
        elif method == "_goclaw/session/subscribe":
            self.subscribed(request_id, params)
        elif method == "session/prompt":
            self.prompted(request_id, params)
        elif method == "_goclaw/run/cancel":
            run = next(run for run in disk.runs.values() if run["id"] == params["runId"])
            disk.end(run, "cancelled")
            self.send(id=request_id, result={"outcome": "stopped"})
        else:
            self.send(id=request_id, result={"echo": method})

    def subscribed(self, request_id: int, params: dict[str, Any]) -> None:
        session = params["sessionId"]
        if session not in self.disk.events:
            self.send(id=request_id, error={"code": -32002, "message": "Session not found."})
            return
        head = len(self.disk.events[session])
        position = params.get("fromEventId", head)
        if "fromEventId" in params and 1 <= position < self.disk.oldest.get(session, 1) - 1:
            error = {"code": -31001, "message": "gone", "data": {"headEventId": head}}
            self.send(id=request_id, error=error)
            return
        self.cursors[session] = position
        self.send(id=request_id, result=goclaw(self.block(session)))
        if params.get("role") == "controller":
            for approval, answer in self.disk.questions.items():
                if answer is None:
                    self.ask(session, approval)

    def block(self, session: str) -> dict[str, Any]:
        head = len(self.disk.events[session])
        return {"_meta": {"goclaw": {"streamId": f"stream-{session}", "headEventId": head}}}

    def prompted(self, request_id: int, params: dict[str, Any]) -> None:
        session, key = params["sessionId"], goclaw(params)["idempotencyKey"]
        if session not in self.disk.events:
            self.send(id=request_id, error={"code": -32002, "message": "Session not found."})
            return
        self.cursors.setdefault(session, len(self.disk.events[session]))
        run = self.disk.runs.get((session, key))
        if run is None:
            text = params["prompt"][0]["text"]
            run = {
                "id": f"run_{session}_{len(self.disk.runs)}", "session": session, "end": None,
                "steps": 3, "asks": text == "ask", "reason": "",
            }  # fmt: skip
            self.disk.runs[session, key] = run
            self.disk.append(session, "run.accepted", run["id"], idempotencyKey=key)
        self.waiting.append((request_id, run))

    def notified(self, method: str, params: dict[str, Any]) -> None:
        if method == "session/cancel":
            for run in self.disk.runs.values():
                if run["session"] == params["sessionId"]:
                    self.disk.end(run, "cancelled")
        elif method == "$/cancel_request":
            for request_id, run in self.waiting:
                if request_id == params["requestId"]:
                    self.disk.end(run, "cancelled")

    def ask(self, session: str, approval: str) -> None:
        if approval not in self.asked.values():
            ask_id = len(self.asked) + 1 + 100 * len(self.saw)
            self.asked[ask_id] = approval
            params = {"sessionId": session, "_meta": {"goclaw": {"approvalId": approval}}}
            self.send(id=ask_id, method="session/request_permission", params=params)

    def pump(self) -> None:
        """Events in order; an answer behind its run's last event."""
        for session, cursor in self.cursors.items():
            for event in self.disk.events[session][cursor:]:
                self.out.append(json.dumps({"jsonrpc": "2.0", **event}).encode())
                body = event["params"].get("event", {})
                if body.get("type") == "approval.opened":
                    self.ask(session, body["approvalId"])
            self.cursors[session] = len(self.disk.events[session])
        for request_id, run in [one for one in self.waiting if one[1]["end"] is not None]:
            self.waiting = [one for one in self.waiting if one[0] != request_id]
            meta = {"goclaw": {"runId": run["id"], "eventId": run["end"]}}
            self.send(id=request_id, result={"stopReason": run["reason"], "_meta": meta})


class Wire:
    """A link, a daemon, and the messages between them that a crash loses."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.keys = 0
        self.link = Link(self.key)
        self.got: list[Any] = []
        self.to_daemon: deque[bytes] = deque()
        self.connect()

    def key(self) -> str:
        self.keys += 1
        return f"key-{self.keys}"

    def connect(self) -> None:
        self.daemon = Daemon(self.disk)
        self.to_daemon = deque()
        self.link.connected()
        self.flush()

    def crash(self) -> None:
        self.got += self.link.lost()
        self.connect()

    def flush(self) -> None:
        self.to_daemon.extend(self.link.take())

    def deliver(self) -> bool:
        """One message to the daemon."""
        if not self.to_daemon:
            return False
        self.daemon.receive(self.to_daemon.popleft())
        return True

    def hear(self) -> bool:
        """One message from it."""
        if not self.daemon.out:
            return False
        self.got += self.link.receive(self.daemon.out.popleft())
        self.flush()
        return True

    def work(self) -> None:
        self.disk.work()
        self.daemon.pump()

    def settle(self, *, answering: bool = True) -> None:
        """Until nothing moves; every question gets its answer."""
        for _ in range(10_000):
            asked = [one for one in self.got if isinstance(one, Asked) and answering]
            for one in asked:
                self.link.reply(one.ask_id, {"result": {"outcome": {"outcome": "selected"}}})
            self.flush()
            if self.deliver() or self.hear():
                continue
            before = sum(map(len, self.disk.events.values()))
            self.work()
            if before == sum(map(len, self.disk.events.values())):
                return
        raise AssertionError("it does not settle")

    def request(self, method: str, **params: Any) -> int:
        request_id = self.link.request(method, params)
        self.flush()
        return request_id

    def notify(self, method: str, **params: Any) -> None:
        self.link.notify(method, params)
        self.flush()

    def prompt(self, session: str, text: str = "go") -> int:
        blocks = [{"type": "text", "text": text}]
        return self.request("session/prompt", sessionId=session, prompt=blocks)

    def answers(self, request_id: int) -> list[dict[str, Any]]:
        return [
            one.message
            for one in self.got
            if isinstance(one, Answered) and one.request_id == request_id
        ]

    def ids(self, session: str) -> list[int]:
        happened = [one for one in self.got if isinstance(one, Happened)]
        return [one.event_id for one in happened if one.session == session]


def greeted(*, sessions: int = 0) -> Wire:
    wire = Wire()
    wire.request("initialize", **HELLO)
    for _ in range(sessions):
        wire.request("session/new", cwd="/")
    wire.settle()
    return wire


# -- the promise --------------------------------------------------------------------------------

MOVES = ("deliver", "hear", "work", "crash", "answer", "prompt", "ask", "cancel", "list")


@pytest.mark.req("W-13", "I-3")
@settings(max_examples=400)
@given(st.lists(st.sampled_from(MOVES), max_size=60))
def test_whatever_is_lost_each_event_and_each_answer_comes_once(moves: list[str]) -> None:
    wire = Wire()
    asked = [wire.request("initialize", **HELLO), wire.request("session/new", cwd="/")]
    while not wire.disk.session_keys:
        wire.deliver()
    prompts: list[int] = []
    for move in moves:
        if move in ("deliver", "hear", "work", "crash"):
            getattr(wire, move)()
        elif move == "answer":
            for one in [one for one in wire.got if isinstance(one, Asked)]:
                wire.link.reply(one.ask_id, {"result": {"outcome": {"outcome": "selected"}}})
            wire.flush()
        elif not wire.answers(asked[1]):
            continue
        elif move == "list":
            asked.append(wire.request("session/list"))
        elif move == "cancel":
            wire.notify("session/cancel", sessionId="s0")
        elif len(prompts) < 5:
            prompts.append(wire.prompt("s0", move))
    wire.settle()
    for request_id in [*asked, *prompts]:
        assert len(wire.answers(request_id)) == 1
    head = len(wire.disk.events["s0"])
    assert wire.ids("s0") == list(range(1, head + 1))
    assert len(wire.disk.runs) == len(prompts)
    order = [one.event_id if isinstance(one, Happened) else one for one in wire.got]
    for answer in [one for one in wire.got if isinstance(one, Answered)]:
        if answer.request_id in prompts:
            barrier = goclaw(answer.message["result"])["eventId"]
            assert order.index(barrier) < order.index(answer)
    opened = [run for run in wire.disk.runs.values() if run["id"] in wire.disk.questions]
    questions = [one for one in wire.got if isinstance(one, Asked)]
    assert len(questions) <= len(opened)


# -- one by one -----------------------------------------------------------------------------------


@pytest.mark.req("W-6")
def test_sessions_and_prompts_get_keys_and_keep_their_own() -> None:
    wire = greeted(sessions=1)
    mine = {"goclaw": {"idempotencyKey": "mine", "x": 1}, "traceparent": "t"}
    wire.request("session/prompt", sessionId="s0", prompt=[{"text": "go"}], _meta=mine)
    wire.prompt("s0")
    wire.settle()
    keys = [goclaw(params) for method, params in wire.daemon.saw if method == "session/prompt"]
    assert keys == [{"idempotencyKey": "mine", "x": 1}, {"idempotencyKey": "key-2"}]
    (new,) = [params for method, params in wire.daemon.saw if method == "session/new"]
    assert goclaw(new) == {"idempotencyKey": "key-1"}


@pytest.mark.req("W-13")
def test_a_new_connection_is_greeted_attached_and_told_again_in_that_order() -> None:
    wire = greeted(sessions=1)
    turn = wire.prompt("s0")
    listing = wire.request("session/list")
    wire.crash()
    assert not wire.link.is_open
    wire.settle()
    assert [method for method, _ in wire.daemon.saw] == [
        "initialize", "_goclaw/session/subscribe", "session/prompt", "session/list",
    ]  # fmt: skip
    assert wire.daemon.saw[1][1]["fromEventId"] == 0
    assert wire.daemon.saw[1][1]["streamId"] == "stream-s0"
    assert len(wire.answers(turn)) == len(wire.answers(listing)) == 1
    # the greeting that we repeated ourselves is nobody's answer
    assert len([one for one in wire.got if isinstance(one, Answered)]) == 4


@pytest.mark.req("W-13")
def test_an_unanswered_greeting_is_the_one_that_is_repeated() -> None:
    wire = Wire()
    hello = wire.request("initialize", **HELLO)
    wire.crash()
    wire.settle()
    assert [method for method, _ in wire.daemon.saw] == ["initialize"]
    assert len(wire.answers(hello)) == 1


def test_before_the_greeting_nothing_is_repeated() -> None:
    wire = Wire()
    assert not wire.link.has_spoken
    wire.crash()
    assert wire.link.is_open
    assert not wire.to_daemon


@pytest.mark.req("W-13")
def test_a_daemon_that_refuses_the_greeting_ends_it() -> None:
    wire = greeted()
    wire.got.clear()
    wire.got += wire.link.lost()
    wire.link.connected()
    (line,) = wire.link.take()
    error = {"code": -32600, "message": "no"}
    answer = {"jsonrpc": "2.0", "id": json.loads(line)["id"], "error": error}
    (refused,) = wire.link.receive(json.dumps(answer).encode())
    assert isinstance(refused, Refused)


@pytest.mark.req("W-13", "R-3")
def test_a_daemon_that_stops_leaves_the_request_to_the_next_one() -> None:
    wire = greeted(sessions=1)
    wire.daemon.stopping = True
    turn = wire.prompt("s0")
    wire.settle()
    assert not wire.answers(turn)
    wire.crash()
    wire.settle()
    assert len(wire.answers(turn)) == 1


@pytest.mark.req("W-13", "Q-11")
def test_a_lost_cancel_is_sent_again_as_it_was() -> None:
    wire = greeted(sessions=1)
    turn = wire.prompt("s0")
    wire.notify("session/cancel", sessionId="s0")
    wire.crash()
    wire.settle()
    assert wire.answers(turn)[0]["result"]["stopReason"] == "cancelled"


@pytest.mark.req("W-13", "Q-11")
def test_a_repeated_cancel_spares_the_prompts_made_after_it() -> None:
    wire = greeted(sessions=1)
    first = wire.prompt("s0")
    while wire.deliver() or wire.hear():
        pass
    wire.notify("session/cancel", sessionId="s0")
    second = wire.prompt("s0")
    wire.crash()
    wire.settle()
    assert wire.answers(first)[0]["result"]["stopReason"] == "cancelled"
    assert wire.answers(second)[0]["result"]["stopReason"] == "end_turn"
    assert "session/cancel" not in [method for method, _ in wire.daemon.saw]


@pytest.mark.req("W-13", "Q-11")
@pytest.mark.parametrize("known", [True, False])
def test_a_withdrawn_prompt_is_cancelled_by_its_run_on_the_next_connection(known: bool) -> None:
    wire = greeted(sessions=1)
    turn = wire.prompt("s0")
    while wire.deliver() or (known and wire.hear()):
        pass
    wire.notify("$/cancel_request", requestId=turn)
    wire.crash()
    wire.settle()
    assert wire.answers(turn)[0]["result"]["stopReason"] == "cancelled"
    assert "$/cancel_request" not in [method for method, _ in wire.daemon.saw]


@pytest.mark.req("W-13")
def test_a_cancel_of_somebody_elses_turn_is_repeated_until_something_ends() -> None:
    wire = greeted(sessions=1)
    wire.notify("session/cancel", sessionId="s0")
    wire.crash()
    wire.settle()
    assert ("session/cancel", {"sessionId": "s0"}) in wire.daemon.saw
    wire.prompt("s0")
    wire.settle()
    wire.crash()
    wire.settle()
    assert "session/cancel" not in [method for method, _ in wire.daemon.saw]


@pytest.mark.req("W-8", "W-13", "A-7")
def test_a_question_that_is_asked_again_joins_the_one_that_is_open() -> None:
    wire = greeted(sessions=1)
    turn = wire.prompt("s0", "ask")
    for _ in range(8):
        wire.work()
        while wire.deliver() or wire.hear():
            pass
    wire.crash()
    while wire.deliver() or wire.hear():
        pass
    (asked,) = [one for one in wire.got if isinstance(one, Asked)]
    wire.link.reply(asked.ask_id, {"result": {}})
    wire.flush()
    wire.crash()  # and the answer with it
    wire.settle()
    assert len(wire.answers(turn)) == 1
    assert len([one for one in wire.got if isinstance(one, Asked)]) == 1
    assert not [one for one in wire.got if isinstance(one, Withdrawn)]


@pytest.mark.req("W-8", "A-7")
def test_a_question_that_somebody_else_answered_is_withdrawn_also_over_a_restart() -> None:
    wire = greeted(sessions=1)
    wire.prompt("s0", "ask")
    for _ in range(8):
        wire.work()
        while wire.deliver() or wire.hear():
            pass
    (asked,) = [one for one in wire.got if isinstance(one, Asked)]
    wire.got += wire.link.lost()
    (approval,) = wire.disk.questions
    wire.disk.resolve(approval)
    wire.connect()
    wire.settle(answering=False)
    withdrawn = [one for one in wire.got if isinstance(one, Withdrawn)]
    assert [one.ask_id for one in withdrawn] == [asked.ask_id]
    wire.link.reply(asked.ask_id, {"result": {}})  # too late is nobody's business
    assert not wire.link.take()


def test_a_question_without_an_approval_dies_with_its_connection() -> None:
    wire = greeted()
    question = {"jsonrpc": "2.0", "id": 7, "method": "fs/read_text_file", "params": {}}
    (asked,) = wire.link.receive(json.dumps(question).encode())
    assert isinstance(asked, Asked)
    (withdrawn,) = wire.link.lost()
    assert isinstance(withdrawn, Withdrawn)
    assert withdrawn.ask_id == asked.ask_id


@pytest.mark.req("W-4", "W-13")
def test_a_place_that_is_no_longer_kept_is_said_and_left() -> None:
    wire = greeted(sessions=1)
    turn = wire.prompt("s0")
    wire.deliver()
    wire.work()
    while wire.hear():
        pass
    wire.disk.oldest["s0"] = 100
    wire.got += wire.link.lost()
    for _ in range(2):
        wire.work()
    wire.connect()
    wire.settle()
    assert [one.session for one in wire.got if isinstance(one, Missed)] == ["s0"]
    assert len(wire.answers(turn)) == 1


@pytest.mark.req("W-13")
def test_a_deleted_session_is_forgotten() -> None:
    wire = greeted(sessions=1)
    del wire.disk.events["s0"]
    wire.crash()
    wire.settle()
    assert [one.session for one in wire.got if isinstance(one, Missed)] == ["s0"]
    wire.crash()
    wire.settle()
    assert [method for method, _ in wire.daemon.saw] == ["initialize"]


@pytest.mark.req("W-13")
def test_a_prompt_to_a_session_nobody_follows_first_asks_where_it_begins() -> None:
    wire = greeted()
    wire.disk.events["s9"] = []
    for _ in range(3):
        wire.disk.append("s9", "update", sessionUpdate="plan")
    turn = wire.prompt("s9")
    wire.notify("session/cancel", sessionId="s9")
    wire.settle()
    assert [method for method, _ in wire.daemon.saw[1:]] == [
        "_goclaw/session/subscribe", "session/prompt", "session/cancel",
    ]  # fmt: skip
    assert wire.ids("s9") == [4, 5]
    assert wire.answers(turn)[0]["result"]["stopReason"] == "cancelled"


def test_a_prompt_to_no_session_is_answered() -> None:
    wire = greeted()
    turn = wire.prompt("nowhere")
    wire.settle()
    assert wire.answers(turn)[0]["error"]["code"] == -32002
    wire.crash()
    wire.settle()
    assert [method for method, _ in wire.daemon.saw] == ["initialize"]


WISHES = [
    ({}, ("controller", None)),
    ({"role": "observer"}, ("observer", None)),
    ({"mode": "latest"}, ("controller", "latest")),
    ({"role": "observer", "mode": "latest"}, ("observer", "latest")),
]


@pytest.mark.req("W-4", "W-13")
@pytest.mark.parametrize(("wish", "kept"), WISHES)
def test_role_and_mode_are_kept_over_connections(
    wish: dict[str, str], kept: tuple[str, str | None]
) -> None:
    wire = greeted(sessions=1)
    wire.request("_goclaw/session/subscribe", sessionId="s0", fromEventId=0, **wish)
    wire.settle()
    for _ in range(2):
        wire.crash()
        wire.settle()
        asked = wire.daemon.saw[-1][1]
        assert (asked["role"], asked.get("mode")) == kept
    # a place that is no longer kept: on from the head, as it was asked for
    for _ in range(3):
        wire.disk.append("s0", "update", sessionUpdate="plan")
    wire.request("session/list")
    wire.settle()
    assert wire.ids("s0") == [1, 2, 3]
    wire.disk.oldest["s0"] = 100
    wire.crash()
    wire.settle()
    assert [one.session for one in wire.got if isinstance(one, Missed)] == ["s0"]
    asked = wire.daemon.saw[-1][1]
    assert (asked["role"], asked.get("mode"), "fromEventId" in asked) == (*kept, False)
    # the last word counts
    wire.request("_goclaw/session/subscribe", sessionId="s0")
    wire.settle()
    wire.crash()
    wire.settle()
    asked = wire.daemon.saw[-1][1]
    assert (asked["role"], asked.get("mode")) == ("controller", None)


def test_events_before_the_cursor_are_not_handed_out_twice() -> None:
    wire = greeted(sessions=1)
    params = {"sessionId": "s0", "update": {}, "_meta": {"goclaw": {"eventId": 1}}}
    line = json.dumps({"jsonrpc": "2.0", "method": "session/update", "params": params}).encode()
    assert len(wire.link.receive(line)) == 1
    assert wire.link.receive(line) == []


def test_what_is_no_answer_of_ours_is_dropped() -> None:
    link = greeted().link
    message: dict[str, Any]
    for message in ({"id": 99, "result": 1}, {"id": "x", "result": 1}, {"id": None, "error": {}}):
        assert link.receive(json.dumps(message).encode()) == []
    (told,) = link.receive(b'{"jsonrpc":"2.0","method":"_goclaw/x"}')
    assert isinstance(told, Told)
    for bad in (b"[]", b"7", b"nothing"):
        with pytest.raises(ValueError, match=r".*"):
            link.receive(bad)


@pytest.mark.req("I-5")
def test_requests_without_an_answer_are_bounded() -> None:
    link = Link(lambda: "k")
    for _ in range(limits.REQUESTS_MAX):
        link.request("session/list", {})
    assert link.is_full
    with pytest.raises(RateLimited):
        link.request("session/list", {})


def test_what_cannot_be_json_is_refused_before_it_counts() -> None:
    link = Link(lambda: "k")
    for value in (float("nan"), "\ud800"):
        with pytest.raises(ValueError, match=r".*"):
            link.request("x", {"value": value})
    assert not link.is_waiting


@pytest.mark.req("W-13", "W-3")
def test_an_answer_waits_for_the_event_that_it_names() -> None:
    wire = greeted(sessions=1)
    turn = wire.prompt("s0")
    meta = {"goclaw": {"runId": "r", "eventId": 2}}
    answer = {"jsonrpc": "2.0", "id": turn, "result": {"stopReason": "end_turn", "_meta": meta}}
    assert wire.link.receive(json.dumps(answer).encode()) == []
    assert wire.link.is_prompting("s0")
    wire.link.lost()
    wire.link.connected()
    assert "session/prompt" not in str(wire.link.take())  # it has its answer
    for event_id in (1, 2):
        params = {"sessionId": "s0", "update": {}, "_meta": {"goclaw": {"eventId": event_id}}}
        line = json.dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})
        found = wire.link.receive(line.encode())
        assert [type(one) for one in found] == [Happened, Answered][:event_id]
    assert not wire.link.is_prompting("s0")


@pytest.mark.req("W-13")
def test_a_prompt_that_is_on_disk_is_not_owed_soon() -> None:
    wire = greeted(sessions=1)
    assert not wire.link.is_owed_soon
    wire.prompt("s0")
    assert wire.link.is_owed_soon
    while wire.deliver() or wire.hear():
        pass
    assert not wire.link.is_owed_soon
    assert wire.link.is_waiting


@pytest.mark.req("W-13")
def test_a_session_that_is_being_loaded_is_not_subscribed_beside_it() -> None:
    wire = greeted(sessions=1)
    wire.request("session/load", sessionId="s0", cwd="/")
    wire.crash()
    wire.settle()
    assert [method for method, _ in wire.daemon.saw] == ["initialize", "session/load"]


@pytest.mark.req("W-13", "Q-11")
def test_a_cancel_of_somebody_elses_turn_is_over_with_that_turn() -> None:
    wire = greeted(sessions=1)
    wire.notify("session/cancel", sessionId="s0")
    wire.disk.append("s0", "run.ended", "run_of_another")
    wire.settle()
    assert ("session/cancel", {"sessionId": "s0"}) in wire.daemon.saw
    wire.crash()
    wire.settle()
    assert "session/cancel" not in [method for method, _ in wire.daemon.saw]
