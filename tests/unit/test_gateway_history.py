"""Proves the projection of a session's past: what a client is told on load.

Owns hand-made event logs. Not in here: the cut to live (``test_wire_replay.py``).
"""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from goclaw.core import limits
from goclaw.gateway.history import Projection
from goclaw.protocol.messages import EventKind

PROMPT, AGENT, THOUGHT = "user_message_chunk", "agent_message_chunk", "agent_thought_chunk"


class Log:
    """A log that is written line by line, and what the projection makes of it."""

    def __init__(self) -> None:
        self.projection = Projection()
        self.told: list[dict[str, Any]] = []
        self.event_id = 0

    def put(
        self, payload: dict[str, Any], *, run: str | None = "run_1", kind: EventKind | None = None,
        name: str = "update",
    ) -> Log:  # fmt: skip
        self.event_id += 1
        task = None if run is None else "task_" + run.removeprefix("run_")
        if kind is None:
            kind = EventKind.STANDARD
        row = (self.event_id, int(kind), name, 0, run, task, 1, None, orjson.dumps(payload))
        self.told += self.projection.feed(row)
        return self

    def says(self, words: str, message: str = "m", kind: str = AGENT, **more: Any) -> Log:
        content = {"type": "text", "text": words}
        update = {"sessionUpdate": kind, "messageId": message, "content": content}
        return self.put(update, **more)

    def asks(self, *blocks: dict[str, Any], run: str = "run_1") -> Log:
        for block in blocks:
            self.put({"sessionUpdate": PROMPT, "content": block}, run=run, kind=EventKind.USER)
        return self

    def tool(self, call: str, kind: str = "tool_call_update", **fields: Any) -> Log:
        return self.put({"sessionUpdate": kind, "toolCallId": call, **fields})

    def ends(self, run: str = "run_1", name: str = "task.succeeded") -> Log:
        return self.put({}, run=run, kind=EventKind.GOCLAW, name=name)

    def cut(self, message: str) -> Log:
        what = {"messageId": message, "ordinal": 0}
        return self.put(what, kind=EventKind.GOCLAW, name="message.interrupted")

    def updates(self) -> list[dict[str, Any]]:
        self.told += self.projection.finish()
        return [params["update"] for params in self.told]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.req("W-10")
def test_chunks_become_one_message() -> None:
    log = Log().says("a").says("b").says("c", "n").says("d", "n")
    updates = log.updates()
    assert [(u["messageId"], u["content"]["text"]) for u in updates] == [("m", "ab"), ("n", "cd")]


@pytest.mark.req("W-10")
def test_thoughts_and_words_are_two_messages() -> None:
    log = Log().says("hm", "t", THOUGHT).says("a").says("!", "t", THOUGHT).says("b")
    assert [(u["sessionUpdate"], u["content"]["text"]) for u in log.updates()] == [
        (THOUGHT, "hm!"),
        (AGENT, "ab"),
    ]


@pytest.mark.req("W-10")
def test_a_tool_is_told_once_in_its_final_state() -> None:
    log = Log().tool("c", "tool_call", title="grep", status="pending", rawInput={"a": 1})
    log.says("meanwhile").tool("c", status="in_progress")
    log.tool("c", status="completed", rawOutput={"b": 2}, title=None)
    tool, words = log.updates()
    assert tool == {
        "sessionUpdate": "tool_call", "toolCallId": "c", "title": "grep", "status": "completed",
        "rawInput": {"a": 1}, "rawOutput": {"b": 2},
    }  # fmt: skip
    assert words["content"]["text"] == "meanwhile"


@pytest.mark.req("W-10")
def test_what_cannot_change_any_more_leaves_at_once() -> None:
    log = Log().tool("c", "tool_call", status="completed")
    assert len(log.told) == 1
    log.says("a")
    assert len(log.told) == 1
    log.says("b", "n")
    assert len(log.told) == 2
    log.ends()
    assert len(log.told) == 3
    assert log.updates()[-1]["content"]["text"] == "b"


@pytest.mark.req("W-10")
def test_a_tool_that_was_stopped_has_failed() -> None:
    log = Log().tool("c", "tool_call", status="in_progress").ends(name="task.canceled")
    assert log.updates()[0]["status"] == "failed"


def test_a_tool_of_a_running_turn_goes_on() -> None:
    log = Log().tool("c", "tool_call", status="in_progress").ends("run_2")
    assert log.updates()[0]["status"] == "in_progress"


