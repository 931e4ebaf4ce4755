"""Leases and the journal: a stale token changes nothing, an exact repeat is answered (Q-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import store_support as support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW = b"o" * 16, b"n" * 16
CRASH = {"spent": 1, "crash_budget": 9, "reason": "lease_expired"}


@pytest.fixture(params=support.BUILDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[support.Store]:
    store = support.Store(support.fresh(tmp_path), request.param)
    yield store
    store.close()


def effect(tid: int, token: bytes, ordinal: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "tid": tid, "token": token, "ordinal": ordinal, "kind": "tool", "name": "t",
        "key": f"{tid}.{ordinal}", "hash": b"h", "request": b"{}", **changes,
    }  # fmt: skip


def intent(
    store: support.Store, tid: int, token: bytes, cls: str = "irreversible", **changes: Any
) -> support.Answer:
    return store.run("effect_intent", **effect(tid, token, **{"class": cls, **changes}))


def result(
    store: support.Store, tid: int, token: bytes, state: str = "result", ordinal: int = 0
) -> support.Answer:
    return store.run(
        "effect_result", tid=tid, token=token, ordinal=ordinal, state=state, result=b"r", failed=0
    )


# Everything that a lease entitles to, with the token left open.
CALLS: dict[str, dict[str, Any]] = {
    "heartbeat": {"lease_until_mono": 99_999},
    "append": {"kind": 0, "type": "update", "payload": b"{}"},
    "complete": {"hash": b"h", "result": b"1", "stop_reason": "end_turn"},
    "fail": {
        "hash": b"h", "code": "c", "message": "m", "retryable": 1, "poison": 3, "due_mono": 1,
        "due_at": 1,
    },
    "suspend": {"hash": b"h", "reason": "sleep"},
    "reclaim": CRASH,
    "effect_intent": {**effect(0, b"", 2), "class": "keyed"},
    "effect_record": {**effect(0, b"", 2), "result": b"1", "failed": 0},
    "effect_result": {"ordinal": 0, "state": "result", "result": b"1", "failed": 0},
    "effect_adopt": {"ordinal": 1},
    "approval_open": {
        "approval_id": "a", "ordinal": 0, "digest": b"", "request": b"{}", "expires_at": 1,
    },
}  # fmt: skip


def twice_claimed(store: support.Store, owner: str) -> int:
    """A task whose lease OLD ran out and which the same owner holds again by NEW."""
    sid = store.session()
    tid = store.enqueue(sid, on_unknown="tell_brain")
    store.claim(OLD, owner=owner)
    assert intent(store, tid, OLD, ordinal=0).code is None
    assert intent(store, tid, OLD, ordinal=1).code is None
    assert store.must("reclaim", tid=tid, token=OLD, **CRASH)["state"] == "QUEUED"
    assert store.claim(NEW, owner=owner)["tid"] == tid
    return tid


@pytest.mark.req("Q-4", "I-1", "A-10")
@pytest.mark.parametrize("program", CALLS)
@pytest.mark.parametrize("token", [OLD, b"", b"never" * 3, None, "n" * 16, NEW[:-1], NEW + b"n"])
def test_a_stale_token_changes_nothing(
    store: support.Store, program: str, token: bytes | str | None
) -> None:
    tid = twice_claimed(store, "lane")
    before = support.dump(store.path)
    arguments = {**CALLS[program], "tid": tid, "token": token}
    answer = store.run(program, **arguments)
    assert (answer.code, answer.parts, answer.events) == ("lease_lost", [], [])
    assert support.changed(before, support.dump(store.path)) == set()


@pytest.mark.req("Q-4", "I-1")
@pytest.mark.parametrize("program", CALLS)
def test_the_token_of_one_task_is_none_of_another(store: support.Store, program: str) -> None:
    tid = twice_claimed(store, "lane")
    other = store.enqueue(store.session())
    assert store.claim(b"x" * 16)["tid"] == other
    before = support.dump(store.path)
    answer = store.run(program, **{**CALLS[program], "tid": tid, "token": b"x" * 16})
    assert answer.code == "lease_lost"
    assert support.changed(before, support.dump(store.path)) == set()


ENDS = ("complete", "fail", "suspend")


@pytest.mark.req("Q-4")
@pytest.mark.parametrize("program", ENDS)
def test_an_exact_repeat_is_answered_as_it_was(store: support.Store, program: str) -> None:
    """Also when the task has gone on since; another hash, another token are lost leases."""
    sid = store.session()
    tid = store.enqueue(sid)
    store.claim(OLD)
    call = {**CALLS[program], "tid": tid, "token": OLD}
    first = store.must(program, **call)

    def repeated() -> None:
        before = support.dump(store.path)
        store.now += 1
        again = store.must(program, **{**call, "due_mono": 77} if program == "fail" else call)
        assert (again.parts, again.events) == (first.parts, [])
        for change in ({"hash": b"other"}, {"token": b"never"}):
            assert store.run(program, **{**call, **change}).code == "lease_lost"
        assert support.changed(before, support.dump(store.path)) == set()

    repeated()
    if program != "complete":
        store.must("wake", tid=tid, reason="due")
        repeated()
        assert store.claim(NEW)["tid"] == tid
        repeated()
        store.must("heartbeat", tid=tid, token=NEW, lease_until_mono=40_000)
    support.obey(store.path)


@pytest.mark.req("Q-4")
def test_a_repeat_within_one_batch(store: support.Store) -> None:
    tid = store.enqueue(store.session())
    store.claim(OLD)
    call = store.part("complete", tid=tid, token=OLD, **CALLS["complete"])
    store.submit(call)
    store.submit(call)
    first, again = store.flush()
    assert (first.parts, len(first.events)) == (again.parts, 2)
    assert again.events == []
    support.obey(store.path)


@pytest.mark.req("Q-3", "I-1")
@pytest.mark.parametrize("claimers", [2, 40])
def test_one_task_one_winner_under_any_number_of_claimers(
    store: support.Store, claimers: int
) -> None:
    """In one batch and over several; a second claim of a running task finds nothing."""
    tasks = [store.enqueue(store.session()) for _ in range(claimers // 2)]
    call = {"pool": "", "owner": "o", "lease_until_mono": 9, "aging_factor": 16}
    for number in range(claimers):
        store.submit(store.part("claim", token=b"%016d" % number, **call))
    taken = [answer["tid"] for answer in store.flush()]
    assert sorted(tid for tid in taken if tid is not None) == tasks
    assert taken.count(None) == claimers - len(tasks)
    support.obey(store.path)


@pytest.mark.req("Q-6")
def test_a_lease_is_over_only_after_its_time(store: support.Store) -> None:
    tid = store.enqueue(store.session())
    store.claim(OLD, lease_until_mono=100)
    assert store.run("reclaim", tid=tid, token=OLD, expired_mono=100, **CRASH).code == "lease_lost"
    store.must("heartbeat", tid=tid, token=OLD, lease_until_mono=200)
    store.must("heartbeat", tid=tid, token=OLD, lease_until_mono=150)  # a late one takes nothing
    assert store.run("reclaim", tid=tid, token=OLD, expired_mono=200, **CRASH).code == "lease_lost"
    assert store.must("reclaim", tid=tid, token=OLD, expired_mono=201, **CRASH)["state"] == "QUEUED"


# -- the journal ----------------------------------------------------------------------------------


@pytest.fixture
def live(store: support.Store) -> int:
    """A task that runs under OLD."""
    tid = store.enqueue(store.session())
    store.claim(OLD)
    return tid


def lose(store: support.Store, tid: int, token: bytes) -> support.Answer:
    return store.must("reclaim", tid=tid, token=token, **CRASH)


@pytest.mark.req("E-2", "E-5")
def test_a_final_result_is_answered_from_the_journal(store: support.Store, live: int) -> None:
    assert intent(store, live, OLD)["e_state"] == "intent"
    assert result(store, live, OLD).code is None
    again = intent(store, live, OLD)
    assert (again["e_state"], again["e_result"], again.events) == ("result", b"r", [])
    lose(store, live, OLD)
    store.claim(NEW)
    assert intent(store, live, NEW)["e_result"] == b"r"
    for state in ("result", "retryable", "unknown"):
        assert result(store, live, NEW, state).code == "illegal_transition"
        assert result(store, live, OLD, state).code == "lease_lost"


@pytest.mark.req("E-1", "E-2")
def test_a_pure_record_is_final(store: support.Store, live: int) -> None:
    first = store.must("effect_record", **effect(live, OLD), result=b"1", failed=0)
    assert len(first.events) == 1
    second = store.must("effect_record", **effect(live, OLD), result=b"2", failed=0)
    assert second.events == []
    assert support.rows(store.path, "SELECT result FROM effects") == [(b"1",)]


@pytest.mark.req("E-2")
def test_another_request_at_an_ordinal_is_nondeterminism(store: support.Store, live: int) -> None:
    intent(store, live, OLD)
    before = support.dump(store.path)
    assert intent(store, live, OLD, hash=b"other").code == "nondeterminism"
    other = effect(live, OLD, hash=b"other")
    assert store.run("effect_record", **other, result=b"", failed=0).code == "nondeterminism"
    assert support.changed(before, support.dump(store.path)) == set()


@pytest.mark.req("E-2", "E-3")
@pytest.mark.parametrize(
    ("cls", "after"),
    [
        ("pure", "retryable"),
        ("keyed", "retryable"),
        ("probeable", "unknown"),
        ("irreversible", "unknown"),
    ],
)
@pytest.mark.parametrize("way", ["reclaim", "fail", "suspend", "cancel"])
def test_an_intent_without_a_result_is_never_guessed(
    store: support.Store, live: int, cls: str, after: str, way: str
) -> None:
    intent(store, live, OLD, cls)
    if way == "cancel":
        store.must("cancel", tid=live, reason="cancel")
    else:
        store.must(way, **{**CALLS[way], "tid": live, "token": OLD})
    assert support.rows(store.path, "SELECT state FROM effects") == [(after,)]
    told = support.rows(store.path, "SELECT count(*) FROM events WHERE type = 'effect.unknown'")
    assert told == [(after == "unknown",)]
    support.obey(store.path)


@pytest.mark.req("E-3")
@pytest.mark.parametrize("on_unknown", ["suspend", "tell_brain"])
@pytest.mark.parametrize("cls", ["keyed", "probeable", "irreversible"])
def test_what_a_lost_lease_makes_of_the_task(
    store: support.Store, cls: str, on_unknown: str
) -> None:
    tid = store.enqueue(store.session(), on_unknown=on_unknown)
    store.claim(OLD)
    intent(store, tid, OLD, cls)
    stopped = cls == "irreversible" and on_unknown == "suspend"
    assert lose(store, tid, OLD)["state"] == ("SUSPENDED" if stopped else "QUEUED")
    if stopped:
        settled = {"tid": tid, "ordinal": 0, "outcome": "not_done", "failed": 0, "by": "me"}
        assert store.must("effect_settle", **settled)["unsettled"] == 0
        assert store.run("effect_settle", **settled).code == "illegal_transition"
    assert store.claim(NEW)["tid"] == tid
    again = intent(store, tid, NEW, cls)
    expected = "unknown" if not stopped and cls != "keyed" else "intent"
    assert again["e_state"] == expected
    support.obey(store.path)


@pytest.mark.req("E-3")
def test_a_task_goes_on_when_the_last_unknown_effect_is_settled(
    store: support.Store, live: int
) -> None:
    for ordinal in range(3):
        intent(store, live, OLD, ordinal=ordinal)
    assert lose(store, live, OLD)["unknown_count"] == 3
    for ordinal, (left, state) in enumerate([(2, "SUSPENDED"), (1, "SUSPENDED"), (0, "QUEUED")]):
        answer = store.must(
            "effect_settle", tid=live, ordinal=ordinal, outcome="done", result=b"1", failed=0,
            by="me",
        )  # fmt: skip
        assert answer["unsettled"] == left
        assert support.rows(store.path, "SELECT state FROM tasks") == [(state,)]
    support.obey(store.path)


@pytest.mark.req("E-4", "E-5")
@pytest.mark.parametrize(
    ("first", "cls", "hash_", "expected"),
    [
        ("result", "keyed", b"h", "deduplicated"),
        ("result", "irreversible", b"h", "deduplicated"),
        ("result", "irreversible", b"other", "idempotency_conflict"),
        ("intent", "irreversible", b"h", "effect_unknown"),
        ("unknown", "irreversible", b"h", "effect_unknown"),
        ("intent", "keyed", b"h", "intent"),
        ("intent", "keyed", b"other", "idempotency_conflict"),
        ("retryable", "irreversible", b"h", "intent"),
        ("retryable", "irreversible", b"other", "idempotency_conflict"),
    ],
)
def test_a_key_shared_by_two_tasks(
    store: support.Store, live: int, first: str, cls: str, hash_: bytes, expected: str
) -> None:
    intent(store, live, OLD, cls, key="shared")
    if first != "intent":
        result(store, live, OLD, first)
    other = store.enqueue(store.session())
    assert store.claim(NEW)["tid"] == other
    answer = intent(store, other, NEW, cls, key="shared", hash=hash_)
    if expected == "deduplicated":
        assert (answer["e_state"], answer["e_result"], answer["e_deduplicated"]) == (
            "result",
            b"r",
            1,
        )
        assert answer.events[0][3] == "effect.result"
    elif expected == "intent":
        assert (answer["e_state"], answer["e_deduplicated"]) == ("intent", 0)
    else:
        assert answer.code == expected
    support.obey(store.path)


@pytest.mark.req("E-4", "E-5", "I-4")
@pytest.mark.parametrize(
    ("order", "hash_", "expected"),
    [
        # whatever lies nearest, what may have happened counts more than what was not sent
        (("unknown", "retryable"), b"h", "effect_unknown"),
        (("retryable", "unknown"), b"h", "effect_unknown"),
        (("result", "retryable"), b"h", "deduplicated"),
        (("retryable", "result"), b"h", "deduplicated"),
        (("retryable", "retryable"), b"h", "intent"),
        (("retryable", "retryable"), b"other", "idempotency_conflict"),
    ],
)
def test_a_key_shared_by_three_tasks(
    store: support.Store, order: tuple[str, str], hash_: bytes, expected: str
) -> None:
    """Two intents of one key are open at once only where the first was closed as not sent, and
    then sent again: both rows stand beside each other."""
    tids, tokens = [], [b"a" * 16, b"b" * 16]
    for token in tokens:
        tids.append(store.enqueue(store.session()))
        assert store.claim(token)["tid"] == tids[-1]
        intent(store, tids[-1], token, key="shared")
        result(store, tids[-1], token, "retryable")
    for tid, token, state in zip(tids, tokens, order, strict=True):
        if state != "retryable":
            assert intent(store, tid, token, key="shared")["e_state"] == "intent"
            result(store, tid, token, state)
    third = store.enqueue(store.session())
    assert store.claim(NEW)["tid"] == third
    answer = intent(store, third, NEW, key="shared", hash=hash_)
    if expected in ("deduplicated", "intent"):
        assert answer.code is None
        assert answer["e_deduplicated"] == (expected == "deduplicated")
    else:
        assert answer.code == expected
    support.obey(store.path)


@pytest.mark.req("E-2", "E-3")
def test_an_adopted_effect_is_closed_under_the_new_lease(store: support.Store, live: int) -> None:
    intent(store, live, OLD, "probeable")
    lose(store, live, OLD)
    store.claim(NEW)
    assert result(store, live, NEW).code == "illegal_transition"
    assert store.must("effect_adopt", tid=live, token=NEW, ordinal=0).code is None
    assert result(store, live, NEW).code is None
    assert store.run("effect_adopt", tid=live, token=NEW, ordinal=0).code == "illegal_transition"
    support.obey(store.path)


@pytest.mark.req("Q-4", "Q-11", "I-1")
def test_only_the_cancelled_attempt_itself_is_heard_after_a_cancel(store: support.Store) -> None:
    """Not an earlier one of the same task, not while it is wanted, and not twice."""
    tid = store.enqueue(store.session())

    def late(token: bytes, state: str = "result") -> list[str]:
        said = {"tid": tid, "token": token}
        closing = store.must(
            "late_effect", **said, ordinal=0, state=state, result=b"r", failed=0
        ).events
        ending = store.must("late_end", **said, stop_reason="end_turn", size=1, result=b"1").events
        return [event[3] for event in (*closing, *ending)]

    for token in (b"first", b"second"):
        store.claim(token)
        intent(store, tid, token)
        assert late(b"first") == late(token) == []
        if token == b"first":
            store.must(
                "reclaim", tid=tid, token=token, spent=0, crash_budget=3, reason="handed_back"
            )
            assert late(token) == []
            store.must("effect_settle", tid=tid, ordinal=0, outcome="not_done", failed=0, by="me")
    store.must("cancel", tid=tid, reason="canceled")
    assert late(b"first") == late(b"other") == []
    assert late(b"second", "retryable") == ["effect.result", "attempt.late"]
    assert late(b"second") == ["effect.result"]  # it is sure now
    assert late(b"second") == late(b"second", "retryable") == []
