"""A server that is wrong on purpose: goclaw's own answers, with one lie in what passes through.

Owns the faults that the kit must notice, each with the id of the checks that have to. Not in here:
the kit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

__all__ = ["FAULTS", "Liar", "lying"]

Message = dict[str, Any]


class Liar:
    """One connection's way through. ``up`` and ``down`` give what is passed on for a message."""

    held_bytes = 2 << 20
    """Half of what is held of a server whose client reads nothing; a line is shorter."""

    def __init__(self) -> None:
        self.methods: dict[Any, str] = {}
        self.params: dict[Any, Message] = {}
        self.held: list[Message] = []
        self.count = 0

    def up(self, message: Any) -> Iterable[Any]:
        """From the client."""
        if isinstance(message, dict) and "method" in message and "id" in message:
            self.methods[message["id"]] = message["method"]
            self.params[message["id"]] = message.get("params") or {}
        return self.asks(message)

    def down(self, message: Message) -> Iterable[Message]:
        """From the server."""
        return self.tells(message, self.methods.get(message.get("id"), ""))

    def asks(self, message: Any) -> Iterable[Any]:
        return [message]

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        return [message]


def is_event(message: Message) -> bool:
    return "eventId" in (message.get("params") or {}).get("_meta", {}).get("goclaw", {})


def event_of(message: Message) -> str:
    return str((message.get("params") or {}).get("event", {}).get("type"))


