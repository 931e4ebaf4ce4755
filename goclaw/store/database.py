"""The database of one home: opened, migrated, written through one writer, read on two threads.

Owns the file's name, its pragmas, the reader connections and the futures of operations. Not in
here: what is written (queries.sql) and what it means (engine). apsw and the writer never run on the
loop's thread while it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import apsw

from goclaw import _fast
from goclaw.core import limits
from goclaw.core.errors import (
    DatabaseRefused,
    GoclawError,
    QueueFull,
    StorageFailed,
    error_for_name,
)
from goclaw.core.faults import faultpoint
from goclaw.store import queries
from goclaw.store.copies import finish_replacement
from goclaw.store.fence import Fence, fence_file
from goclaw.store.schema import MEND, NAME, judged, migrate, migrations, open_to_read, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from goclaw.core.records import Cleaner

__all__ = [
    "MACHINE_WORDS",
    "Archive",
    "Committed",
    "Database",
    "Event",
    "open_database",
    "rows",
]

T = TypeVar("T")

Event = tuple[int, int, int, str, int, "str | None", "str | None", int, "str | None", bytes]
"""sid, event_id, kind, type, at_ms, run_id, task_id, attempt, trace, payload."""

# Why each: FULL is promise 1; temp tables in memory, since a batch must not wait for a second file;
# the writer checkpoints by itself, when nobody waits.
_PRAGMAS: Final = (
    "PRAGMA synchronous={synchronous}; PRAGMA fullfsync=ON; PRAGMA foreign_keys=ON; "
    "PRAGMA temp_store=MEMORY; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-16000"
)


MACHINE_WORDS: Final = frozenset(
    {
        "approval_id", "boot", "call_id", "class", "cron", "digest", "epoch", "hash", "kind",
        "misfire", "on_unknown", "origin", "outcome", "policy_version", "run_id", "salt", "sealed",
        "session_id", "state", "stop_reason", "stream_id", "task_id", "token", "trace", "version",
        "zone",
    }
)  # fmt: skip
"""Parameters that goclaw itself made or chose from a list: no text of anybody's is in them."""


class Committed(NamedTuple):
    """A committed operation: what each of its programs returned, by the names in queries.sql."""

    parts: list[tuple[Any, ...]]
    events: list[Event]


_committed: Final = tuple.__new__  # a third of what the class's own would cost, once an operation


def open_database(
    home: Path,
    *,
    synchronous: str = "full",
    threaded: bool = True,
    schema: Any = None,
    snapshot: Callable[[], object] = lambda: None,
) -> Database:
    """Migrate if needed and open the database of ``home``; DatabaseRefused says why not.

    ``snapshot`` is called before an older database is migrated (``schema.migrate``).
    """
    finish_replacement(home)
    path = home / NAME
    migrate(path, schema or migrations(), snapshot)
    return Database(path, synchronous=synchronous, threaded=threaded)


