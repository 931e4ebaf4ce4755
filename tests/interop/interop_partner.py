"""The tests' side of an SDK client: orders out, events in, one process for each SDK.

Owns the orders and events and the waiting for them. Not in here: what goclaw must answer
(``test_interop_*.py``). Orders: open, request, cancelRequest, notify, answer, end. Events: note
(a notification), ask (a request to the client), unasked, reply, exit, closed, complaint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interop_recording as recording

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
EXAMPLE = "acp-sdk-1/dist/examples/agent.js"
"""The TypeScript SDK's own example agent, from a release that still carries it."""
WAIT_S = 20.0  # for what takes milliseconds; a test that gets there has failed

Event = dict[str, Any]


class RpcError(Exception):
    """The agent's error, as the SDK handed it to its caller."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code: int | None = error["code"]
        self.message: str = error["message"]
        self.data: Any = error["data"]


class Partner:
    """An SDK's process; serves any number of connections, one after another or at once."""

    def __init__(self, sdk: str, node_modules: Path) -> None:
        self.sdk = sdk
        command = {
            "typescript": ["node", str(HERE / "typescript_partner.mjs")],
            "python": [sys.executable, str(HERE / "python_partner.py")],
        }[sdk]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GOCLAW_NODE_MODULES": str(node_modules)},
            cwd=HERE.parents[1],
        )
        self.changed = threading.Condition()
        self.events: list[Event] = []
        self._connections = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait(lambda: any(event["event"] == "ready" for event in self.events))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self.changed:
                self.events.append(json.loads(line))
                self.changed.notify_all()
        with self.changed:
            self.events.append({"event": "gone"})
            self.changed.notify_all()

    def order(self, do: str, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        self._process.stdin.flush()

    def wait(self, ready: Callable[[], Any]) -> Any:
        """The first true answer of ``ready``, asked again at every event."""
        with self.changed:
            done = self.changed.wait_for(lambda: ready() or self._gone(), WAIT_S)
            found = ready()
        if not found:
            why = "did not come" if not done else f"cannot come: the {self.sdk} client is gone"
            raise AssertionError(f"what the test waits for {why}; last: {self.events[-5:]}")
        return found

    def _gone(self) -> bool:
        return bool(self.events) and self.events[-1]["event"] == "gone"

    def open(self, tape: Path, *, command: list[str], env: dict[str, str]) -> Connection:
        """A connection over stdio to ``command``, taped."""
        tee = [sys.executable, "-I", "-S", str(HERE / "interop_recording.py"), str(tape)]
        return self._open(tape, None, command=[*tee, *command], env=env)

    def open_ws(self, tape: Path, *, host: str, port: int, path: str, token: str) -> Connection:
        """A WebSocket connection with a bearer header, taped."""
        tee = recording.TcpTee((host, port), tape)
        return self._open(tape, tee, url=f"ws://127.0.0.1:{tee.port}{path}", token=token)

    def _open(self, tape: Path, tee: recording.TcpTee | None, **order: Any) -> Connection:
        self._connections += 1
        name = f"{self.sdk}-{self._connections}"
        self.order("open", conn=name, **order)
        return Connection(self, name, tape, tee)

    def complaints(self) -> list[str]:
        with self.changed:
            return [event["text"] for event in self.events if event["event"] == "complaint"]

    def forgive(self, number: int) -> None:
        """Forget the complaints after the first ``number``: a test wanted them."""
        with self.changed:
            complaints = [e for e in self.events if e["event"] == "complaint"]
            for event in complaints[number:]:
                self.events.remove(event)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        self._process.stdout.close()


class Connection:
    """One ACP connection as the SDK's user sees it."""

    def __init__(
        self, partner: Partner, name: str, tape: Path, tee: recording.TcpTee | None
    ) -> None:
        self.partner, self.name, self.tape, self._tee = partner, name, tape, tee
        self._requests = 0

    @property
    def events(self) -> list[Event]:
        """All events so far, in the order in which the SDK delivered them."""
        return [event for event in list(self.partner.events) if event.get("conn") == self.name]

    def wait(self, ready: Callable[[list[Event]], Any]) -> Any:
        """The first true answer of ``ready`` to the connection's events."""
        return self.partner.wait(lambda: ready(self.events))

    def send(self, method: str, **params: Any) -> int:
        """Send a request; answers its number, for ``reply`` and ``cancel_request``."""
        self._requests += 1
        self.partner.order(
            "request", conn=self.name, n=self._requests, method=method, params=params
        )
        return self._requests

    def reply(self, n: int) -> Any:
        """The result of request ``n``; RpcError for an error."""
        event = self.wait(
            lambda events: next((e for e in events if e["event"] == "reply" and e["n"] == n), None)
        )
        if "error" in event:
            raise RpcError(event["error"])
        return event["result"]

    def call(self, method: str, **params: Any) -> Any:
        """Send a request and wait for its result; RpcError for an error."""
        return self.reply(self.send(method, **params))

    def cancel_request(self, n: int) -> None:
        self.partner.order("cancelRequest", conn=self.name, n=n)

    def notify(self, method: str, **params: Any) -> None:
        self.partner.order("notify", conn=self.name, method=method, params=params)

    def ask(self, number: int) -> Event:
        """The ``number``-th request of the agent to this client, counted from 1."""
        found: Event = self.wait(
            lambda events: next(
                (e for e in events if e["event"] == "ask" and e["ask"] == number), None
            )
        )
        return found

    def answer(self, number: int, result: dict[str, Any]) -> None:
        self.partner.order("answer", conn=self.name, ask=number, result=result)

    def notes(self, session: str | None = None, method: str = "session/update") -> list[Event]:
        """Params of the notifications of ``method`` so far, of one session or of all."""
        return [
            event["params"]
            for event in self.events
            if event["event"] == "note"
            and event["method"] == method
            and session in (None, event["params"].get("sessionId"))
        ]

    def end(self) -> list[recording.Sent]:
        """Close in good order; all messages of the connection."""
        self.close()
        chunks = recording.read_tape(self.tape)
        return recording.lines(chunks) if self._tee is None else recording.frames(chunks)

    def close(self) -> None:
        """Close, also what a kill has cut inside a message."""
        self.partner.order("end", conn=self.name)
        last = "closed" if self._tee or self.partner.sdk == "python" else "exit"
        self.wait(lambda events: any(e["event"] == last for e in events))
        if self._tee is not None:
            self._tee.close()

    @property
    def exit_code(self) -> int | None:
        return next((e["code"] for e in self.events if e["event"] == "exit"), None)
