"""Operations that fail in the middle of a batch: their neighbours never notice (S-2, I-2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import store_support as support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Part = tuple[int, tuple[Any, ...]]

SIZE = 9  # operations of a batch, three sessions in turn


@pytest.fixture(params=support.BUILDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[support.Store]:
    store = support.Store(support.fresh(tmp_path), request.param)
    yield store
    store.close()


def three_live_tasks(store: support.Store) -> list[tuple[int, int, bytes]]:
    """(sid, tid, token) of a running task in each of three sessions."""
    found = []
    for number in range(3):
        sid = store.session()
        token = bytes([number]) * 16
        tid = store.enqueue(sid, task_id=f"live_{number}")
        assert store.claim(token)["tid"] == tid
        found.append((sid, tid, token))
    return found


def word(store: support.Store, tid: int, token: bytes, text: str) -> Part:
    return store.part("append", tid=tid, token=token, kind=0, type="update", payload=text.encode())


# What fails, how far it got before, and the code: (parts after the name of the kind).
FAILURES: dict[str, tuple[str, Callable[[support.Store, int, int, bytes], list[Part]]]] = {
    "expect, nothing written": (
        "lease_lost",
        lambda store, _sid, tid, _token: [word(store, tid, b"stale", "never")],
    ),
    "expect, after an event": (
        "lease_lost",
        lambda store, _sid, tid, token: [
            word(store, tid, token, "undone"),
            word(store, tid, b"stale", "never"),
        ],
    ),
    "refuse, nothing written": (
        "queue_full",
        lambda store, sid, _tid, _token: [store.task(sid, session_limit=0)],
    ),
    "refuse, after events of two parts": (
        "queue_full",
        lambda store, sid, tid, token: [
            word(store, tid, token, "undone"),
            store.task(sid),
            store.task(sid, session_limit=0),
        ],
    ),
    "constraint, after a write": (
        "constraint",
        lambda store, sid, _tid, _token: [store.task(sid, task_id="live_0", rank=7)],
    ),
    "constraint, after an event": (
        "constraint",
        lambda store, sid, tid, token: [
            word(store, tid, token, "undone"),
            store.task(sid, task_id="live_0"),
        ],
    ),
    "constraint of the event itself": (
        "constraint",
        lambda store, _sid, tid, token: [
            word(store, tid, token, "undone"),
            store.part("append", tid=tid, token=token, kind=0, type="update", payload=None),
        ],
    ),
    "an event without a time": (
        "constraint",
        lambda store, sid, tid, token: [
            word(store, tid, token, "undone"),
            store.part("session_event", sid=sid, kind=0, type="update", payload=b"{}", now=None),
        ],
    ),
    "an event whose type is a number": (
        "constraint",
        lambda store, sid, _tid, _token: [
            store.part("session_event", sid=sid, kind=0, type=7, payload=b"{}"),
        ],
    ),
    "SQLite says no, after an event": (
        "storage_failed",
        lambda store, _sid, tid, token: [
            word(store, tid, token, "undone"),
            store.part(
                "approval_open", tid=tid, token=token, approval_id="a", ordinal=0, digest=b"",
                request=b"{no json", expires_at=1,
            ),
        ],
    ),
}  # fmt: skip


@pytest.mark.req("S-2", "I-2", "Q-2", "O-4")
@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("at", range(SIZE))
def test_one_that_fails_undoes_nothing_but_itself(store: support.Store, kind: str, at: int) -> None:
    code, parts_of = FAILURES[kind]
    live = three_live_tasks(store)
    before = dict(support.rows(store.path, "SELECT sid, head FROM sessions"))
    expected: list[bytes | None] = []
    for number in range(SIZE):
        sid, tid, token = live[number % 3]
        if number == at:
            store.submit(*parts_of(store, sid, tid, token))
            expected.append(None)
        else:
            store.submit(word(store, tid, token, f"word {number}"))
            expected.append(f"word {number}".encode())
    answers = store.flush()
    assert len(answers) == SIZE
    heads = dict(before)
    for answer, payload in zip(answers, expected, strict=True):
        if payload is None:
            assert (answer.code, answer.parts, answer.events) == (code, [], [])
            continue
        assert answer.code is None
        ((sid, event_id, *_rest, told),) = answer.events
        heads[sid] += 1
        assert (event_id, told) == (heads[sid], payload)  # delivered dense, in commit order
    assert heads == dict(support.rows(store.path, "SELECT sid, head FROM sessions"))
    texts = {row[0] for row in support.rows(store.path, "SELECT payload FROM events")}
    assert {payload for payload in expected if payload} <= texts
    assert not texts & {b"undone", b"never"}
    assert support.rows(store.path, "SELECT count(*) FROM levels WHERE rank = 7") == [(0,)]
    support.obey(store.path)


@pytest.mark.req("S-2", "I-2")
def test_all_kinds_of_failure_in_one_batch(store: support.Store) -> None:
    live = three_live_tasks(store)
    expected: list[str | None] = []
    for number, (code, parts_of) in enumerate(FAILURES.values()):
        sid, tid, token = live[number % 3]
        store.submit(*parts_of(store, sid, tid, token))
        store.submit(word(store, tid, token, f"word {number}"))
        expected += [code, None]
    assert [answer.code for answer in store.flush()] == expected
    support.obey(store.path)


@pytest.mark.req("S-2")
def test_each_batch_begins_without_savepoints_again(store: support.Store) -> None:
    live = three_live_tasks(store)
    for number in range(3):
        sid, tid, token = live[number]
        store.submit(*FAILURES["constraint, after an event"][1](store, sid, tid, token))
        store.submit(word(store, tid, token, "kept"))
        assert [answer.code for answer in store.flush()] == ["constraint", None]
        assert store.run("heartbeat", tid=tid, token=token, lease_until_mono=1).code is None
    support.obey(store.path)


@pytest.mark.req("Q-6", "I-2")
def test_late_ones_run_last_and_are_told_last(store: support.Store) -> None:
    """A heartbeat of the batch saves its lease; events reach the hub in the order of their ids."""
    (sid, tid, token), (_, other, other_token), _third = three_live_tasks(store)
    crash = {"spent": 1, "crash_budget": 3, "reason": "lease_expired"}
    store.submit(store.part("reclaim", tid=tid, token=token, expired_mono=40_000, **crash))
    store.submit(store.part("reclaim", tid=other, token=other_token, expired_mono=40_000, **crash))
    store.submit(store.part("heartbeat", tid=other, token=other_token, lease_until_mono=50_000))
    store.submit(store.part("session_event", sid=sid, kind=0, type="update", payload=b"{}"))
    answers = store.flush()
    assert [(answer.program, answer.code) for answer in answers] == [
        ("heartbeat", None),
        ("session_event", None),
        ("reclaim", None),
        ("reclaim", "lease_lost"),
    ]
    told = [event[1] for answer in answers for event in answer.events if event[0] == sid]
    assert told == sorted(told)
    support.obey(store.path)
