"""store/database.py: futures, errors, readers, pages, and its end."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any

import apsw.ext
import pytest
import store_support as support

from goclaw.core import errors, limits
from goclaw.store import (
    Committed,
    Database,
    Event,
    database_files,
    open_database,
    queries,
    rows,
    schema,
)
from goclaw.store import database as module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(tmp_path)
    yield database
    database.close()


async def session(database: Database) -> int:
    committed = await database.write(
        "session_new", session_id="s", stream_id="t", salt=b"salt", cwd="/", roots="[]",
        brain="direct", interactive=0, now=1,
    )  # fmt: skip
    sid: int = committed.parts[0][0]
    return sid


async def say(database: Database, sid: int, payload: bytes = b"{}") -> Committed:
    return await database.write(
        "session_event", sid=sid, kind=0, type="update", payload=payload, now=1
    )


def test_the_files_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    names = [file.name for file in database_files(tmp_path)]
    assert names == [schema.NAME, f"{schema.NAME}-wal", f"{schema.NAME}-shm"]


def test_bind_fills_what_is_left_out_and_knows_its_words(database: Database) -> None:
    index, values = database.bind("session_event", sid=3, payload=b"p")
    assert list(database.catalogue.programs)[index] == "session_event"
    assert values == (3, None, None, None, b"p", None)
    with pytest.raises(KeyError):
        database.bind("session_event", colour="red")
    with pytest.raises(KeyError):
        database.bind("session_even")


@pytest.mark.req("I-3", "S-2")
def test_events_come_before_the_future_in_commit_order(database: Database) -> None:
    async def main() -> None:
        told: list[Event] = []
        resolved: list[int] = []
        database.start(told.extend)
        sid = await session(database)
        futures = [
            database.write("session_event", sid=sid, kind=0, type="update", payload=b"1", now=1)
            for _ in range(20)
        ]
        for future in futures:
            future.add_done_callback(lambda done: resolved.append(len(told)))
        committed = await asyncio.gather(*futures)
        assert [event[1] for event in told] == list(range(1, 21))
        assert [c.events[0] for c in committed] == told
        assert [c.parts for c in committed] == [[(number,)] for number in range(1, 21)]
        assert all(seen >= number for number, seen in enumerate(resolved, 1))
        assert database.returns("session_event", committed[0].parts[0]) == {"event_id": 1}

    asyncio.run(main())


@pytest.mark.req("Q-4", "Q-1")
def test_a_refusal_is_the_error_that_its_program_names(database: Database) -> None:
    async def main() -> None:
        database.start(lambda events: None)
        for program, arguments, kind in (
            ("heartbeat", {"tid": 1, "token": b"t"}, errors.LeaseLost),
            ("session_event", {"sid": 9}, errors.SessionUnknown),
            ("cancel", {"tid": 9}, errors.UnknownId),
            ("audit", {"record": b"r"}, errors.StorageFailed),  # no time: a constraint
        ):
            with pytest.raises(kind) as caught:
                await database.write(program, **arguments)
            assert str(caught.value).endswith(".")
        assert database.failures == 1

    asyncio.run(main())


@pytest.mark.req("S-7", "I-3")
def test_a_failing_disk_is_a_named_error_and_passes(database: Database) -> None:
    async def main() -> None:
        database.start(lambda events: None)
        sid = await session(database)
        database.fail_next_commit(after=False)
        with pytest.raises(errors.StorageFailed, match="nothing was changed") as caught:
            await say(database, sid)
        assert "same key" in (caught.value.hint or "")
        database.fail_next_commit(after=True)
        assert (await say(database, sid)).parts == [(1,)]
        assert database.failures == 1

    asyncio.run(main())


@pytest.mark.req("S-7")
def test_trouble_with_the_disk_is_told_when_it_begins_and_when_it_ends(database: Database) -> None:
    told: list[str] = []

    async def main() -> None:
        database.start(lambda events: None)
        database.on_trouble = lambda: told.append(database.trouble)
        sid = await session(database)
        for _ in range(2):  # the same trouble is told once
            database.fail_next_commit(after=False)
            with pytest.raises(errors.StorageFailed):
                await say(database, sid)
        assert told == ["a test asked for this failure"]
        with pytest.raises(errors.LeaseLost):
            await database.write("heartbeat", tid=1, token=b"t")
        await database.read("sessions_count")
        assert told == ["a test asked for this failure"]  # neither wrote anything
        await say(database, sid)
        assert told == ["a test asked for this failure", ""]
        with pytest.raises(errors.StorageFailed):
            await database.write("audit", record=b"r")  # a constraint is no disk
        assert database.trouble == ""

    asyncio.run(main())


def test_an_outcome_that_nobody_knows_is_not_called_unchanged(database: Database) -> None:
    error = database._error("outcome_unknown", "gone")
    assert isinstance(error, errors.StorageFailed)
    assert "nobody knows" in error.message
    assert database.failures == 1


@pytest.mark.req("I-5", "Q-10")
def test_too_much_at_once_is_queue_full_and_live_attempts_have_room(tmp_path: Path) -> None:
    database = open_database(tmp_path, threaded=False)

    async def main() -> None:
        database.start(lambda events: None)
        futures = [
            database.write("meta_put", key="k", value="v")
            for _ in range(limits.PENDING_OPERATIONS_MAX)
        ]
        with pytest.raises(errors.QueueFull) as caught:
            await database.write("meta_put", key="k", value="v")
        assert caught.value.data["retryAfterMs"] == 1000
        futures.append(database.write("meta_put", live=True, key="k", value="live"))
        while database.step():
            pass
        await asyncio.gather(*futures)
        assert await database.read("meta_get", key="k") == [("live",)]

    asyncio.run(main())
    database.close()


@pytest.mark.req("I-3")
def test_a_cancelled_future_does_not_take_the_operation_back(database: Database) -> None:
    async def main() -> None:
        database.start(lambda events: None)
        sid = await session(database)
        future = database.write("meta_put", key="k", value="v")
        future.cancel()
        await say(database, sid)
        assert await database.read("meta_get", key="k") == [("v",)]

    asyncio.run(main())


@pytest.mark.req("I-3")
def test_an_observer_that_raises_leaves_nobody_waiting(database: Database) -> None:
    raised: list[Any] = []

    def observe(events: list[Event]) -> None:
        raise RuntimeError("a hub's fault")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: raised.append(context)
        )
        database.start(observe)
        sid = await session(database)
        assert (await say(database, sid)).parts == [(1,)]

    asyncio.run(main())
    assert "a hub's fault" in str(raised[0]["exception"])


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.req("I-8")
def test_reads_run_on_two_threads_and_see_what_was_committed(database: Database) -> None:
    async def main() -> None:
        database.start(lambda events: None)
        sid = await session(database)
        names = set()
        for number in range(1, 20):
            await say(database, sid)
            assert await database.read("session_bounds", sid=sid) == [(number, 1)]
            names.add(await database.in_reader(lambda: threading.current_thread().name))
        assert all(name.startswith("goclaw-reader") for name in names)
        assert len(names) <= limits.READER_THREADS

    asyncio.run(main())


def test_rows_are_named_after_their_columns(database: Database) -> None:
    async def main() -> None:
        database.start(lambda events: None)
        sid = await session(database)
        found = rows("session_by_sid", await database.read("session_by_sid", sid=sid))
        assert found[0]["session_id"] == "s"
        assert found[0]["brain"] == "direct"

    asyncio.run(main())
    connection = support.connect(database.path)
    for name, query in database.catalogue.queries.items():
        names = [column[0] for column in apsw.ext.query_info(connection, query.sql).description]
        if all(column.isidentifier() for column in names):
            assert module._columns(name) == names, name
    connection.close()


def test_a_query_without_a_column_list_has_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = queries.Query("odd", (), "VALUES (1)")
    monkeypatch.setitem(queries.load().queries, "odd", odd)
    with pytest.raises(ValueError, match="no plain column list"):
        rows("odd", [(1,)])


@pytest.mark.req("I-5", "I-8")
def test_a_page_has_at_least_one_row_and_its_bounds(database: Database) -> None:
    async def main() -> None:
        database.start(lambda events: None)
        sid = await session(database)
        await asyncio.gather(*(say(database, sid, b"x" * 1_000) for _ in range(300)))
        await say(database, sid, b"y" * 100_000)
        assert len(database.fetch_page(sid, 0, 1)) == 1
        assert len(database.fetch_page(sid, 0, 1 << 30)) == limits.READ_ROWS_MAX
        page = database.fetch_page(sid, 0, 10_000)
        assert [row[0] for row in page] == list(range(1, len(page) + 1))
        size = 1_000 + limits.FRAME_OVERHEAD_BYTES
        assert (len(page) - 1) * size < 10_000 <= len(page) * size
        assert len(database.fetch_page(sid, 300, 10_000)) == 1  # larger than a page
        assert database.fetch_page(sid, 301, 10_000) == []

    asyncio.run(main())


@pytest.mark.req("S-7")
def test_a_database_that_cannot_be_read_is_a_named_error(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        database.catalogue.queries, "sessions_count", queries.Query("", (), "SELECT no()")
    )
    monkeypatch.setitem(
        database.catalogue.queries, "events_after", queries.Query("", (), "SELECT no()")
    )
    with pytest.raises(errors.StorageFailed, match="cannot be read"):
        database.fetch("sessions_count")
    with pytest.raises(errors.StorageFailed, match="cannot be read"):
        database.fetch_page(1, 0, 1)


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.req("I-3")
def test_close_on_the_loop_answers_what_was_queued(tmp_path: Path) -> None:
    database = open_database(tmp_path)

    async def main() -> None:
        database.start(lambda events: None)
        futures = [database.write("meta_put", key="k", value=str(n)) for n in range(200)]
        database.close()
        assert [future.done() for future in futures] == [True] * 200
        assert {future.result().parts[0] for future in futures} == {("k",)}
        database.close()
        with pytest.raises(RuntimeError, match="closed"):
            await database.write("meta_put", key="k", value="late")

    asyncio.run(main())


@pytest.mark.req("I-3")
@pytest.mark.parametrize("threaded", [True, False], ids=["thread", "step"])
def test_a_loop_that_closed_early_loses_no_write(tmp_path: Path, threaded: bool) -> None:
    database = open_database(tmp_path, threaded=threaded)
    resolved: list[object] = []

    async def main() -> None:
        database.start(lambda events: None)
        future = database.write("meta_put", key="k", value="v")
        future.add_done_callback(resolved.append)

    before = threading.active_count()
    asyncio.run(main())
    database.close()
    gc.collect()
    assert resolved == []
    assert threading.active_count() <= before
    assert support.rows(database.path, "SELECT value FROM meta WHERE key = 'k'") == [("v",)]


def test_a_database_that_never_started_closes(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    assert database.stats()[2] == 0
    assert database.fetch("sessions_count") == [(0,)]
    database.close()
    database.close()
