"""Children: every process that a daemon starts, each in a recorded group that dies with it (Q-6).

Owns the records (a folder of a home), who is in a group, its end. Not in here: what a process does
to itself before it begins (``launch.py``), and what it may do: whoever starts one holds a decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from goclaw.core import launch, limits, log
from goclaw.core.clock import boot_id
from goclaw.core.errors import InternalError, StorageFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from goclaw.core.clock import Clock

__all__ = ["MARK", "Children"]

MARK: Final = "GOCLAW_CHILD"
"""The variable by which a member of a group is known when the group's first process is gone."""

_HIDDEN: Final = ("GOCLAW_HOME", "GOCLAW_FAULTS")  # of ours, whatever a caller hands on
_NEEDED: Final = ("LD_LIBRARY_PATH",)  # the interpreter may not start without it
_STATE, _GROUP, _START = 0, 2, 19  # of /proc/PID/stat behind the name of the program

_log = log.logger("core.processes")


@dataclass(frozen=True, slots=True)
class _Group:
    """A process group, told apart from any later one that is given its number."""

    boot: str
    pgid: int
    start: str  # of its first process, in the kernel's ticks since boot
    mark: str

    @property
    def name(self) -> str:
        """Of its record: all there is to know, so that a file of no bytes is whole."""
        return f"{self.boot}.{self.pgid}.{self.start}.{self.mark}"

    @classmethod
    def parse(cls, name: str) -> _Group | None:
        parts = name.split(".")
        if len(parts) != 4 or not (parts[1].isdecimal() and parts[2].isdecimal()):
            return None
        return cls(parts[0], int(parts[1]), parts[2], parts[3])

    def is_alive(self) -> bool:
        """True while there is a process of it: its first one, or one that bears its mark.

        A number is not given again while a group has members, so one of ours speaks for all.
        """
        try:
            os.killpg(self.pgid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # members that changed their user
            pass
        first = _stat(self.pgid)
        if first is not None:
            return first[_START] == self.start and (first[_STATE] != "Z" or any(self.members()))
        return any(_bears(pid, self.mark) for pid in self.members())

    def members(self) -> Iterator[int]:
        """Its processes that can still act."""
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            found = _stat(int(pid))
            if found and found[_GROUP] == str(self.pgid) and found[_STATE] not in "ZX":
                yield int(pid)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pgid, signal.SIGKILL)


