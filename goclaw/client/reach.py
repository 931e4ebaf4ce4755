"""Finding the daemon of a home over its Unix socket, and starting it where there is none (U-3).

Owns the way from a home to a connected socket. Blocking, and cheap to import. Not in here: what is
said on the socket (``link.py``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

import goclaw
from goclaw.core import limits
from goclaw.core.errors import (
    ConfigRefused,
    DaemonGone,
    DatabaseRefused,
    GoclawError,
    HomeInUse,
    ListenerFailed,
)
from goclaw.core.files import open_to_append

if TYPE_CHECKING:
    from goclaw.core.clock import Clock
    from goclaw.core.home import Home

__all__ = ["Starter", "dial", "environment", "gone"]

_OUTPUT: Final = "serve.log"
_KINDS: Final[dict[int, type[GoclawError]]] = {
    kind.exit: kind for kind in (ConfigRefused, HomeInUse, DatabaseRefused, ListenerFailed)
}


def dial(home: Home) -> socket.socket | None:
    """A blocking socket to the daemon of the home; None when nobody answers there."""
    record = home.read_daemon_json()
    if record is None:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(limits.DIAL_MS_MAX / 1000)
    try:
        connection.connect(record.socket)
    except OSError:
        connection.close()
        return None
    connection.settimeout(None)
    return connection


def gone(home: Home) -> DaemonGone:
    """The error of a verb that needs a daemon and does not start one."""
    return DaemonGone(
        f"No daemon is running on {home.root}.", hint="Start one with `goclaw serve`."
    )


class Starter:
    """Starts daemons of one home, one at a time: detached, in process groups of their own, each
    ending itself when idle. Call ``step`` again and again until there is a connection."""

    def __init__(self, home: Home, clock: Clock) -> None:
        self._home, self._clock = home, clock
        self._child: int | None = None  # its process id, until its end was seen
        self._begun_ms: int | None = None
        self._next_ms = 0
        self._output_from = 0
        self._held: GoclawError | None = None

    def step(self) -> socket.socket | None:
        """A connection, or None: try again soon.

        Raises what the daemon said when it refused to start, and DaemonGone when there is no
        connection ``limits.START_MS_MAX`` after the first step since the last one.
        """
        connection = dial(self._home)
        if connection is not None:
            self._begun_ms = self._held = None
            self._dismiss()
            return connection
        now = self._clock.mono_ms()
        if self._begun_ms is None:
            self._begun_ms = now
        if now - self._begun_ms > limits.START_MS_MAX:
            raise self._held or DaemonGone(
                f"The daemon of {self._home.root} does not answer.",
                hint=f"See {self._output_path}, or start it by hand with `goclaw serve`.",
            )
        self._reap()
        if self._child is None and now >= self._next_ms:
            self._spawn()
        return None

    @property
    def _output_path(self) -> str:
        return str(self._home.logs / _OUTPUT)

    def _reap(self) -> None:
        if self._child is None:
            return
        try:
            ended, status = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:  # whoever embeds us collects all children
            ended, status = self._child, 0
        if not ended:
            return
        code = os.waitstatus_to_exitcode(status)
        self._child = None
        self._next_ms = self._clock.mono_ms() + limits.START_AGAIN_MS
        if code == HomeInUse.exit:
            # Somebody else starts, or an old one still ends: either way it will be there or gone.
            self._held = HomeInUse(
                f"The home {self._home.root} is in use by a process that does not answer.",
                hint="Look for it with `goclaw status`, and stop it.",
            )
        elif code > 0:
            self._begun_ms = None
            raise _refusal(code, self._said())

    def _dismiss(self) -> None:
        """Somebody else was quicker: ours would only wait to take over when that one ends."""
        record = self._home.read_daemon_json()
        if self._child is not None and record is not None and record.pid != self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, 0)
            self._child = None

    def _spawn(self) -> None:
        output = self._open_output()
        try:
            if os.fstat(output).st_size > limits.LOG_FILE_BYTES_MAX:
                os.ftruncate(output, 0)
            self._output_from = os.fstat(output).st_size
            # -P: nothing in the directory of a project may take the place of a module
            command = [sys.executable, "-P", "-m", "goclaw", "serve", "--idle-exit"]
            self._child = os.posix_spawn(
                sys.executable,
                [*command, "--home", str(self._home.root)],
                environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE],
            )
        except OSError as error:
            raise DaemonGone(
                f"No daemon can be started with {sys.executable}: {error.strerror}.",
                hint="Start it by hand with `goclaw serve`.",
            ) from None
        finally:
            os.close(output)

    def _open_output(self) -> int:
        try:
            for folder in (self._home.root, self._home.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return open_to_append(self._home.logs / _OUTPUT)
        except OSError as error:
            raise ConfigRefused(
                f"{self._output_path} cannot be written: {error.strerror}.",
                hint="Choose another home with --home or GOCLAW_HOME, or mend its permissions.",
            ) from None

    def _said(self) -> str:
        """The last lines of the child that just ended."""
        with contextlib.suppress(OSError), open(self._output_path, "rb") as file:
            file.seek(self._output_from)
            text = file.read(limits.LOG_LINE_BYTES_MAX).decode("utf-8", "replace")
            lines = [line.removeprefix("goclaw: ") for line in text.splitlines() if line.strip()]
            return " ".join(lines[-3:])
        return ""


def environment() -> dict[str, str]:
    """What a daemon is started with: ours, and the way to this very package where it is not
    installed."""
    found = dict(os.environ)
    root = os.path.dirname(os.path.dirname(os.path.abspath(goclaw.__file__)))
    if not root.endswith(("site-packages", "dist-packages")):
        known = found.get("PYTHONPATH")
        found["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else root
    return found


def _refusal(code: int, said: str) -> GoclawError:
    kind = _KINDS.get(code)
    if kind is not None and said:
        return kind(said)
    return DaemonGone(
        f"The daemon ended with exit code {code} before it was ready.", hint=said or
        "Start it by hand with `goclaw serve` to see why."
    )  # fmt: skip
