"""A session's events, folded into what a person reads (goclaw/tui/transcript.py)."""

from __future__ import annotations

from typing import Any

import pytest

from goclaw.client import Event
from goclaw.core import limits
from goclaw.tui.transcript import Transcript, clean

pytestmark = pytest.mark.req("U-4")


def event(event_id: int, type_: str = "update", **body: Any) -> Event:
    return Event("s", event_id, type_, 0, "", "run", "task", 1, body)


def chunk(event_id: int, text: str, kind: str = "agent_message_chunk", **more: Any) -> Event:
    return event(event_id, sessionUpdate=kind, content={"type": "text", "text": text}, **more)


def texts(transcript: Transcript) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in transcript.blocks.values()]


def test_chunks_of_a_message_are_one_block_and_attempts_are_apart() -> None:
    transcript = Transcript()
    for one in (
        chunk(1, "hi", "user_message_chunk"),
        chunk(2, "hel", messageId="a"),
        chunk(3, "lo", messageId="a"),
        event(4, "message.interrupted"),
        chunk(5, "hello", messageId="b"),
        chunk(6, " there", messageId="b"),
    ):
        transcript.add(one)
    assert texts(transcript) == [
        ("you", "hi"), ("agent", "hello"),
        ("note", "the message was cut off; the attempt begins again"), ("agent", "hello there"),
    ]  # fmt: skip


def test_an_event_twice_changes_nothing() -> None:
    transcript = Transcript()
    assert transcript.add(chunk(1, "x", messageId="a")) is not None
    assert transcript.add(chunk(1, "x", messageId="a")) is None
    assert texts(transcript) == [("agent", "x")]


def test_chunks_without_ids_join_while_nobody_else_speaks() -> None:
    transcript = Transcript()
    for one in (
        chunk(1, "a"), chunk(2, "b"),
        event(3, sessionUpdate="tool_call", toolCallId="t", title="T"),
        chunk(4, "c"), chunk(5, "d", "agent_thought_chunk"), chunk(6, "e"),
    ):  # fmt: skip
        transcript.add(one)
    assert texts(transcript) == [
        ("agent", "ab"), ("tool", "… T"), ("agent", "c"), ("thought", "d"), ("agent", "e"),
    ]  # fmt: skip


def test_a_tool_call_keeps_its_title_and_shows_how_it_went() -> None:
    transcript = Transcript()
    transcript.add(event(1, sessionUpdate="tool_call", toolCallId="t", title="read x",
                         status="in_progress"))  # fmt: skip
    content = [{"type": "content", "content": {"type": "text", "text": "1\n2"}}]
    transcript.add(event(2, sessionUpdate="tool_call_update", toolCallId="t", status="failed",
                         content=content))  # fmt: skip
    assert texts(transcript) == [("error", "✗ read x\n  1\n  2")]


def test_a_run_is_busy_until_its_own_end() -> None:
    transcript = Transcript()
    transcript.add(event(1, "run.accepted"))
    assert (transcript.is_busy, transcript.run_id) == (True, "run")
    transcript.add(event(2, "run.ended", state="FAILED", reason="boom"))
    assert not transcript.is_busy
    assert texts(transcript) == [("error", "failed: boom")]


def test_a_long_conversation_keeps_its_newest_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TUI_BLOCKS_MAX", 3)
    monkeypatch.setattr(limits, "TUI_BLOCK_CHARS_MAX", 4)
    transcript = Transcript()
    for number in range(1, 6):
        transcript.add(chunk(number, f"text{number}", messageId=str(number)))
    assert texts(transcript) == [("agent", "ext3"), ("agent", "ext4"), ("agent", "ext5")]


@pytest.mark.req("I-5")
def test_a_call_that_is_shown_no_more_is_forgotten_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TUI_BLOCKS_MAX", 3)
    transcript = Transcript()
    for number in range(1, 6):
        transcript.add(event(number, sessionUpdate="tool_call", toolCallId=str(number), title="t"))
    assert set(transcript._titles) == {"3", "4", "5"}


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    assert clean("a\x1b[2Jb\x07\x9bc\u202ed\ud800e\tf\ng") == "a[2Jbcde\tf\ng"
