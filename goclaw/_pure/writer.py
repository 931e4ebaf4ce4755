"""The one writer in plain Python: the same programs, a thread, apsw.

Owns what goclaw/_fast/writer.pyx owns. Not in here: speed while the loop is busy, since each
statement needs the GIL.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Reader", "Writer", "attach", "sha256"]

_RUN, _EXPECT, _REFUSE, _STOP, _NEED, _EMIT, _MOVE = range(7)
_PAGE_BYTES = 4096
_IDLE_S = 0.5


def attach() -> None:
    """Nothing to fetch: the twin is apsw's own client."""


def sha256(data: bytes, plain: bool = False) -> bytes:
    """SHA-256 of ``data``."""
    return hashlib.sha256(data).digest()


_TIMES = struct.Struct(">qq")


def _chain_link(
    link: bytes, event_id: int, at: int, kind: str, run: str | None, task: str | None, digest: bytes
) -> bytes:
    """link' = H(link, event_id, at, type 0, run 0, task 0, digest)."""
    words = "\0".join((kind, run if run is not None else "", task if task is not None else "", ""))
    return hashlib.sha256(link + _TIMES.pack(event_id, at) + words.encode() + digest).digest()


_MARKS = ("sid", "event_id", "salt", "link", "now", "tid", "run_id", "task_id", "attempt", "trace")


class _Step(NamedTuple):
    """A statement as store/queries.py gives it, and the names that it binds and sets."""

    mode: int
    code: str | None
    sql: str
    skip: int
    binds: list[str]
    columns: list[str]


class _Program(NamedTuple):
    """A program and the function it has become."""

    parameters: tuple[str, ...]
    returns: tuple[str, ...]
    run: Callable[..., tuple[bool, tuple[Any, ...], tuple[Any, ...]]]
    late: bool


def _written(parameters: tuple[str, ...], steps: list[_Step], returns: tuple[str, ...]) -> Any:
    """The program as the function that one would write by hand.

    Registers are its locals, a block of ``while`` is a section, which a need leaves. It answers
    whether all is done, what the program returns, and what the session's head is yet to move to.
    """
    names = dict.fromkeys(parameters)
    for step in steps:
        names |= dict.fromkeys(step.columns if step.mode != _EMIT else ())
    local = {name: f"r{place}" for place, name in enumerate(names)}

    def row(taken: Sequence[str]) -> str:
        return f"({''.join(f'{local.get(name)}, ' for name in taken)})"

    head = row(("event_id", "link", "now", "sid"))
    answer = f"{row(returns)}, {head} if len(events) > moved else ()"
    lines = ["def run(execute, emit, events, values):", f" {row(parameters)} = values"]
    lines += [" moved = len(events)"]
    lines += [f" {local[name]} = None" for name in names if name not in parameters]
    sections = {step.skip for step in steps if step.mode == _NEED}
    for number, step in enumerate(steps):
        if number == 0 or number in sections:
            lines += ["  break"] * (number > 0) + [" while True:"]
        found = f"execute({step.sql!r}, {row(step.binds)})"
        if step.mode == _EMIT:
            lines += [
                f"  for kind, type_, payload in {found}:",
                f"   {local['event_id']}, {local['link']} ="
                f" emit(events, kind, type_, payload, {row(_MARKS)})",
            ]
        elif step.mode in (_RUN, _MOVE):
            lines += [
                f"  for {row(step.columns)} in {found}: pass" if step.columns else f"  {found}"
            ]
            lines += ["  moved = len(events)"] * (step.mode == _MOVE)
        else:
            lines += ["  rows = 0", f"  for {row(step.columns)} in {found}: rows = 1"]
            lines += [
                {
                    _EXPECT: f"  if not rows: raise Failed({step.code!r})",
                    _REFUSE: f"  if rows: raise Failed({step.code!r})",
                    _STOP: f"  if rows: return True, {answer}",
                    _NEED: "  if not rows: break",
                }[step.mode]
            ]
    lines += ["  break", f" return False, {answer}"]
    made: dict[str, Any] = {"Failed": _Failed}
    exec("\n".join(lines), made)  # of names that we gave and texts that we ship
    return made["run"]


