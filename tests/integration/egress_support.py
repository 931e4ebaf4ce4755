"""A canary that counts every TCP connection, a server that redirects, and a way to the gate.

Owns real listeners and the policy of the egress tests. Not in here: what is asked of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson

from goclaw.core.decisions import Context, Decision, Subject, Verdict
from goclaw.core.records import Done, Session, Task
from goclaw.net.http import Client
from goclaw.policy import document, egress, pdp
from goclaw.tools.gate import Gate
from goclaw.tools.http import HttpTool
from goclaw.tools.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from goclaw.net.resolver import Resolve
    from goclaw.policy.egress import Address

# Everything may be reached, as far as rules say: what is refused is refused by the address.
OPEN_POLICY = """
version = 1
[[rule]]
id = "tools"
effect = "allow"
actions = ["tool.call"]
[[rule]]
id = "everywhere"
effect = "allow"
actions = ["net.connect"]
[[rule]]
id = "the-control"
effect = "allow"
actions = ["net.connect"]
resources = [{ cidr = "127.0.0.2/32" }]
"""

TASK = Task(
    1, 1, "session_1", "task_1", "run_1", "prompt", 1, 5, "tell_brain", "", b"", None, None,
    "unix", "v1",
)  # fmt: skip
SESSION = Session(
    1, "session_1", "stream_1", "/tmp", ("/tmp",), "direct", True, None, 0, 1, 0, 0, False, False
)


class Canary:
    """Listens on every address of the machine; ``contacts`` counts accepted connections."""

    def __init__(self) -> None:
        self.contacts = 0
        self.port = 0

    def _met(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.contacts += 1
        writer.transport.abort()

    async def settled(self) -> int:
        """The count, once everything that was under way has been accepted."""
        before = self.contacts
        _reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.suppress(OSError):
            await _reader.read()
        writer.close()
        assert self.contacts > before, "the canary is deaf"
        self.contacts -= 1
        return self.contacts


@contextlib.asynccontextmanager
async def canary() -> AsyncIterator[Canary]:
    found = Canary()
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    server = await asyncio.start_server(found._met, sock=listener)
    found.port = listener.getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        await server.wait_closed()


class Web:
    """A small server at 127.0.0.2: it says what it was asked, or redirects to ``?to=``."""

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            size = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    size = int(line.split(b":")[1])
            self.bodies.append(await reader.readexactly(size))
            await self.answer(head.split(b" ")[1].decode("latin-1"), writer)
            await writer.drain()
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if not writer.is_closing():
                writer.transport.abort()

    async def answer(self, target: str, writer: asyncio.StreamWriter) -> None:
        if "?to=" in target:
            where = unquote(target.split("?to=")[1], "latin-1").encode("latin-1", "replace")
            writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + where)
            writer.write(b"\r\n\r\n")
            return
        if target.startswith("/hang"):
            await asyncio.Event().wait()
        body = b"a" * int(target.split("=")[1]) if target.startswith("/size=") else b"hello"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ")
        writer.write(str(len(body)).encode() + b"\r\n\r\n" + body)

    @property
    def url(self) -> str:
        return f"http://127.0.0.2:{self.port}"


@contextlib.asynccontextmanager
async def web(kind: type[Web] = Web) -> AsyncIterator[Web]:
    found = kind()
    server = await asyncio.start_server(found._serve, "127.0.0.2", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


def lying(*answers: str) -> Resolve:
    """A resolver that answers each question with the next of its addresses, the last for ever."""
    left = list(answers)

    async def resolve(name: str) -> tuple[Address, ...]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        return tuple(ipaddress.ip_address(one) for one in answer.split())

    return resolve


class Way:
    """The gate with the http tool, under a policy."""

    def __init__(
        self, resolve: Resolve, policy: str = OPEN_POLICY, secrets: Any = None, **options: Any
    ) -> None:
        self.policy = document.load(policy)
        source = HttpTool(Client(resolve=resolve, **options))
        self.gate = Gate(Registry([source]), self._decide, names=self._names, secrets=secrets)
        self.inside: Sequence[Decision] = ()

    def _decide(
        self,
        subject: Subject,
        action: str,
        resource: str,
        context: Context,
        *,
        version: str | None = None,
    ) -> Decision:
        return pdp.decide(
            self.policy, subject=subject, action=action, resource=resource, context=context,
            decision_id="d", at_ms=0,
        )  # fmt: skip

    def _names(self, version: str, subject: Subject, context: Context, place: Address) -> bool:
        return egress.names(self.policy, place, subject=subject, context=context, at_ms=0)

    async def ask(self, arguments: dict[str, Any]) -> tuple[str, Any]:
        """What becomes of a call: denied, asked, failed or completed, and its output."""
        call = await self.gate.call(TASK, SESSION, "direct", "http", arguments)
        decision = call.decision
        if decision is not None and decision.effect is not Verdict.ALLOW:
            return ("denied" if decision.effect is Verdict.DENY else "asked"), decision.reason
        done: Done = await call.dispatch("key_1", asyncio.Event())
        self.inside = tuple(call.inside)
        return "failed" if done.failed else "completed", orjson.loads(done.output)
