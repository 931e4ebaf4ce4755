"""Messages on a byte stream: one a line (PROTOCOL 1.1).

Owns the cutting and its bound. Imports nothing heavy, for programs that must start fast. Not in
here: what a line says (``protocol/jsonrpc.py``).
"""

from __future__ import annotations

from goclaw.core import limits

__all__ = ["LineSplitter"]


class LineSplitter:
    """Cuts a byte stream into messages, one a line; holds at most one message's bound.

    A line over ``limits.FRAME_BYTES_MAX`` comes out cut one byte beyond the bound, so that
    ``decode`` refuses it; the stream goes on behind it. Blank lines are skipped.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that ``chunk`` completes, without their LF."""
        *ends, rest = chunk.split(b"\n")
        lines = []
        for end in ends:
            line = self._hold(end)
            self._held = bytearray()
            if line and not line.isspace():
                lines.append(bytes(line))
        self._hold(rest)
        return lines

    def _hold(self, piece: bytes) -> bytearray:
        self._held += piece[: limits.FRAME_BYTES_MAX + 1 - len(self._held)]
        return self._held
