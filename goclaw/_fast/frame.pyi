"""Wire bytes of session events; the twin in goclaw/_pure/frame.py is the specification."""

__all__ = ["event", "packed", "text"]

def event(
    session: bytes,
    kind: int,
    event_id: int,
    type: bytes,
    at_ms: int,
    run_id: bytes,
    task_id: bytes,
    attempt: int,
    trace: bytes,
    payload: bytes,
) -> bytes:
    """One slot: unmasked WebSocket text header, JSON, LF (inside the header's length).

    Kinds: 0 and 2 ``session/update``, 1 ``_goclaw/session/event``. Empty bytes and attempt 0 are
    left out. ``payload`` is a JSON object on one line. Integers have 64 bits. ValueError when a
    field breaks its rule.
    """

def packed(session: bytes, rows: bytes, mask: int, lines: bool) -> bytes:
    """``event`` for each row whose kind is in ``mask`` (bit ``1 << kind``), joined; the rows are as
    ``writer.Reader`` packs them. As lines without the headers. ValueError when they are cut."""

def text(payload: bytes) -> bytes:
    """One unmasked WebSocket text frame."""
