"""Wire bytes of session events: a WebSocket header and a notification around a finished payload.

Owns the layout of a slot. Not in here: what the payload says, who gets it.
"""

from __future__ import annotations

import struct

__all__ = ["event", "packed", "text"]

_FORBIDDEN = frozenset(range(0x20)) | {0x22, 0x5C} | frozenset(range(0x7F, 0x100))

# event id, at, attempt, kind; sizes of type, run, task, trace, payload
_PACKED = struct.Struct("=qqqq5i4x")


def event(
    session: bytes,
    kind: int,
    event_id: int,
    type: bytes,  # noqa: A002
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
    line = _line(session, kind, event_id, type, at_ms, run_id, task_id, attempt, trace, payload)
    return _header(len(line)) + line


def packed(session: bytes, rows: bytes, mask: int, lines: bool) -> bytes:
    """``event`` for each row whose kind is in ``mask`` (bit ``1 << kind``), joined; the rows are as
    ``writer.Reader`` packs them. As lines without the headers. ValueError when they are cut."""
    _check_plain(session)
    parts = []
    at = 0
    while at < len(rows):
        if len(rows) - at < _PACKED.size:
            raise ValueError("packed rows are cut")
        event_id, at_ms, attempt, kind, *sizes = _PACKED.unpack_from(rows, at)
        at += _PACKED.size
        texts = []
        for size in sizes:
            if not 0 <= size <= len(rows) - at:
                raise ValueError("packed rows are cut")
            texts.append(rows[at : at + size])
            at += size
        if not 0 <= kind <= 2:
            raise ValueError("kind must be 0, 1 or 2")
        if not mask >> kind & 1:
            continue
        name, run_id, task_id, trace, payload = texts
        line = _line(session, kind, event_id, name, at_ms, run_id, task_id, attempt, trace, payload)
        parts.append(line if lines else _header(len(line)) + line)
    return b"".join(parts)


def text(payload: bytes) -> bytes:
    """One unmasked WebSocket text frame."""
    return _header(len(payload)) + payload


def _header(length: int) -> bytes:
    if length < 126:
        return bytes((0x81, length))
    if length < 65_536:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")


def _check_plain(text: bytes) -> None:
    if not _FORBIDDEN.isdisjoint(text):
        raise ValueError("session, type, run_id, task_id and trace must be printable ASCII")


def _line(
    session: bytes,
    kind: int,
    event_id: int,
    name: bytes,
    at_ms: int,
    run_id: bytes,
    task_id: bytes,
    attempt: int,
    trace: bytes,
    payload: bytes,
) -> bytes:
    if not 0 <= kind <= 2:
        raise ValueError("kind must be 0, 1 or 2")
    if event_id < 1 or at_ms < 0 or attempt < 0:
        raise ValueError("event_id counts from 1, at_ms and attempt from 0")
    _check_plain(session + name + run_id + task_id + trace)
    if payload[:1] != b"{" or payload[-1:] != b"}" or b"\n" in payload:
        raise ValueError("payload must be a JSON object on one line")
    ids = b""
    if run_id:
        ids += b',"runId":"%b"' % run_id
    if task_id:
        ids += b',"taskId":"%b"' % task_id
    if attempt:
        ids += b',"attempt":%d' % attempt
    meta = b'"goclaw":{"eventId":%d,"at":%d%b}' % (event_id, at_ms, ids)
    if trace:
        meta = b'"traceparent":"%b",%b' % (trace, meta)
    if kind == 1:
        members = payload[1:-1].strip(b" \t\r")
        body = b'"event":{"type":"%b"%b%b}' % (name, ids, b"," + members if members else b"")
        method = b"_goclaw/session/event"
    else:
        body = b'"update":%b' % payload
        method = b"session/update"
    return b'{"jsonrpc":"2.0","method":"%b","params":{"sessionId":"%b",%b,"_meta":{%b}}}\n' % (
        method,
        session,
        body,
        meta,
    )
