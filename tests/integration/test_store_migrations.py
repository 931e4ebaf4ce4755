"""Opening a file: migrated whole, or refused with its reason and untouched (S-3)."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

import apsw
import pytest
import store_support as support

from goclaw.core.errors import DatabaseRefused
from goclaw.store import database, database_files, open_database, queries, schema
from goclaw.store.schema import migrations

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.req("S-3")

SHIPPED = migrations()
LATER = (len(SHIPPED) + 1, "c" * 64, "CREATE TABLE later (x); INSERT INTO later VALUES (1);")
BROKEN = (len(SHIPPED) + 1, "c" * 64, "CREATE TABLE later (x); INSERT INTO nowhere VALUES (1);")


def bytes_of(home: Path) -> dict[str, bytes]:
    """What lies in the home, while nobody holds it."""
    return {file.name: file.read_bytes() for file in home.iterdir()}


def refused(home: Path, **options: object) -> DatabaseRefused:
    """Opening is refused and leaves every byte as it was."""
    before = bytes_of(home)
    with pytest.raises(DatabaseRefused) as caught:
        open_database(home, **options)  # type: ignore[arg-type]
    assert bytes_of(home) == before
    assert caught.value.exit == 5
    assert caught.value.hint
    assert "not touched" in caught.value.message
    return caught.value


def test_the_shipped_migrations_are_numbered_and_checksummed() -> None:
    assert [number for number, _, _ in SHIPPED] == list(range(1, len(SHIPPED) + 1))
    assert len({checksum for _, checksum, _ in SHIPPED}) == len(SHIPPED)
    assert all(len(checksum) == 64 for _, checksum, _ in SHIPPED)


@pytest.mark.req("A-9", "S-1")
def test_a_fresh_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        database = open_database(tmp_path)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in database_files(tmp_path)}
    finally:
        os.umask(mask)
    assert set(modes.values()) == {0o600}
    assert database.fetch("sessions_count") == [(0,)]
    database.close()
    assert support.rows(database.path, "PRAGMA journal_mode") == [("wal",)]
    assert support.rows(database.path, "SELECT number, checksum FROM migrations") == [
        (number, checksum) for number, checksum, _ in SHIPPED
    ]


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    before = support.dump(tmp_path / database_files(tmp_path)[0].name)
    open_database(tmp_path).close()
    assert support.dump(database_files(tmp_path)[0]) == before


def into_schema(source: Path, home: Path, number: int) -> Path:
    """What ``source`` holds, as the schema ``number`` would have held it."""
    with contextlib.closing(apsw.Connection(str(database_files(home)[0]))) as old:
        old.execute("PRAGMA synchronous=OFF").fetchall()
        old.execute("CREATE TABLE migrations (number INTEGER PRIMARY KEY, checksum TEXT NOT NULL)")
        for step in SHIPPED[:number]:
            old.execute(step[2]).fetchall()
            old.execute("INSERT INTO migrations VALUES (?, ?)", step[:2])
        old.execute("ATTACH ? AS source", (str(source),))
        tables = old.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'").fetchall()
        for (table,) in tables:
            if table == "migrations":
                continue
            columns = ", ".join(
                name for (name,) in old.execute("SELECT name FROM pragma_table_info(?)", (table,))
            )
            old.execute(f"DELETE FROM main.{table}")
            old.execute(
                f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM source.{table}"
            )
    return database_files(home)[0]


@pytest.mark.req("S-8", "Q-4")
@pytest.mark.parametrize("build", support.BUILDS)
def test_a_database_in_use_before_rows_had_room_goes_on(tmp_path: Path, build: str) -> None:
    """Schema 16, with a task in each state: all is there afterwards, and every task goes on."""
    for name in ("now", "before"):
        (tmp_path / name).mkdir()
    store = support.Store(support.fresh(tmp_path / "now"), build)
    sid = store.session()
    tids = [store.enqueue(sid, parallel=1, pool="", kind="tool") for _ in range(5)]
    ends = {"hash": b"h" * 32, "stop_reason": "end_turn", "result": b"1"}
    for number in range(3):
        store.claim(b"%016d" % number)
    store.must("complete", tid=tids[0], token=b"%016d" % 0, **ends)
    store.must(
        "fail", tid=tids[1], token=b"%016d" % 1, hash=b"f", code="c", message="m", retryable=1,
        due_mono=1, due_at=1,
    )  # fmt: skip
    store.close()
    path = into_schema(store.path, tmp_path / "before", 16)
    held = support.dump(path)
    open_database(tmp_path / "before").close()
    kept = support.dump(path)
    assert len(kept.pop("migrations")) == len(SHIPPED) > len(held.pop("migrations"))
    grown = ("tasks", "heads", "schedules")  # by a column each since then, empty in what was there
    assert {row[-1] for name in grown for row in kept[name]} == {None}
    assert kept | {name: [row[:-1] for row in kept[name]] for name in grown} == held
    support.obey(path)

    store = support.Store(path, build)
    repeated = store.must("complete", tid=tids[0], token=b"%016d" % 0, **ends)
    assert repeated["state"] == "SUCCEEDED"
    store.must("complete", tid=tids[2], token=b"%016d" % 2, **ends)
    assert store.must("wake", tid=tids[1], now_mono=1, reason="due")["state"] == "QUEUED"
    left = {tids[1], tids[3], tids[4]}
    for number in range(10, 13):
        tid = store.claim(b"%016d" % number)["tid"]
        left.remove(tid)
        store.must("complete", tid=tid, token=b"%016d" % number, **ends)
    assert not left
    store.close()
    assert support.rows(path, "SELECT DISTINCT state FROM tasks") == [("SUCCEEDED",)]
    support.obey(path)


@pytest.mark.req("P-1")
def test_a_claim_and_an_end_leave_a_task_on_its_page(tmp_path: Path) -> None:
    """A row that outgrows its page is split over its neighbours, each time."""
    store = support.Store(support.fresh(tmp_path), "native")
    sid = store.session()
    policy = {"policy_version": "p" * 10}
    tids = [store.enqueue(sid, parallel=1, kind="tool", **policy) for _ in range(200)]
    pages = "SELECT count(*) FROM dbstat WHERE name = 'tasks'"
    (before,) = support.rows(store.path, pages)
    claimed = {
        b"%016d" % number: store.claim(b"%016d" % number, owner="boot_" + "0" * 26, **policy)["tid"]
        for number in range(len(tids))
    }
    assert support.rows(store.path, pages) == [before]
    for token, tid in claimed.items():
        store.must(
            "complete", tid=tid, token=token, hash=b"h" * 32, stop_reason="end_turn", result=b"1"
        )
    store.close()
    assert support.rows(store.path, pages) == [before]


@pytest.mark.req("S-1")
@pytest.mark.parametrize(("name", "level"), [("full", 2), ("normal", 1)])
def test_the_writer_keeps_the_promised_settings(tmp_path: Path, name: str, level: int) -> None:
    """Looked at from within: a program that asks the writer's own handle."""
    support.fresh(tmp_path)
    catalogue = queries.parse(
        "-- program: look\n-- returns: s k b c\n-- step: run\n"
        "SELECT (SELECT synchronous FROM pragma_synchronous) AS s,"
        " (SELECT foreign_keys FROM pragma_foreign_keys) AS k,"
        " (SELECT timeout FROM pragma_busy_timeout) AS b,"
        " (SELECT fullfsync FROM pragma_fullfsync) AS c;\n"
    )
    for build in support.BUILDS:
        writer = support.writer(
            tmp_path / schema.NAME,
            build,
            list(catalogue.programs.values()),
            database._PRAGMAS.format(synchronous=name.upper()),
        )
        writer.submit(((0, ()),))
        assert writer.step()
        ((_, code, _, returns, _),) = writer.drain()
        assert (code, returns) == (None, [(level, 1, 5000, 1)])
        writer.close()