class _Batch(NamedTuple):
    """Operations of one transaction: in the order of their submission, and late ones after them."""

    early: list[Any]
    late: list[Any]


class _RunAgain(Exception):
    pass


class _Failed(Exception):
    """A step's expectation was not met; carries its code."""


class Writer:
    """See goclaw/_fast/writer.pyi."""

    def __init__(
        self,
        path: str,
        programs: list[Any],
        statements: dict[str, str],
        pragmas: str,
        *,
        batch_max: int,
        pending_max: int,
        busy_ms_max: int,
        wal_bytes_max: int,
        checkpoint_bytes: int,
        checkpoint_wait_ms: int,
        threaded: bool,
    ) -> None:
        self._path, self._pragmas, self._programs = path, pragmas, programs
        self._batch_max, self._pending_max = batch_max, pending_max
        self._busy_ms_max, self._checkpoint_wait_ms = busy_ms_max, checkpoint_wait_ms
        self._wal_pages_max = wal_bytes_max // _PAGE_BYTES
        self._checkpoint_pages = checkpoint_bytes // _PAGE_BYTES
        self._event_insert, self._head_move = statements["event_insert"], statements["head_move"]
        self._batch_count, self._batch_read = statements["batch_count"], statements["batch_read"]
        self._wal_pages = self._checkpointed = self._pending = self._next_ticket = 0
        self._batches_run = self._operations_run = self._flush_ns = self._flush_ns_sum = 0
        self._fail_commit: bool | None = None
        self._connection: apsw.Connection | None = None
        self._open()
        self._compiled = self._prove()
        self._takes = {
            program[0]: (index, dict.fromkeys(program[1])) for index, program in enumerate(programs)
        }
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: deque[Any] = deque()
        self._running, self._threaded, self._pid = True, threaded, os.getpid()
        self.wake_fd, self._wake = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(self._wake, False)
        if threaded:
            self._thread = threading.Thread(target=self._main, name="goclaw-writer", daemon=True)
            self._thread.start()

    def _open(self) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX  # one thread at a time
        try:
            # apsw looks through all that it has cached, each time: 512 cost 12 us a cycle (2026-11)
            connection = apsw.Connection(self._path, flags, statementcachesize=128)
            self._connection = connection
            connection.setbusytimeout(self._busy_ms_max)
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)  # see the native twin
            chain_link: Any = _chain_link
            connection.createscalarfunction("chain_link", chain_link, 7, deterministic=True)
            self._execute = connection.cursor().execute
            self._insert = connection.cursor().execute  # while a step is still being read
            for _ in self._execute(self._pragmas):
                pass
            connection.setwalhook(self._wal_moved)
            ((self._batches,),) = self._execute(self._batch_read)
        except apsw.Error as error:
            self._connection = None
            raise RuntimeError(str(error)) from error

    def _prove(self) -> list[_Program]:
        """Each program with what its steps bind and set; ValueError where one does not fit."""
        return [
            self._proved(name, parameters, steps, returns, late)
            for name, parameters, steps, returns, late in self._programs
        ]

    def _proved(self, name: str, parameters: Any, steps: Any, returns: Any, late: bool) -> _Program:
        known, described = dict.fromkeys(parameters), []
        for number, (mode, code, sql, skip) in enumerate(steps, 1):
            binds, columns = self._describe(sql)
            for register in binds:
                if register not in known:
                    raise ValueError(f"{name}, step {number}: nothing sets :{register}")
            if mode != _EMIT:
                known |= dict.fromkeys(columns)
            elif len(columns) != 3:
                raise ValueError(f"{name}, step {number}: an event is kind, type and payload")
            elif missing := [mark for mark in _MARKS if mark not in known]:
                raise ValueError(f"{name}, step {number}: an event needs :{missing[0]}")
            described.append(_Step(mode, code, sql, skip, binds, columns))
        for register in returns:
            if register not in known:
                raise ValueError(f"{name}: nothing sets the returned {register}")
        return _Program(parameters, returns, _written(parameters, described, returns), late)

    def _describe(self, sql: str) -> tuple[list[str], list[str]]:
        import apsw.ext

        assert self._connection is not None
        info = apsw.ext.query_info(self._connection, sql)
        return [name or "" for name in info.bindings_names], [
            column[0] for column in info.description
        ]

    def _wal_moved(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        if pages < self._wal_pages:
            self._checkpointed = 0  # the log has begun anew
        self._wal_pages = pages
        return 0

    def bind(self, program: str, arguments: dict[str, Any]) -> tuple[int, tuple[Any, ...]]:
        """See the stub."""
        index, empty = self._takes[program]
        values = empty | arguments
        if len(values) != len(empty):
            raise KeyError(next(name for name in arguments if name not in empty))
        return index, tuple(values.values())

    def submit(self, parts: tuple[Any, ...], live: bool = False) -> int:
        """See the stub."""
        self._check()
        if not isinstance(parts, tuple):
            raise TypeError(f"the parts are a {type(parts).__name__}, not a tuple")
        late = False
        for index, values in parts:
            if not 0 <= index < len(self._compiled):
                raise IndexError("no such program")
            program = self._compiled[index]
            late |= program.late
            expected = len(program.parameters)
            if len(values) != expected:
                raise TypeError(f"program {index} takes {expected} parameters, not {len(values)}")
            for value in values:
                if isinstance(value, int):
                    if not -(1 << 63) <= value < 1 << 63:
                        raise OverflowError("a parameter has more than 64 bits")
                elif isinstance(value, str):
                    if not value.isascii():
                        value.encode()  # UnicodeEncodeError for a lone surrogate
                elif value is not None and not isinstance(value, (bytes, float)):
                    raise TypeError(
                        f"a parameter is a {type(value).__name__}; int, str, bytes, float or None"
                    )
        if self._pending >= self._pending_max * (2 if live else 1):
            return 0
        self._pending += 1
        self._next_ticket += 1
        self._queue.put((late, self._next_ticket, parts))
        return self._next_ticket

    def drain(self, most: int = 0x7FFFFFFF) -> list[Any]:
        """See the stub."""
        self._check(closed=True)
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake_fd, 4096):
                pass
        done: list[Any] = []
        while self._done and len(done) < most:
            done.append(self._done.popleft())
        if self._done:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake, b"\1")
        self._pending -= len(done)
        return done

    def step(self) -> bool:
        """See the stub."""
        self._check()
        if self._threaded:
            raise RuntimeError("step() is for a writer without a thread")
        return self._run_queued()

    def _run_queued(self) -> bool:
        self._take(batch := _Batch([], []))
        waits = bool(batch.early or batch.late)
        if waits:
            self._done.extend(self._run_batch(batch))
            self._checkpoint(idle=False)
        return waits

    def stats(self) -> tuple[int, int, int, int, int, int]:
        """See the stub."""
        self._check()
        return (
            self._batches_run, self._operations_run, self._pending, self._flush_ns,
            self._flush_ns_sum, self._wal_pages,
        )  # fmt: skip

    def fail_next_commit(self, after: bool) -> None:
        """See the stub."""
        self._check()
        self._fail_commit = after

    def close(self) -> None:
        """See the stub."""
        if not self._running or os.getpid() != self._pid:
            return
        self._running = False
        if self._threaded:
            self._queue.put(None)
            self._thread.join()
        while self._run_queued():
            pass
        self._checkpoint(idle=True)
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __del__(self) -> None:
        if hasattr(self, "wake_fd") and os.getpid() == self._pid:
            self.close()
            os.close(self._wake)
            os.close(self.wake_fd)

    def _check(self, *, closed: bool = False) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("the writer does not survive a fork; open it in this process")
        if not self._running and not closed:
            raise RuntimeError("the writer is closed")

    def _main(self) -> None:
        while True:
            quiet_s = _IDLE_S if self._wal_pages != self._checkpointed else None
            try:
                first = self._queue.get(timeout=quiet_s)
            except queue.Empty:
                self._checkpoint(idle=True)
                continue
            if first is None:
                return  # close() runs what is left
            self._batches_run += 1
            self._operations_run += 1
            self._done.extend(
                self._run_batch(_Batch([], [first]) if first[0] else _Batch([first], []))
            )
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake, b"\1")
            self._checkpoint(idle=False)

    def _take(self, batch: _Batch) -> bool:
        """Move what is queued into the batch, up to batch_max operations; whether one is early."""
        known = len(batch.early)
        count = before = len(batch.early) + len(batch.late)
        while count < self._batch_max and self._queue.qsize():
            operation = self._queue.get()
            if operation is None:
                self._queue.put(None)  # close() runs what is left
                break
            (batch.late if operation[0] else batch.early).append(operation)
            count += 1
        self._batches_run += count > before == 0
        self._operations_run += count - before
        return len(batch.early) > known

    def _run_all(self, batch: _Batch, careful: bool) -> list[Any]:
        """Every operation of the batch, and what comes meanwhile."""
        answers: list[Any] = []
        while len(answers) < len(batch.early) or self._take(batch):
            _, ticket, parts = batch.early[len(answers)]
            answers.append(self._run_one(ticket, parts, careful))
        answers += [self._run_one(ticket, parts, careful) for _, ticket, parts in batch.late]
        return answers

    def _run_batch(self, batch: _Batch) -> list[Any]:
        def all_failed(error: Exception, code: str = "storage_failed") -> list[Any]:
            return [(ticket, code, str(error), [], []) for _, ticket, _ in batch.early + batch.late]

        try:
            if self._connection is None:
                self._open()
            execute = self._execute
            execute("BEGIN IMMEDIATE")
            try:
                answers = self._run_all(batch, False)
            except _RunAgain:
                execute("ROLLBACK")
                execute("BEGIN IMMEDIATE")
                answers = self._run_all(batch, True)
        except (apsw.Error, RuntimeError) as error:
            self._roll_back()
            return all_failed(error)
        expected = self._batches + 1
        began = time.monotonic_ns()
        try:
            execute(self._batch_count)
            if self._fail_commit is not False:
                execute("COMMIT")
            if self._fail_commit is not None:
                self._fail_commit = None
                raise apsw.IOError("a test asked for this failure")
        except apsw.Error as error:
            # Nobody knows what reached the disk: only the reopened file can tell.
            self._close_handle()
            try:
                self._open()
            except RuntimeError as reopening:
                return all_failed(reopening, "outcome_unknown")
            return answers if self._batches == expected else all_failed(error)
        self._batches = expected
        self._flush_ns = time.monotonic_ns() - began
        self._flush_ns_sum += self._flush_ns
        return answers

    def _roll_back(self) -> None:
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._execute("ROLLBACK")
        except apsw.Error:
            self._close_handle()

    def _close_handle(self) -> None:
        if self._connection is not None:
            self._connection.close(True)
        self._connection = None

    def _run_one(self, ticket: int, parts: Any, careful: bool) -> Any:
        execute, connection = self._execute, self._connection
        assert connection is not None
        events: list[Any] = []
        before = connection.total_changes()
        if careful:
            execute("SAVEPOINT operation")
        try:
            returns = self._run_parts(parts, events)
        except (_Failed, apsw.Error, TypeError, ValueError, struct.error) as error:
            if not connection.in_transaction:
                raise apsw.AbortError(str(error)) from error
            if careful:
                execute("ROLLBACK TO operation")
                execute("RELEASE operation")
            elif connection.total_changes() != before:
                raise _RunAgain from None
            return (ticket, *_reason(error), [], [])
        if careful:
            execute("RELEASE operation")
        return (ticket, None, "", returns, events)

    def _run_parts(self, parts: Any, events: list[Any]) -> list[tuple[Any, ...]]:
        execute = self._execute
        answers: list[tuple[Any, ...]] = []
        ended = False
        for index, values in parts:
            program = self._compiled[index]
            if ended:
                given = dict(zip(program.parameters, values, strict=True))
                answers.append(tuple(given.get(name) for name in program.returns))
                continue
            ended, returns, head = program.run(execute, self._emit, events, values)
            answers.append(returns)
            if head:
                execute(self._head_move, head)
        return answers

    def _emit(
        self, events: list[Any], kind: int, type_: str, payload: Any, marks: tuple[Any, ...]
    ) -> tuple[int, bytes]:
        """Insert an event; the session's head and the chain's link after it."""
        if isinstance(payload, str):
            payload = payload.encode()
        sid, event_id, salt, link, now, tid, run, task, attempt, trace = marks
        digest = hashlib.sha256(salt + payload).digest()
        event_id += 1
        self._insert(
            self._event_insert, (sid, event_id, kind, type_, now, tid, attempt, payload, digest)
        )
        events.append((sid, event_id, kind, type_, now, run, task, attempt, trace, payload))
        return event_id, _chain_link(link, event_id, now, type_, run, task, digest)

    def _checkpoint(self, *, idle: bool) -> None:
        connection, grown = self._connection, self._wal_pages - self._checkpointed
        if connection is None or grown <= 0 or (grown < self._checkpoint_pages and not idle):
            return
        with contextlib.suppress(apsw.Error):
            if self._wal_pages > self._wal_pages_max:
                connection.setbusytimeout(self._checkpoint_wait_ms)
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
            else:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        connection.setbusytimeout(self._busy_ms_max)
        self._checkpointed = self._wal_pages


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, _Failed):
        return str(error), ""
    if isinstance(error, apsw.ConstraintError):
        return "constraint", str(error)
    if isinstance(error, apsw.Error):
        return "storage_failed", str(error)
    # a register that an event needs is NULL or of another type
    return "constraint", "an event lacks its session, time, type or payload"


