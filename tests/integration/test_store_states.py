"""Every state against every program that could move a task: the table's way or not at all (Q-1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw
import orjson
import pytest
import store_support as support

from goclaw.core.states import TRANSITIONS, State, may

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = b"t" * 16
CRASH = {"spent": 1, "crash_budget": 3, "reason": "lease_expired"}


@pytest.fixture(params=support.BUILDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[support.Store]:
    store = support.Store(support.fresh(tmp_path), request.param)
    yield store
    store.close()


def end(tid: int, token: bytes = TOKEN) -> dict[str, Any]:
    return {"tid": tid, "token": token, "hash": b"end"}


def failing(tid: int, token: bytes = TOKEN, **changes: Any) -> dict[str, Any]:
    return {
        **end(tid, token), "code": "boom", "message": "it broke", "retryable": 1, "poison": 3,
        "fingerprint": "f", "due_mono": 50, "due_at": 50, **changes,
    }  # fmt: skip


def suspending(tid: int, token: bytes = TOKEN, reason: str = "sleep") -> dict[str, Any]:
    return {**end(tid, token), "reason": reason, "due_mono": 50, "due_at": 50}


# How a task comes into each state; the token of the lease that it had is TOKEN.
def queued(store: support.Store, sid: int) -> int:
    return store.enqueue(sid)


def running(store: support.Store, sid: int) -> int:
    tid = store.enqueue(sid)
    assert store.claim(TOKEN)["tid"] == tid
    return tid


def retry_wait(store: support.Store, sid: int) -> int:
    tid = running(store, sid)
    assert store.must("fail", **failing(tid))["state"] == "RETRY_WAIT"
    return tid


def suspended(store: support.Store, sid: int) -> int:
    tid = running(store, sid)
    store.must("suspend", **suspending(tid))
    return tid


def succeeded(store: support.Store, sid: int) -> int:
    tid = running(store, sid)
    store.must("complete", **end(tid), result=b"1", stop_reason="end_turn")
    return tid


def failed(store: support.Store, sid: int) -> int:
    tid = running(store, sid)
    assert store.must("fail", **failing(tid, retryable=0))["state"] == "FAILED"
    return tid


def canceled(store: support.Store, sid: int) -> int:
    tid = running(store, sid)
    store.must("cancel", tid=tid, reason="cancel")
    return tid


def dead_letter(store: support.Store, sid: int) -> int:
    tid = store.enqueue(sid, max_attempts=1)
    assert store.claim(TOKEN)["tid"] == tid
    assert store.must("fail", **failing(tid))["state"] == "DEAD_LETTER"
    return tid


MAKERS: dict[State, Callable[[support.Store, int], int]] = {
    State.QUEUED: queued,
    State.RUNNING: running,
    State.RETRY_WAIT: retry_wait,
    State.SUSPENDED: suspended,
    State.SUCCEEDED: succeeded,
    State.FAILED: failed,
    State.CANCELED: canceled,
    State.DEAD_LETTER: dead_letter,
}

# What is tried: a fresh call, not the one that brought the task into its state.
MOVES: dict[str, Callable[[support.Store, int], support.Answer]] = {
    "claim": lambda store, tid: store.claim(b"u" * 16),
    "claim_sessions": lambda store, tid: store.must(
        "claim_sessions", sids="[1]", pool="", owner="o", token=b"u" * 16, lease_until_mono=1
    ),
    "complete": lambda store, tid: store.run(
        "complete", tid=tid, token=TOKEN, hash=b"other", result=b"2", stop_reason="end_turn"
    ),
    "fail": lambda store, tid: store.run("fail", **failing(tid, hash=b"other")),
    "fail for good": lambda store, tid: store.run(
        "fail", **failing(tid, hash=b"other", retryable=0)
    ),
    "fail the last time": lambda store, tid: store.run(
        "fail", **failing(tid, hash=b"other", poison=1, fingerprint=None)
    ),
    "suspend": lambda store, tid: store.run("suspend", **{**suspending(tid), "hash": b"other"}),
    "wake, due": lambda store, tid: store.must("wake", tid=tid, now_mono=50, reason="due"),
    "wake, not due": lambda store, tid: store.must("wake", tid=tid, now_mono=49, reason="due"),
    "wake, answered": lambda store, tid: store.must("wake", tid=tid, reason="answered"),
    "reclaim": lambda store, tid: store.run("reclaim", tid=tid, token=TOKEN, **CRASH),
    "reclaim, expired": lambda store, tid: store.run(
        "reclaim", tid=tid, token=TOKEN, expired_mono=30_001, **CRASH
    ),
    "reclaim, alive": lambda store, tid: store.run(
        "reclaim", tid=tid, token=TOKEN, expired_mono=30_000, **CRASH
    ),
    "reclaim, crashes used up": lambda store, tid: store.run(
        "reclaim", tid=tid, token=TOKEN, **{**CRASH, "crash_budget": 1}
    ),
    "cancel": lambda store, tid: store.must("cancel", tid=tid, reason="cancel"),
    "approval_open": lambda store, tid: store.run(
        "approval_open", tid=tid, token=TOKEN, approval_id="a", ordinal=0, digest=b"",
        request=b"{}", expires_at=1,
    ),
    "effect_intent": lambda store, tid: store.run(
        "effect_intent", tid=tid, token=TOKEN, ordinal=0, kind="tool", name="t", key="k",
        hash=b"h", request=b"{}", **{"class": "irreversible"},
    ),
    "effect_record": lambda store, tid: store.run(
        "effect_record", tid=tid, token=TOKEN, ordinal=0, kind="tool", name="t", key="k",
        hash=b"h", request=b"{}", result=b"{}", failed=0,
    ),
    "effect_result": lambda store, tid: store.run(
        "effect_result", tid=tid, token=TOKEN, ordinal=0, state="result", result=b"", failed=0
    ),
    "effect_adopt": lambda store, tid: store.run("effect_adopt", tid=tid, token=TOKEN, ordinal=0),
    "effect_settle": lambda store, tid: store.run(
        "effect_settle", tid=tid, ordinal=0, outcome="done", failed=0, by="operator"
    ),
    "effect_fail": lambda store, tid: store.run(
        "effect_fail", tid=tid, ordinal=0, message="m", by="operator"
    ),
    "append": lambda store, tid: store.run(
        "append", tid=tid, token=TOKEN, kind=0, type="update", payload=b"{}"
    ),
    "heartbeat": lambda store, tid: store.run(
        "heartbeat", tid=tid, token=TOKEN, lease_until_mono=99_999
    ),
}  # fmt: skip

# Where a move leads; any pair that is not here must change nothing.
LEADS: dict[tuple[str, State], State] = {
    ("claim", State.QUEUED): State.RUNNING,
    ("claim_sessions", State.QUEUED): State.RUNNING,
    ("complete", State.RUNNING): State.SUCCEEDED,
    ("fail", State.RUNNING): State.RETRY_WAIT,
    ("fail for good", State.RUNNING): State.FAILED,
    ("fail the last time", State.RUNNING): State.RETRY_WAIT,
    ("suspend", State.RUNNING): State.SUSPENDED,
    ("wake, due", State.RETRY_WAIT): State.QUEUED,
    ("wake, due", State.SUSPENDED): State.QUEUED,
    ("wake, answered", State.RETRY_WAIT): State.QUEUED,
    ("wake, answered", State.SUSPENDED): State.QUEUED,
    ("reclaim", State.RUNNING): State.QUEUED,
    ("reclaim, expired", State.RUNNING): State.QUEUED,
    ("reclaim, crashes used up", State.RUNNING): State.DEAD_LETTER,
    **{
        ("cancel", state): State.CANCELED
        for state in (State.QUEUED, State.RUNNING, State.RETRY_WAIT, State.SUSPENDED)
    },
}
# These write beside the task's state while its lease is held.
BESIDE = {"approval_open", "effect_intent", "effect_record", "append", "heartbeat"}


@pytest.mark.req("Q-1", "Q-2", "Q-4", "Q-5", "I-2")
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("state", MAKERS)
def test_every_state_and_every_move(store: support.Store, state: State, move: str) -> None:
    sid = store.session()
    tid = MAKERS[state](store, sid)
    assert support.rows(store.path, "SELECT state FROM tasks") == [(str(state),)]
    before = support.dump(store.path)
    store.now += 1
    answer = MOVES[move](store, tid)
    after = support.dump(store.path)
    target = LEADS.get((move, state))
    if target is None and not (move in BESIDE and state is State.RUNNING):
        assert support.changed(before, after) == set(), answer.code
        assert answer.events == []
    elif target is not None:
        assert support.rows(store.path, "SELECT state FROM tasks") == [(str(target),)]
        steps = [orjson.loads(event[9]) for event in answer.events if event[3].startswith("task.")]
        assert [step["to"] for step in steps] == (
            ["CLAIMED", "RUNNING"] if target is State.RUNNING else [str(target)]
        )
        for step in steps:
            assert may(step["from"] and State(step["from"]), State(step["to"]))
        assert all(event[6] == "task_2" and event[8] for event in answer.events)
    support.obey(store.path)


def test_every_lead_is_in_the_table_and_every_row_is_led_to() -> None:
    """CLAIMED is never on disk. What no program does yet is named here, and leaves with it."""
    reached = {(state, target) for (_move, state), target in LEADS.items()} | {
        (None, State.QUEUED),
        (State.RUNNING, State.DEAD_LETTER),
        *((state, State.FAILED) for state in GIVEN_UP),
    }
    reached -= {(State.QUEUED, State.RUNNING)}  # by way of CLAIMED
    pending = {
        (State.FAILED, State.QUEUED),
        (State.DEAD_LETTER, State.QUEUED),
    }
    rows = {
        (row.source, row.target)
        for row in TRANSITIONS
        if State.CLAIMED not in (row.source, row.target)
    }
    assert reached | pending == rows
    assert not reached & pending


# -- given up over an effect that nobody knows ----------------------------------------------------

GIVEN_UP = (State.QUEUED, State.RETRY_WAIT, State.SUSPENDED)


@pytest.mark.req("E-3", "Q-1", "Q-2", "A-7")
@pytest.mark.parametrize("state", MAKERS)
@pytest.mark.parametrize("kind", ["prompt", "tool"])
def test_a_task_is_given_up_only_while_it_waits(
    store: support.Store, state: State, kind: str
) -> None:
    """Its questions are taken back, its turn is free, and the effect stays unknown."""
    sid = store.session()
    most = 1 if state is State.DEAD_LETTER else 5
    tid = store.enqueue(sid, kind=kind, max_attempts=most, on_unknown="tell_brain")
    behind = store.enqueue(sid)
    store.claim(TOKEN)
    store.must(
        "effect_intent", tid=tid, token=TOKEN, ordinal=0, kind="tool", name="t", key="k",
        hash=b"h", request=b"{}", call_id="c", **{"class": "irreversible"},
    )  # fmt: skip
    store.must(
        "effect_result", tid=tid, token=TOKEN, ordinal=0, state="unknown", result=None, failed=0
    )
    match state:
        case State.SUSPENDED:
            asked(store, tid, "a")
        case State.RETRY_WAIT | State.DEAD_LETTER:
            store.must("fail", **failing(tid))
        case State.FAILED:
            store.must("fail", **failing(tid, retryable=0))
        case State.QUEUED:
            store.must("reclaim", tid=tid, token=TOKEN, **{**CRASH, "spent": 0, "reason": "x"})
            store.must("wake", tid=tid, reason="due")
        case State.CANCELED:
            store.must("cancel", tid=tid, reason="cancel")
        case State.SUCCEEDED:
            store.must("complete", **end(tid), result=b"1", stop_reason="end_turn")
    ((found,),) = support.rows(store.path, "SELECT state FROM tasks WHERE tid = ?", tid)
    assert found == state
    answer = store.run("effect_fail", tid=tid, ordinal=0, message="who knows", by="me")
    if state not in GIVEN_UP:
        assert answer.code == "illegal_transition"
        return
    assert answer.code is None
    told = {event[3]: orjson.loads(event[9]) for event in answer.events}
    assert (told["effect.settled"]["outcome"], told["effect.settled"]["by"]) == ("fail", "me")
    step = told["task.failed"]
    assert (step["from"], step["to"], step["reason"]) == (state, "FAILED", "settled_as_fail")
    assert told["update"]["status"] == "failed"
    assert ("run.ended" in told) == (kind == "prompt")
    assert ("approval.resolved" in told) == (state is State.SUSPENDED)
    ((effect, error),) = support.rows(
        store.path, "SELECT e.state, r.error FROM effects AS e JOIN task_results AS r USING (tid)"
    )
    assert (effect, orjson.loads(error)["code"]) == ("unknown", "settled_as_fail")
    assert store.claim(b"u" * 16)["tid"] == behind
    support.obey(store.path)


# -- budgets --------------------------------------------------------------------------------------


def budgets(store: support.Store) -> tuple[int, int, int]:
    ((attempt, failures, crashes),) = support.rows(
        store.path, "SELECT attempt, failures, crashes FROM tasks"
    )
    return attempt, failures, crashes


@pytest.mark.req("Q-5", "R-3")
def test_orderly_ends_spend_no_crash_and_attempts_only_grow(store: support.Store) -> None:
    sid = store.session()
    tid = store.enqueue(sid, max_attempts=100)
    ways = [
        lambda: store.must("fail", **failing(tid, fingerprint=None)),
        lambda: store.must("suspend", **suspending(tid)),
        lambda: store.must("reclaim", tid=tid, token=TOKEN, **{**CRASH, "spent": 0}),
    ]
    for number in range(9):
        assert store.claim(TOKEN)["attempt"] == number + 1
        assert budgets(store)[2] == 1  # reserved
        ways[number % 3]()
        assert budgets(store) == (number + 1, number // 3 + 1, 0)
        store.must("wake", tid=tid, reason="due")
    support.obey(store.path)


@pytest.mark.req("Q-5")
def test_a_task_that_kills_the_daemon_each_time_is_a_dead_letter(store: support.Store) -> None:
    sid = store.session()
    tid = store.enqueue(sid)
    states = []
    for _ in range(3):
        store.claim(TOKEN)
        states.append(store.must("reclaim", tid=tid, token=TOKEN, **CRASH)["state"])
    assert states == ["QUEUED", "QUEUED", "DEAD_LETTER"]
    assert budgets(store) == (3, 0, 3)
    support.obey(store.path)


@pytest.mark.req("Q-7")
def test_equal_fingerprints_in_a_row_are_poison(store: support.Store) -> None:
    sid = store.session()
    tid = store.enqueue(sid, max_attempts=100)
    seen = []
    for fingerprint in ("a", "a", "b", "b", None, None, None, None, "b", "b", "b"):
        store.claim(TOKEN)
        answer = store.must("fail", **failing(tid, fingerprint=fingerprint))
        seen.append(answer["state"])
        store.must("wake", tid=tid, reason="due")
    assert seen == ["RETRY_WAIT"] * 10 + ["DEAD_LETTER"]
    ((reason,),) = support.rows(store.path, "SELECT reason FROM tasks")
    assert reason == "poison"


@pytest.mark.req("Q-7")
def test_failures_are_bounded_by_max_attempts(store: support.Store) -> None:
    sid = store.session()
    tid = store.enqueue(sid, max_attempts=3)
    seen = []
    for _ in range(3):
        store.claim(TOKEN)
        seen.append(store.must("fail", **failing(tid, fingerprint=None))["state"])
        store.must("wake", tid=tid, reason="due")
    assert seen == ["RETRY_WAIT", "RETRY_WAIT", "DEAD_LETTER"]
    ((reason, failures),) = support.rows(store.path, "SELECT reason, failures FROM tasks")
    assert (reason, failures) == ("attempts_exhausted", 3)


# -- events ---------------------------------------------------------------------------------------


@pytest.mark.req("Q-2")
def test_a_prompt_tells_its_run_and_a_tool_task_does_not(store: support.Store) -> None:
    for kind, words in (("prompt", ["run.accepted", "run.ended"]), ("tool", [])):
        sid = store.session()
        tid = store.enqueue(sid, kind=kind, key="k")
        store.claim(TOKEN)
        store.must("complete", **end(tid), result=b"1", stop_reason="end_turn")
        found = support.rows(
            store.path, "SELECT type FROM events WHERE sid = ? AND type LIKE 'run.%'", sid
        )
        assert [row[0] for row in found] == words
    support.obey(store.path)


@pytest.mark.req("Q-2", "E-3")
def test_an_effect_becomes_unknown_once(store: support.Store) -> None:
    """Two ways of becoming unknown in one millisecond are still one event each."""
    sid = store.session()
    tid = running(store, sid)
    for ordinal, kind in enumerate(("irreversible", "probeable", "keyed", "irreversible")):
        store.must(
            "effect_intent", tid=tid, token=TOKEN, ordinal=ordinal, kind="tool", name="t",
            key=f"k{ordinal}", hash=b"h", request=b"{}", **{"class": kind},
        )  # fmt: skip
    store.must(
        "effect_result", tid=tid, token=TOKEN, ordinal=0, state="unknown", result=None, failed=0
    )
    store.must("fail", **failing(tid))
    found = support.rows(
        store.path, "SELECT payload ->> 'ordinal' FROM events WHERE type = 'effect.unknown'"
    )
    assert [row[0] for row in found] == [0, 1, 3]
    states = support.rows(store.path, "SELECT state FROM effects ORDER BY ordinal")
    assert [row[0] for row in states] == ["unknown", "unknown", "retryable", "unknown"]
    support.obey(store.path)


@pytest.mark.req("E-3", "O-4")
def test_an_event_names_no_task_of_another_session(store: support.Store) -> None:
    """The chain is made over what can be read back."""
    one, other = store.session(), store.session()
    store.enqueue(one, task_id="mine")
    for sid, task_id, told in (
        (one, "mine", "mine"),
        (other, "mine", None),
        (one, "nobody's", None),
        (one, None, None),
    ):
        answer = store.must(
            "session_event", sid=sid, task_id=task_id, kind=0, type="update", payload=b"{}"
        )
        assert answer.events[0][6] == told
    support.obey(store.path)


# -- waits ----------------------------------------------------------------------------------------


def asked(store: support.Store, tid: int, *names: str) -> None:
    parts = [
        store.part(
            "approval_open", tid=tid, token=TOKEN, approval_id=name, ordinal=0, digest=b"d",
            request=b'{"a":1}', expires_at=9,
        )
        for name in names
    ]  # fmt: skip
    store.submit(*parts, store.part("suspend", **suspending(tid, reason="approval")))
    (answer,) = store.flush()
    assert answer.code is None


def answered(store: support.Store, name: str) -> support.Answer:
    return store.run(
        "approval_resolve",
        approval_id=name,
        option_id="allow",
        allowed=1,
        state="resolved",
        by="me",
    )


@pytest.mark.req("A-7", "E-9")
def test_the_last_answer_lets_the_task_go_on(store: support.Store) -> None:
    sid = store.session()
    tid = running(store, sid)
    asked(store, tid, "a", "b")
    state = "SELECT state FROM tasks"
    assert answered(store, "a").code is None
    assert support.rows(store.path, state) == [("SUSPENDED",)]
    assert answered(store, "a").code == "already_resolved"
    assert answered(store, "b").code is None
    assert support.rows(store.path, state) == [("QUEUED",)]
    assert answered(store, "c").code == "unknown_id"
    support.obey(store.path)


@pytest.mark.req("A-7", "E-9", "E-3")
@pytest.mark.parametrize("reason", ["approval", "signal:go", "effect_unknown"])
def test_an_answer_that_came_just_before_is_not_missed(store: support.Store, reason: str) -> None:
    """The attempt looked, the answer committed, the attempt suspends: it goes on at once."""
    sid = store.session()
    tid = running(store, sid)
    if reason == "signal:go":
        store.must("signal", tid=tid, name="go", payload=b"1", most=9)
    answer = store.must("suspend", **suspending(tid, reason=reason))
    assert [event[3] for event in answer.events] == ["task.suspended", "task.requeued"]
    assert store.must("suspend", **suspending(tid, reason=reason)).parts == answer.parts
    assert store.claim(b"u" * 16)["tid"] == tid
    support.obey(store.path)


@pytest.mark.req("A-7", "E-9", "E-3")
@pytest.mark.parametrize("reason", ["approval", "signal:go", "effect_unknown", "sleep"])
def test_what_is_not_answered_waits(store: support.Store, reason: str) -> None:
    sid = store.session()
    tid = running(store, sid)
    store.must("signal", tid=tid, name="stop", payload=b"1", most=9)
    store.must(
        "effect_intent", tid=tid, token=TOKEN, ordinal=0, kind="tool", name="t", key="k", hash=b"h",
        request=b"{}", **{"class": "irreversible"},
    )  # fmt: skip
    if reason == "approval":
        asked(store, tid, "a")
    else:
        store.must("suspend", **suspending(tid, reason=reason))
    assert store.claim(b"u" * 16)["tid"] is None
    support.obey(store.path)


@pytest.mark.req("Q-6")
def test_another_boot_ends_leases_and_keeps_the_rest_of_each_wait(store: support.Store) -> None:
    store.now = 0
    sids = [store.session() for _ in range(3)]
    waiting, parked, live = retry_wait(store, sids[0]), suspended(store, sids[1]), 0
    live = running(store, sids[2])
    store.now = 20  # due_at is 50
    store.must("rebase_boot", boot="b", now_mono=1_000)
    found = dict(support.rows(store.path, "SELECT tid, due_mono FROM tasks"))
    assert found == {waiting: 1_030, parked: 1_030, live: None}
    store.now = 80
    store.must("rebase_boot", boot="c", now_mono=5)
    assert dict(support.rows(store.path, "SELECT tid, due_mono FROM tasks"))[waiting] == 5
    store.now = -86_400_000  # the clock was set back meanwhile: a wait grows by no day
    store.must("rebase_boot", boot="d", now_mono=5)
    assert dict(support.rows(store.path, "SELECT tid, due_mono FROM tasks"))[waiting] == 55
    store.now = 80
    answer = store.must("reclaim", tid=live, token=TOKEN, expired_mono=6, **CRASH)
    assert answer["state"] == "QUEUED"
    support.obey(store.path)


@pytest.mark.req("U-2")
def test_some_sessions_may_be_served_alone(store: support.Store) -> None:
    one, other = store.session(), store.session()
    first = store.enqueue(one)
    tid = store.enqueue(other)
    call = {"pool": "", "owner": "o", "lease_until_mono": 1}
    for sids, token, taken in (
        ([], b"0", None),
        ([other], b"1", tid),
        ([other, 99], b"2", None),
        ([other, one], b"3", first),
    ):
        answer = store.must("claim_sessions", sids=str(sids), token=token, **call)
        assert answer["tid"] == taken
    support.obey(store.path)


@pytest.mark.req("Q-9", "Q-12")
def test_who_comes_back_stands_before_all_who_come_later(store: support.Store) -> None:
    """Also when more come back than there are new tasks to tell the places apart."""
    sid = store.session()
    tids = [store.enqueue(sid) for _ in range(4)]
    held = store.enqueue(sid, not_before=0)
    for number, tid in enumerate(tids[:3]):
        token = b"t%d" % number
        assert store.claim(token)["tid"] == tid
        store.must(
            "fail", tid=tid, token=token, hash=b"h", code="c", message="m", retryable=0, poison=3
        )
    order = [tids[3]]
    for tid in (tids[2], tids[1], tids[0]):
        store.must("redrive", tid=tid, session_limit=99)
        order.append(tid)
    order.append(store.enqueue(sid))
    store.must("release", tid=held)
    order += [held, store.enqueue(sid)]
    for number, tid in enumerate(order):
        token = b"u%d" % number
        assert store.claim(token)["tid"] == tid
        store.must("complete", tid=tid, token=token, hash=b"h", stop_reason="end_turn", result=b"1")


@pytest.mark.req("Q-7", "Q-9")
def test_a_gate_that_opens_lets_in_its_own_work_only(store: support.Store) -> None:
    """A task that came back again and again waits at a broken gate; behind it in the line comes one
    of another broken work. The probe is the first one's, and the other gate stays closed."""
    sid = store.session()
    failing_for_good = {"code": "c", "message": "m", "retryable": 0, "poison": 3, "hash": b"h"}
    claims = iter(range(100))

    def fails() -> None:
        token = b"t%d" % next(claims)
        store.must("fail", tid=store.claim(token)["tid"], token=token, **failing_for_good)

    pair = [store.enqueue(sid, kind="tool", work="tool:broken") for _ in range(2)]
    fails()
    fails()
    for order in (pair, pair[::-1]) * 3:
        for tid in order:
            store.must("redrive", tid=tid, session_limit=99)
        fails()
        fails()
    with apsw.Connection(str(store.path)) as connection:
        connection.execute("INSERT INTO works (work, pool) VALUES ('tool:other', '')")
        connection.execute("UPDATE works SET gated = 1, broken = 'f', probe_ms = 10")
        connection.execute("UPDATE works SET probe_mono = iif(work = 'tool:other', 1 << 40, 100)")
        ((wid,),) = connection.execute("SELECT wid FROM works WHERE work = 'tool:broken'")
    store.must("redrive", tid=pair[0], session_limit=99)
    store.enqueue(sid, kind="tool", work="tool:other")
    assert store.claim(b"nobody")["tid"] is None
    assert store.must("gate_open", wid=wid, now_mono=100, probe_ms_max=100)["let_in"] == 1
    assert store.claim(b"probe")["tid"] == pair[0]
    assert store.claim(b"nobody else")["tid"] is None
    support.obey(store.path)
