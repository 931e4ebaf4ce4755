"""From options to a home and to a client of whoever holds it (U-2).

Owns the choice between the daemon that is there and an embedded one. Not in here: what is asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, Final

from goclaw.cli.show import tell
from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.core.files import absolute
from goclaw.core.home import Home

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable, Iterator

    from goclaw.cli.embedded import Embedded
    from goclaw.client.blocking import SyncClient

__all__ = ["Place", "brain_name", "home_of", "prepare"]

TERMINATED: Final = 143


def home_of(options: argparse.Namespace) -> Home:
    """The home that the options name."""
    return Home.locate(options.home, os.environ)


def prepare(home: Home) -> None:
    """Make what is missing in the home and say what was made (U-5)."""
    from goclaw.policy import default

    made = [
        line.removeprefix(f"{home.root}/")
        for line in home.ensure(default.TEXT, SystemClock().random_bytes)
    ]
    if made:
        tell(f"first start: made {home.root} with {'; '.join(filter(None, made))}")


def brain_name(text: str | None) -> str | None:
    """A brain as the daemon needs it: the file of a script by its absolute path."""
    if text is None or not text.startswith("script:"):
        return text
    return "script:" + absolute(text.removeprefix("script:"))


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Around imports: Ctrl-C and SIGTERM come after them. A native module whose own imports are
    interrupted as it starts may take the process down (orjson 3.13 ends in SIGSEGV)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Place:
    """A home with a client on it: of the daemon that is there, else of an embedded one, which ends
    with its last client. Use it in a ``with``.

    A daemon that goes away meanwhile is waited for: whoever restarts it must find the home free.
    ``takes_over``: after ``limits.TAKE_OVER_MS`` an embedded one takes its place.

    SIGTERM and Ctrl-C leave in good order: what an embedded one runs goes back to the queue.
    """

    def __init__(self, home: Home, *, takes_over: bool = False) -> None:
        self._home, self._takes_over = home, takes_over
        self._clock = SystemClock()
        self._embedded: Embedded | None = None
        self._client: SyncClient | None = None
        self._lost_ms: int | None = None
        self._is_leaving = self._is_hurried = self._is_terminated = False
        self._before: Any = signal.SIG_DFL
        self.on_terminate: Callable[[], None] = lambda: None
        """Called first at SIGTERM, to say how things stand."""

    @property
    def is_embedded(self) -> bool:
        """True when the daemon is in this process."""
        return self._embedded is not None

    def __enter__(self) -> SyncClient:
        with _held():
            from goclaw.client.blocking import SyncClient

        self._before = signal.signal(signal.SIGTERM, self._terminated)
        try:
            self._client = SyncClient(self._home, reach=self._reach)
        except BaseException:
            self._leave()
            raise
        return self._client

    def __exit__(self, *_: Any) -> None:
        if self._client is not None:
            self._client.close()
        self._leave()

    def hurry(self, *, at_once: bool = False) -> None:
        """Do not wait for other clients of an embedded daemon; ``at_once``: nor for what it runs,
        which goes back to the queue."""
        self._is_hurried = True
        if self._embedded is not None:
            self._embedded.stop()
            if at_once:
                self._embedded.stop()

    def _terminated(self, _number: int, _frame: Any) -> None:
        if self._is_terminated:
            return  # it is on its way
        self._is_terminated = True
        with contextlib.suppress(RuntimeError):  # it came in the middle of a print
            self.on_terminate()
        self.hurry(at_once=True)
        if not self._is_leaving:
            raise SystemExit(TERMINATED)

    def _leave(self) -> None:
        self._is_leaving = True
        try:
            if self._embedded is not None and not self._embedded.join(limits.LEAVE_MS):
                if not self._is_hurried:
                    tell("Done here, but other programs use this daemon. Ctrl-C leaves them.")
                self._embedded.join()
        except KeyboardInterrupt:
            self.hurry(at_once=True)
            if self._embedded is not None:
                self._embedded.join()  # who cannot wait for this either ends as in a crash
            raise
        finally:
            self._embedded = None
            signal.signal(signal.SIGTERM, self._before)
        if self._is_terminated:
            raise SystemExit(TERMINATED)

    def _reach(self) -> socket.socket | None:
        """A connection to whoever holds the home, or by holding it ourselves.

        None while somebody else starts or ends there.
        """
        from goclaw.client.reach import dial

        connection = dial(self._home)
        if connection is not None:
            self._lost_ms = None
            return connection
        if self._client is not None and not self._may_take_over():
            return None
        if self._embedded is not None and self._embedded.is_alive():
            return None
        with _held():
            from goclaw.cli.embedded import Embedded
        from goclaw.core.errors import HomeInUse

        embedded = Embedded(self._home)
        prepare(self._home)
        self._embedded = embedded
        try:
            embedded.start()
        except HomeInUse:
            self._embedded = None
            return None
        return dial(self._home)

    def _may_take_over(self) -> bool:
        now = self._clock.mono_ms()
        if self._lost_ms is None:
            self._lost_ms = now
        return self._takes_over and now - self._lost_ms >= limits.TAKE_OVER_MS