class Database:
    """Programs in, futures out; queries on reader threads. Belongs to the loop it is started on."""

    def __init__(self, path: Path, *, synchronous: str = "full", threaded: bool = True) -> None:
        self.path = path
        self.synchronous = synchronous
        self._catalogue = catalogue = queries.load()
        try:
            self._writer = _fast.open_writer(
                str(path),
                list(catalogue.programs.values()),
                catalogue.statements,
                _PRAGMAS.format(synchronous=synchronous.upper()),
                batch_max=limits.BATCH_OPERATIONS_MAX,
                pending_max=limits.PENDING_OPERATIONS_MAX,
                busy_ms_max=limits.BUSY_MS_MAX,
                wal_bytes_max=limits.WAL_BYTES_MAX,
                checkpoint_bytes=limits.CHECKPOINT_BYTES,
                checkpoint_wait_ms=limits.CHECKPOINT_WAIT_MS,
                threaded=threaded,
            )
        except (RuntimeError, ValueError) as error:
            raise refuse(path, f"does not open ({error})", MEND) from error
        self.fence = Fence(fence_file(path.parent), threaded=threaded)
        """Opened by the recovery of a start; nothing may be sent before."""
        self._threaded = threaded
        self._waiting: dict[int, asyncio.Future[Committed]] = {}
        self._on_events: Callable[[list[Event]], None] = lambda events: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._local = threading.local()
        self._connections: list[apsw.Connection] = []
        self._pagers: list[Any] = []
        self._readers = ThreadPoolExecutor(limits.READER_THREADS, "goclaw-reader")
        self.cleaner: Cleaner | None = None
        """Takes secrets out of everything that is written, and of what is looked up by (A-6). Set
        before anything is; None: nothing is taken out."""
        self._open_places = [
            tuple(
                place for place, name in enumerate(program.parameters) if name not in MACHINE_WORDS
            )
            for program in catalogue.programs.values()
        ]
        self.failures = 0
        """Operations that the disk refused since the start."""
        self.trouble = ""
        """Why the disk takes no writes at present; empty while it does (S-7)."""
        self.on_trouble: Callable[[], None] = lambda: None
        """Called on the loop when ``trouble`` has changed."""

    @property
    def catalogue(self) -> queries.Catalogue:
        """Every program and query, as parsed."""
        return self._catalogue

    def start(self, on_events: Callable[[list[Event]], None]) -> None:
        """Deliver commits on the running loop from now on; ``on_events`` gets them in commit order,
        before any future of the same commit is resolved."""
        self._on_events = on_events
        self._loop = asyncio.get_running_loop()
        if self._threaded:
            self._loop.add_reader(self._writer.wake_fd, self.deliver, limits.DELIVERED_MAX)

    def bind(self, program: str, /, **arguments: Any) -> tuple[int, tuple[Any, ...]]:
        """A part of an operation; parameters left out are NULL. KeyError for an unknown one."""
        part: tuple[int, tuple[Any, ...]] = self._writer.bind(program, arguments)
        return part

    def apply(
        self, *parts: tuple[int, tuple[Any, ...]], live: bool = False
    ) -> asyncio.Future[Committed]:
        """Run the parts as one atomic operation; the future resolves after COMMIT.

        It fails with the GoclawError that the program names, with StorageFailed when the disk said
        no (nothing was changed), at once with QueueFull when too much waits (``live``: room kept
        for operations of running attempts). A cancelled future does not take the operation back.
        """
        return self._submitted(parts, live)

    def write(
        self, program: str, /, *, live: bool = False, **arguments: Any
    ) -> asyncio.Future[Committed]:
        """``apply`` with a single part."""
        return self._submitted((self._writer.bind(program, arguments),), live)

    def _submitted(
        self, parts: tuple[tuple[int, tuple[Any, ...]], ...], live: bool
    ) -> asyncio.Future[Committed]:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Committed] = self._loop.create_future()
        faultpoint("before_commit")
        if self.cleaner is not None:
            parts = self._cleaned(parts, self.cleaner)
        ticket = self._writer.submit(parts, live)
        if ticket == 0:
            future.set_exception(
                QueueFull(
                    "The writer has more pending operations than it may hold.",
                    hint="Try again in a moment.",
                    queued=limits.PENDING_OPERATIONS_MAX,
                    limit=limits.PENDING_OPERATIONS_MAX,
                    retryAfterMs=limits.FULL_RETRY_MS,
                )
            )
        else:
            self._waiting[ticket] = future
        return future

    def _cleaned(
        self, parts: tuple[tuple[int, tuple[Any, ...]], ...], cleaner: Cleaner
    ) -> tuple[tuple[int, tuple[Any, ...]], ...]:
        """The one seam before the writer: no text gets past it, whoever composed it."""
        least = limits.SECRET_CHARS_MIN
        made: list[tuple[int, tuple[Any, ...]]] | None = None
        for number, (index, values) in enumerate(parts):
            kept: list[Any] | None = None
            for place in self._open_places[index]:
                value = values[place]
                kind = value.__class__
                if (kind is not str and kind is not bytes) or len(value) < least:
                    continue
                cleaned = cleaner.data(value) if kind is bytes else cleaner.text(value)
                if cleaned is not value:
                    kept = list(values) if kept is None else kept
                    kept[place] = cleaned
            if kept is not None:
                made = list(parts) if made is None else made
                made[number] = (index, tuple(kept))
        return parts if made is None else tuple(made)

    def _asked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What is looked up, as it was written."""
        cleaner = self.cleaner
        if cleaner is None:
            return arguments
        return {
            name: cleaner.text(value)
            if value.__class__ is str and name not in MACHINE_WORDS
            else value
            for name, value in arguments.items()
        }

    def returns(self, program: str, values: tuple[Any, ...]) -> dict[str, Any]:
        """Name what a part returned."""
        return dict(zip(self._catalogue.programs[program].returns, values, strict=True))

    def deliver(self, most: int | None = None) -> int:
        """Resolve what the writer has done, at most ``most`` operations; answers how many."""
        done = self._writer.drain() if most is None else self._writer.drain(most)
        if done:
            faultpoint("after_commit", len(done))
        events = [event for _, code, _, _, made in done if code is None for event in made]
        failures = self.failures
        try:
            if events:
                self._on_events(events)
        finally:
            # Facts all the same, whatever an observer made of them: nobody waits for ever.
            waiting = self._waiting.pop
            for ticket, code, message, returns, made in done:
                future = waiting(ticket)
                if future.done():
                    continue
                if code is None:
                    future.set_result(_committed(Committed, (returns, made)))
                else:
                    future.set_exception(self._error(code, message))
        if self.trouble and events and self.failures == failures:
            self._in_trouble("")
        return len(done)

    def _error(self, code: str, message: str) -> GoclawError:
        if code not in ("storage_failed", "constraint", "outcome_unknown"):
            kind = error_for_name(code)
            return kind(_SENTENCES.get(code, code.replace("_", " ").capitalize() + "."))
        self.failures += 1
        if code != "constraint":
            self._in_trouble(message or code)
        text = f"The write did not reach the disk ({message or code}); nothing was changed."
        if code == "outcome_unknown":
            text = f"The disk failed during the write ({message}); nobody knows what it kept."
        return StorageFailed(
            text, hint="Free the disk or mend it, then send the request again with the same key."
        )

    def _in_trouble(self, why: str) -> None:
        if why != self.trouble:
            self.trouble = why
            self.on_trouble()

    def step(self) -> bool:
        """Run one batch on this thread and deliver it (a database without a thread only)."""
        ran: bool = self._writer.step()
        self.deliver()
        return ran

    # -- reading -------------------------------------------------------------------------------

    def _connection(self) -> apsw.Connection:
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = apsw.Connection(
                str(self.path),
                apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOMUTEX,  # this thread's own
                statementcachesize=128,
            )
            connection.setbusytimeout(limits.BUSY_MS_MAX)
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            self._local.connection = connection
            self._connections.append(connection)
        return connection

    def fetch(self, query: str, /, **arguments: Any) -> list[tuple[Any, ...]]:
        """Run a query on the calling thread; for threads that may block, never for the loop."""
        sql = self._catalogue.queries[query].sql
        try:
            return self._connection().execute(sql, self._asked(arguments)).fetchall()
        except apsw.Error as error:
            raise self._unread(error) from error

    def fetch_page(self, sid: int, cursor: int, bytes_max: int) -> list[tuple[Any, ...]]:
        """Events after ``cursor``, at least one if there is one, within the bounds of one read."""
        sql = self._catalogue.queries["events_after"].sql
        rows: list[tuple[Any, ...]] = []
        size = 0
        try:
            for row in self._connection().execute(
                sql, {"sid": sid, "cursor": cursor, "limit": limits.READ_ROWS_MAX}
            ):
                rows.append(row)
                size += len(row[8]) + limits.FRAME_OVERHEAD_BYTES
                if size >= bytes_max:
                    break
        except apsw.Error as error:
            raise self._unread(error) from error
        return rows

    def fetch_packed(
        self, sid: int, cursor: int, bytes_max: int, rows_max: int = limits.READ_ROWS_MAX
    ) -> tuple[bytes, int, int]:
        """``fetch_page`` as packed rows for ``protocol.jsonrpc.packed_frames``, with the first and
        the last id; (b"", 0, cursor) at the head."""
        try:
            reader = getattr(self._local, "reader", None)
            if reader is None:
                sql = self._catalogue.queries["events_after"].sql
                reader = _fast.writer.Reader(str(self.path), sql, limits.BUSY_MS_MAX)
                self._local.reader = reader
                self._pagers.append(reader)
            page: tuple[bytes, int, int] = reader.page(
                sid,
                cursor,
                min(rows_max, limits.READ_ROWS_MAX),
                bytes_max,
                limits.FRAME_OVERHEAD_BYTES,
            )
        except RuntimeError as error:
            raise self._unread(error) from error
        return page

    def _unread(self, error: Exception) -> GoclawError:
        """Damage stays, whatever the disk does next; all else may pass."""
        if isinstance(error, apsw.CorruptError | apsw.NotADBError) or "malformed" in str(error):
            return DatabaseRefused(f"{self.path} is damaged ({error}).", hint=MEND)
        return StorageFailed(
            f"The database cannot be read ({error}).", hint="Mend the disk, then ask again."
        )

    async def read(self, query: str, /, **arguments: Any) -> list[tuple[Any, ...]]:
        """Run a query on a reader thread: it sees everything committed before the call."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: self.fetch(query, **arguments))

    async def in_reader(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` (which may call ``fetch``) on a reader thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def snapshot(self, work: Callable[[], T]) -> T:
        """Run ``work`` (which may call ``fetch``) on a reader thread: all it reads is of one
        moment, so it is to be short."""

        def whole() -> T:
            with self._connection():
                found = work()
            return found

        return await asyncio.get_running_loop().run_in_executor(self._readers, whole)

    # -- state ---------------------------------------------------------------------------------

    def stats(self) -> tuple[int, int, int, int, int, int]:
        """See the writer's stub."""
        stats: tuple[int, int, int, int, int, int] = self._writer.stats()
        return stats

    def fail_next_commit(self, *, after: bool) -> None:
        """For tests: see the writer's stub."""
        self._writer.fail_next_commit(after)

    def close(self) -> None:
        """Write what is queued, answer it if the loop still runs, close everything; idempotent."""
        loop = self._loop
        if loop is not None and not loop.is_closed() and self._threaded:
            loop.remove_reader(self._writer.wake_fd)
        self._writer.close()
        self.fence.close()
        if loop is not None and loop.is_running():
            while self._waiting and self.deliver():
                pass
        self._waiting.clear()
        self._readers.shutdown(wait=True)
        for pager in self._pagers:
            pager.close()
        self._pagers.clear()
        for connection in self._connections:
            connection.close()
        self._connections.clear()


class Archive:
    """The database of a home, served or not: read, and nothing of it changed. Blocks. Not in the
    daemon's own process."""

    def __init__(self, home: Path) -> None:
        self._path = path = home / NAME
        shipped = migrations()
        if not path.exists():
            raise refuse(path, "does not exist", "Check the home; a first run makes it.")
        try:
            if judged(path, shipped) < len(shipped):
                raise refuse(
                    path, "has an older schema than this program's",
                    "Start the daemon once: that migrates it.",
                )  # fmt: skip
            self._connection = open_to_read(path)
        except apsw.Error as error:
            raise refuse(path, f"cannot be read ({error})", MEND) from error

    def fetch(self, query: str, /, **arguments: Any) -> list[tuple[Any, ...]]:
        """Run a query."""
        sql = queries.load().queries[query].sql
        try:
            return self._connection.execute(sql, arguments).fetchall()
        except apsw.Error as error:
            raise refuse(self._path, f"cannot be read ({error})", MEND) from error

    @contextlib.contextmanager
    def moment(self) -> Iterator[None]:
        """What is fetched inside is of one moment, also while a daemon writes: keep it short."""
        with self._connection:
            yield

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


_SENTENCES: Final = {
    "lease_lost": "The lease is over: another attempt owns the task, or it has ended.",
    "illegal_transition": "The state does not allow that.",
    "idempotency_conflict": "The key was used before with another request.",
    "queue_full": "The session has as many open tasks as it may.",
    "already_resolved": "The approval has been answered.",
    "unknown_id": "No such id.",
    "session_unknown": "Session not found.",
    "nondeterminism": "The run asks for another effect than its journal holds.",
    "effect_unknown": "Nobody knows whether that effect happened before.",
}


def rows(query: str, found: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Rows as dicts, by the column names of the query's first SELECT line list."""
    names = _columns(query)
    return [dict(zip(names, row, strict=True)) for row in found]


def _columns(query: str) -> list[str]:
    sql = queries.load().queries[query].sql
    head = re.split(r"\sFROM\s", sql, maxsplit=1)[0]
    if not head.startswith("SELECT "):
        raise ValueError(f"query {query} has no plain column list")
    columns = head.removeprefix("SELECT ").split(",")
    return [re.split(r"[.\s]", column.strip())[-1] for column in columns]
