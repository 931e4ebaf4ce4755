"""A session's past as a client wants to see it: whole messages and tools in their final state.

Owns the projection of the event log for session/load (PROTOCOL 2.7). Not in here: live events,
which are the very bytes of the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.protocol.jsonrpc import encode_notification
from goclaw.protocol.messages import EventKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from goclaw.core.records import Session
    from goclaw.engine import Engine
    from goclaw.protocol.messages import EventRow

__all__ = ["History", "Projection"]

_CHUNKS: Final = ("user_message_chunk", "agent_message_chunk", "agent_thought_chunk")
_LATEST: Final = (
    "plan", "usage_update", "session_info_update", "current_mode_update", "config_option_update",
    "available_commands_update",
)  # fmt: skip
_CUT: Final = " (interrupted)"
_FINAL: Final = ("completed", "failed")
_ENDS: Final = ("task.succeeded", "task.failed", "task.canceled", "task.dead_letter")


@dataclass(eq=False, slots=True)
class _Item:
    """One message, tool call or state that is still growing."""

    key: tuple[str, ...]
    run_id: str | None
    task_id: str | None
    update: dict[str, Any]
    texts: list[str] = field(default_factory=list)
    size: int = 0
    done: bool = False
    interrupted: bool = False
    """Its attempt ended in the middle of it; what followed is another message."""

    def finished(self) -> dict[str, Any]:
        """The update to send."""
        if not self.texts:
            return self.update
        texts = [*self.texts, _CUT] if self.interrupted else self.texts
        content = {**self.update["content"], "text": "".join(texts)}
        return {**self.update, "content": content}


class Projection:
    """Events in, updates out, in the order in which their messages and tools began.

    An update leaves as soon as nothing can change it, or when ``limits.HISTORY_BYTES_MAX`` are
    held: then the rest of a message is a second chunk of it, the rest of a tool call an update.
    """

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._by_key: dict[tuple[str, ...], _Item] = {}
        self._announced: set[str] = set()  # tools that left before their end
        self._held_bytes = 0

    def feed(self, row: EventRow) -> Iterator[dict[str, Any]]:
        """Take one stored event; gives the params of what is ready."""
        _, kind, name, _, run_id, task_id, _, _, payload = row
        if kind != EventKind.GOCLAW:
            self._take(orjson.loads(payload), run_id, task_id).size += len(payload)
            self._held_bytes += len(payload)
        elif name in _ENDS:
            self._settle(task_id)
        elif name == "message.interrupted":
            self._cut(str(orjson.loads(payload).get("messageId")))
        yield from self._ready()

    def _settle(self, task_id: str | None) -> None:
        """The task is over: its messages are whole, and a tool that never ended was stopped."""
        for item in self._items:
            if item.task_id == task_id and not item.done:
                item.done = True
                if item.key[0] == "tool":
                    item.update["status"] = "failed"

    def _cut(self, message_id: str) -> None:
        """A message that was begun goes no further; one of which nothing was said is none."""
        for item in self._items:
            if item.texts and item.key[1] == message_id and not item.done:
                item.done = item.interrupted = True

    def finish(self) -> Iterator[dict[str, Any]]:
        """What is left: the unfinished turn's part so far."""
        for item in self._items:
            yield _params(item)
        self._items.clear()
        self._by_key.clear()

    def _take(self, update: dict[str, Any], run_id: str | None, task_id: str | None) -> _Item:
        kind = str(update.get("sessionUpdate"))
        if kind in _CHUNKS:
            return self._chunk(kind, update, run_id, task_id)
        if kind in ("tool_call", "tool_call_update"):
            return self._tool(update, run_id, task_id)
        if kind in _LATEST:
            item = self._open((kind, run_id or ""), update, run_id, task_id)
            item.update = update
            return item
        return self._alone(kind, update, run_id, task_id)

    def _open(
        self, key: tuple[str, ...], update: dict[str, Any], run_id: str | None, task_id: str | None
    ) -> _Item:
        item = self._by_key.get(key)
        if item is None or item.done:
            item = self._by_key[key] = _Item(key, run_id, task_id, update)
            self._items.append(item)
        return item

    def _alone(
        self, kind: str, update: dict[str, Any], run_id: str | None, task_id: str | None
    ) -> _Item:
        item = _Item((kind,), run_id, task_id, update, done=True)
        self._items.append(item)
        return item

    def _chunk(
        self, kind: str, update: dict[str, Any], run_id: str | None, task_id: str | None
    ) -> _Item:
        content: Any = update.get("content")
        key = (kind, str(update.get("messageId", "")))
        for other in self._items:
            # A message of the same kind is over where another begins.
            if other.key[0] == kind and other.key != key:
                other.done = True
        if kind == "user_message_chunk":
            # Blocks of a prompt stay apart, under one id.
            if "messageId" not in update and run_id is not None:
                update = {**update, "messageId": "user_" + run_id.removeprefix("run_")}
            return self._alone(kind, update, run_id, task_id)
        if not isinstance(content, dict) or content.keys() != {"type", "text"}:
            self._by_key.pop(key, None)
            return self._alone(kind, update, run_id, task_id)
        item = self._open(key, update, run_id, task_id)
        item.texts.append(content["text"])
        return item

    def _tool(self, update: dict[str, Any], run_id: str | None, task_id: str | None) -> _Item:
        call_id = str(update.get("toolCallId"))
        key = ("tool", call_id)
        item = self._by_key.get(key)
        changes = {name: value for name, value in update.items() if value is not None}
        del changes["sessionUpdate"]
        if "content" in changes:
            changes["content"] = _without_terminals(changes["content"])
        if item is None:
            if call_id in self._announced:
                first = {"sessionUpdate": "tool_call_update"}
            else:
                first = {"sessionUpdate": "tool_call", "title": call_id}
            item = self._by_key[key] = _Item(key, run_id, task_id, first)
            self._items.append(item)
        item.update |= changes
        item.done = item.update.get("status") in _FINAL
        return item

    def _ready(self) -> Iterator[dict[str, Any]]:
        while self._items:
            item = self._items[0]
            if not item.done and self._held_bytes <= limits.HISTORY_BYTES_MAX:
                return
            if item.key[0] == "tool":
                self._announced.add(item.key[1])
            del self._items[0]
            self._held_bytes -= item.size
            if self._by_key.get(item.key) is item:
                del self._by_key[item.key]
            yield _params(item)


