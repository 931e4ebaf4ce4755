"""The audit: a hash chain in the database, the same records in a file, and the proof of both (A-8).

Owns logs/audit.jsonl, the walk over the chain and what it finds. Not in here: what is recorded, and
the links, which the writer makes in the transaction of what they tell of.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from goclaw.core import limits, log
from goclaw.core.clock import rfc3339
from goclaw.core.errors import GoclawError
from goclaw.core.files import open_to_append
from goclaw.core.services import keep_running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from goclaw.core.clock import Clock
    from goclaw.store import Database, Event

__all__ = ["Audit", "Fault", "Found", "link_of"]

_log = log.logger("engine.audit")

_NUMBERS: Final = struct.Struct(">qq")
_BEGIN: Final = bytes(32)
_PRUNED: Final = "audit.pruned"
_ANCHOR: Final = "audit_anchor"
"""In ``meta``: number and link of the last record that went; a record of the chain vouches."""


def link_of(before: bytes, seq: int, at_ms: int, record: bytes | str) -> bytes:
    """The link of a record, as the writer makes it: over the link before, number, time, content."""
    head = before + _NUMBERS.pack(seq, at_ms)
    if isinstance(record, str):  # somebody wrote it who is not us
        record = record.encode()
    return hashlib.sha256(head + b"audit\0\0\0" + record).digest()


class Fault(NamedTuple):
    """Something that is not as it was written; ``where``: the database, or the file."""

    seq: int
    where: str
    what: str


class Found(NamedTuple):
    """What a walk over the whole chain found. ``link`` is its last: noted elsewhere, it proves
    later that nothing before it was written anew."""

    records: int
    link: str
    faults: list[Fault]
    more: bool
    """There are faults beyond those that are listed."""


class Audit:
    """The audit of one home. Belongs to the loop; files are touched on threads."""

    def __init__(self, database: Database, clock: Clock, path: Path) -> None:
        self._database, self._clock, self._path = database, clock, path
        self._stirred = asyncio.Event()
        self._copying: asyncio.Task[None] | None = None
        self._copied = 0
        self._prune_due_ms = clock.mono_ms()
        self._turn = asyncio.Lock()
        self._walk = asyncio.Lock()  # nothing is forgotten while the chain is read
        self._closed = False

    # -- the file ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on where the file ends; one that is of another chain is put aside and named."""
        seq, link = await _thread(_last_line, self._path)
        if seq:
            found = await self._database.read("audit_after", seq=seq - 1, limit=1)
            if not found or found[0][0] != seq or found[0][3].hex() != link:
                aside = self._path.with_name(f"audit-{link[:12]}.jsonl")
                _log.error("audit.jsonl is of another chain", extra={"data": {"kept": aside.name}})
                await _thread(self._path.replace, aside)
                seq = 0
        self._copied = seq
        self._copying = keep_running("audit copy", self._copy)

    def observe(self, _events: list[Event]) -> None:
        """Something committed, maybe decisions with it."""
        self._stirred.set()

    async def _copy(self) -> None:
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.AUDIT_COPY_MS / 1000):
                    await self._stirred.wait()
            self._stirred.clear()
            try:
                await self.copied()
                if self._clock.mono_ms() >= self._prune_due_ms and not self._walk.locked():
                    self._prune_due_ms = self._clock.mono_ms() + limits.AUDIT_PRUNE_MS
                    await self.prune()
            except (GoclawError, OSError) as error:
                _log.error("audit not copied", extra={"data": {"error": str(error)}})

    async def copied(self) -> None:
        """Append to the file what it lacks. OSError, StorageFailed: the database has it all."""
        async with self._turn:
            while page := await self._database.read(
                "audit_after", seq=self._copied, limit=limits.READ_ROWS_MAX
            ):
                lines = b"".join(_line(*row) for row in page)
                await _thread(_append, self._path, lines)
                self._copied = page[-1][0]

    async def close(self) -> None:
        """Copy the rest."""
        self._closed = True
        self._stirred.set()
        if self._copying is not None:
            await self._copying

    # -- retention -----------------------------------------------------------------------------

    async def prune(self) -> int:
        """Forget the oldest records, those beyond AUDIT_RETENTION_MS, in the database and the file;
        how many went. Again is fine, and takes up what a crash left.

        With each lot a record commits that says which link the chain begins behind, so that what
        is left is proved as before. A chain with a fault among the old ones keeps all of them:
        they are the evidence. It waits for a ``verify`` under way.
        """
        async with self._walk:
            return await self._pruned()

    async def _pruned(self) -> int:
        gone = 0
        cutoff_ms = self._clock.wall_ms() - limits.AUDIT_RETENTION_MS
        while old := await self._old(cutoff_ms):
            seq, at, _record, link = old[-1]
            told = {
                "type": _PRUNED, "upTo": seq, "link": link.hex(), "records": len(old),
                "lastAt": rfc3339(at),
            }  # fmt: skip
            bind = self._database.bind
            await self._database.apply(
                bind("audit_prune", upto=seq),
                bind("meta_put", key=_ANCHOR, value=f"{seq} {link.hex()}"),
                bind("audit", record=orjson.dumps(told), now=self._clock.wall_ms()),
            )
            gone += len(old)
        async with self._turn:
            begin, _link = await self._anchor()
            await _thread(_shorten, self._path, begin)
        return gone

    async def _old(self, cutoff_ms: int) -> list[tuple[Any, ...]]:
        """The first records of the chain, as far as they are old, whole and not its last."""
        seq, link = await self._anchor()
        page = await self._database.read("audit_after", seq=seq, limit=limits.READ_ROWS_MAX)
        old: list[tuple[Any, ...]] = []
        for row in page[:-1]:
            number, at, record, own = row
            if at >= cutoff_ms:
                break
            seq += 1
            if number != seq or link_of(link, number, at, record) != own:
                _log.error("audit not pruned: a fault", extra={"data": {"record": number}})
                return []
            link = own
            old.append(row)
        return old

    async def _anchor(self) -> tuple[int, bytes]:
        """Number and link of the last record that went; zeros while none has."""
        found = await self._database.read("meta_get", key=_ANCHOR)
        if not found:
            return 0, _BEGIN
        seq, _, link = str(found[0][0]).partition(" ")
        try:
            return int(seq), bytes.fromhex(link)
        except ValueError:
            return 0, _BEGIN  # somebody wrote it who is not us: the walk will tell

    # -- reading -------------------------------------------------------------------------------

    async def listed(self, *, before: int | None, most: int) -> list[dict[str, Any]]:
        """Records, newest first; ``before``: the number of the last one of the page before."""
        found: list[dict[str, Any]] = []
        while len(found) < most:
            page = await self._database.read(
                "audit_before", seq=before or 1 << 62,
                limit=min(most - len(found), limits.READ_ROWS_MAX),
            )  # fmt: skip
            if not page:
                break
            found += [
                {"seq": seq, "at": rfc3339(at), "record": orjson.Fragment(record)}
                for seq, at, record in page
            ]
            before = page[-1][0]
        return found

    async def verify(self) -> Found:
        """Walk the chain from its beginning, and the file beside it; any record that was removed,
        changed or moved is a fault. Where old records went, it begins behind them, and one of those
        that are left must say so. Changes nothing; old ones are kept meanwhile."""
        async with self._walk:
            return await self._verified()

    async def _verified(self) -> Found:
        await self.copied()
        # Both may grow meanwhile; the file is never shorter than what has been copied.
        faults: list[Fault] = []
        lines = _lines(self._path)
        begin = seq, link = await self._anchor()
        count, is_told = 0, begin == (0, _BEGIN)
        line: tuple[int, bytes] | None = await _thread(next, lines, None)
        while line is not None and 0 < line[0] <= seq:  # a crash came before the file was shortened
            line = await _thread(next, lines, None)
        async for row in self._rows():
            number, at, record, own = row
            count += 1
            if number != seq + 1:
                faults.append(Fault(seq + 1, "database", _gap(seq + 1, number - 1)))
            elif link_of(link, number, at, record) != own:
                faults.append(
                    Fault(number, "database", "it was changed, or another one moved here")
                )
            seq, link = number, own
            is_told = is_told or _tells_of(record, begin)
            line = await self._beside(row, line, lines, faults)
        if not is_told:
            faults.insert(0, Fault(begin[0], "database", "no record says that those up to it went"))
        head_seq, head_link = (await self._database.read("audit_head"))[0]
        if (seq, link) != (head_seq, head_link):
            gap = "it is not the last that was written"
            gap = _gap(seq + 1, head_seq) if seq < head_seq else gap
            faults.append(Fault(min(seq, head_seq) + 1, "database", gap))
        while line is not None and line[0] <= self._copied:
            faults.append(Fault(line[0], "file", "the database does not have it"))
            line = await _thread(next, lines, None)
        lines.close()
        return Found(count, link.hex(), faults[: limits.AUDIT_FAULTS_MAX],
                     len(faults) > limits.AUDIT_FAULTS_MAX)  # fmt: skip

    async def _beside(
        self,
        row: tuple[Any, ...],
        line: tuple[int, bytes] | None,
        lines: Any,
        faults: list[Fault],
    ) -> tuple[int, bytes] | None:
        """Hold a record to its line; answers the next one."""
        if row[0] > self._copied:
            return line
        while line is not None and line[0] < row[0]:
            faults.append(Fault(line[0], "file", "the database does not have it"))
            line = await _thread(next, lines, None)
        if line is None or line[0] > row[0]:
            faults.append(Fault(row[0], "file", "its line was removed, or moved"))
            return line
        if line[1] != _line(*row):
            faults.append(Fault(row[0], "file", "its line was changed"))
        found: tuple[int, bytes] | None = await _thread(next, lines, None)
        return found

    async def _rows(self) -> AsyncIterator[tuple[Any, ...]]:
        seq = -(1 << 62)
        while True:
            page = await self._database.read("audit_after", seq=seq, limit=limits.READ_ROWS_MAX)
            for row in page:
                yield row
            if page:
                seq = page[-1][0]
            elif (await self._database.read("audit_head"))[0][0] <= seq or not (
                await self._database.read("audit_after", seq=seq, limit=1)
            ):
                return