class Hole(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        self.count += is_event(message)
        return [] if is_event(message) and self.count == 4 else [message]


class Twice(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        return [message, message] if event_of(message) == "task.running" else [message]


class Shifted(Liar):
    """Every id is one too high."""

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if is_event(message):
            message["params"]["_meta"]["goclaw"]["eventId"] += 1
        return [message]


class AnswerFirst(Liar):
    """The last event of a turn comes behind the turn's answer."""

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if event_of(message) == "run.ended":
            self.held.append(message)
            return []
        if answers == "session/prompt":
            held, self.held = self.held, []
            return [message, *held]
        return [message]


class AnswerTwice(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        return [message, message] if answers == "session/prompt" else [message]


class UpdateBeforeNew(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if answers == "session/new":
            self.held.append(message)
            return []
        held, self.held = self.held, []
        return [message, *held]


class GapUntold(Liar):
    """A gap or a cursor beyond the log is taken for one at the beginning."""

    code = -31001

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if message.get("error", {}).get("code") == self.code:
            block = {
                "streamId": "s", "headEventId": 9, "oldestEventId": 1, "activeTurn": None,
                "queued": 0,
            }  # fmt: skip
            return [{"jsonrpc": "2.0", "id": message["id"], "result": block}]
        return [message]


class AheadUntold(GapUntold):
    code = -31002


class Chatty(Liar):
    """Every client is taken for one that opted in."""

    def asks(self, message: Any) -> Iterable[Any]:
        if isinstance(message, dict) and message.get("method") == "initialize":
            message["params"]["clientCapabilities"] = {
                "_meta": {"goclaw": {"version": 1, "notifications": True}}
            }
        return [message]


class Mute(Liar):
    """What is unknown gets no answer."""

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        return [] if message.get("error", {}).get("code") == -32601 else [message]


class BareErrors(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        message.get("error", {}).pop("data", None)
        return [message]


class Forgetful(Liar):
    """Submission keys get lost."""

    def asks(self, message: Any) -> Iterable[Any]:
        if isinstance(message, dict):
            meta = (message.get("params") or {}).get("_meta", {})
            meta.get("goclaw", {}).pop("idempotencyKey", None)
        return [message]


class Rewritten(Liar):
    """What is replayed is not what was live."""

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if answers == "_goclaw/session/subscribe":
            self.count = 1
        if self.count and event_of(message) == "run.accepted":
            message["params"]["event"]["note"] = "of the past"
        return [message]


class NotCancelled(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if message.get("result", {}).get("stopReason") == "cancelled":
            message["result"]["stopReason"] = "end_turn"
        return [message]


class DeafToCancel(Liar):
    def asks(self, message: Any) -> Iterable[Any]:
        cancel = isinstance(message, dict) and message.get("method") == "session/cancel"
        return [] if cancel else [message]


class LosersUntold(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        return [] if message.get("method") == "$/cancel_request" else [message]


class ObserversAsked(Liar):
    def asks(self, message: Any) -> Iterable[Any]:
        if isinstance(message, dict):
            (message.get("params") or {}).pop("role", None)
        return [message]


class NoBlock(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if answers == "_goclaw/session/subscribe":
            message.get("result", {}).pop("streamId", None)
        return [message]


class NeverLeaves(Liar):
    """Unsubscribe is answered and not done."""

    def asks(self, message: Any) -> Iterable[Any]:
        if isinstance(message, dict) and message.get("method") == "_goclaw/session/unsubscribe":
            message["method"] = "_goclaw/session/events"
        return [message]

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        return [{**message, "result": {}}] if answers.endswith("unsubscribe") else [message]


class AmnesicLoad(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        meta = (message.get("params") or {}).get("_meta", {})
        return [] if meta.get("goclaw", {}).get("history") else [message]


class TalkativeResume(Liar):
    """Resume is a load in disguise: history before the answer."""

    def asks(self, message: Any) -> Iterable[Any]:
        if isinstance(message, dict) and message.get("method") == "session/resume":
            message["method"] = "session/load"
            message["params"]["mcpServers"] = []
        return [message]


class AnyToken(Liar):
    """A stale lease is as good as a live one."""

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if message.get("error", {}).get("code") == -31009:
            return [{"jsonrpc": "2.0", "id": message["id"], "result": {"leaseMs": 1}}]
        return [message]


class StringIds(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if "method" not in message and type(message.get("id")) is int:
            message["id"] = str(message["id"])
        return [message]


class OldGreeting(Liar):
    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if answers == "initialize":
            capabilities = message.get("result", {}).get("agentCapabilities", {})
            capabilities.get("_meta", {}).get("goclaw", {}).pop("limits", None)
        return [message]


class Patient(Liar):
    """Who reads nothing is never closed: all of it is held for him."""

    held_bytes = 64 << 20


class CloseUntold(Liar):
    """Who was closed is not told so."""

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if answers == "_goclaw/session/subscribe":
            message.get("result", {}).pop("lastClose", None)
        return [message]


class WrongReason(Liar):
    """Whoever is closed is told that he was too slow for a moment."""

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        close = (message.get("result") or {}).get("lastClose")
        if close:
            close["reason"] = "goclaw:backpressure stall"
        return [message]


class FarewellLies(Liar):
    """The cursor of who was closed is further than what he was sent."""

    def asks(self, message: Any) -> Iterable[Any]:
        if isinstance(message, dict) and message.get("method") == "_goclaw/session/subscribe":
            params = message["params"]
            if params.get("fromEventId", 0) >= 1:
                params["fromEventId"] += 1
        return [message]


class LatestMisses(Liar):
    """A conflated reader is not sent the newest event."""

    def tells(self, message: Message, answers: str) -> Iterable[Message]:
        if answers == "_goclaw/session/subscribe":
            latest = self.params[message["id"]].get("mode") == "latest"
            self.count = message["result"]["headEventId"] if latest and "result" in message else 0
        own = is_event(message) and message["params"]["_meta"]["goclaw"]["eventId"] == self.count
        return [] if own else [message]


FAULTS: dict[str, tuple[type[Liar], str]] = {
    "a hole in the ids": (Hole, "W-3"),
    "an event twice": (Twice, "W-3"),
    "ids that begin at 2": (Shifted, "W-3"),
    "an answer before its events": (AnswerFirst, "W-3"),
    "an answer twice": (AnswerTwice, "W-3"),
    "an update before session/new": (UpdateBeforeNew, "W-3"),
    "a hole in a replay": (Hole, "W-4"),
    "a gap not told": (GapUntold, "W-4"),
    "a cursor ahead not told": (AheadUntold, "W-4"),
    "a cursor ahead not told, on a walk": (AheadUntold, "W-12"),
    "another replay than live": (Rewritten, "W-4"),
    "a subscription without its block": (NoBlock, "W-4"),
    "events after unsubscribe": (NeverLeaves, "W-4"),
    "a resume that replays first": (TalkativeResume, "W-4"),
    "a conflated reader that misses the newest": (LatestMisses, "W-4"),
    "goclaw's own to a vanilla client": (Chatty, "W-2"),
    "a greeting without limits": (OldGreeting, "W-2"),
    "no answer to the unknown": (Mute, "W-1"),
    "ids of another kind": (StringIds, "W-1"),
    "errors without data": (BareErrors, "W-5"),
    "a key that is forgotten": (Forgetful, "W-6"),
    "cancelled called ended": (NotCancelled, "W-7"),
    "a cancel that is not heard": (DeafToCancel, "W-7"),
    "losers that are not told": (LosersUntold, "W-8"),
    "an observer that is asked": (ObserversAsked, "W-8"),
    "a slow reader that is kept": (Patient, "W-9"),
    "a slow reader that is not told": (CloseUntold, "W-9"),
    "a slow reader that is told another reason": (WrongReason, "W-9"),
    "a slow reader that loses an event": (FarewellLies, "W-9"),
    "a load without the past": (AmnesicLoad, "W-10"),
    "a resume with the past": (TalkativeResume, "W-10"),
    "a stale token that counts": (AnyToken, "W-11"),
}


@contextlib.asynccontextmanager
async def lying(socket: Path, honest: Path, liar: Callable[[], Liar]) -> AsyncIterator[None]:
    """A server at ``socket`` that passes on what the one at ``honest`` says, with its lie."""
    ways: set[asyncio.Task[None]] = set()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ways.add(task)
        one = liar()
        theirs, ours = await asyncio.open_unix_connection(str(honest), limit=one.held_bytes)
        try:
            await asyncio.gather(_pass(reader, ours, one.up), _pass(theirs, writer, one.down))
        finally:
            ways.discard(task)

    server = await asyncio.start_unix_server(meet, str(socket), limit=2 * limits.FRAME_BYTES_MAX)
    try:
        yield
    finally:
        server.close()
        for task in tuple(ways):
            task.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[Any], Any]
) -> None:
    try:
        while line := await reader.readline():
            try:
                messages = change(json.loads(line))
            except ValueError:
                writer.write(line)  # nonsense is no lie
                continue
            for message in messages:
                writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
