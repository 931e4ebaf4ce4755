"""The goclaw under test: its homes, its daemons as processes of their own, its command line.

Owns starting, killing and waiting for them. Not in here: clients (``interop_partner.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
GOCLAW = [sys.executable, "-m", "goclaw"]
WAIT_S = 30
WAIT_MS = WAIT_S * 1000


class Daemon:
    """What lives on one home; of this test's making or of a bridge's."""

    def __init__(self, home: Path, brain: str | None = None) -> None:
        self.home = home
        self._brain = [] if brain is None else ["--brain", brain]
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        return {"GOCLAW_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}

    @property
    def bridge(self) -> list[str]:
        """The command an editor starts."""
        return [*GOCLAW, "acp", *self._brain]

    def start(self) -> None:
        """Start `goclaw serve` and wait for its line."""
        self._child = subprocess.Popen(
            [*GOCLAW, "serve", "--listen", "127.0.0.1:0", *self._brain],
            env={**os.environ, **self.env},
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert b"ready" in line, f"the daemon said {line!r}"

    @property
    def record(self) -> dict[str, Any]:
        """run/daemon.json."""
        record: dict[str, Any] = json.loads((self.home / "run" / "daemon.json").read_bytes())
        return record

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.record["ws"])
        assert url.hostname is not None
        assert url.port is not None
        return url.hostname, url.port

    @property
    def token(self) -> str:
        return (self.home / "auth.token").read_text("ascii").strip()

    def kill(self) -> str:
        """End the daemon as a power cut would and wait until it is gone; its bootId."""
        boot = self._end(signal.SIGKILL)
        self._reap()
        return boot

    def stop(self, *, hurry: bool = False) -> None:
        """Stop it in good order, whoever started it; fine when there is none.

        ``hurry``: ask again and again, so that it does not wait for what runs.
        """
        with contextlib.suppress(FileNotFoundError):
            self._end(signal.SIGTERM, again=hurry)
        self._reap()

    def _reap(self) -> None:
        if self._child is not None:
            assert self._child.stdout is not None
            self._child.stdout.close()
            self._child.wait(WAIT_S)
            self._child = None

    def _end(self, number: signal.Signals, *, again: bool = False) -> str:
        record = self.record
        try:
            watch = os.pidfd_open(record["pid"])
        except ProcessLookupError:
            return str(record["bootId"])
        try:
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            for wait_ms in [50] * 20 * again + [WAIT_MS]:
                signal.pidfd_send_signal(watch, number)
                if poll.poll(wait_ms):
                    break
            else:
                raise AssertionError("the daemon does not end")
        finally:
            os.close(watch)
        return str(record["bootId"])

    def goclaw(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of goclaw on this home."""
        return subprocess.run(
            [*GOCLAW, *words],
            env={**os.environ, **self.env},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