def _params(item: _Item) -> dict[str, Any]:
    """No event id: several events are in it, and a cursor is only what the answer says."""
    ids = {"runId": item.run_id, "taskId": item.task_id}
    meta = {name: value for name, value in ids.items() if value} | {"history": True}
    if item.interrupted:
        meta["interrupted"] = True
    return {"update": item.finished(), "_meta": {"goclaw": meta}}


def _without_terminals(content: object) -> object:
    """A terminal of the past is unknown to the client: say so in text."""
    if not isinstance(content, list):
        return content
    gone = {"type": "text", "text": "(the terminal of that time is gone)"}
    return [
        {"type": "content", "content": gone}
        if isinstance(part, dict) and part.get("type") == "terminal"
        else part
        for part in content
    ]


class History:
    """Events 1 to ``until`` of a session as frames; an ``outbox.Source``."""

    def __init__(
        self, engine: Engine, session: Session, until: int, frame: Callable[[bytes], bytes]
    ) -> None:
        self._engine, self._session, self._until, self._frame = engine, session, until, frame
        self._cursor = session.oldest - 1
        self._projection = Projection()
        self._finished = False

    async def pull(self) -> bytes:
        """See Source."""
        out: list[bytes] = []
        size = 0
        while size < limits.WRITE_BYTES_MAX and not self._finished:
            for params in await self._page():
                message = encode_notification(
                    "session/update", {"sessionId": self._session.session_id, **params}
                )
                out.append(self._frame(message))
                size += len(message)
        return b"".join(out)

    async def _page(self) -> list[dict[str, Any]]:
        rows = await self._engine.hub.rows(self._session.sid, self._cursor)
        found: list[dict[str, Any]] = []
        for row in rows:
            if row[0] > self._until:
                break
            self._cursor = row[0]
            found += self._projection.feed(row)
        if not rows or self._cursor >= self._until or rows[-1][0] > self._until:
            self._finished = True
            found += self._projection.finish()
        return found
