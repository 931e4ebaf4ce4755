"""A gateway on a real engine and real sockets, with a runner that does what a prompt tells it.

Owns the clients and the script of the tests. Not in here: any test.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import uvloop
from websockets.asyncio.client import connect

from goclaw.brains import check_brain
from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.core.config import Config
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.home import Home
from goclaw.core.records import Call, Done, Failed, Succeeded
from goclaw.core.states import EffectClass
from goclaw.engine import Engine
from goclaw.engine.audit import Audit
from goclaw.engine.policies import Policies
from goclaw.gateway import Gateway, Services
from goclaw.gateway.access import BearerToken
from goclaw.policy import default
from goclaw.store import Secrets, open_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome, Session, Stream, Task

__all__ = ["LOOPS", "NEXT_TOKEN", "OPTED_IN", "TOKEN", "Client", "House", "opened", "text", "wire"]

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

TOKEN = "0123456789abcdef0123456789abcdef"
NEXT_TOKEN = TOKEN[::-1]  # after a rotation
DEADLINE_S = 20
OPTED_IN: dict[str, Any] = {"_meta": {"goclaw": {"version": 1, "notifications": True}}}


def text(words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": words}]


class ScriptRunner:
    """Runs the words of a prompt, one after the other.

    ``say:X`` ``chunks:N`` ``bulk:NxSIZE`` ``wait:NAME`` (a gate of the house) ``ask:TITLE``
    ``tool:NAME`` ``fail:CODE`` ``stop:REASON``; anything else is said. A task whose tool is one of
    LOSING makes a call for each of its ``ns`` and hears nothing of it; any other is an echo.
    """

    def __init__(self, gates: dict[str, asyncio.Event]) -> None:
        self.gates = gates
        self.ran: list[str] = []

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        payload = orjson.loads(attempt.task.payload)
        if payload.get("tool") in LOSING:
            calls = [losing(payload["tool"], n) for n in payload["arguments"]["ns"]]
            results = await attempt.perform(calls)
            return Succeeded(result=b"[" + b",".join(one.output for one in results) + b"]")
        if "tool" in payload:
            return Succeeded(result=orjson.dumps({"echo": payload["arguments"]}))
        words = " ".join(block.get("text", "") for block in payload["prompt"]).split()
        self.ran.append(" ".join(words))
        for index, word in enumerate(words):
            verb, _, argument = word.partition(":")
            if verb == "wait":
                await self.gates.setdefault(argument, asyncio.Event()).wait()
            elif verb == "ask":
                (result,) = await attempt.perform([asked(argument)])
                await speak(attempt, index, [[result.status]])
            elif verb == "tool":
                await attempt.perform([tool(argument)])
            elif verb == "fail":
                return Failed(argument, f"it failed with {argument}")
            elif verb == "stop":
                return Succeeded(argument)
            elif verb == "chunks":
                await speak(attempt, index, [[f"{n} "] for n in range(int(argument))])
            elif verb == "bulk":
                count, size = map(int, argument.split("x"))
                batches = [["x" * size] * min(100, count - at) for at in range(0, count, 100)]
                await speak(attempt, index, batches)
            else:
                await speak(attempt, index, [[argument or verb]])
        return Succeeded()


async def speak(attempt: Attempt, index: int, batches: list[list[str]]) -> None:
    """One answer of the brain: each batch is one commit, each text one chunk."""

    async def answer(stream: Stream) -> dict[str, Any]:
        for texts in batches:
            await stream.send([chunk(stream.message_id, words) for words in texts])
        return {}

    await attempt.think("script", {"index": index}, answer)


def chunk(message: str, words: str) -> dict[str, Any]:
    return {
        "sessionUpdate": "agent_message_chunk",
        "messageId": message,
        "content": {"type": "text", "text": words},
    }


def tool(name: str, *decisions: Decision) -> Call:
    async def dispatch(_key: str, _cancelled: asyncio.Event) -> Done:
        return Done(b'{"done":true}')

    def announce(call_id: str, status: str) -> dict[str, Any]:
        return {
            "sessionUpdate": "tool_call", "toolCallId": call_id, "title": name,
            "kind": "execute", "status": status, "rawInput": {"name": name},
        }  # fmt: skip

    def report(call_id: str, result: Any) -> dict[str, Any]:
        return {
            "sessionUpdate": "tool_call_update", "toolCallId": call_id,
            "status": "completed" if result.status == "completed" else "failed",
        }  # fmt: skip

    return Call(
        "tool", name, orjson.dumps({"name": name}), EffectClass.IRREVERSIBLE, dispatch,
        decisions=decisions, announce=announce, report=report, title=name,
    )  # fmt: skip


LOSING = {"losing": EffectClass.IRREVERSIBLE, "doubting": EffectClass.PROBEABLE}


def losing(name: str, n: int, probe: Callable[[str], Any] | None = None) -> Call:
    async def dispatch(_key: str, _cancelled: asyncio.Event) -> Done:
        raise ConnectionResetError("no answer")

    return Call("tool", name, orjson.dumps({"n": n}), LOSING[name], dispatch, probe=probe)


def asked(title: str) -> Call:
    decision = Decision(
        "decision_x", 0, Subject(SubjectKind.RUN, "script", Origin.INTERNAL), "tool.call",
        title, Context(), Verdict.ASK, "rule-x", "a person decides", "p1", (),
    )  # fmt: skip
    return tool(title, decision)


@dataclasses.dataclass
class House:
    """What a test holds in its hands."""

    home: Path
    services: Services
    engine: Engine
    gateway: Gateway
    runner: ScriptRunner
    socket: Path
    port: int
    stops: list[bool]
    sids: list[int]
    clients: list[Client]
    probed: list[Done | bool | None]
    """What the tools of LOSING answer when they are asked, in turn."""

    @property
    def gates(self) -> dict[str, asyncio.Event]:
        return self.runner.gates

    def open_gate(self, name: str) -> None:
        self.gates.setdefault(name, asyncio.Event()).set()

    async def unix(self, **capabilities: Any) -> Client:
        """A client on the Unix socket, initialised."""
        client = Client(await self.unix_link())
        self.clients.append(client)
        await client.initialize(**capabilities)
        return client

    async def ws(self, path: str = "/ws", **capabilities: Any) -> Client:
        """A client on the WebSocket, initialised."""
        client = Client(await self.ws_link(path))
        self.clients.append(client)
        await client.initialize(**capabilities)
        return client

    async def unix_link(self) -> Lines:
        reader, writer = await asyncio.open_unix_connection(
            str(self.socket), limit=limits.FRAME_BYTES_MAX
        )
        return Lines(reader, writer)

    async def ws_link(self, path: str = "/ws", **options: Any) -> Frames:
        socket = await connect(
            f"ws://127.0.0.1:{self.port}{path}",
            additional_headers={"Authorization": f"Bearer {TOKEN}"},
            max_size=None,
            **options,
        )
        return Frames(socket)


class Lines:
    """Messages as lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data + b"\n")
        await self.writer.drain()

    async def receive(self) -> bytes | None:
        line = await self.reader.readline()
        return line if line.endswith(b"\n") else None  # an aborted connection may end anywhere

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Frames:
    """Messages as WebSocket frames."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    async def send(self, data: bytes) -> None:
        await self.socket.send(data, text=True)

    async def receive(self) -> bytes | None:
        from websockets.exceptions import ConnectionClosed

        try:
            data: bytes = await self.socket.recv(decode=False)
        except ConnectionClosed:
            return None
        return data

    async def close(self) -> None:
        await self.socket.close()


class Client:
    """A small JSON-RPC peer that keeps everything it received, in order."""

    def __init__(self, link: Any) -> None:
        self.link = link
        self.messages: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.closed = False
        self._next_id = 0
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.read()

    def read(self) -> None:
        self._reading = asyncio.ensure_future(self._read())

    async def stop_reading(self) -> None:
        """As a stuck program would, on lines: the socket's buffers fill up."""
        assert self._reading is not None
        self.link.writer.transport.pause_reading()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        while (data := await self.link.receive()) is not None:
            self.raw.append(data)
            self.messages.append(orjson.loads(data))
            self._news.set()
        self.closed = True
        self._news.set()

    async def initialize(self, **capabilities: Any) -> dict[str, Any]:
        return await self.call(
            "initialize", {"protocolVersion": 1, "clientCapabilities": capabilities}
        )

    async def send(self, message: dict[str, Any]) -> None:
        await self.link.send(orjson.dumps({"jsonrpc": "2.0", **message}))

    async def request(self, method: str, params: object = None) -> int:
        """Send without waiting; the id."""
        self._next_id += 1
        await self.send({"id": self._next_id, "method": method, "params": params})
        return self._next_id

    async def answer(self, request_id: object) -> dict[str, Any]:
        """The whole answer to a request."""
        return await self.wait_for(
            lambda m: m.get("id") == request_id and ("result" in m or "error" in m)
        )

    async def call(self, method: str, params: object = None) -> dict[str, Any]:
        """The result; AssertionError with the error."""
        answer = await self.answer(await self.request(method, params))
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def refused(self, method: str, params: object = None) -> dict[str, Any]:
        """The error."""
        answer = await self.answer(await self.request(method, params))
        assert "error" in answer, answer
        error: dict[str, Any] = answer["error"]
        return error

    async def notify(self, method: str, params: object = None) -> None:
        await self.send({"method": method, "params": params})

    async def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message that fits, past or future."""
        seen = 0
        async with asyncio.timeout(DEADLINE_S):
            while True:
                while seen < len(self.messages):
                    if wanted(self.messages[seen]):
                        return self.messages[seen]
                    seen += 1
                assert not self.closed, "the connection was closed"
                self._news.clear()
                await self._news.wait()

    async def event(self, kind: str) -> dict[str, Any]:
        """The first event of goclaw's own of that type."""
        message = await self.wait_for(
            lambda m: m.get("params", {}).get("event", {}).get("type") == kind
        )
        event: dict[str, Any] = message["params"]["event"]
        return event

    async def until_closed(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not self.closed:
                self._news.clear()
                await self._news.wait()

    async def new_session(self, **params: Any) -> str:
        result = await self.call("session/new", {"cwd": "/tmp", "mcpServers": [], **params})
        session_id: str = result["sessionId"]
        return session_id

    async def prompt(self, session_id: str, words: str, **meta: Any) -> int:
        """Send a prompt; the request's id."""
        params: dict[str, Any] = {"sessionId": session_id, "prompt": text(words)}
        if meta:
            params["_meta"] = {"goclaw": meta}
        return await self.request("session/prompt", params)

    async def turn(self, session_id: str, words: str, **meta: Any) -> dict[str, Any]:
        """A whole turn's result."""
        answer = await self.answer(await self.prompt(session_id, words, **meta))
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def updates(self, session_id: str | None = None) -> list[dict[str, Any]]:
        """The params of all session/update so far."""
        return [
            m["params"] for m in self.messages
            if m.get("method") == "session/update"
            and session_id in (None, m["params"]["sessionId"])
        ]  # fmt: skip

    def said(self) -> str:
        """All text of the agent so far."""
        return "".join(
            params["update"]["content"]["text"] for params in self.updates()
            if params["update"]["sessionUpdate"] == "agent_message_chunk"
        )  # fmt: skip

    def event_ids(self, session_id: str) -> list[int]:
        """Event ids of the session in the order they came, over both methods."""
        found = []
        for message in self.messages:
            params = message.get("params")
            if isinstance(params, dict) and params.get("sessionId") == session_id:
                event_id = params.get("_meta", {}).get("goclaw", {}).get("eventId")
                if event_id is not None:
                    found.append(event_id)
        return found

    async def close(self) -> None:
        if not self.closed or isinstance(self.link, Lines):
            await self.link.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


@contextlib.asynccontextmanager
async def opened(
    home: Path,
    *,
    config: Config | None = None,
    policy: str = default.TEXT,
    lanes: bool = True,
    commands: list[dict[str, Any]] | None = None,
) -> AsyncIterator[House]:
    """A running house on ``home``, closed in good order."""
    config = config or Config()
    clock = SystemClock()
    database = open_database(home)
    (home / "policy.toml").write_text(policy)
    policies = Policies(clock, database, Home(home))
    runner = ScriptRunner({})
    probed: list[Done | bool | None] = []

    async def probe(_key: str) -> Done | bool | None:
        return probed.pop(0)

    async def call_of(task: Task, session: Session, tool: str, arguments: dict[str, Any]) -> Call:
        return losing(tool, arguments["n"], probe)

    engine = Engine(
        database, clock, config, runner, daemon_boot=clock.new_id("boot"),
        policy_version=lambda: policies.version, call_of=call_of,
    )  # fmt: skip
    await engine.start()
    system_sid = (await engine.intake.system_session()).sid
    await policies.load(sid=system_sid)
    audit = Audit(database, clock, home / "audit.jsonl")
    await audit.start()

    def known(_session: Session) -> list[dict[str, Any]]:
        return commands or [{"name": "word-count", "description": "Counts.", "input": None}]

    async def status() -> dict[str, Any]:
        return {"ready": True, "connections": gateway.connections}

    async def replayed(run_id: str) -> dict[str, Any]:
        return {"runId": run_id, "verdict": "identical"}

    async def backup() -> dict[str, Any]:
        return {"name": "backup-1"}

    async def page(_behind: int) -> bytes:
        return b"# no figures\n"

    stops: list[bool] = []
    sids: list[int] = []
    services = Services(
        engine=engine, config=config, decide=policies.decide, check_brain=check_brain,
        daemon_id="daemon_1", boot_id="boot_1",
        version="0.0", commands=known, status=status, policies=policies, audit=audit,
        system_sid=system_sid, secrets=Secrets(database, clock),
        skills=lambda: [{"name": "word-count"}], request_stop=lambda: stops.append(True),
        on_session=sids.append, token=BearerToken(TOKEN, lambda: NEXT_TOKEN),
        replay=replayed, backup=backup, metrics=page, timeline=replayed, is_ready=lambda: True,
    )  # fmt: skip
    gateway = Gateway(services)
    socket = home / "s.sock"
    await gateway.serve_unix(socket)
    port = await gateway.serve_ws("127.0.0.1", 0)
    if lanes:
        engine.open_lanes()
    house = House(home, services, engine, gateway, runner, socket, port, stops, sids, [], probed)
    try:
        yield house
    finally:
        for client in house.clients:
            await client.close()
        await gateway.close()
        await engine.stop(0, asyncio.Event())
        database.close()


def wire(
    *, loops: Iterable[str] = LOOPS, **options: Any
) -> Callable[[Callable[[House], Any]], Callable[..., None]]:
    """A test of one house, on both event loops; ``options`` as ``opened``."""

    def decorated(test: Callable[[House], Any]) -> Callable[..., None]:
        @pytest.mark.parametrize("loop", [*loops])
        def run(home: Path, loop: str) -> None:
            async def whole() -> None:
                async with opened(home, **options) as house:
                    await test(house)

            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(whole())

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        run.pytestmark = [*getattr(test, "pytestmark", []), *run.pytestmark]  # type: ignore[attr-defined]
        return run

    return decorated
