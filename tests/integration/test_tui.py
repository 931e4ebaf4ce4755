"""The terminal UI (U-4) on real daemons: driven by keys, read as what stands on the screen.

Owns the overview, the conversation and what happens when the daemon dies meanwhile. Not in here:
the fold of events (test_tui_transcript.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import World, script_file, world

from goclaw.client import Client, SyncClient
from goclaw.core import limits
from goclaw.core.home import Home
from goclaw.policy import default
from goclaw.tui import GoclawApp
from goclaw.tui.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from textual.pilot import Pilot

pytestmark = pytest.mark.req("U-4")
SIZE = (80, 24)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def screen(app: GoclawApp) -> str:
    """What stands there, line by line."""
    shown: Any = app.screen
    width, height = app.size
    strips = shown._compositor.render_strips(app.size)
    lines = ["".join(segment.text for segment in strip)[:width].rstrip() for strip in strips]
    return "\n".join(lines[:height])


async def until(pilot: Pilot[None], seen: Callable[[str], bool]) -> str:
    """Wait for the screen to be so."""
    text = ""
    try:
        async with asyncio.timeout(20):
            while not seen(text):
                await pilot.pause(0.05)
                text = screen(pilot.app)  # type: ignore[arg-type]
    except TimeoutError:
        raise AssertionError(f"not seen on:\n{text}") from None
    return text


@contextlib.asynccontextmanager
async def shown(place: World, **options: Any) -> AsyncIterator[Pilot[None]]:
    async with Client(place.home, patient=True) as client:
        app = GoclawApp(client, str(place.cwd), **options)
        async with app.run_test(size=SIZE) as pilot:
            await until(pilot, lambda text: "lanes" in text or "say something" in text)
            yield pilot
            for worker in list(app.workers):
                worker.cancel()


async def say(pilot: Pilot[None], text: str) -> None:
    pilot.app.screen.query_one("#line").value = text  # type: ignore[attr-defined]
    await pilot.press("enter")


def test_a_new_session_is_talked_in_and_outlives_the_daemon(place: World) -> None:
    place.serve()

    async def body() -> None:
        async with shown(place) as pilot:
            text = await until(pilot, lambda text: "No session yet" in text)
            assert "lanes ▯▯▯▯ 0/4" in text
            assert all(title in text for title in ("1 Sessions", "3 Questions", "4 Dead letters"))
            await pilot.press("n")
            await until(pilot, lambda text: "say something" in text)
            await say(pilot, '/sha256 {"text": "abc"}')
            text = await until(pilot, lambda text: "ba7816bf" in text)
            assert '> /sha256 {"text": "abc"}' in text
            assert "✓ sha256" in text
            assert max(map(len, text.splitlines())) <= SIZE[0]
            place.end(signal.SIGKILL)
            await say(pilot, '/sha256 {"text": "later"}')  # nobody is there to take it
            place.serve()
            text = await until(pilot, lambda text: text.count("✓ sha256") == 2)
            assert text.count("ba7816bf") >= 1, "nothing twice, nothing lost"
            conversation = pilot.app.screen
            assert isinstance(conversation, Conversation)
            assert len([one for one in conversation.transcript.blocks.values()
                        if one.kind == "you"]) == 2  # fmt: skip
            await pilot.press("escape")
            await until(pilot, lambda text: str(place.cwd)[:20] in text)
            await pilot.press("2")
            text = await until(pilot, lambda text: text.count("succeeded") == 2)
            await pilot.press("enter")
            await until(pilot, lambda text: "SUCCEEDED" in text)
            await pilot.press("1", "enter")  # the same session once more
            text = await until(pilot, lambda text: text.count("✓ sha256") == 2)

    asyncio.run(body())


def test_commands_are_completed(place: World) -> None:
    place.serve()

    async def body() -> None:
        async with shown(place) as pilot:
            await pilot.press("n")
            await until(pilot, lambda text: "say something" in text)
            conversation = pilot.app.screen
            assert isinstance(conversation, Conversation)
            async with asyncio.timeout(20):
                while not conversation.transcript.commands:
                    await pilot.pause(0.05)
            await pilot.press("/", "w", "o")
            await until(pilot, lambda text: "/word-count" in text)
            await pilot.press("right")
            assert conversation.query_one("#line").value == "/word-count"  # type: ignore[attr-defined]

    asyncio.run(body())


@pytest.mark.req("A-7")
@pytest.mark.parametrize(("key", "outcome"), [("a", "allow"), ("x", "reject")])
def test_a_question_is_answered_with_one_key(place: World, key: str, outcome: str) -> None:
    brain = script_file(place.cwd, [{"ask": "may I go on?"}, {"say": "went on"}])
    place.serve()
    (accepted,) = place.lines("run", "go", "--brain", brain, "--detach")

    async def body() -> None:
        async with shown(place) as pilot:
            await until(pilot, lambda text: "3 Questions (1)" in text)
            await pilot.press("3")
            await until(pilot, lambda text: "a: allow" in text and "may I go on?" in text)
            await pilot.press(key)
            await until(pilot, lambda text: "3 Questions (1)" not in text)

    asyncio.run(body())
    events = place.lines("events", accepted["sessionId"])
    (resolved,) = [event for event in events if event["type"] == "approval.resolved"]
    assert resolved["outcome"].startswith(outcome), resolved


def test_a_dead_letter_is_redriven_and_dropped_with_one_key(place: World) -> None:
    brain = script_file(place.cwd, [{"fail": "odd", "retryable": True, "onAttempts": [1]},
                                    {"say": "now"}])  # fmt: skip
    place.serve(GOCLAW_QUEUE_MAX_ATTEMPTS="1")
    place.goclaw("run", "go", "--brain", brain, code=None)
    place.goclaw("run", "go", "--brain", brain, code=None)

    async def body() -> None:
        async with shown(place) as pilot:
            await until(pilot, lambda text: "4 Dead letters (2)" in text)
            await pilot.press("4")
            await until(pilot, lambda text: "r: redrive" in text)
            await pilot.press("r")
            await until(pilot, lambda text: "4 Dead letters (1)" in text)
            await pilot.press("delete")
            await until(pilot, lambda text: "4 Dead letters (" not in text)

    asyncio.run(body())
    states = sorted(task["state"] for task in place.lines("task", "list"))
    assert states == ["DEAD_LETTER", "SUCCEEDED"]


@pytest.mark.req("E-3")
def test_what_nobody_knows_is_settled_with_one_key(place: World) -> None:
    """A worker that died in the middle of an irreversible call."""
    place.serve(GOCLAW_QUEUE_LEASE_MS="1000")
    with SyncClient(place.home) as client:
        session = client.new_session(place.cwd).session_id
        work = {"sessionId": session, "pool": "p", "payload": 1}
        client.call("_goclaw/task/submit", work)
        (claimed,) = client.call("_goclaw/worker/claim", {"pool": "p"})["tasks"]
        client.call("_goclaw/worker/effect", {
            "taskId": claimed["taskId"], "leaseToken": claimed["leaseToken"], "ordinal": 0,
            "phase": "intent", "kind": "tool", "name": "send", "requestHash": "ab" * 32,
        })  # fmt: skip

    async def body() -> None:
        async with shown(place) as pilot:
            await until(pilot, lambda text: "3 Questions (1)" in text)
            await pilot.press("3")
            await until(pilot, lambda text: "did send happen?" in text and "d: it happ" in text)
            await pilot.press("d")
            await until(pilot, lambda text: "3 Questions (1)" not in text)

    asyncio.run(body())
    (effect,) = place.lines("effects", "list", claimed["taskId"])
    assert effect["state"] == "result"


@pytest.mark.req("I-5")
def test_a_long_session_shows_its_newest_part(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TUI_BLOCKS_MAX", 5)
    place.serve()
    first = place.lines("run", '/sha256 {"text": "0"}')[0]

    async def body() -> None:
        async with shown(place, session=first["sessionId"]) as pilot:
            for number in (1, 2, 3):
                await say(pilot, f'/sha256 {{"text": "{number}"}}')
            await until(pilot, lambda text: '"3"' in text and "working" not in text)
            conversation = pilot.app.screen
            assert isinstance(conversation, Conversation)
            async with asyncio.timeout(20):
                while conversation._shown.keys() != conversation.transcript.blocks.keys():
                    await pilot.pause(0.05)
            assert len(conversation.query(".block")) == 5

    asyncio.run(body())


def test_text_of_a_tool_is_shown_and_not_obeyed(place: World) -> None:
    evil = "[red]bold[/red] \x1b[2J\x1b]0;title\x07 [link=file:///etc]x[/link]"
    brain = script_file(place.cwd, [{"say": evil}], match="")
    place.serve()
    (first,) = place.lines("run", "go", "--brain", brain)[:1]

    async def body() -> None:
        async with shown(place, session=first["sessionId"]) as pilot:
            text = await until(pilot, lambda text: "bold" in text)
            assert "[red]bold[/red] [2J]0;title [link=file:///etc]x[/link]" in text
            assert "\x1b" not in text

    asyncio.run(body())


def test_without_a_terminal_it_says_so(place: World) -> None:
    done = place.goclaw("tui", code=2)
    assert "needs a terminal" in done.stderr
    assert not place.home.root.exists()


def test_it_starts_in_a_real_terminal_and_leaves_it_clean(place: World) -> None:
    """A pty of 80x24, a daemon started by itself, `q`."""
    import fcntl
    import os
    import pty
    import struct
    import sys
    import termios

    import pyte

    Home(place.home.root).ensure(default.TEXT, os.urandom)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(place.cwd)
        small = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        os.execve(
            sys.executable, [sys.executable, "-m", "goclaw", "tui"], {**place.environ, **small}
        )  # fmt: skip
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    emulator = pyte.Screen(80, 24)
    stream = pyte.ByteStream(emulator)
    try:
        seen = b""
        while not any("0/4" in line for line in emulator.display):
            piece = os.read(terminal, 65536)
            seen += piece
            stream.feed(piece)
        assert any("1 Sessions" in line for line in emulator.display)
        os.write(terminal, b"q")
        with contextlib.suppress(OSError):  # the other end closes
            while piece := os.read(terminal, 65536):
                seen += piece
        assert os.waitpid(child, 0)[1] == 0
        assert seen.rfind(b"\x1b[?1049l") > seen.rfind(b"\x1b[?1049h"), "the screen is given back"
    finally:
        os.close(terminal)
