"""Workers, a daemon and a sink, each a process of its own, on a home that a test owns.

Owns starting, stopping, resuming and killing them, and the laws that must hold after. Not in here:
any test, what a worker does (workers_jobs.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import store_support
from roof_support import CLOCK, DEADLINE_MS, ROOT, World

from goclaw.client import SyncClient
from goclaw.core.states import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HERE", "Works", "works"]

HERE = Path(__file__).parent
LEASE_MS = 1_000


class Works:
    """A daemon with short leases, and whoever works for it."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.marks = folder / "marks"
        self.marks.touch()
        self.sink = folder / "sink"
        self._sink = subprocess.Popen(
            [sys.executable, str(HERE / "effects_sink.py"), str(self.sink)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.world.children.append(self._sink)
        assert self._sink.stdout is not None
        assert self._sink.stdout.readline() == "ready\n"
        self.session = ""
        self.client: SyncClient | None = None

    # -- processes ------------------------------------------------------------------------------

    def serve(self, **environ: str) -> subprocess.Popen[str]:
        """A daemon; the client and the session of the first one go on."""
        settings = {"GOCLAW_QUEUE_LEASE_MS": str(LEASE_MS), "GOCLAW_QUEUE_BACKOFF_MS_MIN": "1"}
        daemon = self.world.serve(**settings, **environ)
        if self.client is None:
            self.client = SyncClient(self.world.home)
            self.session = self.client.new_session(self.world.cwd).session_id
        return daemon

    def worker(self, *words: str, handler: str = "handle") -> subprocess.Popen[str]:
        """`goclaw worker`, ready."""
        child = self.world.popen(
            "worker", "--pool", "p", f"workers_jobs:{handler}", *words,
            environ={
                "JOBS_MARKS": str(self.marks), "JOBS_SINK": str(self.sink),
                "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
            },
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline().startswith("goclaw worker ready: pool p")
        return child

    def kill(self, child: subprocess.Popen[str]) -> None:
        """As kill -9 does; returns when it is gone."""
        child.kill()
        child.wait()

    def until_stopped(self, child: subprocess.Popen[str]) -> None:
        """Wait until the process has stopped itself."""
        pid, status = os.waitpid(child.pid, os.WUNTRACED)
        assert pid == child.pid
        assert os.WIFSTOPPED(status)

    def resume(self, child: subprocess.Popen[str]) -> None:
        """Let it go on where it was."""
        child.send_signal(signal.SIGCONT)

    # -- work -----------------------------------------------------------------------------------

    @property
    def wire(self) -> SyncClient:
        assert self.client is not None
        return self.client

    def submit(self, *steps: list[Any], session: str | None = None, **more: Any) -> str:
        """Work for the pool; the task's id."""
        params = {"sessionId": session or self.session, "pool": "p", "payload": list(steps), **more}
        task_id: str = self.wire.call("_goclaw/task/submit", params)["taskId"]
        return task_id

    def claim(self, most: int = 1, wait_ms: int = 20_000) -> list[dict[str, Any]]:
        """A claim by the test itself."""
        params = {"pool": "p", "max": most, "waitMs": wait_ms, "workerId": "test"}
        tasks: list[dict[str, Any]] = self.wire.call("_goclaw/worker/claim", params)["tasks"]
        return tasks

    def word(self, task: dict[str, Any], word: str, **params: Any) -> Any:
        """A word under the token of a claimed task."""
        lease = {"taskId": task["taskId"], "leaseToken": task["leaseToken"]}
        return self.wire.call(f"_goclaw/worker/{word}", {**lease, **params})

    def task(self, task_id: str) -> dict[str, Any]:
        return self.wire.task(task_id).json

    def until(self, task_id: str, *states: str) -> dict[str, Any]:
        """Wait until the task is in one of the states (terminal unless told); the task."""
        wanted = states or tuple(TERMINAL)
        session = self.task(task_id)["sessionId"]
        for event in self.wire.follow(session, 0):
            if event.task_id == task_id and event.body.get("to") in wanted:
                found = self.task(task_id)
                if found["state"] in wanted:
                    return found
        raise AssertionError("the events have an end")

    def types(self, session: str | None = None) -> list[str]:
        """Types of the session's events so far."""
        return [event.type for event in self.wire.history(session or self.session)]

    # -- the world outside ------------------------------------------------------------------------

    def report(self) -> dict[str, dict[str, int]]:
        """What the sink counted: sends and effects by key."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.sink))
            line.sendall(b'{"op": "report"}\n')
            found: dict[str, dict[str, int]] = json.loads(line.makefile().readline())
        return found

    def until_marked(self, word: str) -> int:
        """Wait for a mark; the process that made it."""
        watch = os.open(self.marks, os.O_RDONLY)
        rest = b""
        until = CLOCK.mono_ms() + DEADLINE_MS
        try:
            while CLOCK.mono_ms() < until:
                rest += os.read(watch, 1 << 16)
                for line in rest.decode().splitlines():
                    if line.split()[:1] == [word]:
                        return int(line.split()[1])
                select.select([], [], [], 0.01)
        finally:
            os.close(watch)
        raise AssertionError(f"no mark {word}: {rest.decode()}")

    def mark(self, word: str) -> None:
        """A mark that handlers wait for."""
        with self.marks.open("a", encoding="utf-8") as file:
            file.write(f"{word} 0\n")

    def marked(self) -> list[str]:
        return [line.split()[0] for line in self.marks.read_text("utf-8").splitlines() if line]

    # -- the end ----------------------------------------------------------------------------------

    def obey(self) -> None:
        """With the daemon gone: the laws of the store, one end a task, no effect twice a key."""
        if self.client is not None:
            ends: dict[str, int] = {}
            for event in self.wire.history(self.session):
                if event.body.get("to") in TERMINAL:
                    ends[event.task_id] = ends.get(event.task_id, 0) + 1
            assert set(ends.values()) <= {1}, ends
            self.client.close()
        self.world.end(signal.SIGKILL)
        store_support.obey(self.world.home.root / "goclaw.db")
        assert set(self.report()["effects"].values()) <= {1}, self.report()

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        for child in self.world.children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGCONT)
        self.world.close()


@contextlib.contextmanager
def works(folder: Path) -> Iterator[Works]:
    """Works that are cleared away; whatever happened, the laws hold."""
    made = Works(folder)
    try:
        yield made
        made.obey()
    finally:
        made.close()
