"""What an external worker says in pieces, so that no secret gets through between two of them (A-6).

Owns the ends that are held back, by attempt and kind of message. Not in here: finding secrets (the
cleaner), committing what may go on (``external``).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits

if TYPE_CHECKING:
    from goclaw.core.records import Cleaner, CleanerStream

__all__ = ["Speech"]

_CHUNKS: Final = frozenset({"agent_message_chunk", "agent_thought_chunk", "user_message_chunk"})

_Update = dict[str, Any]


@dataclass(slots=True)
class _Said:
    """One kind of message of one attempt; ``message_id`` of the piece that came last."""

    cleaner: Cleaner
    stream: CleanerStream
    message_id: object = None


class Speech:
    """The texts that workers are in the middle of. In memory: an end that was held back when the
    daemon dies is lost, and so is told to the worker beforehand. Belongs to the loop."""

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[bytes, str], _Said] = OrderedDict()

    def passed(self, token: bytes, update: _Update, cleaner: Cleaner | None) -> tuple[_Update, int]:
        """The update with what of its text may be kept now, and how many bytes wait for more of it
        or for ``rest``. What is no piece of a text is given back as it is."""
        kind, content = update.get("sessionUpdate"), update.get("content")
        if cleaner is None or kind not in _CHUNKS or not isinstance(content, dict):
            return update, 0
        text = content.get("text")
        if content.get("type") != "text" or not isinstance(text, str):
            return update, 0
        said = self._said.get((token, kind))
        if said is None:
            said = self._said[token, kind] = _Said(cleaner, cleaner.stream())
        elif said.cleaner is not cleaner:  # other secrets by now
            text = said.stream.end() + text
            said.cleaner, said.stream = cleaner, cleaner.stream()
        self._said.move_to_end((token, kind))
        while len(self._said) > limits.WORKER_TASKS_MAX:
            self._said.popitem(last=False)
        said.message_id = update.get("messageId")
        return {**update, "content": {**content, "text": said.stream.feed(text)}}, said.stream.held

    def rest(self, token: bytes) -> list[_Update]:
        """The ends of what an attempt said: nothing more of it will come."""
        ends = []
        for kind in _CHUNKS:
            said = self._said.pop((token, kind), None)
            if said is not None and (text := said.stream.end()):
                end = {"sessionUpdate": kind, "content": {"type": "text", "text": text}}
                known = said.message_id is not None
                ends.append({**end, "messageId": said.message_id} if known else end)
        return ends
