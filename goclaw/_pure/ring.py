"""The newest frames of one session, bounded in bytes; readers are cursors, not queues.

Owns the slots and the exact lag. Not in here: what a frame says, who reads, where the rest is kept.
"""

from __future__ import annotations

__all__ = ["HISTORY_EVENTS", "Ring"]

HISTORY_EVENTS = 1 << 14
"""Events whose byte counts are kept, in the ring or not; more in a ring over 4 MiB."""

_SLOT_BYTES_MIN = 256  # a larger ring's index has room for slots of this size


class Ring:
    """Holds slots with dense ids, evicts the oldest; single-threaded, takes memory as it fills.

    ``capacity_bytes``: 1 KiB to 1 GiB of slots. At most ``HISTORY_EVENTS - 1``
    slots, or as many of 256 bytes as fit, whichever is more (rounded up to a power of two).
    """

    def __init__(self, capacity_bytes: int) -> None:
        if not 1 << 10 <= capacity_bytes <= 1 << 30:
            raise ValueError("capacity_bytes must be from 1 KiB to 1 GiB")
        self._capacity_bytes = capacity_bytes
        self._index_max = HISTORY_EVENTS
        while self._index_max < capacity_bytes // _SLOT_BYTES_MIN:
            self._index_max *= 2
        # Kind, size of the frame's header, frame; None: in the store only.
        self._slots: dict[int, tuple[int, int, bytes | None]] = {}
        self._totals: dict[int, int] = {}  # bytes appended up to and with this event
        self._held_bytes = 0
        self._head = 0

    @property
    def head(self) -> int:
        """The newest event's id, 0 before the first append."""
        return self._head

    @property
    def oldest(self) -> int:
        """The oldest slot's event id, 0 when there is none."""
        return self._head - len(self._slots) + 1 if self._slots else 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the slots in the ring."""
        return self._held_bytes

    def append(self, event_id: int, kind: int, slot: bytes) -> None:
        """Add the next event. A slot over a quarter of the capacity is only marked "in store".

        ValueError, and nothing changed: an id other than head + 1 (the first may be any from 1),
        a kind other than 0, 1, 2, a slot that is not one unmasked text frame.
        """
        if event_id < 1 or (self._head and event_id != self._head + 1):
            raise ValueError("event_id must be head + 1")
        if not 0 <= kind <= 2:
            raise ValueError("kind must be 0, 1 or 2")
        header_bytes = _header_bytes(slot)
        stored = len(slot) > self._capacity_bytes // 4
        room = self._capacity_bytes - (0 if stored else len(slot))
        while self._held_bytes > room or len(self._slots) >= self._index_max - 1:
            _, _, evicted = self._slots.pop(self._head - len(self._slots) + 1)
            self._held_bytes -= len(evicted or b"")
        if not self._head:
            self._totals[event_id - 1] = 0
        self._totals[event_id] = self._totals[event_id - 1] + len(slot)
        self._totals.pop(event_id - self._index_max, None)
        self._slots[event_id] = (kind, header_bytes, None if stored else slot)
        self._held_bytes += 0 if stored else len(slot)
        self._head = event_id

    def covers(self, cursor: int) -> bool:
        """True when every event after ``cursor`` has its slot here (perhaps an in-store one)."""
        return self._head > 0 and self._head - len(self._slots) <= cursor <= self._head

    def read(self, cursor: int, bytes_max: int, mask: int, lines: bool) -> tuple[bytes, int] | None:
        """The frames after ``cursor``, joined, and the new cursor.

        Only kinds in ``mask`` (bit ``1 << kind``; others move the cursor on), as lines without
        the WebSocket headers; at most ``bytes_max`` bytes, but at least one frame if there is one.
        None: not covered, or the next wanted frame is in the store only.
        """
        if not self.covers(cursor):
            return None
        slots, after, size = self._slots, cursor, 0
        frames: list[bytes] = []
        for event_id in range(cursor + 1, self._head + 1):
            kind, header_bytes, slot = slots[event_id]
            if mask >> kind & 1:
                if slot is None:
                    break
                frame = slot[header_bytes:] if lines else slot
                size += len(frame)
                if frames and size > bytes_max:
                    break
                frames.append(frame)
            after = event_id
        if after == cursor != self._head:
            return None
        return b"".join(frames), after

    def span(self, cursor: int) -> tuple[int, int]:
        """How many events and bytes (in-store ones too) were appended after ``cursor``.

        Bytes are exact for the last ``HISTORY_EVENTS`` - 1 events, and those of all that are known
        beyond. ValueError when ``cursor`` is above the head.
        """
        if cursor > self._head or cursor < 0:
            raise ValueError("cursor must be from 0 to head")
        if not self._head:
            return 0, 0
        known = max(cursor, self._head - len(self._totals) + 1)
        return self._head - cursor, self._totals[self._head] - self._totals[known]

    def clear(self) -> None:
        """Give the slots back; head and spans stay. Reads go to the store until the next append."""
        self._slots.clear()
        self._held_bytes = 0


def _header_bytes(slot: bytes) -> int:
    """The size of the frame's header, when the slot is that frame and nothing else."""
    if slot[:1] == b"\x81":
        if slot[1:2] < b"\x7e":
            header_bytes, length = 2, int.from_bytes(slot[1:2], "big")
        elif slot[1:2] == b"\x7e":
            header_bytes, length = 4, int.from_bytes(slot[2:4], "big")
        elif slot[1:2] == b"\x7f":
            header_bytes, length = 10, int.from_bytes(slot[2:10], "big")
        else:
            header_bytes, length = 2, -1  # masked
        if len(slot) == header_bytes + length:
            return header_bytes
    raise ValueError("slot must be one unmasked WebSocket text frame")