def _tells_of(record: bytes | str, begin: tuple[int, bytes]) -> bool:
    if _PRUNED not in str(record):
        return False
    try:
        told = orjson.loads(record)
        return (told["type"], told["upTo"], told["link"]) == (_PRUNED, begin[0], begin[1].hex())
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def _gap(first: int, last: int) -> str:
    if last < first:
        return "its number stands where another should"
    return "it was removed" if first == last else f"records {first} to {last} were removed"


def _line(seq: int, at: int, record: bytes, link: bytes) -> bytes:
    head = {"seq": seq, "at": rfc3339(at), "link": link.hex(), "record": orjson.Fragment(record)}
    return orjson.dumps(head) + b"\n"


async def _thread(work: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)


def _append(path: Path, lines: bytes) -> None:
    descriptor = open_to_append(path)
    try:
        while lines:
            lines = lines[os.write(descriptor, lines) :]
    finally:
        os.close(descriptor)


def _shorten(path: Path, begin: int) -> None:
    """Leave out the lines up to that number; an unreadable one stays, and is a fault."""
    lines = _lines(path)
    first = next(lines, None)
    if first is None or not 0 < first[0] <= begin:
        lines.close()
        return
    left = path.with_suffix(".left")
    left.unlink(missing_ok=True)
    descriptor = open_to_append(left)
    with open(descriptor, "wb") as file:
        file.writelines(line for seq, line in lines if not 0 < seq <= begin)
        file.flush()
        os.fsync(descriptor)
    left.replace(path)


def _last_line(path: Path) -> tuple[int, str]:
    """Number and link of the last whole line, (0, "") without one; a torn one is cut off."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0, ""
    with open(descriptor, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limits.AUDIT_LINE_BYTES_MAX))
        tail = file.read()
        end = tail.rfind(b"\n") + 1
        file.truncate(size - len(tail) + end)
        last = tail[:end].splitlines()[-1:]
    try:
        found: dict[str, Any] = orjson.loads(last[0]) if last else {"seq": 0, "link": ""}
        return int(found["seq"]), str(found["link"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return -1, "unreadable"


def _lines(path: Path) -> Any:
    """(number, line) of each line of the file; an unreadable one has number 0."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed with the generator
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                seq = int(orjson.loads(line)["seq"])
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                seq = 0
            yield seq, line
