"""The write-ahead log: folded into the file in steps, bounded, and never a reason to wait long."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import store_support as support

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.req("S-1", "I-5")

STEP, BOUND = 256 * 1024, 1024 * 1024


@pytest.fixture(params=support.BUILDS)
def build(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return support.fresh(tmp_path)


def write(store: support.Store, sid: int, count: int) -> list[int]:
    """So many events of 10 kB, one a batch; pages in the log after each."""
    pages = []
    for _ in range(count):
        answer = store.must("session_event", sid=sid, kind=0, type="update", payload=b"x" * 10_000)
        assert answer.code is None
        pages.append(store.writer.stats()[5])
    return pages


def test_the_log_is_folded_in_steps_and_begins_anew(path: Path, build: str) -> None:
    store = support.Store(path, build, wal_bytes_max=BOUND, checkpoint_bytes=STEP)
    pages = write(store, store.session(), 200)
    assert max(pages) <= (STEP + 100_000) // 4096
    assert sum(after < before for before, after in itertools.pairwise(pages)) >= 5
    assert path.with_name(path.name + "-wal").stat().st_size <= STEP + 100_000
    assert path.stat().st_size > 200 * 10_000
    store.close()
    support.obey(path)


def test_a_reader_that_stays_costs_a_short_wait_once_a_step(path: Path, build: str) -> None:
    """The log outgrows its bound, writes go on; when the reader lets go, it begins anew."""
    store = support.Store(
        path, build, wal_bytes_max=BOUND, checkpoint_bytes=STEP, checkpoint_wait_ms=1
    )
    sid = store.session()
    write(store, sid, 3)
    reader = support.connect(path)
    reader.execute("BEGIN").fetchall()
    assert reader.execute("SELECT head FROM sessions").fetchall() == [(3,)]
    pages = write(store, sid, 150)
    assert pages == sorted(pages)
    assert pages[-1] > BOUND // 4096
    assert reader.execute("SELECT head FROM sessions").fetchall() == [(3,)]
    reader.execute("COMMIT").fetchall()
    pages = write(store, sid, 60)
    assert min(pages) < STEP // 4096
    reader.close()
    store.close()
    support.obey(path)


def test_a_quiet_writer_folds_the_log_by_itself(path: Path, build: str) -> None:
    store = support.Store(path, build, threaded=True)
    store.writer.submit((store.part("meta_put", key="k", value="folded"),))
    found: list[tuple[Any, ...]] = []
    while not found:  # the time-out of the test is the bound
        uri = f"{path.as_uri()}?immutable=1"
        file_alone = apsw.Connection(uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        found = file_alone.execute("SELECT value FROM meta WHERE key = 'k'").fetchall()
        file_alone.close()
    assert found == [("folded",)]
    store.close()


def test_close_leaves_one_file(path: Path, build: str) -> None:
    store = support.Store(path, build)
    write(store, store.session(), 5)
    store.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_foreign_lock_is_waited_for_and_then_named(path: Path, build: str) -> None:
    store = support.Store(path, build, busy_ms_max=20)
    sid = store.session()
    foreign = apsw.Connection(str(path))
    foreign.execute("BEGIN IMMEDIATE").fetchall()
    call = {"sid": sid, "kind": 0, "type": "update", "payload": b"{}"}
    for _ in range(2):
        store.submit(store.part("session_event", **call))
    refused = store.flush()
    assert [answer.code for answer in refused] == ["storage_failed"] * 2
    assert "locked" in refused[0].message
    foreign.execute("ROLLBACK").fetchall()
    foreign.close()
    assert store.must("session_event", **call)["event_id"] == 1
    store.close()
    support.obey(path)
