"""The one writer; see writer.pyx. The twin in goclaw._pure.writer has the same face."""

from typing import Any, final

def attach() -> None: ...
def sha256(data: bytes, plain: bool = False) -> bytes: ...

@final
class Writer:
    """Owns the writing handle of one database file.

    ``programs``: (name, parameters, steps, returns, late) each, as store/queries.py parses them; an
    operation names a program by its index. ``threaded=False`` leaves the running to ``step()``.
    The log is folded into the file when nobody waits, and at the latest ``checkpoint_bytes`` after the
    last time; over ``wal_bytes_max`` that waits ``checkpoint_wait_ms`` for readers to let go of it.
    RuntimeError: the file does not open. ValueError: a program does not fit the schema.
    Every method belongs to the thread that made the writer, and to its process.
    """

    @property
    def wake_fd(self) -> int: ...
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
    ) -> None: ...
    def bind(self, program: str, arguments: dict[str, Any]) -> tuple[int, tuple[Any, ...]]:
        """A part for ``submit``; parameters left out are NULL. KeyError for an unknown name."""
    def submit(self, parts: tuple[Any, ...], live: bool = False) -> int:
        """Queue one atomic operation: ((program index, parameters), ...); answers its ticket.

        0 = refused, the pending bound is reached; ``live`` operations have as much room again.
        TypeError, ValueError, IndexError, OverflowError: not even queued.
        """
    def drain(self, most: int = ...) -> list[Any]:
        """What is committed or failed since the last call, in commit order; also after close(). Of
        more than ``most`` operations the rest is left, and wakes the loop again.

        Each: (ticket, code or None, message, [returns per part], [events]), both lists empty where
        there is a code; an event is (sid, event_id, kind, type, at_ms, run_id, task_id, attempt,
        trace, payload). Codes beside those of the steps: constraint and storage_failed (nothing was
        changed), outcome_unknown (COMMIT failed and the file does not open to tell).
        """
    def step(self) -> bool:
        """Run one batch on this thread (``threaded=False`` only); False when nothing waits."""
    def stats(self) -> tuple[int, int, int, int, int, int]:
        """(batches, operations, pending, last flush ns, all flushes ns, pages in the WAL)."""
    def fail_next_commit(self, after: bool) -> None:
        """For tests: the next COMMIT reports an I/O error, ``after`` or before it took effect."""
    def close(self) -> None:
        """Run what is queued, end the thread, close the handle; idempotent. Then only drain() works."""

@final
class Reader:
    """A reading handle for pages of events, outside the GIL while SQLite works.

    ``sql`` binds sid, cursor and limit, in that order, and answers the nine fields of an event.
    RuntimeError: the file does not open. Belongs to one thread at a time.
    """

    def __init__(self, path: str, sql: str, busy_ms: int) -> None: ...
    def page(
        self, sid: int, cursor: int, rows_max: int, bytes_max: int, row_bytes: int
    ) -> tuple[bytes, int, int]:
        """Events after ``cursor`` as packed rows, the first and the last id; (b"", 0, cursor) at the
        head. A row counts as its payload and ``row_bytes``; the page ends with the row that reaches
        ``bytes_max``. RuntimeError when SQLite fails.
        """
    def close(self) -> None:
        """Close the handle; idempotent."""
