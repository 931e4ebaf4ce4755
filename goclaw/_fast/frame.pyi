"""Wire bytes of session events; the twin in goclaw/_pure/frame.py is the specification."""

__all__ = ["event", "packed", "page", "text"]

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

def page(
    session: bytes,
    rows: list[tuple[int, int, str, int, str | None, str | None, int, str | None, bytes]],
    mask: int,
    lines: bool,
) -> bytes:
    """``event`` for each stored row whose kind is in ``mask`` (bit ``1 << kind``), joined.

    A row is (event id, kind, type, at ms, run id, task id, attempt, trace, payload), ids None when
    absent. As lines without the headers.
    """

def packed(session: bytes, rows: bytes, mask: int, lines: bool) -> bytes:
    """``page`` over rows as ``writer.Reader`` packs them. ValueError when they are cut."""

def text(payload: bytes) -> bytes:
    """One unmasked WebSocket text frame."""
