"""`goclaw acp`: what an editor starts. Lines between its pipes and the daemon's socket (U-3, W-13).

Owns the three descriptors, the starting of a daemon, and when the bridge ends. No event loop and no
heavy import: it must be there in 100 ms. Not in here: what the lines mean (``splice.py``).
"""

from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING, Final

import goclaw
from goclaw.bridges.splice import Splice
from goclaw.client.link import Link
from goclaw.client.reach import Starter
from goclaw.core import limits
from goclaw.core.errors import DaemonGone
from goclaw.protocol.lines import LineSplitter

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from goclaw.core.clock import Clock
    from goclaw.core.home import Home

__all__ = ["STALLED", "run"]

STALLED: Final = 75
"""The exit code when the editor stops reading."""

_PIPE_BYTES: Final = 4096  # what a pipe that poll calls writable takes without blocking


def run(
    home: Home, clock: Clock, *, brain: str | None = None, stdin: int = 0, stdout: int = 1
) -> int:
    """Serve one editor until the end of its input; the exit code.

    GoclawError when no daemon can be reached or started.
    """
    bridge = _Bridge(home, clock, brain, stdin, stdout)
    try:
        return bridge.run()
    finally:
        bridge.close()


class _Bridge:
    def __init__(
        self, home: Home, clock: Clock, brain: str | None, stdin: int, stdout: int
    ) -> None:
        self._clock, self._stdin, self._stdout = clock, stdin, stdout
        self._link = Link(lambda: clock.new_id("key"))
        self._splice = Splice(self._link, clock.new_id("bridge"), brain)
        self._home, self._warned_of = home, ""
        self._reach: Callable[[], socket.socket | None] = Starter(home, clock).step
        self._socket: socket.socket | None = None
        self._editor_lines, self._daemon_lines = LineSplitter(), LineSplitter()
        self._to_daemon = bytearray()
        self._to_editor = bytearray()
        self._ended_ms: int | None = None  # when the editor's input ended
        self._wrote_ms = clock.mono_ms()  # when the editor last took something, or was owed nothing
        self._deaf = False  # nobody can read what is written any more
        self._losses = 0  # connections in a row that brought nothing
        self._lost_once = False
        self._next_dial_ms = 0

    def run(self) -> int:
        while True:
            code = self._verdict()
            if code is not None:
                return code
            self._connect()
            poll = select.poll()
            for descriptor, events in self._interests().items():
                poll.register(descriptor, events)
            for descriptor, _event in poll.poll(self._patience_ms()):
                self._serve(descriptor)
            self._settle()

    def close(self) -> None:
        """Leave the daemon; what runs there goes on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _verdict(self) -> int | None:
        now = self._clock.mono_ms()
        stalled = self._to_editor and now - self._wrote_ms >= limits.STALL_MS_MAX
        if self._deaf or stalled:
            self._say("The editor takes nothing any more. Nothing is lost: load the session again.")
            return STALLED
        if self._ended_ms is None:
            return None
        owing = self._to_editor or self._to_daemon or self._link.is_owed_soon
        if owing and now - self._ended_ms < limits.EOF_LINGER_MS:
            return None
        if owing:
            self._say("The input ended before all was answered; what reached the daemon goes on.")
        return 0

    def _patience_ms(self) -> int | None:
        """How long to wait for a descriptor; None: as long as it takes."""
        if self._ended_ms is not None or self._wants_daemon():
            return limits.POLL_MS
        return limits.STALL_MS_MAX // 4 if self._to_editor else None

    def _interests(self) -> dict[int, int]:
        """Each descriptor, and what is awaited there. Who cannot be written to is not read for."""
        wanted: dict[int, int] = {}
        full = len(self._to_daemon) > limits.BRIDGE_BYTES_MAX or self._link.is_full
        if self._ended_ms is None:
            wanted[self._stdin] = 0 if full else select.POLLIN  # with 0 its end is still noticed
        if self._to_editor:
            wanted[self._stdout] = select.POLLOUT
        if self._socket is not None:
            events = select.POLLIN if len(self._to_editor) <= limits.BRIDGE_BYTES_MAX else 0
            events |= select.POLLOUT if self._to_daemon else 0
            wanted[self._socket.fileno()] = events
        return wanted

    def _serve(self, descriptor: int) -> None:
        if descriptor == self._stdin:
            self._read_editor()
        elif descriptor == self._stdout:
            self._write_editor()
        elif self._socket is not None:
            self._write_daemon()
            self._read_daemon()

    def _settle(self) -> None:
        """Move finished lines to where they go."""
        for line in self._link.take():
            self._to_daemon += line + b"\n"
        if self._splice.to_editor:
            if not self._to_editor:
                self._wrote_ms = self._clock.mono_ms()
            for line in self._splice.to_editor:
                self._to_editor += line + b"\n"
            self._splice.to_editor.clear()
        for warning in self._splice.warnings:
            self._say(warning)
        self._splice.warnings.clear()

    # -- the editor -----------------------------------------------------------------------------

    def _read_editor(self) -> None:
        chunk = os.read(self._stdin, limits.WRITE_BYTES_MAX)
        if not chunk:
            self._ended_ms = self._clock.mono_ms()
        for line in self._editor_lines.feed(chunk):
            self._splice.from_editor(line)

    def _write_editor(self) -> None:
        try:
            count = os.write(self._stdout, self._to_editor[:_PIPE_BYTES])
        except OSError:
            self._deaf = True
            return
        del self._to_editor[:count]
        self._wrote_ms = self._clock.mono_ms()

    def _say(self, text: str) -> None:
        print(f"goclaw acp: {text}", file=sys.stderr, flush=True)

    # -- the daemon -----------------------------------------------------------------------------

    def _wants_daemon(self) -> bool:
        """One is started at once; it hangs up on who says nothing, and is then left alone until
        the editor speaks."""
        return self._socket is None and (self._link.has_spoken or not self._lost_once)

    def _connect(self) -> None:
        if self._clock.mono_ms() < self._next_dial_ms or not self._wants_daemon():
            return
        self._socket = self._reach()
        if self._socket is None:
            return
        self._socket.setblocking(False)
        self._look_at_version()
        self._daemon_lines = LineSplitter()
        self._to_daemon.clear()
        self._link.connected()
        self._settle()

    def _look_at_version(self) -> None:
        """Another goclaw runs there, such as the one before an upgrade: it speaks the same wire."""
        record = self._home.read_daemon_json()
        if record is None or record.version in (goclaw.__version__, self._warned_of):
            return
        self._warned_of = record.version
        self._say(
            f"The daemon is goclaw {record.version}, and this is {goclaw.__version__}. Both work;"
            f" `kill {record.pid}` puts a daemon of this version in its place."
        )

    def _read_daemon(self) -> None:
        assert self._socket is not None
        try:
            chunk = self._socket.recv(limits.WRITE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._disconnect()
            return
        self._losses = 0
        for line in self._daemon_lines.feed(chunk):
            try:
                found = self._link.receive(line)
            except ValueError:
                self._say("The daemon sent what is no message; connecting again.")
                self._disconnect()
                return
            self._splice.from_daemon(found)

    def _write_daemon(self) -> None:
        assert self._socket is not None
        if not self._to_daemon:
            return
        try:
            count = self._socket.send(self._to_daemon[: limits.BRIDGE_BYTES_MAX])
        except BlockingIOError:
            return
        except OSError:
            return  # the read that follows says so too
        del self._to_daemon[:count]

    def _disconnect(self) -> None:
        self.close()
        self._to_daemon.clear()
        self._splice.from_daemon(self._link.lost())
        self._splice.restart_histories()
        self._lost_once = True
        self._losses += self._link.has_spoken
        if self._losses > limits.LOSSES_MAX:
            raise DaemonGone(
                f"{self._losses} daemons in a row ended before they said a word.",
                hint="Start one with `goclaw serve` to see why.",
            )
        self._next_dial_ms = self._clock.mono_ms() + limits.POLL_MS * (self._losses - 1)
