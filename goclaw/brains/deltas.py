"""What a brain says while it makes an answer: streamed, coalesced, or kept for the record (B-3).

Owns the merging of deltas and their pace. Not in here: their commit and the closing of a message
that was cut (engine).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits

if TYPE_CHECKING:
    from goclaw.core.records import CleanerStream, Stream

__all__ = ["Deltas"]

_SPEECH: Final = "agent_message_chunk"
_THOUGHT: Final = "agent_thought_chunk"
_PIECE_CHARS: Final = limits.EVENT_BYTES_MAX // 8  # a character takes up to six bytes of JSON


class Deltas:
    """Collects updates in order. Without ``push`` all of them commit with the answer's record."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._said: list[str] = []
        self._heard: list[tuple[str, str]] = []
        # a secret may come in pieces, with thoughts between them
        self._cleaned: dict[str, CleanerStream] = {}
        self._last_s = float("-inf")
        self._flush_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None

    @property
    def text(self) -> str:
        """All that was said so far, thoughts not included."""
        return "".join(self._said)

    @property
    def message_id(self) -> str:
        """Of this answer in this attempt."""
        return self._stream.message_id

    @property
    def heard(self) -> tuple[tuple[str, str], ...]:
        """What was said and thought, in order: ("say" or "think", text)."""
        return tuple(self._heard)

    async def open(self, *updates: dict[str, Any]) -> None:
        """Put on disk that the answer is being made, before anything is sent for it."""
        await self._stream.send(updates)

    def note(self, update: dict[str, Any]) -> None:
        """An update that goes out with what is said."""
        self._waiting.append(update)

    def say(self, text: str) -> None:
        """Add to the message of this answer."""
        self._said.append(text)
        self._pass(_SPEECH, text)

    def think(self, text: str) -> None:
        """Add to the thoughts of this answer."""
        self._pass(_THOUGHT, text)

    def plan(self, entries: list[dict[str, str]]) -> None:
        """Replace the plan."""
        self._waiting.append({"sessionUpdate": "plan", "entries": entries})

    def _pass(self, kind: str, text: str) -> None:
        """Give on what may be kept of it; the rest waits for more, or for the end (A-6)."""
        if self._stream.cleaner is not None:
            if kind not in self._cleaned:
                self._cleaned[kind] = self._stream.cleaner.stream()
            text = self._cleaned[kind].feed(text)
        self._add(kind, text)

    def _add(self, kind: str, text: str) -> None:
        if kind == _SPEECH:
            self._heard.append(("say", text))
            self._chunk(kind, text, self._stream.message_id)
        else:
            self._heard.append(("think", text))
            self._chunk(kind, text, f"{self._stream.message_id}.thought")

    def _chunk(self, kind: str, text: str, message_id: str) -> None:
        for at in range(0, len(text), _PIECE_CHARS):
            piece = text[at : at + _PIECE_CHARS]
            self._waiting_bytes += len(piece.encode("utf-8", "replace"))
            last = self._waiting[-1] if self._waiting else {}
            known = last["content"]["text"] if last.get("sessionUpdate") == kind else None
            if known is not None and len(known) + len(piece) <= _PIECE_CHARS:
                last["content"]["text"] = known + piece
                continue
            content = {"type": "text", "text": piece}
            self._waiting.append(
                {"sessionUpdate": kind, "content": content, "messageId": message_id}
            )

    async def pause(self, wait_ms: int) -> None:
        """Wait within an answer, where somebody hears it; a crash begins the answer anew."""
        if self._stream.paced:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1000):
                    await asyncio.Event().wait()

    async def push(self) -> None:
        """What waits may go out now: at once when the last flush is long enough ago or 4 KiB wait,
        else when its time has come. Raises what an earlier flush raised."""
        if self._flushing is not None and self._flushing.done():
            self._flushing.result()
        if self._waiting_bytes >= limits.DELTA_BYTES_MAX:
            await self._settled()
            await self._flush()
            return
        wait_s = self._last_s + self._pause_s() - self._loop.time()
        if wait_s <= 0 and (self._flushing is None or self._flushing.done()):
            await self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(max(0.0, wait_s), self._due)

    async def rest(self) -> list[dict[str, Any]]:
        """The end of the answer: what has not gone out yet, for the record."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._settled()
        for kind, stream in self._cleaned.items():
            if left := stream.end():
                self._add(kind, left)
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return waiting

    def abandon(self) -> None:
        """The answer will not come: send nothing more. Idempotent, also after ``rest``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushing is not None:
            self._flushing.cancel()

    def _pause_s(self) -> float:
        return max(limits.DELTA_MS_MIN / 1000, limits.DELTA_FLUSHES * self._flush_s)

    def _due(self) -> None:
        self._timer = None
        if self._flushing is None or self._flushing.done():
            self._flushing = self._loop.create_task(self._flush())

    async def _settled(self) -> None:
        if self._flushing is not None:
            flushing, self._flushing = self._flushing, None
            await flushing

    async def _flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not waiting:
            return
        begun_s = self._loop.time()
        await self._stream.send(waiting)
        self._last_s = self._loop.time()
        self._flush_s = self._last_s - begun_s
