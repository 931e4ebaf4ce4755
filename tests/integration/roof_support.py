"""The command line and the bridge as processes of their own, on a home that a test owns.

Owns starting, speaking to, killing and clearing away. Not in here: any test.
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
from typing import TYPE_CHECKING, Any

from goclaw.core.clock import SystemClock
from goclaw.core.home import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CLOCK", "DEADLINE_MS", "ROOT", "Bridge", "World", "read_until", "script_file", "world"]

ROOT = Path(__file__).resolve().parents[2]
CLOCK = SystemClock()
DEADLINE_MS = 30_000
GOCLAW = [sys.executable, "-m", "goclaw"]


class World:
    """A home, a folder to work in, and whatever daemon lives there."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "h")
        self.cwd = folder / "w"
        self.cwd.mkdir()
        self.children: list[subprocess.Popen[Any]] = []

    @property
    def environ(self) -> dict[str, str]:
        known = {k: v for k, v in os.environ.items() if not k.startswith("GOCLAW_")}
        for name in ("GOCLAW_PURE", "GOCLAW_EXPECT_NATIVE"):
            if name in os.environ:
                known[name] = os.environ[name]
        return known | {"GOCLAW_HOME": str(self.home.root), "PYTHONPATH": str(ROOT)}

    def goclaw(
        self, *words: str, code: int | None = 0, cwd: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end and judge its exit code."""
        done = subprocess.run(
            [*GOCLAW, *words], env=self.environ | environ, cwd=cwd or self.cwd,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_MS / 1000,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def lines(
        self, *words: str, code: int | None = 0, cwd: Path | None = None, **environ: Any
    ) -> list[dict[str, Any]]:
        """The objects that a command prints with --json."""
        done = self.goclaw(*words, "--json", code=code, cwd=cwd, **environ)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command line; ``program``: with these words for the interpreter instead."""
        command = [sys.executable, *options.pop("program", GOCLAW[1:]), *words]
        environ = options.pop("environ", {})
        pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        child: subprocess.Popen[str] = subprocess.Popen(
            command, env=self.environ | environ, cwd=self.cwd, text=True,
            **({"stdin": subprocess.DEVNULL} | pipes | options),
        )  # fmt: skip
        self.children.append(child)
        return child

    def serve(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        """A daemon in the foreground of another process; returns when it says that it is ready."""
        child = self.popen("serve", *words, environ=environ, stderr=subprocess.DEVNULL)
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("goclaw ready on "), line
        return child

    def pid(self) -> int | None:
        """The process id of the daemon, None when there is none."""
        record = self.home.read_daemon_json()
        return None if record is None else record.pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> bool:
        """End whatever daemon there is and wait until it is gone; False when there is none."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            watch = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            signal.pidfd_send_signal(watch, number)
            assert select.select([watch], [], [], DEADLINE_MS / 1000)[0], "the daemon does not end"
        except ProcessLookupError:
            return False
        finally:
            os.close(watch)
        return True

    def close(self) -> None:
        """Leave no process behind; first whoever would start a daemon again."""
        for child in self.children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self.end(signal.SIGKILL)


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """A World that is cleared away."""
    made = World(folder)
    try:
        yield made
    finally:
        made.close()


def read_until(child: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """The next event of that kind that a child prints with --json."""
    assert child.stdout is not None
    for line in child.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["type"] == kind:
            return event
    raise AssertionError(f"no {kind}: {child.communicate()}")


def script_file(folder: Path, steps: Sequence[dict[str, Any]], match: str = "go") -> str:
    """The brain of a script with one entry."""
    path = folder / "script.json"
    path.write_text(json.dumps([{"match": match, "steps": list(steps)}]), "utf-8")
    return f"script:{path}"


class Bridge:
    """`goclaw acp` as an editor sees it: a vanilla one, unless it says otherwise."""

    def __init__(self, world: World, *words: str, environ: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*GOCLAW, "acp", *words], env=world.environ | (environ or {}), cwd=world.cwd,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        world.children.append(self.process)
        self.received: list[dict[str, Any]] = []
        self._rest = b""
        self._next_id = 0

    # -- saying ---------------------------------------------------------------------------------

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def say(self, message: dict[str, Any]) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def request(self, method: str, **params: Any) -> int:
        self._next_id += 1
        self.say({"id": self._next_id, "method": method, "params": params})
        return self._next_id

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result; an error is a failed test."""
        answer = self.answer(self.request(method, **params))
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def greet(self, **capabilities: Any) -> dict[str, Any]:
        return self.call("initialize", protocolVersion=1, clientCapabilities=capabilities)

    def session(self, cwd: Path, **extra: Any) -> str:
        session: str = self.call("session/new", cwd=str(cwd), mcpServers=[], **extra)["sessionId"]
        return session

    def prompt(self, session: str, text: str, **extra: Any) -> int:
        blocks = [{"type": "text", "text": text}]
        return self.request("session/prompt", sessionId=session, prompt=blocks, **extra)

    # -- hearing --------------------------------------------------------------------------------

    def wait(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message, come or to come, that is it."""
        seen = 0
        while True:
            for message in self.received[seen:]:
                if is_it(message):
                    return message
            seen = len(self.received)
            self.read()

    def answer(self, request_id: int | str) -> dict[str, Any]:
        return self.wait(lambda m: "method" not in m and m.get("id") == request_id)

    def read(self) -> None:
        """Take in what comes next; the end of the bridge's output is a failed test."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_MS / 1000)
        assert ready, f"nothing came; so far {self.received[-3:]}"
        chunk = os.read(self.process.stdout.fileno(), 1 << 16)
        assert chunk, f"the bridge ended: {self.process.communicate()[1]!r}"
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self.received += [json.loads(line) for line in lines]

    def updates(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The updates so far, of one kind or all."""
        found = [
            m["params"]["update"] for m in self.received if m.get("method") == "session/update"
        ]
        return [u for u in found if kind is None or u["sessionUpdate"] == kind]

    def event_ids(self) -> list[int]:
        """Ids of the events that were shown."""
        metas = [m["params"].get("_meta", {}) for m in self.received if "method" in m]
        return [meta["goclaw"]["eventId"] for meta in metas if "eventId" in meta.get("goclaw", {})]

    def close(self) -> int:
        """End of input; the exit code."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        return self.process.wait(DEADLINE_MS / 1000)
