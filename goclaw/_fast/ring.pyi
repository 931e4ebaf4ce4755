"""The newest frames of one session; the twin in goclaw/_pure/ring.py is the specification."""

from typing import final

__all__ = ["HISTORY_EVENTS", "Ring"]

HISTORY_EVENTS: int
"""Events whose byte counts are kept, in the ring or not; more in a ring over 4 MiB."""

@final
class Ring:
    """Holds slots with dense ids, evicts the oldest; single-threaded, takes memory as it fills.

    ``capacity_bytes``: 1 KiB to 1 GiB of slots. At most ``HISTORY_EVENTS - 1``
    slots, or as many of 256 bytes as fit, whichever is more (rounded up to a power of two).
    """

    def __init__(self, capacity_bytes: int) -> None: ...
    @property
    def head(self) -> int:
        """The newest event's id, 0 before the first append."""

    @property
    def oldest(self) -> int:
        """The oldest slot's event id, 0 when there is none."""

    @property
    def held_bytes(self) -> int:
        """Bytes of the slots in the ring."""

    def append(self, event_id: int, kind: int, slot: bytes) -> None:
        """Add the next event. A slot over a quarter of the capacity is only marked "in store".

        ValueError, and nothing changed: an id other than head + 1 (the first may be any from 1),
        a kind other than 0, 1, 2, a slot that is not one unmasked text frame.
        """

    def covers(self, cursor: int) -> bool:
        """True when every event after ``cursor`` has its slot here (perhaps an in-store one)."""

    def read(self, cursor: int, bytes_max: int, mask: int, lines: bool) -> tuple[bytes, int] | None:
        """The frames after ``cursor``, joined, and the new cursor.

        Only kinds in ``mask`` (bit ``1 << kind``; others move the cursor on), as lines without
        the WebSocket headers; at most ``bytes_max`` bytes, but at least one frame if there is one.
        None: not covered, or the next wanted frame is in the store only.
        """

    def span(self, cursor: int) -> tuple[int, int]:
        """How many events and bytes (in-store ones too) were appended after ``cursor``.

        Bytes are exact for the last ``HISTORY_EVENTS`` - 1 events, and those of all that are known
        beyond. ValueError when ``cursor`` is above the head.
        """

    def clear(self) -> None:
        """Give the slots back; head and spans stay. Reads go to the store until the next append."""
