"""Stored events as ``writer.Reader`` packs them, made by hand.

Owns that layout for tests. Not in here: any test.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["pack"]


def pack(rows: Iterable[tuple[Any, ...]]) -> bytes:
    """Rows of (event id, kind, type, at ms, run id, task id, attempt, trace, payload); texts may be
    bytes, None is left out."""
    data = b""
    for event_id, kind, name, at_ms, run_id, task_id, attempt, trace, payload in rows:
        texts = [
            text.encode() if isinstance(text, str) else text or b""
            for text in (name, run_id, task_id, trace, payload)
        ]
        data += struct.pack("=qqqq5i4x", event_id, at_ms, attempt, kind, *map(len, texts))
        data += b"".join(texts)
    return data