# event id, at, attempt, kind; sizes of type, run, task, trace, payload
_PACKED = struct.Struct("=qqqq5i4x")


class Reader:
    """See goclaw/_fast/writer.pyi."""

    def __init__(self, path: str, sql: str, busy_ms: int) -> None:
        self._sql = sql
        self._connection: apsw.Connection | None = None
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOMUTEX
        try:
            self._connection = connection = apsw.Connection(path, flags)
            connection.setbusytimeout(busy_ms)
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            self._execute = connection.cursor().execute
        except apsw.Error as error:
            raise RuntimeError(str(error)) from error

    def page(
        self, sid: int, cursor: int, rows_max: int, bytes_max: int, row_bytes: int
    ) -> tuple[bytes, int, int]:
        """See the stub."""
        if self._connection is None:
            raise RuntimeError("the reader is closed")
        parts: list[bytes] = []
        first, last, counted = 0, cursor, 0
        try:
            for row in self._execute(self._sql, (sid, cursor, rows_max)):
                last, kind, name, at_ms, run_id, task_id, attempt, trace, payload = row
                first = first or last
                texts = [(text or "").encode() for text in (name, run_id, task_id, trace)]
                texts.append(payload)
                parts.append(_PACKED.pack(last, at_ms, attempt, kind, *map(len, texts)))
                parts += texts
                counted += len(payload) + row_bytes
                if counted >= bytes_max:
                    break
        except apsw.Error as error:
            raise RuntimeError(str(error)) from error
        return b"".join(parts), first, last

    def close(self) -> None:
        """See the stub."""
        if self._connection is not None:
            self._connection.close(True)
            self._connection = None