class Children:
    """The processes of one daemon. Every method on any thread.

    A child leads a group of its own, is recorded before its program begins, gets SIGKILL when the
    thread that started it ends (with the daemon, at the latest), and what outlives the daemon all
    the same is killed by the next one. Where there is no /proc only the group is kept.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self._boot = boot_id()
        self._groups: dict[int, _Group] = {}
        self._lock = threading.Lock()

    def end_left(self) -> int:
        """Kill what children of an earlier daemon left, and wait until it is gone; how many groups.

        For whoever holds the home's lock, before any lease is reclaimed. Idempotent. Blocks for
        ``limits.CHILD_END_MS_MAX`` at most: a process that the kernel still holds then will not
        come back to its program.
        """
        found = 0
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._folder)):
                group = _Group.parse(name)
                if group is not None and group.boot == self._boot and group.is_alive():
                    found += 1
                    self._end(group)
                with contextlib.suppress(OSError):
                    os.unlink(self._folder / name)
        return found

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program and return once it has begun; ``end`` follows, whatever happens.

        The calling thread must outlive the child. ``env`` is all it sees, but for ``MARK`` and what
        the interpreter needs; GOCLAW_HOME is taken out. Raises OSError as ``subprocess`` does when
        the program cannot begin (also TimeoutError), StorageFailed when it cannot be recorded.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(limits.CHILD_START_MS_MAX / 1000)
            mark = self._mark()
            process = subprocess.Popen(
                _launcher(theirs, command), pass_fds=(theirs.fileno(),), cwd=cwd,
                env=_environment(env, mark), stdin=stdin, stdout=stdout, stderr=stderr,
            )  # fmt: skip
            theirs.close()
            try:
                _check_asked(ours.recv(1))
                self._admit(process.pid, mark)
                ours.sendall(b"g")
                _check_begun(command, ours.recv(4))
            except BaseException:
                process.kill()
                process.wait()
                self.end(process.pid)
                raise
        return process

    async def open(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        limit: int = limits.FRAME_BYTES_MAX,
    ) -> asyncio.subprocess.Process:
        """``start`` for the loop; ``limit``: bytes of a line of its output."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            mark = self._mark()
            process = await asyncio.create_subprocess_exec(
                *_launcher(theirs, command), pass_fds=(theirs.fileno(),), cwd=cwd,
                env=_environment(env, mark), stdin=stdin, stdout=stdout, stderr=stderr, limit=limit,
            )  # fmt: skip
            theirs.close()
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(limits.CHILD_START_MS_MAX / 1000):
                    _check_asked(await loop.sock_recv(ours, 1))
                    self._admit(process.pid, mark)
                    await loop.sock_sendall(ours, b"g")
                    _check_begun(command, await loop.sock_recv(ours, 4))
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                self.end(process.pid)
                await process.wait()
                process._transport.close()  # type: ignore[attr-defined]  # the API has no other
                raise
        return process

    def end(self, pid: int) -> None:
        """Kill the child's whole group, and forget it; nobody waits. Twice is fine.

        Owed for every child that was started, also when it ended by itself: others may have joined
        its group. The caller collects its exit status.
        """
        with self._lock:
            group = self._groups.pop(pid, None)
        if group is not None:
            if group.is_alive():
                group.kill()
            with contextlib.suppress(OSError):
                os.unlink(self._folder / group.name)

    def close(self) -> None:
        """End every child that is left. Twice is fine."""
        with self._lock:
            left = list(self._groups)
        for pid in left:
            self.end(pid)

    def _mark(self) -> str:
        return self._clock.random_bytes(8).hex()

    def _admit(self, pid: int, mark: str) -> None:
        """The record, before the program may begin. No flush: only processes that outlive ours
        matter, and none outlives the kernel whose memory holds the file."""
        stat = _stat(pid)
        if stat is None:
            return
        group = _Group(self._boot, pid, stat[_START], mark)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(self._folder / group.name, flags, 0o600))
        except OSError as error:
            raise StorageFailed(
                f"A process cannot be recorded, so it is not started: {error}.",
                hint=f"Mend {self._folder}, or make room.",
            ) from None
        with self._lock:
            self._groups[pid] = group

    def _end(self, group: _Group) -> None:
        looks = 10
        for _ in range(looks):
            group.kill()
            _await_end(list(group.members()), limits.CHILD_END_MS_MAX // looks)
            if not group.is_alive():
                return
        _log.error("a process group does not end", extra={"data": {"pgid": group.pgid}})


def _launcher(door: socket.socket, command: Sequence[str]) -> list[str]:
    return [sys.executable, "-ISB", launch.__file__, str(door.fileno()), *command]


def _environment(env: Mapping[str, str], mark: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    seen = {name: value for name, value in env.items() if name not in _HIDDEN}
    return {**kept, **seen, MARK: mark}


def _check_asked(word: bytes) -> None:
    if word != b"r":
        raise InternalError("A process ended before its program could begin.")


def _check_begun(command: Sequence[str], word: bytes) -> None:
    if word:
        number = int.from_bytes(word, "little")
        raise OSError(number, os.strerror(number), command[0])


def _stat(pid: int) -> list[str] | None:
    """What /proc says of a process, from its state on; None when there is none, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].decode("ascii").split()
    except OSError:
        return None


def _bears(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={mark}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def _await_end(pids: list[int], wait_ms: int) -> None:
    with contextlib.ExitStack() as opened:
        poll = select.poll()
        waiting = set()
        for pid in pids:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)
                opened.callback(os.close, handle)
                poll.register(handle, select.POLLIN)
                waiting.add(handle)
        while waiting and (ended := poll.poll(wait_ms)):
            for handle, _ in ended:
                poll.unregister(handle)
                waiting.discard(handle)
