"""goclaw.Client and goclaw.SyncClient on the real daemon, over its crashes, and over /ws."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from roof_support import DEADLINE_MS, ROOT, World, script_file, world

import goclaw
from goclaw.core.errors import (
    DaemonGone,
    IdempotencyConflict,
    SessionUnknown,
    UnknownId,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from goclaw.client import Approval, Event


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        (made.cwd / "file.txt").write_text("one two\n")
        yield made


def run(main: object) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_MS / 1000):
            await main  # type: ignore[misc]

    asyncio.run(bounded())


@pytest.mark.req("U-6")
def test_the_import_is_cheap() -> None:
    code = "import sys, goclaw; print(goclaw.__version__, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"asyncio", "json", "goclaw.client", "goclaw.core"} & set(done.stdout.split())
    assert goclaw.Client.__name__ == "Client"
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        goclaw.Clint  # noqa: B018


EXAMPLES = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs" / "editors.md").read_text("utf-8"), re.M | re.S
)


@pytest.mark.req("U-6")
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_documentation_run(place: World, example: str) -> None:
    (place.cwd / "README.md").write_text("one two\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], env=place.environ, cwd=place.cwd,
        capture_output=True, text=True, timeout=DEADLINE_MS / 1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "end_turn" in done.stdout
    assert "Traceback" not in done.stderr
    if "subscribe" in example:
        assert "run.ended\nTrue\n" in done.stdout


@pytest.mark.req("U-6", "W-6")
def test_the_async_client_submits_streams_and_asks(place: World) -> None:
    place.serve()
    seen: list[Event] = []

    async def main() -> None:
        async with goclaw.Client(place.home.root) as client:
            session = await client.new_session(place.cwd)
            result = await client.prompt(
                "/word-count file.txt", session=session.session_id, key="k", on_event=seen.append
            )
            assert (result.state, result.stop_reason, result.error) == (
                "SUCCEEDED",
                "end_turn",
                None,
            )
            assert result.tools[0].output == {"lines": 1, "words": 2, "bytes": 8}
            again = await client.prompt("/word-count file.txt", session=session.session_id, key="k")
            assert again.duplicate
            assert (again.text, again.tools) == (result.text, result.tools)
            with pytest.raises(IdempotencyConflict):
                await client.prompt("other", session=session.session_id, key="k")
            with pytest.raises(SessionUnknown):
                await client.prompt("x", session="nowhere")
            with pytest.raises(UnknownId):
                await client.task("task_nothing")
            assert (await client.status()).ready
            (task,) = await client.tasks(session=session.session_id)
            assert (await client.task(task.task_id)).json == task.json
            assert (await client.cancel(task.task_id)).outcome == "already_finished"
            page = await client.events(session.session_id, 1, limit=2)
            assert [event.event_id for event in page.events] == [2, 3]
            prompts = [client.prompt(f"hi {n}", session=session.session_id) for n in range(3)]
            assert len({one.run_id for one in await asyncio.gather(*prompts)}) == 3

    run(main())
    assert [event.event_id for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].type == "run.ended"


@pytest.mark.req("U-6", "W-4", "W-13")
def test_the_async_client_rides_out_a_crash(place: World) -> None:
    brain = script_file(place.cwd, [{"say": "one"}, {"sleepMs": 1000}, {"say": "two"}])
    place.serve()

    async def main() -> None:
        async with goclaw.Client(place.home.root) as client:
            session = (await client.new_session(place.cwd, brain=brain)).session_id
            turn = asyncio.create_task(client.prompt("go", session=session))
            seen = []
            async with goclaw.Client(place.home.root) as other:
                async for event in other.subscribe(session, 0):
                    seen.append(event.event_id)
                    if event.type == "task.suspended":
                        assert await asyncio.to_thread(place.end, signal.SIGKILL)
                        await asyncio.to_thread(place.serve)
                    if event.type == "run.ended":
                        break
            assert seen == list(range(1, len(seen) + 1))
            assert (await turn).text == "onetwo"

    run(main())


@pytest.mark.req("U-6", "A-7")
def test_the_async_client_answers_questions(place: World) -> None:
    brain = script_file(place.cwd, [{"ask": "Really?"}, {"say": "Done."}])
    place.serve()
    titles = []

    async def answer(approval: Approval) -> str:
        titles.append(approval.title)
        return approval.options[0][0]

    async def main() -> None:
        async with goclaw.Client(place.home.root) as client:
            client.on_question = answer
            session = (await client.new_session(place.cwd, brain=brain)).session_id
            assert (await client.prompt("go", session=session)).text == "Done."
            client.on_question = None
            head = (await client.events(session)).head_event_id
            turn = asyncio.create_task(client.prompt("go", session=session))
            opened = ""
            async for event in client.subscribe(session, head):
                if event.type == "approval.opened":
                    opened = event.body["approvalId"]
                if event.type == "task.suspended":
                    break
            (waiting,) = await client.approvals(session)
            assert waiting.approval_id == opened
            assert await client.resolve(opened, "reject") == "reject"
            assert (await turn).tools[0].status == "rejected"

    run(main())
    assert titles == ["Really?"]


@pytest.mark.req("U-6", "A-9")
def test_the_async_client_over_the_network_port(place: World) -> None:
    place.serve("--listen", "127.0.0.1:0")
    record = place.home.read_daemon_json()
    assert record is not None
    assert record.ws is not None
    url, token = record.ws, place.home.token()

    async def main() -> None:
        async with goclaw.Client(url=url, token=token) as client:
            session = (await client.new_session(place.cwd)).session_id
            result = await client.prompt("/word-count file.txt", session=session)
            assert result.tools[0].status == "completed"
        with pytest.raises(DaemonGone, match="does not take us"):
            await goclaw.Client(url=url, token="wrong").connect()
        with pytest.raises(UsageError):
            goclaw.Client(url=url)

    run(main())


@pytest.mark.req("U-6")
def test_a_cancelled_call_cancels_its_run(place: World) -> None:
    place.serve()

    async def main() -> None:
        async with goclaw.Client(place.home.root) as client:
            session = (await client.new_session(place.cwd)).session_id
            turn = asyncio.create_task(client.prompt("/sleep 600", session=session))
            async for event in client.subscribe(session, 0):
                if event.type == "task.suspended":
                    turn.cancel()
                if event.type == "run.ended":
                    assert event.body["state"] == "CANCELED"
                    break
            with pytest.raises(asyncio.CancelledError):
                await turn

    run(main())


@pytest.mark.req("U-6")
def test_without_a_daemon_it_is_said_at_once(place: World) -> None:
    with pytest.raises(DaemonGone, match="No daemon is running"):
        goclaw.SyncClient(place.home.root)

    async def main() -> None:
        with pytest.raises(DaemonGone, match="No daemon is running"):
            await goclaw.Client(place.home.root).connect()

    run(main())


class Struck(Exception):
    """A signal was heard."""


@pytest.mark.req("U-2", "R-3")
def test_a_signal_that_wakes_nobody_ends_the_blocking_clients_wait(place: World) -> None:
    """One that another thread takes does not end a wait, as one right before the wait does not."""
    ours, theirs = socket.socketpair()
    main = threading.get_ident()

    def strike() -> None:
        theirs.recv(1)  # it has asked, and is not answered
        while sys._current_frames()[main].f_code.co_name != "_step":
            continue
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    def heard(*_: object) -> None:
        raise Struck

    before = signal.signal(signal.SIGUSR1, heard)
    striker = threading.Thread(target=strike)
    striker.start()
    try:
        with theirs, pytest.raises(Struck):
            goclaw.SyncClient(place.home.root, reach=lambda: ours)
    finally:
        striker.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.req("U-6")
def test_a_closed_client_fails_what_waits(place: World) -> None:
    place.serve()

    async def main() -> None:
        async with goclaw.Client(place.home.root) as client:
            session = (await client.new_session(place.cwd)).session_id
            turn = asyncio.create_task(client.prompt("/sleep 600", session=session))
            async for event in client.subscribe(session, 0):
                if event.type == "task.suspended":
                    break
        with pytest.raises(DaemonGone):
            await turn
        with pytest.raises(DaemonGone):
            await client.status()

    run(main())


@pytest.mark.req("U-6", "U-3")
def test_the_blocking_client_starts_a_daemon(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.cwd)
    with goclaw.SyncClient(place.home.root, start=True) as client:
        seen: list[str] = []
        result = client.prompt(
            "/word-count file.txt", key="k", on_event=lambda e: seen.append(e.type)
        )
        assert result.stop_reason == "end_turn"
        assert seen[-1] == "run.ended"
        assert client.prompt("/word-count file.txt", key="k").run_id == result.run_id
        assert place.end(signal.SIGKILL)
        assert client.task(client.tasks()[0].task_id).run_id == result.run_id
        page = client.events(result.session_id)
        assert len(page.events) == len(seen)
        events = client.follow(result.session_id, 3)
        assert next(events).event_id == 4
        assert client.approvals() == []
        with pytest.raises(UnknownId):
            client.resolve("nothing", "allow")
        assert client.cancel(result.run_id).outcome == "already_finished"
        assert client.status().ready
    with pytest.raises(DaemonGone):
        client.status()