def test_runs_that_overlap_stay_apart() -> None:
    log = Log()
    for words in "ab":
        log.says(words, "m1", run="run_1").says(words, "m2", THOUGHT, run="run_2")
    assert [u["content"]["text"] for u in log.updates()] == ["ab", "ab"]


@pytest.mark.req("W-10", "B-3")
def test_a_message_that_was_cut_says_so() -> None:
    log = Log().says("half a", "m").says("hm", "m", THOUGHT).cut("m").says("whole", "n").ends()
    log.cut("n").cut("never said")
    updates = log.updates()
    assert [(u["messageId"], u["content"]["text"]) for u in updates] == [
        ("m", "half a (interrupted)"), ("m", "hm (interrupted)"), ("n", "whole"),
    ]  # fmt: skip
    marks = [params["_meta"]["goclaw"].get("interrupted", False) for params in log.told]
    assert marks == [True, True, False]


@pytest.mark.req("W-10")
def test_blocks_of_a_prompt_stay_apart_under_one_id() -> None:
    link = {"type": "resource_link", "uri": "file:///x", "name": "x"}
    log = Log().asks(text("a"), link, text("b")).asks(text("c"), run="run_2")
    updates = log.updates()
    assert [u["content"] for u in updates] == [text("a"), link, text("b"), text("c")]
    assert [u["messageId"] for u in updates] == ["user_1", "user_1", "user_1", "user_2"]


def test_content_that_is_no_plain_text_stays_itself() -> None:
    image = {"type": "image", "data": "", "mimeType": "image/png"}
    log = Log().says("a")
    log.put({"sessionUpdate": AGENT, "messageId": "m", "content": image}).says("b")
    assert [u["content"] for u in log.updates()] == [text("a"), image, text("b")]


def test_the_newest_plan_of_a_turn_counts() -> None:
    log = Log()
    for n in range(3):
        log.put({"sessionUpdate": "plan", "entries": [n]}).says(str(n))
    log.ends().put({"sessionUpdate": "plan", "entries": ["later"]}, run="run_2")
    updates = log.updates()
    assert [u["entries"] for u in updates if u["sessionUpdate"] == "plan"] == [[2], ["later"]]


@pytest.mark.req("W-10")
def test_terminals_of_the_past_are_text() -> None:
    content = [{"type": "terminal", "terminalId": "t"}, {"type": "content", "content": text("x")}]
    log = Log().tool("c", "tool_call", status="completed", content=content)
    (tool,) = log.updates()
    assert [part["type"] for part in tool["content"]] == ["content", "content"]
    assert "terminalId" not in str(tool)


def test_kinds_of_other_versions_pass() -> None:
    log = Log().put({"sessionUpdate": "novelty", "x": 1}).put({"sessionUpdate": "novelty", "x": 2})
    assert [u["x"] for u in log.updates()] == [1, 2]


def test_an_update_without_its_call_is_a_call() -> None:
    (tool,) = Log().tool("c", status="completed").updates()
    assert tool["sessionUpdate"] == "tool_call"
    assert tool["title"] == "c"


@pytest.mark.req("W-10", "I-5")
def test_what_is_held_is_bounded() -> None:
    size = limits.HISTORY_BYTES_MAX // 4
    log = Log().tool("c", "tool_call", title="long", status="in_progress")
    for n in range(10):
        log.says("x" * size, f"m{n}")
    assert log.told[0]["update"]["status"] == "in_progress"
    assert len(log.told) >= 5
    log.tool("c", status="completed", rawOutput=1)
    updates = log.updates()
    assert updates[-1] == {
        "sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "completed",
        "rawOutput": 1,
    }  # fmt: skip
    assert [u["messageId"] for u in updates if "messageId" in u] == [f"m{n}" for n in range(10)]


@pytest.mark.req("I-5")
def test_a_message_beyond_the_bound_comes_in_parts_under_one_id() -> None:
    log = Log()
    part = "x" * (limits.HISTORY_BYTES_MAX // 4)
    for _ in range(10):
        log.says(part)
    updates = log.updates()
    assert 1 < len(updates) < 10
    assert {u["messageId"] for u in updates} == {"m"}
    assert "".join(u["content"]["text"] for u in updates) == part * 10


def test_no_event_id_is_told() -> None:
    log = Log().says("a")
    log.updates()
    assert log.told[0]["_meta"] == {
        "goclaw": {"runId": "run_1", "taskId": "task_1", "history": True}
    }
