"""`goclaw upgrade --rehearse`: what this program will make of a home that an older one wrote (S-8).

Owns the copy, its migration and the look at parked runs. Not in here: who has the home, the brains
that a run is made once more with (``cli/upgrade.py``). The home itself is only read. Blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from goclaw.core import limits
from goclaw.core.errors import DatabaseRefused, GoclawError, StorageFailed
from goclaw.core.states import State
from goclaw.ops.backup import check_room
from goclaw.ops.replay import replay
from goclaw.store import (
    Archive,
    check_copy,
    copy_database,
    database_files,
    database_state,
    open_database,
    rows,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from goclaw.core.home import Home
    from goclaw.core.records import Cleaner, Runner

__all__ = ["Parked", "Rehearsed", "rehearse"]

# What a start takes up again, those that wait for a lane last: most of them have not begun.
_PARKED = (State.RUNNING, State.RETRY_WAIT, State.SUSPENDED, State.QUEUED)
_FOLDER = "rehearsal"


@dataclass(frozen=True, slots=True)
class Parked:
    """A run in the middle. ``verdict``: goes_on; diverges, then it is SUSPENDED for
    ``nondeterminism``; refused, when it cannot be made at all; worker, whose control flow only its
    worker knows."""

    run_id: str
    state: str
    effects: int
    verdict: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """An element of ``runs``."""
        return {
            "runId": self.run_id, "state": self.state, "effects": self.effects,
            "verdict": self.verdict, "detail": self.detail,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a rehearsal found: the schema before and after, parked runs, and whether there were more
    than ``limits.REHEARSED_RUNS_MAX``."""

    before: int
    after: int
    size: int
    runs: tuple[Parked, ...]
    more: bool

    @property
    def is_ok(self) -> bool:
        """Every run that was looked at goes on."""
        return all(one.verdict in ("goes_on", "worker") for one in self.runs)

    def to_json(self) -> dict[str, Any]:
        """The object of `goclaw upgrade --rehearse --json`."""
        return {
            "ok": self.is_ok, "schema": {"from": self.before, "to": self.after},
            "databaseBytes": self.size, "runs": [one.to_json() for one in self.runs],
            "more": self.more,
        }  # fmt: skip


def rehearse(
    home: Home, runner: Runner, *, repeatable: Collection[str], cleaner: Cleaner
) -> Rehearsed:
    """Migrate a copy and make its parked runs once more; also while a daemon serves the home.

    DatabaseRefused when the migration fails, as a start would; StorageFailed when the disk has no
    room for the copy. ``runner`` has a RecordedGate. Nothing is left of the copy.
    """
    database = database_files(home.root)[0]
    if not database.exists():
        raise DatabaseRefused(
            f"{database} does not exist; there is nothing to rehearse.",
            hint="A first run makes it.",
        )
    with _workplace(home) as folder:
        copy = database_files(folder)[0]
        copy_database(home.root, copy)
        before = database_state(folder, deep=False).schema
        open_database(folder, threaded=False).close()
        after, size = check_copy(copy), copy.stat().st_size
        archive = Archive(folder)
        try:
            runs, more = asyncio.run(_parked(archive, runner, repeatable, cleaner))
        finally:
            archive.close()
    return Rehearsed(before, after, size, tuple(runs), more)


@contextlib.contextmanager
def _workplace(home: Home) -> Iterator[Path]:
    """A folder on the home's disk, one rehearsal at a time; what a killed one left goes first."""
    folder = home.run / _FOLDER
    try:
        check_room(home)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageFailed(
            f"{folder} cannot be made: {error.strerror}.", hint="Mend the disk, then try again."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StorageFailed("Another rehearsal is under way.", hint="Wait for its end.") from None
    try:
        _clear(folder)
        yield folder
    finally:
        _clear(folder)
        os.close(descriptor)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


async def _parked(
    archive: Archive, runner: Runner, repeatable: Collection[str], cleaner: Cleaner
) -> tuple[list[Parked], bool]:
    async def read(query: str, **arguments: Any) -> list[tuple[Any, ...]]:
        return archive.fetch(query, **arguments)

    found: list[Parked] = []
    for row in _begun(archive):
        if len(found) == limits.REHEARSED_RUNS_MAX:
            return found, True
        if row["pool"]:
            its = f"its worker in the pool {row['pool']} knows"
            found.append(Parked(row["run_id"], row["state"], 0, "worker", its))
        else:
            found.append(await _made_again(read, runner, row, repeatable, cleaner))
    return found, False


def _begun(archive: Archive) -> Iterator[dict[str, Any]]:
    """The open tasks that have had an attempt, by state, newest first."""
    for state in _PARKED:
        before = 1 << 62
        while page := archive.fetch(
            "tasks_listed", sid=None, pool=None, before=before, state=state,
            limit=limits.READ_ROWS_MAX,
        ):  # fmt: skip
            found = list(rows("task_by_id", page))
            before = found[-1]["tid"]
            yield from (row for row in found if row["attempt"])


async def _made_again(
    read: Any, runner: Runner, row: dict[str, Any], repeatable: Collection[str], cleaner: Cleaner
) -> Parked:
    def parked(effects: int, verdict: str, detail: str) -> Parked:
        return Parked(row["run_id"], row["state"], effects, verdict, detail)

    try:
        made = await replay(read, runner, row["run_id"], repeatable=repeatable, cleaner=cleaner)
    except GoclawError as error:
        return parked(0, "refused", f"{error.message} {error.hint}")
    if made.divergence is None:
        return parked(made.effects, "goes_on", "from its record")
    where = made.divergence.ordinal
    at = "at its end" if where is None else f"at effect {where}"
    return parked(made.effects, "diverges", f"{at}: {made.divergence.what}")