def test_a_newer_database_is_refused_untouched(tmp_path: Path) -> None:
    open_database(tmp_path, schema=[*SHIPPED, LATER]).close()
    error = refused(tmp_path)
    assert f"has schema {LATER[0]}, newer than this program's {SHIPPED[-1][0]}" in error.message


def test_a_newer_database_that_a_crash_left_is_refused_untouched(tmp_path: Path) -> None:
    """Its log holds commits: reading them must not fold them into the file."""
    crashed = tmp_path / "crashed"
    running = tmp_path / "running"
    for home in (crashed, running):
        home.mkdir()
    database = open_database(running, schema=[*SHIPPED, LATER])
    with apsw.Connection(str(database.path)) as writer:
        writer.execute("INSERT INTO later VALUES (2)")
    # The bytes as a power cut would leave them; read through a child, since closing a handle of
    # our own would drop SQLite's locks.
    assert os.system(f"cp {running}/* {crashed}/") == 0
    database.close()
    (crashed / database_files(crashed)[2].name).unlink()
    log = database_files(crashed)[1]
    before = {file: file.read_bytes() for file in (database_files(crashed)[0], log)}
    assert before[log]
    with pytest.raises(DatabaseRefused, match="newer"):
        open_database(crashed)
    assert {file: file.read_bytes() for file in before} == before


