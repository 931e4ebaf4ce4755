"""A child agent: one process that speaks ACP on its stdin and stdout, with goclaw as its client.

Owns the process, its handshake, its line of messages. Not in here: what a turn means to the journal
and who decides about what the agent wants (acp).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import goclaw
from goclaw.core import limits
from goclaw.core.errors import BrainFailed
from goclaw.core.records import Retryable
from goclaw.protocol.jsonrpc import Answer, Call, Peer, Send, encode_notification, method_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from goclaw.core.capability import Capability
    from goclaw.core.errors import GoclawError
    from goclaw.core.processes import Children
    from goclaw.protocol.jsonrpc import Incoming
    from goclaw.protocol.messages import Response

__all__ = ["Agent", "AgentGone"]

_ABLE: Final = {"fs": {"readTextFile": True, "writeTextFile": True}, "terminal": False}
_AUTH_REQUIRED: Final = -32000


class AgentGone(Exception):
    """The process ended, or says nothing that can be understood: what it did is unknown."""


class Agent:
    """One process. ``turn``: the task whose prompt it is answering, None between turns."""

    def __init__(self, children: Children, process: asyncio.subprocess.Process) -> None:
        self._children, self._process = children, process
        self._peer = Peer()
        self._garbage = self._bytes = 0
        self.inbox: deque[Incoming] = deque()
        """What came and is not settled yet."""
        self.session_id = ""
        self.can_load = self.can_resume = False
        self.turn: str | None = None
        self.prompt_id: int | None = None
        self.said: list[str] = []
        """What it said in this turn."""
        self.last_used_s = 0.0

    @classmethod
    async def start(
        cls,
        children: Children,
        right: Capability,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
    ) -> Agent:
        """Begin the program that was decided about and shake hands. BrainFailed when it cannot
        begin or does not speak ACP, Retryable when it ended or hung on the way."""
        program = right.use("exec.run")
        pipe = asyncio.subprocess.PIPE
        try:
            process = await children.open(
                [program, *arguments], env=env, cwd=cwd, stdin=pipe, stdout=pipe,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise BrainFailed(
                f"The agent {program} cannot be started: {error.strerror or error}.",
                hint="Check the command.",
            ) from None
        agent = cls(children, process)
        try:
            client = {"name": "goclaw", "version": goclaw.__version__}
            greeting = {"protocolVersion": 1, "clientCapabilities": _ABLE, "clientInfo": client}
            found = await agent.call("initialize", greeting)
        except BaseException:
            await agent.end()
            raise
        able = found.get("agentCapabilities") or {}
        agent.can_load = able.get("loadSession") is True
        agent.can_resume = (able.get("sessionCapabilities") or {}).get("resume") is not None
        return agent

    @property
    def is_alive(self) -> bool:
        """The process runs, as far as is known."""
        return self._process.returncode is None

    async def open_session(self, cwd: str, roots: Sequence[str], known: str | None) -> bool:
        """Take up the session ``known``, else begin one; True when it was taken up."""
        params = {"cwd": cwd, "mcpServers": []}
        if len(roots) > 1:
            params["additionalDirectories"] = list(roots[1:])
        if known is not None and (self.can_resume or self.can_load):
            method = "session/resume" if self.can_resume else "session/load"
            with contextlib.suppress(BrainFailed):
                await self.call(method, {**params, "sessionId": known})
                self.session_id = known
                return True
        found = await self.call("session/new", params)
        self.session_id = str(found.get("sessionId", ""))
        return False

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """A request between turns and its result. What else comes is refused or dropped: replayed
        updates are in our log already."""
        try:
            async with asyncio.timeout(limits.AGENT_START_MS_MAX / 1000):
                request_id, data = self._peer.request(method, params)
                await self.send(data)
                while True:
                    for incoming in await self._receive():
                        if isinstance(incoming, Answer) and incoming.request_id == request_id:
                            return _result(method, incoming.response)
                        if isinstance(incoming, Call):
                            await self.refuse(incoming, method_unknown(incoming.request.method))
        except TimeoutError:
            raise Retryable("agent_silent", f"The agent does not answer {method}.") from None
        except AgentGone as error:
            raise Retryable("agent_gone", f"The agent was gone at {method}: {error}") from None

    async def begin(self, turn: str, prompt: list[dict[str, Any]]) -> None:
        """Send the prompt of a turn."""
        params = {"sessionId": self.session_id, "prompt": prompt}
        self.prompt_id, data = self._peer.request("session/prompt", params)
        self.turn, self._bytes, self.said = turn, 0, []
        await self.send(data)

    async def wait(self) -> None:
        """Until something stands in the inbox. AgentGone."""
        while not self.inbox:
            self.inbox.extend(await self._receive())

    def finish(self) -> None:
        """The turn is over; what the agent still says belongs to the next one."""
        self.turn = self.prompt_id = None

    async def _receive(self) -> list[Incoming]:
        line = await self._line()
        self._bytes += len(line)
        if self._bytes > limits.AGENT_TURN_BYTES_MAX:
            raise AgentGone(f"it sent over {limits.AGENT_TURN_BYTES_MAX} bytes in one turn.")
        found = self._peer.receive(line) if line.strip() else []
        if any(isinstance(one, Send) for one in found):
            self._garbage += 1
            if self._garbage > limits.AGENT_GARBAGE_MAX:
                raise AgentGone("it writes what is no ACP.")
        return [one for one in found if not isinstance(one, Send)]

    async def _line(self) -> bytes:
        """The next one. What it started may outlive it with its output open: its own end counts."""
        reading = asyncio.ensure_future(self._stdout.readline())
        try:
            while not reading.done():
                ended = not self.is_alive
                await asyncio.wait((reading,), timeout=limits.AGENT_LOOK_MS / 1000)
                if ended:
                    break
            line = reading.result() if reading.done() else b""
        except ValueError:
            raise AgentGone(f"it sent a line of over {limits.FRAME_BYTES_MAX} bytes.") from None
        finally:
            reading.cancel()
        if not line:
            raise AgentGone("its process ended.")
        return line

    async def answer(self, call: Call, result: object) -> None:
        """The answer to one of its requests."""
        await self.send(self._peer.result(call, result) or b"")

    async def refuse(self, call: Call, error: GoclawError) -> None:
        """The same, as an error."""
        await self.send(self._peer.error(call, error) or b"")

    async def send(self, data: bytes) -> None:
        """One message. AgentGone."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(data + b"\n")
            await stdin.drain()
        except (OSError, RuntimeError):
            raise AgentGone("its process takes nothing more.") from None

    async def cancel(self) -> bool:
        """Cancel its turn; True when it ended it in time, and can be asked again."""
        note = encode_notification("session/cancel", {"sessionId": self.session_id})
        try:
            async with asyncio.timeout(limits.AGENT_CANCEL_MS_MAX / 1000):
                await self.send(note)
                while self.prompt_id is not None:
                    await self.wait()
                    incoming = self.inbox.popleft()
                    if isinstance(incoming, Answer) and incoming.request_id == self.prompt_id:
                        self.finish()
                    elif isinstance(incoming, Call):
                        await self.answer(incoming, {"outcome": {"outcome": "cancelled"}})
        except (TimeoutError, AgentGone):
            return False
        return True

    async def end(self) -> None:
        """Kill the process and its group. Twice is fine."""
        self._children.end(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        # its pipes may have other owners by now; the stream API has no close of its own
        self._process._transport.close()  # type: ignore[attr-defined]
        await self._process.wait()

    @property
    def _stdout(self) -> asyncio.StreamReader:
        stdout = self._process.stdout
        assert stdout is not None
        return stdout


def _result(method: str, response: Response) -> dict[str, Any]:
    if response.error is None:
        return response.result if isinstance(response.result, dict) else {}
    message = f"The agent refuses {method}: {response.error.message[: limits.SAID_CHARS_MAX]}."
    if response.error.code == _AUTH_REQUIRED:
        raise BrainFailed(message, hint="Log in with the agent's own command first.")
    raise BrainFailed(message)
