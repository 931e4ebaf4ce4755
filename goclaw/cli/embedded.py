"""An embedded daemon: the real one, on a thread of this process, for a home nobody holds (U-2).

Owns that thread. Not in here: what the daemon does (``daemon.py``), who talks to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

from goclaw.core import config, limits, log
from goclaw.core.clock import SystemClock
from goclaw.daemon import Daemon, check_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from goclaw.core.home import Home

__all__ = ["Embedded"]


class Embedded:
    """A daemon that serves the Unix socket until its last client has left."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._config = config.load(home.root, os.environ)
        check_config(self._config)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._daemon: Daemon | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wishes: list[Callable[[Daemon], None]] = []  # made before there was a daemon
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="goclaw-embedded", daemon=True)

    def start(self) -> None:
        """Returns when it is ready; raises what the daemon's start raises."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def is_alive(self) -> bool:
        """True until it has ended."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Do not wait for its clients; a second call hurries."""
        self._ask(Daemon.request_stop)

    def join(self, wait_ms: int | None = None) -> bool:
        """Leave it: it ends when its last client has left; wait for that. False: it has not yet."""
        self._ask(Daemon.owner_left)
        if wait_ms is not None:
            self._thread.join(wait_ms / 1000)
        while wait_ms is None and self._thread.is_alive():
            # A signal that comes just before a wait does not end it; its handler runs between two.
            self._thread.join(limits.SIGNAL_LOOK_MS / 1000)
        return not self._thread.is_alive()

    def _ask(self, wish: Callable[[Daemon], None]) -> None:
        with self._lock:
            if self._loop is None or self._daemon is None:
                self._wishes.append(wish)
                return
        with contextlib.suppress(RuntimeError):  # it has ended meanwhile
            self._loop.call_soon_threadsafe(wish, self._daemon)

    def _run(self) -> None:
        # Signals are for the thread that waits; the threads made from here on inherit this.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        system_log = log.SystemLog(self._home.logs / "system.jsonl", SystemClock())
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # the edge of the thread: start() or join() tells
            self._failure = error
        finally:
            system_log.close()
            self._started.set()

    async def _serve(self) -> None:
        daemon = Daemon(self._home, self._config, embedded=True)
        with self._lock:
            self._loop, self._daemon = asyncio.get_running_loop(), daemon
        for wish in self._wishes:
            wish(daemon)
        await daemon.start()
        self._started.set()
        await daemon.serve_until_stopped()
