"""The database's file: its name, its schema, and the refusal of a file that is not ours (S-3).

Owns the migrations and their ledger. Not in here: the running database (``database.py``), copies of
it (``copies.py``).
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Final

import apsw

from goclaw.core import limits
from goclaw.core.errors import DatabaseRefused, StorageFailed
from goclaw.store import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = [
    "MEND",
    "NAME",
    "database_files",
    "judged",
    "migrate",
    "migrations",
    "open_to_read",
    "refuse",
]

NAME: Final = "goclaw.db"
MEND: Final = "Put a whole copy in its place, or move it and its -wal away to begin anew."


def database_files(home: Path) -> list[Path]:
    """The files only the store may open: any other handle on them drops SQLite's locks."""
    return [home / NAME, home / f"{NAME}-wal", home / f"{NAME}-shm"]


def migrations() -> list[tuple[int, str, str]]:
    """(number, checksum, SQL) of every shipped migration, in order."""
    found = []
    folder = resources.files("goclaw.store").joinpath("migrations")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        match = re.match(r"(\d{4})_\w+\.sql$", file.name)
        if match:
            text = file.read_text("utf-8")
            found.append((int(match[1]), hashlib.sha256(text.encode()).hexdigest(), text))
    return found


def refuse(path: Path, why: str, what: str) -> DatabaseRefused:
    """The error of a file that stays as it is: why, and what to do."""
    return DatabaseRefused(f"{path} {why}; it was not touched.", hint=what)


def migrate(
    path: Path,
    shipped: Sequence[tuple[int, str, str]],
    snapshot: Callable[[], object] = lambda: None,
) -> None:
    """Bring the file to the newest schema, one transaction a step; DatabaseRefused says why not.

    ``snapshot`` is called before the first step over a file that holds something (S-8); when it
    raises StorageFailed nothing is migrated.
    """
    try:
        if path.exists() and path.stat().st_size > 0:
            done = judged(path, shipped)
        else:
            # Before SQLite makes it: its log and its index take their mode from the file.
            path.touch(mode=0o600)
            done = 0
        if done == len(shipped):
            return
        if done:
            snapshot()
        statements = queries.load().statements
        connection = apsw.Connection(str(path), apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.setbusytimeout(limits.BUSY_MS_MAX)
            connection.execute(statements["journal_wal"]).fetchall()
            connection.execute("PRAGMA synchronous=FULL").fetchall()
            with connection:
                connection.execute(statements["ledger_make"])
            for number, checksum, text in shipped[done:]:
                with connection:
                    connection.execute(text).fetchall()
                    connection.execute(statements["ledger_add"], (number, checksum))
        finally:
            connection.close()
    except (apsw.Error, OSError) as error:
        raise refuse(path, f"cannot be used ({error})", MEND) from error
    except StorageFailed as error:
        why = f"cannot be backed up before its migration ({error.message.rstrip('.')})"
        raise refuse(path, why, error.hint) from error


def judged(path: Path, shipped: Sequence[tuple[int, str, str]]) -> int:
    """How many of the shipped migrations the file has, without writing to it; DatabaseRefused."""
    statements = queries.load().statements
    reader = open_to_read(path)
    try:
        tables = {row[0] for row in reader.execute(statements["tables_read"])}
        ledger = (
            reader.execute(statements["ledger_read"]).fetchall() if "migrations" in tables else []
        )
    finally:
        reader.close()
    if not ledger and tables - {"migrations"}:
        raise refuse(path, "is no goclaw database", "Move it away.")
    if len(ledger) > len(shipped):
        raise refuse(
            path,
            f"has schema {ledger[-1][0]}, newer than this program's {shipped[-1][0]}",
            "Install the newer goclaw that wrote it.",
        )
    for (number, checksum), (known, expected, _) in zip(ledger, shipped, strict=False):
        if (number, checksum) != (known, expected):
            raise refuse(
                path,
                f"was migrated by another migration {number} than this program's",
                "Restore a backup, or run the goclaw that wrote it.",
            )
    return len(ledger)


def open_to_read(path: Path) -> apsw.Connection:
    """Without a log the file is all there is, and SQLite need not put a log and an index beside."""
    log = path.with_name(f"{path.name}-wal")
    how = "mode=ro" if log.exists() else "immutable=1"
    uri = f"{path.absolute().as_uri()}?{how}"
    connection = apsw.Connection(uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    connection.setbusytimeout(limits.BUSY_MS_MAX)
    return connection
