"""Everything that can die does, at random and together: daemon, bridge, sockets, clients, in turns
with questions, a queue and cancels. In the end every client's view is the log.

A round: an editor on `goclaw acp` and a goclaw.Client behind a relay that cuts connections share a
session and prompt side by side. GOCLAW_CHAOS_ROUNDS sets how many rounds; the seed of a round is
printed when it fails. Not in here: kills under one client alone (``test_bridge_kills.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import GOCLAW, World, world

import goclaw
from goclaw.client import Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from goclaw.client import Approval, PromptResult

ROUNDS = int(os.environ.get("GOCLAW_CHAOS_ROUNDS", "2"))
FIRST = int(os.environ.get("GOCLAW_CHAOS_SEED", "1"))
PROMPTS = 3  # of each client
ROUND_S = 120
SCRIPT = [
    {
        "match": "go",
        "steps": [
            {"say": "one two three four", "chunks": 4, "delayMs": 10},
            {"ask": "May I?"},
            {"say": "five six", "chunks": 2, "delayMs": 10},
        ],
    },
    {"match": "talk", "steps": [{"say": "a b c d e f g h", "chunks": 8, "delayMs": 10}]},
]


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        yield made


@pytest.mark.req("W-4", "W-7", "W-8", "W-10", "W-13", "U-6", "I-3")
@pytest.mark.timeout(60 + ROUND_S * ROUNDS)
def test_every_view_is_the_log(place: World) -> None:
    tally: Counter[str] = Counter()
    script = place.cwd / "script.json"
    script.write_text(json.dumps(SCRIPT), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place.home.root.mkdir(mode=0o700)
    settings = f'[listen]\naddress = "127.0.0.1:{port}"\n[brain]\ndefault = "script:{script}"\n'
    place.home.config.write_text(settings, "utf-8")
    for seed in range(FIRST, FIRST + ROUNDS):
        try:
            asyncio.run(one_round(place, port, random.Random(seed), tally))
        except BaseException:
            print(f"\nGOCLAW_CHAOS_SEED={seed} GOCLAW_CHAOS_ROUNDS=1 repeats the round")
            raise
    print(f"\nrounds: {ROUNDS}, {dict(sorted(tally.items()))}")
    assert tally["kills"] >= ROUNDS


async def one_round(place: World, port: int, chance: random.Random, tally: Counter[str]) -> None:
    async with asyncio.timeout(ROUND_S):
        relay = Relay(port)
        await relay.open()
        editor = Editor(place, f"editor-{chance.getrandbits(32)}")
        await editor.start()
        watcher = Watcher(place, relay, f"watcher-{chance.getrandbits(32)}")
        try:
            session = await editor.new_session()
            await watcher.start(session)
            await turmoil(place, relay, editor, watcher, chance, tally)
            await asyncio.gather(editor.answered(), watcher.answered())
            tally["answers"] += len(editor.answers) + len(watcher.answers)
            await judge(place, session, editor, watcher, tally)
        except BaseException:
            print(f"\neditor: {editor}\nwatcher: {watcher}")
            raise
        finally:
            await watcher.stop()
            await editor.stop()
            relay.close()


async def turmoil(
    place: World, relay: Relay, editor: Editor, watcher: Watcher, chance: random.Random,
    tally: Counter[str],
) -> None:  # fmt: skip
    """Prompts from both sides, and one to three blows, each to one or several at once."""
    words = [chance.choice(("go", "talk")) for _ in range(2 * PROMPTS)]
    for number in range(PROMPTS):
        editor.prompt(f"editor-{number}", words[2 * number])
        watcher.prompt(f"watcher-{number}", words[2 * number + 1])
    blows: dict[str, Callable[[], Awaitable[None]]] = {
        "daemon": lambda: kill_daemon(place),
        "bridge": editor.kill,
        "sockets": relay.cut,
        "client": watcher.die,
    }
    for _ in range(chance.choice((1, 2, 3))):
        await calm(chance.randrange(20, 700))
        if chance.random() < 0.3:
            editor.cancel()
            tally["cancels"] += 1
        struck = chance.sample(sorted(blows), chance.choice((1, 1, 2, 3, 4)))
        for name in struck:
            tally[name] += 1
        tally["kills"] += 1
        await asyncio.gather(*(blows[name]() for name in struck))
        # Their programs are started again, with their cursors and keys.
        await asyncio.gather(editor.start(), watcher.start(editor.session))


async def calm(wait_ms: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_ms / 1000):
            await asyncio.get_running_loop().create_future()


async def kill_daemon(place: World) -> None:
    await asyncio.to_thread(place.end, signal.SIGKILL)


async def judge(
    place: World, session: str, editor: Editor, watcher: Watcher, tally: Counter[str]
) -> None:
    """Both views, the answers and the log say the same."""
    async with goclaw.Client(place.home, patient=True) as client:
        log: list[dict[str, Any]] = []
        head = 1
        while len(log) < head:
            page = await client.call(
                "_goclaw/session/events", {"sessionId": session, "fromEventId": len(log)}
            )
            log, head = log + page["events"], page["headEventId"]
    tally["events"] += head
    assert [event_id(params) for params in log] == list(range(1, head + 1))
    await asyncio.gather(editor.until(head), watcher.until(head))
    assert [event_id(params) for params in editor.seen] == list(range(1, head + 1))
    assert editor.seen == log
    assert watcher.seen == [Event.read(params) for params in log]
    ends = {
        params["_meta"]["goclaw"]["runId"]: params["event"]
        for params in log
        if params.get("event", {}).get("type") == "run.ended"
    }
    begun = [p for p in log if p.get("event", {}).get("type") == "run.accepted"]
    assert len(begun) == len(ends) == 2 * PROMPTS  # one run for each key
    told: dict[str, str] = {key: result.run_id for key, result in watcher.answers.items()}
    for key, result in watcher.answers.items():
        assert stop_reason(ends[result.run_id]) == result.stop_reason, key
    for key, answer in editor.answers.items():
        meta = answer["_meta"]["goclaw"]
        assert stop_reason(ends[meta["runId"]]) == answer["stopReason"], key
        told[key] = meta["runId"]
    assert sorted(told.values()) == sorted(ends)
    assert len(told) == 2 * PROMPTS


def stop_reason(end: dict[str, Any]) -> str:
    return "cancelled" if end["state"] == "CANCELED" else str(end.get("stopReason") or "end_turn")


def event_id(params: dict[str, Any]) -> int:
    number: int = params["_meta"]["goclaw"]["eventId"]
    return number


class Relay:
    """Between a client and the port: connections that can be cut in the middle of a word."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(onward, writer))
        self._writers -= {writer, back}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()

    async def cut(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()


class Editor:
    """A program on `goclaw acp` that knows goclaw: it keeps its cursor and the keys of its
    prompts, and goes on with both when its bridge has died."""

    def __init__(self, place: World, client_id: str) -> None:
        self._place, self._client_id = place, client_id
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._next_id = 0
        self._wanted: dict[str, str] = {}  # prompts without an answer, by key
        self._keys: dict[int, str] = {}
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._news = asyncio.Event()
        self.session = ""
        self.seen: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"{len(self.seen)} events, answers {self.answers}, open {self._wanted}"

    async def start(self) -> None:
        """Nothing while the bridge lives."""
        if self._process is not None:
            return
        self._process = await asyncio.create_subprocess_exec(
            *GOCLAW, "acp", env=self._place.environ, cwd=self._place.cwd, limit=1 << 24,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read(self._process))
        extension = {"version": 1, "notifications": True, "clientId": self._client_id}
        capabilities = {"_meta": {"goclaw": extension}}
        await self.call("initialize", protocolVersion=1, clientCapabilities=capabilities)
        if self.session:
            cursor = len(self.seen)
            await self.call(
                "_goclaw/session/subscribe", sessionId=self.session, fromEventId=cursor,
                role="controller",
            )  # fmt: skip
            for key, words in tuple(self._wanted.items()):
                self.prompt(key, words)

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        await process.wait()
        assert self._reading is not None
        await self._reading  # what it had written is read
        self._keys.clear()

    async def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            assert await self._process.wait() == 0
            assert self._reading is not None
            await self._reading

    async def new_session(self) -> str:
        found = await self.call("session/new", cwd=str(self._place.cwd), mcpServers=[])
        self.session = found["sessionId"]
        return self.session

    def prompt(self, key: str, words: str) -> None:
        self._wanted[key] = words
        blocks = [{"type": "text", "text": words}]
        meta = {"goclaw": {"idempotencyKey": key}}
        params = {"sessionId": self.session, "prompt": blocks, "_meta": meta}
        self._keys[self._request("session/prompt", params)] = key

    def cancel(self) -> None:
        self._say({"method": "session/cancel", "params": {"sessionId": self.session}})

    async def answered(self) -> None:
        while self._wanted:
            self._news.clear()
            await self._news.wait()

    async def until(self, head: int) -> None:
        while len(self.seen) < head:
            self._news.clear()
            await self._news.wait()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[self._request(method, params)] = future
        answer = await future
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _request(self, method: str, params: dict[str, Any]) -> int:
        self._next_id += 1
        self._say({"id": self._next_id, "method": method, "params": params})
        return self._next_id

    def _say(self, message: dict[str, Any]) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while (line := await process.stdout.readline()).endswith(b"\n"):
            message = json.loads(line)
            if "method" not in message:
                self._take(message)
            elif message["method"] == "session/request_permission":
                outcome = {"outcome": "selected", "optionId": allowing(message["params"])}
                self._say({"id": message["id"], "result": {"outcome": outcome}})
            elif "eventId" in message["params"].get("_meta", {}).get("goclaw", {}):
                self.seen.append(message["params"])
            self._news.set()

    def _take(self, message: dict[str, Any]) -> None:
        key = self._keys.pop(message["id"], None)
        if key is None:
            future = self._replies.pop(message["id"], None)
            if future is not None:
                future.set_result(message)
            return
        assert "result" in message, message
        assert key not in self.answers, f"{key} was answered twice"
        assert self._wanted.pop(key, None) is not None
        self.answers[key] = message["result"]


def allowing(params: dict[str, Any]) -> str:
    option: str = next(o["optionId"] for o in params["options"] if o["kind"] == "allow_once")
    return option


class Watcher:
    """A goclaw.Client over the relay; restarted, it goes on at its cursor with its keys."""

    def __init__(self, place: World, relay: Relay, client_id: str) -> None:
        self._place, self._relay, self._client_id = place, relay, client_id
        self._client: goclaw.Client | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted: dict[str, str] = {}
        self._news = asyncio.Event()
        self.session = ""
        self.seen: list[Event] = []
        self.answers: dict[str, PromptResult] = {}

    def __repr__(self) -> str:
        return f"{len(self.seen)} events, answers {self.answers}, open {self._wanted}"

    async def start(self, session: str) -> None:
        """Nothing while the client lives."""
        self.session = session
        if self._client is not None:
            return
        client = goclaw.Client(
            url=f"ws://127.0.0.1:{self._relay.port}/ws", token=self._place.home.token(),
            patient=True, client_id=self._client_id,
        )  # fmt: skip
        client.on_question = self._decide
        self._client = client
        await client.connect()
        self._begin(self._watch(client))
        for key, words in self._wanted.items():
            self._begin(self._run(client, key, words))

    def prompt(self, key: str, words: str) -> None:
        self._wanted[key] = words
        assert self._client is not None
        self._begin(self._run(self._client, key, words))

    async def die(self) -> None:
        """As its program would: nothing is said to the daemon."""
        await self._relay.cut()
        await self.stop()

    async def stop(self) -> None:
        client, self._client = self._client, None
        connection = None
        if client is not None:
            # No farewell, or what was asked for would be cancelled.
            connection, client._connection = client._connection, None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if client is not None:
            await client.close()
        if connection is not None:
            await connection.close()

    async def answered(self) -> None:
        while self._wanted:
            self._news.clear()
            await self._news.wait()

    async def until(self, head: int) -> None:
        while len(self.seen) < head:
            self._news.clear()
            await self._news.wait()

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, client: goclaw.Client) -> None:
        cursor = self.seen[-1].event_id if self.seen else 0
        async for event in client.subscribe(self.session, cursor):
            self.seen.append(event)
            self._news.set()

    async def _run(self, client: goclaw.Client, key: str, words: str) -> None:
        result = await client.prompt(words, session=self.session, key=key)
        assert key not in self.answers, f"{key} was answered twice"
        self.answers[key] = result
        del self._wanted[key]
        self._news.set()

    async def _decide(self, approval: Approval) -> str | None:
        return next(option for option, _, kind in approval.options if kind == "allow_once")