def test_an_altered_migration_is_refused_untouched(tmp_path: Path) -> None:
    number, _, text = SHIPPED[0]
    open_database(tmp_path, schema=[(number, "d" * 64, text), *SHIPPED[1:]]).close()
    error = refused(tmp_path)
    assert f"another migration {number} than this program's" in error.message


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE notes (x)",
        "CREATE TABLE migrations (id INTEGER PRIMARY KEY, name TEXT)",
        "CREATE TABLE migrations (number INTEGER PRIMARY KEY, checksum TEXT); CREATE TABLE t (x)",
        "CREATE TABLE tasks (tid INTEGER PRIMARY KEY, state TEXT)",
    ],
)
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_foreign_database_is_refused_untouched(tmp_path: Path, schema: str, mode: str) -> None:
    path = database_files(tmp_path)[0]
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA journal_mode={mode}").fetchall()
    connection.execute(schema).fetchall()
    connection.close()
    refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"this is a text file, and quite a long one at that\n" * 100,
        b"xy",
        b"SQLite format 3\0" * 64,
    ],
)
def test_what_is_no_database_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    database_files(tmp_path)[0].write_bytes(content)
    refused(tmp_path)


@pytest.mark.req("S-7")
@pytest.mark.parametrize("at", [16, 18, 28, 40, 100, 105, 108])
def test_a_damaged_header_is_refused(tmp_path: Path, at: int) -> None:
    open_database(tmp_path).close()
    path = database_files(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[at : at + 3] = b"\xff\xfe\xfd"
    path.write_bytes(bytes(content))
    with contextlib.suppress(DatabaseRefused):
        open_database(tmp_path).close()
        support.obey(path)  # a field that SQLite does not rely on


@pytest.mark.req("S-7")
def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    path = database_files(tmp_path)[0]
    os.truncate(path, 4096)
    with pytest.raises(DatabaseRefused):
        open_database(tmp_path)


@pytest.mark.req("S-7")
def test_a_folder_or_a_missing_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseRefused):
        open_database(tmp_path / "nowhere")
    database_files(tmp_path)[0].mkdir()
    with pytest.raises(DatabaseRefused):
        open_database(tmp_path)


def test_a_migration_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    path = database_files(tmp_path)[0]
    before = support.dump(path)
    with pytest.raises(DatabaseRefused, match="nowhere"):
        open_database(tmp_path, schema=[*SHIPPED, BROKEN])
    assert support.dump(path) == before
    open_database(tmp_path, schema=[*SHIPPED, LATER]).close()
    assert support.rows(path, "SELECT x FROM later") == [(1,)]


def test_a_first_migration_that_failed_is_done_at_the_next_start(tmp_path: Path) -> None:
    with pytest.raises(DatabaseRefused):
        open_database(tmp_path, schema=[(1, "c" * 64, BROKEN[2])])
    database = open_database(tmp_path)
    assert database.fetch("sessions_count") == [(0,)]
    database.close()


def test_an_empty_file_is_a_fresh_one(tmp_path: Path) -> None:
    database_files(tmp_path)[0].touch()
    open_database(tmp_path).close()


def test_a_lock_that_somebody_holds_is_waited_for_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goclaw.core import limits

    open_database(tmp_path).close()
    monkeypatch.setattr(limits, "BUSY_MS_MAX", 50)
    holder = apsw.Connection(str(database_files(tmp_path)[0]))
    holder.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    holder.execute("BEGIN EXCLUSIVE").fetchall()
    with pytest.raises(DatabaseRefused, match=r"locked|busy"):
        open_database(tmp_path, schema=[*SHIPPED, LATER])
    holder.execute("ROLLBACK").fetchall()
    holder.close()
    open_database(tmp_path, schema=[*SHIPPED, LATER]).close()
