"""Whole copies of the database: taken while it is written to, checked, put in its place (S-4).

Owns how the file is copied and replaced, and what a crash in the middle of a replacement leaves.
Not in here: what else belongs to a backup (``ops/backup.py``). Everything blocks.

A replacement, and what a kill leaves: the copy lies complete beside the database under a name that
says so, from there on the replacement is decided; then the old files are moved to where they are
kept; then the copy takes the name. Whoever opens the database next carries a decided one to its
end (``finish_replacement``), so there is never a new file beside the old file's log, which SQLite
would play into it, and never a start on an empty database.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from goclaw.core import limits
from goclaw.core.errors import DatabaseRefused, StorageFailed
from goclaw.core.faults import faultpoint
from goclaw.core.files import sync_folder
from goclaw.store import queries
from goclaw.store.schema import NAME, database_files, judged, migrations, open_to_read

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "State",
    "check_copy",
    "copy_database",
    "database_state",
    "finish_replacement",
    "replace_database",
]

_PART: Final = f"{NAME}.part"
_DECIDED: Final = f"{NAME}.restoring-"  # then the name of the folder for the old files


def copy_database(home: Path, target: Path) -> None:
    """Write one moment of the database of ``home`` into the new file ``target``, and flush it.

    The daemon may write meanwhile, on any number of threads: this is one read transaction on a
    connection of its own. StorageFailed when the disk refuses; a part may be left at ``target``.
    """
    source = home / NAME
    if not source.exists():
        raise DatabaseRefused(
            f"{source} does not exist; there is nothing to copy.", hint="A first run makes it."
        )
    try:
        connection = apsw.Connection(str(source), apsw.SQLITE_OPEN_READONLY)
        try:
            connection.setbusytimeout(limits.BUSY_MS_MAX)
            connection.execute(queries.load().statements["copy_into"], (str(target),)).fetchall()
        finally:
            connection.close()
        target.chmod(0o600)
        _flush(target)
    except (apsw.Error, OSError) as error:
        raise StorageFailed(
            f"The database could not be copied to {target} ({error}).",
            hint="Make room or mend the disk, then try again.",
        ) from error


def check_copy(path: Path) -> int:
    """The schema of a copy that is whole; DatabaseRefused says what is wrong with another.

    Reads all of it: seconds for a gigabyte.
    """
    try:
        schema = judged(path, migrations())
        damage = _integrity(path)
    except apsw.Error as error:
        raise _damaged(path, str(error)) from error
    if damage:
        raise _damaged(path, damage)
    return schema


class State(NamedTuple):
    """Of a database: its schema, how many of this program's migrations it lacks, what is damaged
    ("" when nothing was found), and whether all of it was read to find out."""

    schema: int
    missing: int
    damage: str
    is_whole: bool


def database_state(home: Path, *, deep: bool) -> State:
    """Look at the database of ``home`` without changing it, also while a daemon serves it.

    ``deep`` reads all of it. DatabaseRefused for what is none of ours, or is newer.
    """
    path, shipped = home / NAME, migrations()
    try:
        schema = judged(path, shipped)
        damage = _integrity(path) if deep else ""
    except apsw.Error as error:
        return State(0, 0, str(error), deep)
    return State(schema, len(shipped) - schema, damage, deep)


def _integrity(path: Path) -> str:
    """What is wrong inside; empty when nothing is."""
    reader = open_to_read(path)
    try:
        found = reader.execute(queries.load().statements["integrity"]).fetchall()
    finally:
        reader.close()
    return "" if found == [("ok",)] else str(found[0][0])


def _damaged(path: Path, why: str) -> DatabaseRefused:
    return DatabaseRefused(f"{path} is damaged ({why}).", hint="Use another backup.")


def replace_database(home: Path, source: Path, keep: Path) -> None:
    """Put a copy of ``source`` in the place of the home's database, whose files go to ``keep``.

    ``keep`` is a folder below ``home``/backups. The caller holds the home's lock. Every session
    gets another stream id, since its log went back in time. Raises StorageFailed before anything is
    replaced; from then on a crash is carried on by the next start.
    """
    decided = home / f"{_DECIDED}{keep.name}"
    part = home / _PART
    try:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file, source.open("rb") as whole:
            shutil.copyfileobj(whole, file, limits.COPY_BYTES)
        connection = apsw.Connection(str(part), apsw.SQLITE_OPEN_READWRITE)
        try:
            # The log last: closing the connection ends it, and the file alone is the database.
            for name in ("streams_renew", "journal_wal"):
                connection.execute(queries.load().statements[name]).fetchall()
        finally:
            connection.close()
        _flush(part)
        faultpoint("before_restore")
        os.replace(part, decided)
        sync_folder(home)
    except (apsw.Error, OSError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise StorageFailed(
            f"The backup could not be brought into {home} ({error}); nothing was replaced.",
            hint="Make room or mend the disk, then try again.",
        ) from error
    finish_replacement(home)


def finish_replacement(home: Path) -> None:
    """Carry a decided replacement to its end, clear away one that was not; DatabaseRefused when the
    disk refuses: then the next call goes on. The caller holds the home's lock."""
    with contextlib.suppress(OSError):
        (home / _PART).unlink()
    for decided in sorted(home.glob(f"{_DECIDED}*")):
        keep = home / "backups" / decided.name.removeprefix(_DECIDED)
        try:
            keep.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in database_files(home):
                with contextlib.suppress(FileNotFoundError):
                    faultpoint("during_restore")
                    os.replace(path, keep / path.name)
            sync_folder(keep)
            faultpoint("during_restore")
            os.replace(decided, home / NAME)
            sync_folder(home)
        except OSError as error:
            raise DatabaseRefused(
                f"A restore of {home} was begun and cannot be ended: {error.strerror}.",
                hint="Mend the disk or the permissions, then start again: it goes on.",
            ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)
