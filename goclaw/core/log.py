"""Structured logs: one JSON object a line, with the ids of the work at hand (O-2, R-4).

Owns logs/system.jsonl and the ids that travel in context variables. Not in here: the audit log,
which is a record of decisions and never drops a line.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import queue
import threading
import traceback
from contextvars import ContextVar
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from goclaw.core import limits
from goclaw.core.clock import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from goclaw.core.clock import Clock

__all__ = ["ID_NAMES", "CleanErrors", "SystemLog", "bound", "clean_with", "ids", "logger"]

ID_NAMES: Final = ("traceId", "sessionId", "runId", "taskId", "attempt")
"""The ids that a line can carry, by the names that events use."""

_ROOT: Final = "goclaw"
_NOTHING: Final[Mapping[str, str | int]] = MappingProxyType({})
_ids: ContextVar[Mapping[str, str | int]] = ContextVar("goclaw_ids", default=_NOTHING)


def clean_with(clean: Callable[[bytes], bytes]) -> None:
    """What takes secrets out of every line and every word on stderr from now on (A-6). It is called
    on the log's thread, and must know any thread."""
    global _clean
    _clean = clean


def _as_it_is(data: bytes) -> bytes:
    return data


_clean: Callable[[bytes], bytes] = _as_it_is


class CleanErrors(io.TextIOBase):
    """stderr without secrets: tracebacks of a crash go through it, too. Whole lines only, so that
    no secret passes in halves."""

    def __init__(self, below: IO[str]) -> None:
        self._below, self._line = below, ""

    def write(self, text: str) -> int:
        """Pass on what is a whole line, and keep the rest."""
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            self._pass(whole + newline)
        elif len(self._line) > limits.LOG_LINE_BYTES_MAX:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Pass on what there is."""
        line, self._line = self._line, ""
        if line:
            self._pass(line)
        self._below.flush()

    def _pass(self, text: str) -> None:
        data = _clean(text.encode("utf-8", "surrogatepass"))
        self._below.write(data.decode("utf-8", "replace"))

    def fileno(self) -> int:
        """Of the terminal or file below."""
        return self._below.fileno()

    def isatty(self) -> bool:
        """Is somebody looking?"""
        return self._below.isatty()


def ids() -> Mapping[str, str | int]:
    """The ids of the work at hand; empty outside of any."""
    return _ids.get()


@contextlib.contextmanager
def bound(
    *,
    trace: str | None = None,
    session: str | None = None,
    run: str | None = None,
    task: str | None = None,
    attempt: int | None = None,
) -> Iterator[None]:
    """Add ids to every line logged inside, also by asyncio tasks started inside; None adds none."""
    given = zip(ID_NAMES, (trace, session, run, task, attempt), strict=True)
    token = _ids.set({**_ids.get(), **{name: value for name, value in given if value is not None}})
    try:
        yield
    finally:
        _ids.reset(token)


def logger(component: str) -> logging.Logger:
    """The logger of a component, named as its module: ``engine.scheduler``.

    More fields go as ``extra={"data": {...}}``; they must be plain JSON values without secrets.
    """
    return logging.getLogger(f"{_ROOT}.{component}")


class SystemLog:
    """Takes every line of goclaw's loggers and writes it on a thread of its own.

    A caller never waits for a disk or a terminal: when ``limits.LOG_RECORDS_MAX`` lines wait, more
    are dropped and counted, and the next line that is written says how many. Call ``close()`` at
    the end; one SystemLog at a time.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        terminal: IO[str] | None = None,
        level: int = logging.INFO,
    ) -> None:
        self._path = path
        self._clock = clock
        self._terminal = terminal if terminal is not None and terminal.isatty() else None
        self._file: io.FileIO | None = None
        self._failed = 0
        self._told = 0
        self._intake = _Intake(clock)
        self._logger = logging.getLogger(_ROOT)
        self._logger.setLevel(level)
        self._logger.propagate = False
        self._logger.addHandler(self._intake)
        self._thread = threading.Thread(target=self._write, name="goclaw-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines lost to a full queue or a failing disk, since the start."""
        return self._intake.refused + self._failed

    def close(self) -> None:
        """Write what waits, for at most ``limits.LOG_CLOSE_MS_MAX``, and stop. Twice is fine."""
        self._logger.removeHandler(self._intake)
        if not self._thread.is_alive():
            return
        wait_s = limits.LOG_CLOSE_MS_MAX / 2000
        with contextlib.suppress(queue.Full):
            self._intake.lines.put(None, timeout=wait_s)
        self._thread.join(wait_s)

    def _write(self) -> None:
        while (line := self._intake.lines.get()) is not None:
            self._tell_loss()
            if not self._put(line):
                self._failed += 1
        self._tell_loss()
        self._close_file()

    def _tell_loss(self) -> None:
        lost = self.dropped - self._told
        if lost:
            text = f"{lost} log lines were lost: too many waited, or the disk failed"
            now = self._clock.wall_ms()
            loss = _Line(now, "WARNING", "core.log", text, _NOTHING, {"lost": lost}, "")
            if self._put(loss):
                self._told += lost

    def _put(self, line: _Line) -> bool:
        if self._terminal is not None:
            with contextlib.suppress(OSError, ValueError):
                self._terminal.write(_clean(_short(line).encode()).decode())
                self._terminal.flush()
        try:
            self._append(_clean(_encode(line)))
        except OSError:
            # A full disk must not end the daemon: the count tells, the next line tries again.
            self._close_file()
            return False
        return True

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._open()
        if self._file.tell() + len(data) > limits.LOG_FILE_BYTES_MAX:
            self._close_file()
            self._rotate()
            self._file = self._open()
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, "a part of the line was written")

    def _open(self) -> io.FileIO:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = io.FileIO(os.open(self._path, flags, 0o600), "a+")
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            # a line torn by a full disk or a crash spoils itself only
            file.write(b"\n")
        return file

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _rotate(self) -> None:
        for age in range(limits.LOG_FILES_MAX, 0, -1):
            newer = self._path if age == 1 else self._aged(age - 1)
            if newer.exists():
                newer.replace(self._aged(age))

    def _aged(self, age: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{age}")


class _Line(NamedTuple):
    wall_ms: int
    level: str
    component: str
    message: str
    ids: Mapping[str, str | int]
    data: Mapping[str, object]
    stack: str


class _Intake(logging.Handler):
    """The caller's side: takes the moment and the ids, and never waits."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.lines: queue.Queue[_Line | None] = queue.Queue(limits.LOG_RECORDS_MAX)
        self.refused = 0
        self._clock = clock

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            message = f"{record.msg} {record.args!r}"
        error = record.exc_info[1] if record.exc_info else None
        line = _Line(
            self._clock.wall_ms(),
            record.levelname,
            record.name.removeprefix(f"{_ROOT}."),
            message,
            _ids.get(),
            dict(getattr(record, "data", _NOTHING)),
            "".join(traceback.format_exception(error)) if error else "",
        )
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self.refused += 1


def _encode(line: _Line) -> bytes:
    """One line of JSON in ASCII, so that no text can break it, within LOG_LINE_BYTES_MAX."""
    try:
        encoded = _json(line)
    except (TypeError, ValueError, RecursionError):
        encoded = _json(line._replace(data={"unencodable": True}))
    if len(encoded) > limits.LOG_LINE_BYTES_MAX:
        # a character takes at most 12 bytes of JSON
        keep = limits.LOG_LINE_BYTES_MAX // 32
        short = line._replace(
            message=line.message[:keep], stack=line.stack[-keep:], data={"cut": True}
        )
        encoded = _json(short)
    return encoded


def _json(line: _Line) -> bytes:
    record: dict[str, object] = {
        "timestamp": rfc3339(line.wall_ms),
        "level": line.level,
        "component": line.component,
        "message": line.message,
        **line.ids,
    }
    if line.data:
        record["data"] = line.data
    if line.stack:
        record["stack"] = line.stack
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _short(line: _Line) -> str:
    """For people: the time of day, the level when it matters, who, what. No control characters."""
    level = "" if line.level == "INFO" else f"{line.level} "
    text = f"{rfc3339(line.wall_ms)[11:19]} {level}{line.component}: {line.message}"
    return "".join(char if char.isprintable() else " " for char in text) + "\n"
