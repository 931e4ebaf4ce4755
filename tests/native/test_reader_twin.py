"""The native page reader against its twin, on a real file."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from goclaw._pure import frame as pure_frame
from goclaw._pure import writer as pure
from goclaw.core import limits
from goclaw.store import open_database
from goclaw.store.queries import load

if TYPE_CHECKING:
    from pathlib import Path

native: Any = pytest.importorskip(
    "goclaw._fast.writer", reason="the native modules are not built", exc_type=ImportError
)
SQL = load().queries["events_after"].sql


def filled(home: Path, events: int) -> str:
    async def fill() -> None:
        database = open_database(home)
        database.start(lambda events: None)
        await database.write(
            "session_new", session_id="s", stream_id="x", salt=b"s" * 16, cwd="/", roots="[]",
            brain="direct", interactive=0, hash=b"", now=1,
        )  # fmt: skip
        dice = random.Random(4)
        for number in range(events):
            payload = b'{"n":"' + b"x" * dice.choice([0, 5, 900, 70_000]) + b'"}'
            await database.write(
                "session_event", sid=1, kind=number % 3, type="update", payload=payload, now=7
            )
        await asyncio.to_thread(database.close)

    asyncio.run(fill())
    return str(home / "goclaw.db")


@pytest.mark.req("P-2", "I-5")
def test_both_read_the_same_pages_within_their_bounds(tmp_path: Path) -> None:
    path = filled(tmp_path, 60)
    readers = [module.Reader(path, SQL, limits.BUSY_MS_MAX) for module in (native, pure)]
    dice = random.Random(5)
    for _ in range(200):
        cursor, rows_max = dice.randrange(62), dice.choice([1, 7, 256])
        bytes_max = dice.choice([1, 2_000, 65_536])
        pages = [reader.page(1, cursor, rows_max, bytes_max, 300) for reader in readers]
        assert pages[0] == pages[1]
        data, first, last = pages[0]
        if cursor >= 60:
            assert (data, first, last) == (b"", 0, cursor)
            continue
        assert first == cursor + 1
        frames = pure_frame.packed(b"s", data, 7, True).splitlines()
        assert 1 <= len(frames) == last - cursor <= rows_max
        # all but the last row stay below the bound
        assert len(frames) == 1 or sum(map(len, frames[:-1])) < bytes_max + 300 * len(frames)
    for reader in readers:
        reader.close()
        reader.close()
        with pytest.raises(RuntimeError, match="closed"):
            reader.page(1, 0, 1, 1, 1)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for module in (native, pure):
        with pytest.raises(RuntimeError, match="unable to open"):
            module.Reader(str(tmp_path / "none.db"), SQL, 100)
