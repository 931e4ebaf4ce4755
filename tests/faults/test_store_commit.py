"""COMMIT that fails: each answer is what the file says afterwards, and the writer goes on (I-3)."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest
import store_support as support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=support.BUILDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[support.Store]:
    store = support.Store(support.fresh(tmp_path), request.param, batch_max=8)
    yield store
    store.close()


def payloads(path: Path) -> list[bytes]:
    return [
        row[0]
        for row in support.rows(
            path, "SELECT payload FROM events WHERE type = 'update' ORDER BY sid, event_id"
        )
    ]


def say(store: support.Store, sid: int, text: str) -> int:
    return store.submit(
        store.part("session_event", sid=sid, kind=0, type="update", payload=text.encode())
    )


@pytest.mark.req("I-3", "S-2", "S-7")
@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("refused", [None, 0, 3, 7])
def test_the_answer_is_what_the_file_says(
    store: support.Store, after: bool, refused: int | None
) -> None:
    sid = store.session()
    say(store, sid, "before")
    store.flush()
    store.writer.fail_next_commit(after)
    for number in range(20):  # three batches; the first one's COMMIT fails
        if number == refused:
            store.submit(store.part("heartbeat", tid=1, token=b"stale", lease_until_mono=1))
        else:
            say(store, sid, f"{number}")
    answers = store.flush()
    for number, answer in enumerate(answers):
        if number < 8 and not after:
            assert (answer.code, answer.parts, answer.events) == ("storage_failed", [], [])
            assert answer.message == "a test asked for this failure"
        elif number == refused:
            assert answer.code == "lease_lost"
        else:
            assert answer.code is None
            assert answer.events[0][9] == b"%d" % number
    first = 0 if after else 8
    kept = [b"%d" % number for number in range(first, 20) if number != refused]
    assert payloads(store.path) == [b"before", *kept]
    support.obey(store.path)


@pytest.mark.req("I-3", "S-2")
def test_one_failure_after_another(store: support.Store) -> None:
    sid = store.session()
    expected = []
    for number in range(30):
        if number % 3:
            store.writer.fail_next_commit(number % 3 == 1)
        if number % 3 != 2:
            expected.append(b"%d" % number)
        say(store, sid, str(number))
        (answer,) = store.flush()
        assert answer.code == (None if number % 3 != 2 else "storage_failed")
    assert payloads(store.path) == expected
    support.obey(store.path)


@pytest.mark.req("I-3", "Q-4")
def test_a_retry_after_an_unknown_outcome_finds_it_done(store: support.Store) -> None:
    """What was answered with a failure may be asked again with the same key or token."""
    sid = store.session()
    call = store.task(sid, key="k")
    for after, duplicate in ((False, 0), (True, 0)):
        store.writer.fail_next_commit(after)
        store.submit(call)
        (answer,) = store.flush()
        if after:
            assert answer["duplicate"] == duplicate
    store.submit(call)
    (again,) = store.flush()
    assert again["duplicate"] == 1
    assert support.rows(store.path, "SELECT count(*) FROM tasks") == [(1,)]
    token = b"t" * 16
    tid = store.claim(token)["tid"]
    end = {"tid": tid, "token": token, "hash": b"h", "result": b"1", "stop_reason": "end_turn"}
    store.writer.fail_next_commit(False)
    assert store.run("complete", **end).code == "storage_failed"
    store.writer.fail_next_commit(True)
    first = store.must("complete", **end)
    assert first.parts == store.must("complete", **end).parts
    support.obey(store.path)


@pytest.mark.req("I-3", "S-7")
@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_file_that_cannot_be_opened_again(store: support.Store, after: bool) -> None:
    """Nobody knows what became of that batch until the file is back; all is refused until then."""
    sid = store.session()
    say(store, sid, "kept")
    store.flush()
    away = store.path.parent.with_name("away")
    store.writer.fail_next_commit(after)
    for text in ("unsure", "unsure too"):
        say(store, sid, text)
    store.path.parent.rename(away)
    assert [answer.code for answer in store.flush()] == ["outcome_unknown"] * 2
    say(store, sid, "refused")
    assert [answer.code for answer in store.flush()] == ["storage_failed"]
    away.rename(store.path.parent)
    say(store, sid, "again")
    assert [answer.code for answer in store.flush()] == [None]
    found = payloads(store.path)
    assert found[0] == b"kept"
    assert found[-1] == b"again"
    assert b"refused" not in found
    support.obey(store.path)


@pytest.mark.req("I-3", "S-7")
def test_a_full_disk_refuses_and_recovers(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The kernel's own bound on the size of a file stands for the disk."""
    for build in support.BUILDS:
        (tmp_path / build).mkdir()
        path = support.fresh(tmp_path / build)
        store = support.Store(path, build, pragmas="PRAGMA synchronous=FULL")
        sid = store.session()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        wal = path.with_name(path.name + "-wal")
        accepted, refused = [], 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 300_000, hard))
        try:
            for number in range(60):
                say(store, sid, f"{number:010000}")
                (answer,) = store.flush()
                if answer.code is None:
                    accepted.append(answer.events[0][9])
                else:
                    assert (answer.code, answer.events) == ("storage_failed", [])
                    refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert refused
        assert accepted
        say(store, sid, "room again")
        (answer,) = store.flush()
        assert answer.code is None
        assert payloads(path) == [*accepted, b"room again"]
        support.obey(path)
        store.close()
        support.obey(path)
