"""A session as a conversation: its events, folded into blocks to show.

Owns the fold; applying an event twice changes nothing. Not in here: widgets.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits

if TYPE_CHECKING:
    from goclaw.client import Event

__all__ = ["Block", "Transcript", "clean"]

_SPEAKERS: Final = {
    "user_message_chunk": "you",
    "agent_message_chunk": "agent",
    "agent_thought_chunk": "thought",
}
_SIGNS: Final = {"pending": "…", "in_progress": "▸", "completed": "✓", "failed": "✗"}


@dataclass(slots=True)
class Block:
    """One piece of the conversation. ``kind``: you, agent, thought, tool, plan, note, error."""

    key: str
    kind: str
    text: str


class Transcript:
    """The newest blocks of one session. Not thread-safe."""

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}
        self.cursor = 0
        """The last event applied."""
        self.commands: list[str] = []
        """The slash commands that the session offers."""
        self.is_busy = False
        """A run is on its way."""
        self.run_id = ""
        """The run that was accepted last and has not ended."""
        self._spoken = ""
        self._titles: dict[str, str] = {}

    def add(self, event: Event) -> Block | None:
        """Apply an event; the block that is new or different, None when nothing to see changed."""
        if event.event_id <= self.cursor:
            return None
        self.cursor = event.event_id
        block = self._of_update(event) if event.type == "update" else self._of_own(event)
        if block is None:
            return None
        block.text = block.text[-limits.TUI_BLOCK_CHARS_MAX :]
        self.blocks[block.key] = block
        while len(self.blocks) > limits.TUI_BLOCKS_MAX:
            oldest = next(iter(self.blocks))
            del self.blocks[oldest]
            self._titles.pop(oldest.removeprefix("tool:"), None)
        return block

    def _of_update(self, event: Event) -> Block | None:
        body, kind = event.body, event.update
        if kind in _SPEAKERS:
            return self._speak(event, _SPEAKERS[kind], _text(body.get("content")))
        self._spoken = ""
        if kind in ("tool_call", "tool_call_update"):
            return self._tool(body)
        if kind == "plan":
            entries = (
                f"{_SIGNS.get(str(one.get('status')), '…')} {clean(str(one.get('content', '')))}"
                for one in body.get("entries", ())
            )
            return Block(f"plan:{event.run_id}", "plan", "\n".join(entries))
        if kind == "available_commands_update":
            names = (str(one.get("name")) for one in body.get("availableCommands", ()))
            self.commands = [f"/{name}" for name in names]
        return None

    def _speak(self, event: Event, who: str, text: str) -> Block:
        """Chunks of one message are one block; without an id, those that follow each other."""
        message = event.body.get("messageId")
        key = f"{who}:{message}" if message else self._spoken
        if not key.startswith(f"{who}:"):
            key = f"{who}:#{event.event_id}"
        self._spoken = key
        known = self.blocks.get(key)
        return Block(key, who, (known.text if known else "") + clean(text))

    def _tool(self, body: dict[str, Any]) -> Block:
        call = str(body.get("toolCallId"))
        title = self._titles.setdefault(call, clean(str(body.get("title") or call)))
        status = str(body.get("status") or "pending")
        shown = [f"{_SIGNS.get(status, '…')} {title}"]
        for one in body.get("content") or ():
            text = clean(_text(one.get("content") if isinstance(one, dict) else None))
            shown += [f"  {line}" for line in text.splitlines()[: limits.TUI_OUTPUT_LINES]]
        return Block(f"tool:{call}", "error" if status == "failed" else "tool", "\n".join(shown))

    def _of_own(self, event: Event) -> Block | None:
        body, kind = event.body, event.type
        key = f"event:{event.event_id}"
        self._spoken = "" if kind in ("run.accepted", "run.ended") else self._spoken
        if kind == "run.accepted":
            self.is_busy, self.run_id = True, event.run_id
        elif kind == "run.ended":
            self.is_busy = event.run_id != self.run_id and self.is_busy
            if body.get("state") != "SUCCEEDED":
                why = clean(str(body.get("message") or body.get("reason") or ""))
                return Block(key, "error", f"{str(body.get('state')).lower()}: {why}")
        elif kind == "message.interrupted":
            return Block(key, "note", "the message was cut off; the attempt begins again")
        elif kind == "approval.opened":
            return Block(key, "note", "waits for your answer (tab Questions)")
        elif kind == "effect.unknown":
            name = clean(str(body.get("name")))
            return Block(key, "error", f"nobody knows whether {name} happened (tab Questions)")
        elif kind in ("task.requeued", "task.retry_wait", "task.dead_letter", "task.suspended"):
            return Block(key, "note", f"{kind.removeprefix('task.')}: {body.get('reason')}")
        return None


def clean(text: str) -> str:
    """Without what a terminal would obey: control characters but for line ends and tabs."""
    return "".join(
        one for one in text if one in "\n\t" or unicodedata.category(one) not in ("Cc", "Cf", "Cs")
    )


def _text(content: object) -> str:
    if isinstance(content, dict) and isinstance(content.get("text"), str):
        return str(content["text"])
    return ""
