"""effects.log: what was sent, noted outside the database, so that an old backup repeats none of it
(E-8).

Owns the file, its thread and its bound. Not in here: what a noted effect becomes after a restore
(``effect_intent`` in queries.sql), who notes (engine).

The database numbers the intents of effects that are not pure: the number commits with the intent,
and its line is here before the effect is sent. A line with a number that the database has not given
was noted in a life that the database knows nothing of. Numbers go on behind the last one that
either of the two has seen, so none is ever given twice.

  {"fence":1,"from":N}                             every sending from number N on is noted here
  {"fence":1,"from":N,"lost":true}                 the same; what was noted before was not there
  {"n":N,"epoch":E,"key":K,"hash":H,"at":ms}       one intent

What a crash leaves: a line without its end, and nothing of it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from goclaw.core import limits, log
from goclaw.core.errors import DatabaseRefused, StorageFailed
from goclaw.core.faults import faultpoint
from goclaw.core.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Fence", "Found", "Note", "fence_file"]

_log = log.logger("store.fence")

NAME: Final = "effects.log"
_PAGE: Final = limits.FENCE_PAGE_BYTES


class Note(NamedTuple):
    """One intent: its number and epoch, the effect's key and request hash, when it was made."""

    number: int
    epoch: int
    key: str
    hash: bytes
    at_ms: int

    def line(self) -> bytes:
        """As it stands in the file, with the line's end."""
        return orjson.dumps(
            {
                "n": self.number,
                "epoch": self.epoch,
                "key": self.key,
                "hash": self.hash.hex(),
                "at": self.at_ms,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )

    @classmethod
    def read(cls, line: bytes) -> Note | None:
        """None for what is no note."""
        try:
            found = orjson.loads(line)
            return cls(
                int(found["n"]), int(found["epoch"]), str(found["key"]),
                bytes.fromhex(found["hash"]), int(found["at"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            return None


class Found(NamedTuple):
    """What ``open`` saw: the highest number and epoch noted, 0 without any; the number from which
    on every sending is noted; and whether this file began because there was none though there
    should have been one: it says so until it is cut, so that no kill hides it from a report."""

    number: int
    epoch: int
    begins: int
    missing: bool


def fence_file(home: Path) -> Path:
    """Where it lies. Backups leave it alone: a restore would take its memory away."""
    return home / NAME


class Fence:
    """The file of one home. ``note`` belongs to a loop; everything else blocks, and happens before
    the first note.

    Without a thread (the simulator, whose crashes lose no page) notes are written at once and not
    flushed.
    """

    def __init__(self, path: Path, *, threaded: bool = True) -> None:
        self.path = path
        self._threaded = threaded
        self._file = -1
        self._size = 0
        self._look_at, self._look_ms = limits.FENCE_TRIM_BYTES, 0
        self._condition = threading.Condition()
        self._waiting: deque[tuple[bytes, int, asyncio.Future[None]]] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.flushes = 0
        """Batches written since the start."""

    # -- the start -----------------------------------------------------------------------------

    def open(self, number: int) -> Found:
        """Take the file up, or begin one behind ``number``, the last that the database has given.

        The tail that a crash left is cut off. DatabaseRefused when the file cannot be used.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(self.path, flags, 0o600)
            os.fchmod(self._file, 0o600)
            self._size = self._whole_bytes()
            os.ftruncate(self._file, self._size)
            missing = self._size == 0 and number > 0
            if self._size == 0:
                self._size = _put(self._file, _header(number + 1, lost=missing), 0)
                os.fdatasync(self._file)
                sync_folder(self.path.parent)
            return self._found()
        except OSError as error:
            self.close()
            raise DatabaseRefused(
                f"{self.path} cannot be used: {error.strerror}; no effect could be sent.",
                hint="Mend its permissions or the disk.",
            ) from None

    def _whole_bytes(self) -> int:
        """The size up to the end of the last whole line."""
        end = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - _PAGE)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _found(self) -> Found:
        """The last page tells: numbers grow, but for those of attempts that race."""
        number = epoch = 0
        for note in self._notes(max(0, self._size - _PAGE)):
            number, epoch = max(number, note.number), max(epoch, note.epoch)
        try:
            head = orjson.loads(next(self._lines(0)))
            begins, missing = int(head["from"]), bool(head.get("lost"))
        except (ValueError, KeyError, TypeError):
            begins, missing = 0, False  # damaged: nothing is known to be missing
        return Found(number, epoch, begins, missing)

    def beyond(self, number: int) -> Iterator[list[Note]]:
        """Pages of the notes above ``number``: what was sent in a life that is gone."""
        page: list[Note] = []
        for note in self._notes(0):
            if note.number > number:
                page.append(note)
            if len(page) == limits.BATCH_OPERATIONS_MAX:
                yield page
                page = []
        if page:
            yield page

    def _notes(self, start: int) -> Iterator[Note]:
        return filter(None, map(Note.read, self._lines(start)))

    def _lines(self, start: int) -> Iterator[bytes]:
        """Lines that begin at ``start`` or behind it."""
        partly = start > 0
        at, rest = start - partly, b""
        while at < self._size:
            end = min(self._size, at + _PAGE)
            *lines, rest = (rest + os.pread(self._file, end - at, at)).split(b"\n")
            at = end
            if lines and partly:
                del lines[0]
                partly = False
            yield from lines

    # -- notes ---------------------------------------------------------------------------------

    def note(self, notes: Sequence[Note]) -> asyncio.Future[None]:
        """Put them on disk; the future resolves when they are, StorageFailed when they are not.

        What waits together shares one flush. Nothing may be sent before.
        """
        return self._enqueue(b"".join(note.line() for note in notes), notes[-1].at_ms)

    def _enqueue(self, lines: bytes, now_ms: int) -> asyncio.Future[None]:
        self._loop = loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._threaded:
            _resolve([future], self._write(lines))
            self._bound(now_ms)
            return future
        with self._condition:
            # Bounded by the attempts: each waits for its own.
            self._waiting.append((lines, now_ms, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="goclaw-fence", daemon=True)
                self._thread.start()
            self._condition.notify()
        return future

    def _main(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._closing:
                    self._condition.wait()
                batch = [*self._waiting]
                self._waiting.clear()
            if not batch:
                return
            error = self._write(b"".join(lines for lines, _, _ in batch))
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # on a closed loop nobody waits
                self._loop.call_soon_threadsafe(_resolve, [future for *_, future in batch], error)
            self._bound(batch[-1][1])

    def _write(self, lines: bytes) -> OSError | None:
        if not lines:
            return None
        try:
            faultpoint("before_note")
            # Behind what is known to be there: what a failed one left is written over.
            end = _put(self._file, lines, self._size)
            if self._threaded:
                os.fdatasync(self._file)
        except OSError as error:
            _log.error("not noted", extra={"data": {"error": str(error)}})
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            return error
        self._size = end
        self.flushes += 1
        return None

    def _bound(self, now_ms: int) -> None:
        if self._size >= self._look_at or now_ms >= self._look_ms:
            self.trim(now_ms)

    # -- its bound -----------------------------------------------------------------------------

    def tend(self, now_ms: int) -> None:
        """See to what has become too old, once a day: a file that nobody writes to ages, too.

        On the loop, as often as one likes; nobody waits for it.
        """
        if self._file >= 0 and now_ms >= self._look_ms:
            _tended = self._enqueue(b"", now_ms)  # nothing is written: there is no error to hear

    def trim(self, now_ms: int) -> None:
        """Drop what is older than effects are kept, once that is half of the file or a day over
        its time; and the older half, whatever its age, of one over its bound. A disk that refuses
        leaves it as it is."""
        cutoff_ms = now_ms - limits.EVENT_RETENTION_MS
        oldest = next(self._notes(0), None)
        keep = self._older_bytes(cutoff_ms)
        is_late = oldest is not None and oldest.at_ms < cutoff_ms - limits.DAY_MS
        is_full = self._size >= limits.FENCE_BYTES_MAX
        if is_full:
            keep = max(keep, (self._size + 1) // 2)
        is_half = self._size >= limits.FENCE_TRIM_BYTES and keep * 2 >= self._size
        try:
            if keep and (is_late or is_half):
                self._cut(keep)
        except OSError as error:
            _log.error("not trimmed", extra={"data": {"error": str(error)}})
        self._look_ms = now_ms + limits.DAY_MS
        grown = max(self._size * 5 // 4, limits.FENCE_TRIM_BYTES)
        self._look_at = min(grown, limits.FENCE_BYTES_MAX)
        if self._look_at <= self._size:  # it could not be cut
            self._look_at = self._size + limits.FENCE_TRIM_BYTES // 4

    def _older_bytes(self, cutoff_ms: int) -> int:
        """An offset inside the last line that is older, 0 without one; notes lie in the order of
        time."""
        low, high = 0, self._size
        while high - low > _PAGE:
            middle = (low + high) // 2
            note = next(self._notes(middle), None)
            if note is None or note.at_ms >= cutoff_ms:
                high = middle
            else:
                low = middle
        at = low and low + len(os.pread(self._file, _PAGE, low - 1).partition(b"\n")[0])
        for line in self._lines(low):
            note = Note.read(line)
            if note is not None and note.at_ms >= cutoff_ms:
                break
            if note is not None:
                low = at
            at += len(line) + 1
        return low

    def _cut(self, keep: int) -> None:
        """Go on in a new file that holds the lines behind ``keep``."""
        start = keep + len(os.pread(self._file, _PAGE, keep).partition(b"\n")[0]) + 1
        # Attempts race: a number before the cut may be higher than the first one behind it.
        page = os.pread(self._file, min(_PAGE, start), max(0, start - _PAGE)).split(b"\n")
        begins = 1 + max((note.number for note in map(Note.read, page) if note), default=0)
        temporary = self.path.with_name(f".{NAME}.new")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        new = os.open(temporary, flags, 0o600)
        try:
            size = _put(new, _header(begins), 0)
            for at in range(start, self._size, _PAGE):
                size = _put(new, os.pread(self._file, min(_PAGE, self._size - at), at), size)
            os.fdatasync(new)
            os.replace(temporary, self.path)
            sync_folder(self.path.parent)
        except OSError:
            os.close(new)
            raise
        _log.info("trimmed", extra={"data": {"bytes": self._size, "kept": size, "from": begins}})
        os.close(self._file)
        self._file, self._size = new, size

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Write what waits, then close the file; idempotent."""
        if self._thread is not None:
            with self._condition:
                self._closing = True
                self._condition.notify()
            self._thread.join()
            self._thread = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _header(begins: int, *, lost: bool = False) -> bytes:
    head = {"fence": 1, "from": begins} | ({"lost": True} if lost else {})
    return orjson.dumps(head, option=orjson.OPT_APPEND_NEWLINE)


def _put(file: int, data: bytes, at: int) -> int:
    """Write all of it; the offset behind it."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        at, view = at + written, view[written:]
    return at


def _resolve(futures: Sequence[asyncio.Future[None]], error: OSError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(
                StorageFailed(
                    f"The effect could not be noted in {NAME} ({error}); nothing was sent.",
                    hint="Free the disk or mend it.",
                )
            )
