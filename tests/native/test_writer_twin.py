"""writer: native and twin give the same answers, events and bytes on disk, whatever is asked.

Both are held to a small model of the queue as well, so that they are not merely wrong alike.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import store_support as support
from hypothesis import given, settings
from hypothesis import strategies as st

from goclaw._pure import writer as pure
from goclaw.core.states import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Callable

native: Any = pytest.importorskip(
    "goclaw._fast.writer", reason="the native modules are not built", exc_type=ImportError
)

CRASH_BUDGET = 2
POISON = 2
BREAKER = 2
WORKS = ("tool:a", "tool:b", "brain:c")
BATCH = 7


@pytest.mark.req("O-4")
@given(st.binary(max_size=400), st.booleans())
def test_the_digest_is_sha256(data: bytes, plain: bool) -> None:
    assert native.sha256(data, plain) == pure.sha256(data, plain)


@pytest.mark.req("O-4")
@pytest.mark.parametrize("plain", [True, False])
def test_the_digest_at_every_length_around_the_blocks(plain: bool) -> None:
    for length in [*range(260), 4095, 4096, 4097, 1 << 20]:
        data = bytes((at * 7 + length) % 256 for at in range(length))
        assert native.sha256(data, plain) == pure.sha256(data), length


# -- a model of the queue -------------------------------------------------------------------------


@dataclasses.dataclass
class Effect:
    state: str
    kind: str
    digest: bytes
    token: bytes


@dataclasses.dataclass
class Task:
    tid: int
    sid: int
    parallel: int
    on_unknown: str
    max_attempts: int
    kind: str = "tool"
    work: str = ""
    not_before: int | None = None
    deadline: int | None = None
    unique: str | None = None
    state: str = "QUEUED"
    dropped: bool = False
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    repeats: int = 0
    fingerprint: str | None = None
    token: bytes | None = None
    until: int = 0
    due: int | None = None
    reason: str | None = None
    ended: tuple[bytes, bytes, str] | None = None
    tokens: list[bytes] = dataclasses.field(default_factory=list)
    effects: dict[int, Effect] = dataclasses.field(default_factory=dict)
    signals: set[str] = dataclasses.field(default_factory=set)
    signal_keys: dict[str | None, str] = dataclasses.field(default_factory=dict)
    approvals: dict[str, str] = dataclasses.field(default_factory=dict)

    def holds(self, token: bytes) -> bool:
        return self.state == "RUNNING" and self.token == token

    def count(self, *states: str) -> int:
        return sum(effect.state in states for effect in self.effects.values())

    def let_go(self, state: str, reason: str | None) -> None:
        self.state, self.reason = state, reason
        self.token, self.until = None, 0

    def orphan(self) -> None:
        for effect in self.effects.values():
            if effect.state == "intent":
                effect.state = "retryable" if effect.kind in ("pure", "keyed") else "unknown"

    def answered(self) -> bool:
        if self.reason == "approval":
            return "open" not in self.approvals.values()
        if self.reason == "effect_unknown":
            return self.count("unknown") == 0
        return any(self.reason == f"signal:{name}" for name in self.signals)

    def requeue(self) -> None:
        self.state, self.due = "QUEUED", None

    def lost_sight(self) -> bool:
        """Of an effect nobody knows whether it happened, and the task waits for a word on it."""
        unknown = any(
            effect.state == "unknown" and (effect.kind == "irreversible" or self.kind == "pool")
            for effect in self.effects.values()
        )
        return unknown and self.on_unknown == "suspend"


class Walk:
    """Any sequence of operations in batches of any size, on both writers and the model.

    ``pick`` chooses from a sequence: hypothesis, which shrinks, or a seeded generator, which goes
    far.
    """

    def __init__(self, folder: Path, pick: Callable[[Any], Any]) -> None:
        self.pick = pick
        self.stores = []
        for build in ("native", "pure"):
            (folder / build).mkdir()
            path = support.fresh(folder / build)
            self.stores.append(support.Store(path, build, batch_max=BATCH))
        self.tasks: dict[int, Task] = {}
        self.turns: dict[int, int | None] = {}
        self.queued: list[tuple[int, bool, Callable[[support.Answer], None]]] = []
        self.names = 0
        self.keys: dict[tuple[int, str], tuple[bytes, int]] = {}
        self.seen: set[tuple[str, str | None]] = set()
        self.faults: dict[tuple[str, str], set[int]] = {}
        self.broken: set[str] = set()
        self.taints: set[tuple[int, str]] = set()
        self.grants: dict[str, bool] = {}
        self.bound: set[str] = set()
        self.let_in = 0
        self.gated_once = False
        """Lines may stand at a gate: that all the others are heads is seen from outside."""

    def close(self) -> None:
        for store in self.stores:
            store.close()

    def go(self, steps: int) -> None:
        """Walk; the laws are looked at after every flush."""
        for _ in range(2):
            self.session()
        self.flush()
        for _ in range(steps):
            self.pick(STEPS if self.tasks else BEGINNINGS)(self)
            if self.pick(range(4)) == 0:
                self.flush()
        self.flush()

    def drain(self) -> None:
        """Nothing is stuck: with the gates open, all that is queued can be claimed, in turn."""
        for work in WORKS:
            self.ask(lambda answer: None, ("gate_set", {"work": work, "pool": ""}))
            self.bound.discard(work)
        mono = 1_000
        self.flush()
        for _ in range(2 * len(self.tasks) + 10):
            for wid in range(1, len(WORKS) + 1):
                self.gate_one(wid, mono)
                mono += 1_000
            self.claim_one(mono, token := self.token())
            self.flush(look=False)
            running = [task for task in self.tasks.values() if task.state == "RUNNING"]
            for task in running:
                self.finish(task, b"x", token if task.holds(token) else task.tokens[-1])
            self.flush(look=False)
        self.flush()
        left = [task for task in self.tasks.values() if task.state in ("QUEUED", "RUNNING")]
        turns = {self.turns[task.sid] for task in left} - {None}
        waiting = {
            tid for tid in turns if self.tasks[tid or 0].state in ("RETRY_WAIT", "SUSPENDED")
        }
        assert [
            task for task in left
            if task.not_before is None and (task.parallel or self.turns[task.sid] not in waiting)
        ] == []  # fmt: skip

    def name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def token(self) -> bytes:
        return self.name().encode().ljust(16, b"-")

    def ask(
        self, judge: Callable[[support.Answer], None], *calls: tuple[str, dict[str, Any]]
    ) -> None:
        """Queue an operation on both; ``judge`` sees the answer in commit order."""
        late = any(program == "reclaim" for program, _ in calls)
        tickets = {
            store.submit(*(store.part(program, **arguments) for program, arguments in calls))
            for store in self.stores
        }
        (ticket,) = tickets
        self.queued.append((ticket, late, judge))

    def flush(self, look: bool = True) -> None:
        answers = [store.flush() for store in self.stores]
        assert [vars(answer) for answer in answers[0]] == [vars(answer) for answer in answers[1]]
        judges = []
        while self.queued:  # late ones last in each batch
            batch, self.queued = self.queued[:BATCH], self.queued[BATCH:]
            judges += sorted(batch, key=lambda queued: queued[1])
        for answer, (ticket, _late, judge) in zip(answers[0], judges, strict=True):
            assert answer.ticket == ticket
            if answer.code is not None:
                assert (answer.parts, answer.events) == ([], [])
            self.seen.add((answer.program, answer.code))
            judge(answer)
        for store in self.stores:
            store.now += 1
        if look:
            self.look()

    def look(self) -> None:
        """Both files are equal, lawful and as the model says."""
        one, other = (support.dump(store.path) for store in self.stores)
        assert one == other
        support.obey(self.stores[0].path)
        found = support.rows(
            self.stores[0].path, "SELECT tid, state, attempt, failures, crashes FROM tasks"
        )
        assert {row[0]: row[1:] for row in found} == {
            task.tid: (task.state, task.attempt, task.failures, task.crashes)
            for task in self.tasks.values()
        }
        turns = support.rows(self.stores[0].path, "SELECT sid, turn FROM sessions")
        assert dict(turns) == self.turns

    # -- choosing --------------------------------------------------------------------------------

    def some(self, *states: str) -> Task:
        fitting = [task for task in self.tasks.values() if task.state in states]
        most = list(self.tasks.values())
        chosen: Task = self.pick(fitting * 4 + most)
        return chosen

    def some_token(self, task: Task) -> bytes:
        tokens = [t for other in self.tasks.values() for t in other.tokens[-1:]] + [b"never"]
        right = task.tokens[-1:] * 8 + task.tokens
        token: bytes = self.pick(right + tokens)
        return token

    # -- new work --------------------------------------------------------------------------------

    def session(self) -> None:
        key = self.pick([None, None, "a", "b"])
        digest = self.pick([b"1", b"2"])
        if len(self.turns) + len(self.queued) > 3 and (0, key or "") not in self.keys:
            return

        def judge(answer: support.Answer) -> None:
            known = self.keys.get((0, key or ""))
            if known is not None:
                assert answer.code == (None if known[0] == digest else "idempotency_conflict")
                if answer.code is None:
                    assert (answer["sid"], answer["duplicate"]) == (known[1], 1)
                return
            assert answer.code is None
            self.turns[answer["sid"]] = None
            if key is not None:
                self.keys[0, key] = (digest, answer["sid"])

        name = self.name()
        self.ask(
            judge,
            (
                "session_new",
                {
                    "sid_key": key, "hash": digest, "session_id": name, "stream_id": name,
                    "salt": name.encode(), "cwd": "/", "roots": "[]", "brain": "direct",
                    "interactive": 1,
                },
            ),
        )  # fmt: skip

    def enqueue(self) -> None:
        sid = self.pick(range(1, 5))
        key = self.pick([None, None, None, "a", "b"])
        digest = self.pick([b"1", b"2"])
        parallel = self.pick(range(2))
        rank = self.pick([0, 4, 4, 9])
        kind = self.pick(["prompt", "tool", "pool"])
        on_unknown = self.pick(["suspend", "tell_brain"])
        limit = self.pick([100, 100, 100, 2])
        work = self.pick(WORKS)
        not_before = self.pick([None, None, None, None, 1_010])
        deadline = self.pick([None, None, None, 1_005, 1_050])
        unique = self.pick([None, None, None, "u"])
        words = self.pick([False, True])

        def judge(answer: support.Answer) -> None:
            known = self.keys.get((sid, key or ""))
            still_open = [
                t for t in self.tasks.values() if t.sid == sid and t.state not in TERMINAL
            ]
            if known is not None:
                assert answer.code == (None if known[0] == digest else "idempotency_conflict")
                if answer.code is None:
                    assert (answer["tid"], answer["duplicate"]) == (known[1], 1)
                    assert answer["state"] == self.tasks[known[1]].state
                    assert answer.events == []
            elif twins := [t for t in still_open if unique is not None and t.unique == unique]:
                assert (answer["tid"], answer["duplicate"]) == (twins[0].tid, 1)
                assert answer.events == []
                if key is not None:
                    self.keys[sid, key] = (digest, twins[0].tid)
            elif sid not in self.turns:
                assert answer.code == "session_unknown"
            elif len(still_open) >= limit:
                assert answer.code == "queue_full"
            else:
                assert answer.code is None
                assert len(answer.events) == 1 + (kind == "prompt") + words
                assert answer["tid"] == len(self.tasks) + 1
                task = Task(
                    answer["tid"], sid, parallel, on_unknown, 2, kind, work, not_before, deadline,
                    unique,
                )  # fmt: skip
                self.tasks[task.tid] = task
                if key is not None:
                    self.keys[sid, key] = (digest, task.tid)

        name = self.name()
        calls: list[tuple[str, dict[str, Any]]] = [
            (
                "enqueue",
                {
                    "sid": sid, "key": key, "hash": digest, "task_id": f"task_{name}",
                    "run_id": f"run_{name}", "pool": "", "kind": kind, "parallel": parallel,
                    "rank": rank, "max_attempts": 2, "on_unknown": on_unknown, "payload": b"{}",
                    "trace": name, "origin": "unix", "session_limit": limit, "work": work,
                    "not_before": not_before, "deadline_at": deadline, "unique_key": unique,
                },
            )
        ]  # fmt: skip
        if words:
            task_id = f"task_{name}"
            calls.append(
                (
                    "session_event",
                    {"sid": sid, "task_id": task_id, "kind": 2, "type": "update", "payload": b"{}"},
                )
            )
        self.ask(judge, *calls)

    # -- a task's life ----------------------------------------------------------------------------

    def claim(self) -> None:
        times = self.pick(range(1, 5))
        until = self.pick(range(1, 61))
        for _ in range(times):
            self.claim_one(until, self.token())

    def claim_one(self, until: int, token: bytes) -> None:
        def judge(answer: support.Answer) -> None:
            assert answer.code is None
            if answer["tid"] is None:
                for sid, turn in self.turns.items():
                    line = [t for t in self.tasks.values() if t.sid == sid and t.state == "QUEUED"]
                    assert not any(
                        (t.parallel or turn in (None, t.tid))
                        and t.not_before is None
                        and not self.gated_once
                        for t in line
                    )
                return
            task = self.tasks[answer["tid"]]
            assert (task.state, task.not_before) == ("QUEUED", None)
            if not task.parallel:
                assert self.turns[task.sid] in (None, task.tid)
                self.turns[task.sid] = task.tid
            task.state, task.token, task.until, task.due = "RUNNING", token, until, None
            task.attempt += 1
            task.crashes += 1
            task.tokens.append(token)
            assert answer["attempt"] == task.attempt

        self.ask(
            judge,
            (
                "claim",
                {
                    "pool": "", "owner": "lane", "token": token, "lease_until_mono": until,
                    "aging_factor": 2, "policy_version": "p", "now_mono": 0,
                },
            ),
        )  # fmt: skip

    def heartbeat(self) -> None:
        until = self.pick(range(1, 61))
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            assert answer.code == (None if task.holds(token) else "lease_lost")
            if answer.code is None:
                task.until = max(task.until, until)

        arguments = {"tid": task.tid, "token": token, "lease_until_mono": until}
        self.ask(judge, ("heartbeat", arguments))

    def append(self) -> None:
        times = self.pick(range(1, 4))
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            assert answer.code == (None if task.holds(token) else "lease_lost")
            assert len(answer.events) == (times if answer.code is None else 0)

        call = {"tid": task.tid, "token": token, "kind": 0, "type": "update", "payload": b"{}"}
        self.ask(judge, *[("append", call)] * times)

    def end(self, task: Task, state: str, reason: str | None) -> None:
        task.let_go(state, reason)
        if state in TERMINAL:
            task.deadline = None
        if state in TERMINAL and self.turns[task.sid] == task.tid:
            self.turns[task.sid] = None

    def complete(self) -> None:
        digest = self.pick([b"x", b"y"])
        task = self.some("RUNNING")
        self.finish(task, digest, self.some_token(task))

    def finish(self, task: Task, digest: bytes, token: bytes) -> None:
        def judge(answer: support.Answer) -> None:
            if task.holds(token):
                assert answer["state"] == "SUCCEEDED"
                self.broken.discard(task.work)
                for fault in [fault for fault in self.faults if fault[0] == task.work]:
                    del self.faults[fault]
                task.crashes -= 1
                self.end(task, "SUCCEEDED", "finished")
                task.ended = (token, digest, "SUCCEEDED")
            else:
                self.judge_repeat(task, token, digest, answer, "state")

        self.ask(
            judge,
            (
                "complete",
                {
                    "tid": task.tid, "token": token, "hash": digest, "result": b"ok",
                    "stop_reason": "end_turn",
                },
            ),
        )  # fmt: skip

    def last_word(self) -> None:
        """As ``complete``, of a worker that may owe results."""
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            if task.holds(token):
                assert answer.parts[1][0] == "SUCCEEDED"
                owed = task.count("intent")
                task.orphan()
                assert len(answer.events) >= 1 + (owed > 0 and task.count("unknown") > 0)
                task.crashes -= 1
                self.end(task, "SUCCEEDED", "finished")
                task.ended = (token, b"z", "SUCCEEDED")
            elif task.ended is not None and task.ended[:2] == (token, b"z"):
                assert (answer.parts[1][0], answer.events) == (task.ended[2], [])
            else:
                assert answer.code == "lease_lost"

        ended = {"hash": b"z", "result": b"ok", "stop_reason": "end_turn"}
        common = {"tid": task.tid, "token": token}
        self.ask(judge, ("effect_orphan", common), ("complete", {**common, **ended}))

    def judge_repeat(
        self, task: Task, token: bytes, digest: bytes, answer: support.Answer, name: str
    ) -> None:
        """Only an exact repeat of the call that ended the attempt is answered as it was (Q-4)."""
        assert answer.events == []
        if task.ended is not None and task.ended[:2] == (token, digest):
            assert answer[name] == task.ended[2]
        else:
            assert answer.code == "lease_lost"

    def fail(self) -> None:
        digest = self.pick([b"x", b"y"])
        retryable = self.pick([0, 1, 1])
        fingerprint = self.pick([None, "f", "g"])
        due = self.pick(range(1, 51))
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            if not task.holds(token):
                return self.judge_repeat(task, token, digest, answer, "state")
            task.repeats = task.repeats + 1 if task.fingerprint == fingerprint else 1
            task.fingerprint = fingerprint
            task.failures += retryable
            task.crashes -= 1
            task.orphan()
            poison = fingerprint is not None and task.repeats >= POISON
            if not retryable:
                state = "FAILED"
            elif task.failures >= task.max_attempts or poison:
                state = "DEAD_LETTER"
            elif task.lost_sight():
                state = "SUSPENDED"
            else:
                state = "RETRY_WAIT"
                task.due = due
            assert (answer["state"], answer["failures"]) == (state, task.failures)
            self.end(task, state, "effect_unknown" if state == "SUSPENDED" else None)
            if retryable and fingerprint is not None:
                met = self.faults.setdefault((task.work, fingerprint), set())
                met.add(task.tid)
                opened = len(met) >= BREAKER and task.work not in self.broken
                assert ("breaker.opened" in [event[3] for event in answer.events]) == opened
                if opened:
                    self.broken.add(task.work)
                    self.gated_once = True
            task.ended = (token, digest, state)
            return None

        self.ask(
            judge,
            (
                "fail",
                {
                    "tid": task.tid, "token": token, "hash": digest, "code": "c", "message": "m",
                    "retryable": retryable, "fingerprint": fingerprint, "poison": POISON,
                    "due_mono": due, "due_at": due, "breaker_tasks": BREAKER, "now_mono": 5,
                    "breaker_since_mono": 0, "probe_ms": 10,
                },
            ),
        )  # fmt: skip

    def suspend(self) -> None:
        digest = self.pick([b"x", b"y"])
        reason = self.pick(["approval", "effect_unknown", "signal:a", "signal:b", "sleep"])
        due = self.pick([None, 10, 40])
        ask = self.pick([False, True])
        task = self.some("RUNNING")
        token = self.some_token(task)
        approval = self.name()

        def judge(answer: support.Answer) -> None:
            if not task.holds(token):
                if ask:
                    assert answer.code == "lease_lost"
                else:
                    self.judge_repeat(task, token, digest, answer, "ended_state")
                return
            assert answer.code is None
            if ask:
                task.approvals[approval] = "open"
            task.orphan()
            task.crashes -= 1
            task.let_go("SUSPENDED", reason)
            task.due = due
            task.ended = (token, digest, "SUSPENDED")
            if task.answered():
                task.requeue()

        calls: list[tuple[str, dict[str, Any]]] = []
        common = {"tid": task.tid, "token": token}
        if ask:
            opened = {
                "approval_id": approval, "ordinal": 1, "digest": b"d", "request": b'{"a": 1}',
                "expires_at": 99,
            }  # fmt: skip
            calls.append(("approval_open", {**common, **opened}))
        parked = {"hash": digest, "reason": reason, "due_mono": due, "due_at": due}
        self.ask(judge, *calls, ("suspend", {**common, **parked}))

    def wake(self) -> None:
        mono = self.pick([None, None, *range(1, 61)])
        task = self.some("RETRY_WAIT", "SUSPENDED")

        def judge(answer: support.Answer) -> None:
            due = mono is None or (task.due is not None and task.due <= mono)
            if task.state in ("RETRY_WAIT", "SUSPENDED") and due:
                task.requeue()
            else:
                assert answer.events == []
            assert answer["state"] == task.state

        self.ask(judge, ("wake", {"tid": task.tid, "now_mono": mono, "reason": "due"}))

    def reclaim(self) -> None:
        mono = self.pick([None, None, *range(1, 81)])
        spent = self.pick(range(2))
        digest = self.pick([None, None, b"x", b"y"])
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            if not task.holds(token):
                return self.judge_repeat(task, token, digest or b"", answer, "state")
            if mono is not None and task.until >= mono:
                assert answer.code == "lease_lost"
                return None
            task.orphan()
            if spent and task.crashes >= CRASH_BUDGET:
                self.end(task, "DEAD_LETTER", "crashes_exhausted")
            elif task.lost_sight():
                task.let_go("SUSPENDED", "effect_unknown")
            else:
                task.let_go("QUEUED", "lost")
            task.crashes -= not spent
            task.ended = None if digest is None else (token, digest, task.state)
            assert answer["state"] == task.state
            return None

        self.ask(
            judge,
            (
                "reclaim",
                {
                    "tid": task.tid, "token": token, "expired_mono": mono, "spent": spent,
                    "crash_budget": CRASH_BUDGET, "reason": "lost", "hash": digest,
                },
            ),
        )  # fmt: skip

    def cancel(self) -> None:
        task = self.some()

        def judge(answer: support.Answer) -> None:
            assert answer["was"] == task.state
            assert bool(answer.events) == (task.state not in TERMINAL)
            if task.state in TERMINAL:
                return
            task.orphan()
            task.crashes -= task.state == "RUNNING"
            self.withdraw(task, "CANCELED")

        self.ask(judge, ("cancel", {"tid": task.tid, "reason": "cancel"}))

    def withdraw(self, task: Task, state: str) -> None:
        for name, found in task.approvals.items():
            task.approvals[name] = "cancelled" if found == "open" else found
        self.end(task, state, None)
        task.ended, task.not_before, task.due = None, None, None

    def expire(self) -> None:
        now = self.stores[0].now
        task = self.pick(
            [t for t in self.tasks.values() if t.deadline] * 4 + list(self.tasks.values())
        )

        def judge(answer: support.Answer) -> None:
            over = task.deadline is not None and task.deadline <= now
            assert bool(answer.events) == over
            if over:
                task.orphan()
                task.crashes -= task.state == "RUNNING"
                self.withdraw(task, "FAILED")
            assert answer["state"] == task.state

        self.ask(judge, ("expire", {"tid": task.tid, "now": now}))

    def release(self) -> None:
        now = self.stores[0].now
        task = self.pick(
            [t for t in self.tasks.values() if t.not_before] * 4 + list(self.tasks.values())
        )

        def judge(answer: support.Answer) -> None:
            due = task.not_before is not None and task.not_before <= now
            assert bool(answer.events) == due
            if due:
                task.not_before = None

        self.ask(judge, ("release", {"tid": task.tid, "now": now}))

    def redrive(self) -> None:
        limit = self.pick([100, 100, 1])
        task = self.some("FAILED", "DEAD_LETTER")

        def judge(answer: support.Answer) -> None:
            mates = [
                t for t in self.tasks.values() if t.sid == task.sid and t.state not in TERMINAL
            ]
            if task.state not in ("FAILED", "DEAD_LETTER") or task.dropped:
                assert answer.code == "illegal_transition"
            elif len(mates) >= limit:
                assert answer.code == "queue_full"
            elif task.unique is not None and any(t.unique == task.unique for t in mates):
                assert answer.code == "illegal_transition"
            else:
                assert answer["state"] == "QUEUED"
                task.requeue()
                task.failures = task.crashes = task.repeats = 0
                task.fingerprint = task.ended = None

        self.ask(judge, ("redrive", {"tid": task.tid, "session_limit": limit}))

    def drop(self) -> None:
        task = self.some("DEAD_LETTER")

        def judge(answer: support.Answer) -> None:
            dead = task.state == "DEAD_LETTER" and not task.dropped
            assert answer.code == (None if dead else "illegal_transition")
            task.dropped = task.dropped or dead

        self.ask(judge, ("drop", {"tid": task.tid}))

    # -- gates -----------------------------------------------------------------------------------

    def gate_set(self) -> None:
        work = self.pick(WORKS)
        most = self.pick([None, 1, 2])
        burst = self.pick([None, None, 2])

        def judge(answer: support.Answer) -> None:
            assert answer.code is None
            if (most, burst) == (None, None):
                self.bound.discard(work)  # what waited is let in by the timer
            else:
                self.bound.add(work)
                self.gated_once = True

        call = {"work": work, "pool": "", "most": most, "burst": burst, "refill_ms": 10}
        self.ask(judge, ("gate_set", call))

    def gate_open(self) -> None:
        self.gate_one(self.pick(range(1, len(WORKS) + 1)), self.pick(range(60)))

    def gate_one(self, wid: int, mono: int) -> None:
        def judge(answer: support.Answer) -> None:
            assert answer.code is None
            assert answer.events == []
            self.let_in += bool(answer["let_in"])

        self.ask(judge, ("gate_open", {"wid": wid, "now_mono": mono, "probe_ms_max": 40}))

    def gate_pass(self) -> None:
        work = self.pick(WORKS)
        mono = self.pick(range(60))

        def judge(answer: support.Answer) -> None:
            until = answer["until_mono"]
            assert until is None or (until > mono and work in self.bound | self.broken)

        self.ask(judge, ("gate_pass", {"work": work, "now_mono": mono, "probe_ms_max": 40}))

    def gate_mend(self) -> None:
        work = self.pick(WORKS)

        def judge(answer: support.Answer) -> None:
            assert (answer["wid"] is not None) == (work in self.broken)
            self.broken.discard(work)
            for fault in [fault for fault in self.faults if fault[0] == work]:
                del self.faults[fault]

        self.ask(judge, ("gate_mend", {"work": work}))

    # -- effects and answers ---------------------------------------------------------------------

    def effect_intent(self) -> None:
        ordinal = self.pick(range(3))
        kind = self.pick(["keyed", "probeable", "irreversible", "pure"])
        digest = self.pick([b"1", b"1", b"1", b"2"])
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            if not task.holds(token):
                assert answer.code == "lease_lost"
                return
            known = task.effects.get(ordinal)
            if known is not None and known.digest != digest:
                assert answer.code == "nondeterminism"
            elif known is None or known.state == "retryable" or (
                known.state == "unknown" and kind == "keyed"
            ):  # fmt: skip
                assert (answer["e_state"], len(answer.events)) == ("intent", 1)
                kept = kind if known is None else known.kind
                task.effects[ordinal] = Effect("intent", kept, digest, token)
            else:
                assert (answer["e_state"], answer.events) == (known.state, [])

        self.ask(
            judge,
            (
                "effect_intent",
                {
                    "tid": task.tid, "token": token, "ordinal": ordinal, "kind": "tool",
                    "name": "t", "class": kind, "key": f"{task.tid}.{ordinal}", "hash": digest,
                    "request": b"{}",
                },
            ),
        )  # fmt: skip

    def effect_place(self) -> None:
        """An intent of a worker: no hole before it."""
        ordinal = self.pick(range(5))
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            known = task.effects.get(ordinal)
            if not task.holds(token):
                assert answer.code == "lease_lost"
            elif ordinal > len(task.effects):
                assert answer.code == "invalid_params"
            elif known is not None and known.digest != b"1":
                assert answer.code == "nondeterminism"
            elif known is None or known.state == "retryable":
                assert len(answer.events) == 1
                kept = "irreversible" if known is None else known.kind
                task.effects[ordinal] = Effect("intent", kept, b"1", token)
            else:
                assert answer.events == []

        common = {"tid": task.tid, "token": token, "ordinal": ordinal}
        effect = {
            "kind": "tool", "name": "t", "class": "irreversible", "request": b"null",
            "key": f"{task.tid}.{ordinal}", "hash": b"1",
        }  # fmt: skip
        self.ask(judge, ("effect_place", common), ("effect_intent", {**common, **effect}))

    def effect_result(self) -> None:
        ordinal = self.pick(range(3))
        state = self.pick(["result", "retryable", "unknown"])
        adopt = self.pick([False, True])
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            effect = task.effects.get(ordinal)
            if not task.holds(token):
                assert answer.code == "lease_lost"
            elif (
                effect is None
                or effect.state not in (("unknown",) if adopt else ("intent", "unknown"))
                or not (adopt or effect.token == token)
            ):
                assert answer.code == "illegal_transition"
            else:
                assert answer.code is None
                effect.state, effect.token = state, token

        common = {"tid": task.tid, "token": token, "ordinal": ordinal}
        calls: list[tuple[str, dict[str, Any]]] = [("effect_adopt", common)] if adopt else []
        closed = {**common, "state": state, "result": b"{}", "failed": 0}
        self.ask(judge, *calls, ("effect_result", closed))

    def effect_record(self) -> None:
        ordinal = self.pick(range(3))
        digest = self.pick([b"1", b"1", b"2"])
        task = self.some("RUNNING")
        token = self.some_token(task)

        def judge(answer: support.Answer) -> None:
            effect = task.effects.get(ordinal)
            if not task.holds(token):
                assert answer.code == "lease_lost"
            elif effect is not None and effect.digest != digest:
                assert answer.code == "nondeterminism"
            elif effect is not None and effect.state == "result":
                assert (answer.code, answer.events) == (None, [])
            else:
                assert (answer.code, len(answer.events)) == (None, 1)
                if effect is None:
                    effect = task.effects[ordinal] = Effect("", "pure", digest, token)
                effect.state, effect.token = "result", token

        self.ask(
            judge,
            (
                "effect_record",
                {
                    "tid": task.tid, "token": token, "ordinal": ordinal, "kind": "brain",
                    "name": "b", "key": "k", "hash": digest, "request": b"{}", "result": b"{}",
                    "failed": 0,
                },
            ),
        )  # fmt: skip

    def effect_settle(self) -> None:
        ordinal = self.pick(range(3))
        outcome = self.pick(["done", "not_done", "redo"])
        task = self.pick(self.with_unknown() * 4 + list(self.tasks.values()))

        def judge(answer: support.Answer) -> None:
            effect = task.effects.get(ordinal)
            never = outcome == "redo" and task.state in ("SUCCEEDED", "CANCELED")
            if effect is None or effect.state != "unknown" or never:
                assert answer.code == "illegal_transition"
                return
            effect.state = "result" if outcome == "done" else "retryable"
            assert answer["unsettled"] == task.count("unknown")
            parked = task.state == "SUSPENDED" and task.reason == "effect_unknown"
            if parked and not task.count("unknown"):
                task.requeue()

        call = {"tid": task.tid, "ordinal": ordinal, "outcome": outcome, "failed": 0, "by": "me"}
        self.ask(judge, ("effect_settle", call))

    def effect_fail(self) -> None:
        ordinal = self.pick(range(3))
        task = self.pick(self.with_unknown() * 4 + list(self.tasks.values()))

        def judge(answer: support.Answer) -> None:
            effect = task.effects.get(ordinal)
            waits = task.state in ("QUEUED", "RETRY_WAIT", "SUSPENDED")
            if effect is None or effect.state != "unknown" or not waits:
                assert answer.code == "illegal_transition"
                return
            assert answer.code is None
            for name, state in task.approvals.items():
                task.approvals[name] = "cancelled" if state == "open" else state
            self.end(task, "FAILED", "settled_as_fail")
            task.ended = None

        call = {"tid": task.tid, "ordinal": ordinal, "message": "m", "by": "me"}
        self.ask(judge, ("effect_fail", call))

    def with_unknown(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.count("unknown")]

    def approval_resolve(self) -> None:
        allowed = self.pick(range(2))
        asking = [task for task in self.tasks.values() if task.approvals]
        if not asking:
            return
        task = self.pick(asking)
        name = self.pick(sorted(task.approvals))

        def judge(answer: support.Answer) -> None:
            if task.approvals[name] != "open":
                assert answer.code == "already_resolved"
                return
            assert answer["outcome"] == "allow"
            task.approvals[name] = "resolved"
            if task.state == "SUSPENDED" and task.reason == "approval" and task.answered():
                task.requeue()

        call = {
            "approval_id": name, "option_id": "allow", "allowed": allowed, "state": "resolved",
            "by": "user",
        }  # fmt: skip
        self.ask(judge, ("approval_resolve", call))

    def signal(self) -> None:
        name = self.pick(["a", "b"])
        key = self.pick([None, "k"])
        most = self.pick([9, 9, 1])
        heard = [task for task in self.tasks.values() if task.signals]
        task = self.pick([*heard, *[self.some("SUSPENDED")] * 2])

        def judge(answer: support.Answer) -> None:
            known = task.signal_keys.get(key)
            if known is not None:
                assert answer.code == (None if known == name else "idempotency_conflict")
                assert answer.events == []
                return
            is_new = name not in task.signals
            if is_new and task.state in TERMINAL:
                assert answer.code == "illegal_transition"
                return
            if (is_new and len(task.signals) >= most) or (key and len(task.signal_keys) >= most):
                assert answer.code == "too_large"
                return
            assert (answer.code, answer["duplicate"]) == (None, not is_new)
            assert bool(answer.events) == is_new
            if key is not None:
                task.signal_keys[key] = name
            if is_new:
                assert answer["answer"] == answer.events[0][1]
                task.signals.add(name)
                if task.state == "SUSPENDED" and task.reason == f"signal:{name}":
                    task.requeue()

        call = {
            "tid": task.tid, "name": name, "payload": b"1", "key": key, "hash": name.encode(),
            "most": most,
        }  # fmt: skip
        self.ask(judge, ("signal", call))

    # -- the rest --------------------------------------------------------------------------------

    def taint(self) -> None:
        task = self.some("RUNNING")
        token, label = self.some_token(task), self.pick(["untrusted", "private"])

        def judge(answer: support.Answer) -> None:
            assert answer.code == (None if task.holds(token) else "lease_lost")
            fresh = answer.code is None and (task.sid, label) not in self.taints
            assert len(answer.events) == fresh
            if fresh:
                self.taints.add((task.sid, label))

        call = {"tid": task.tid, "token": token, "label": label, "source": "tool:http"}
        self.ask(judge, ("taint", call))

    def grant(self) -> None:
        name = self.name()
        uses = self.pick(range(1, 3))

        def judge(answer: support.Answer) -> None:
            assert answer.code is None
            self.grants[name] = True

        lasting = {"resources": "[]", "digests": "[]", "uses": uses, "until_at": 10**12}
        self.ask(judge, ("grant_put", {"grant_id": name, "tool": "t", "by": "b", **lasting}))

    def grant_revoke(self) -> None:
        name = self.pick([*self.grants, "never"])

        def judge(answer: support.Answer) -> None:
            assert answer.code == (None if self.grants.get(name) else "unknown_id")
            self.grants[name] = False

        self.ask(judge, ("grant_revoke", {"grant_id": name}))

    def small_writes(self) -> None:
        name = self.pick(["a", "b"])
        sid = self.pick(range(1, 6))
        task = self.pick([None, *(f"task_n{number}" for number in range(1, 9))])

        def judge(answer: support.Answer) -> None:
            known = sid in self.turns
            assert answer.code == (None if known else "session_unknown")

        self.ask(
            judge,
            ("session_change", {"sid": sid, "title": name}),
            (
                "session_event",
                {"sid": sid, "task_id": task, "kind": 0, "type": "update", "payload": b"{}"},
            ),
            ("audit", {"record": name.encode()}),
            ("policy_activate", {"sid": sid, "version": name, "text": "t", "by": "b"}),
            ("policy_refused", {"sid": sid, "by": "b", "message": name}),
            ("artefact_put", {"key": name, "digest": "d"}),
            ("meta_put", {"key": name, "value": "v"}),
        )

    def rebase_boot(self) -> None:
        boot = self.pick(["b1", "b2"])
        mono = self.pick(range(6))
        now = self.stores[0].now

        def judge(answer: support.Answer) -> None:
            assert answer["boot"] == boot
            for task in self.tasks.values():
                if task.due is not None:
                    task.due = mono + max(0, dues[task.tid] - now)
                if task.state == "RUNNING":
                    task.until = 0
            self.faults.clear()

        dues: dict[int, int] = _Dues(self)
        self.ask(judge, ("rebase_boot", {"boot": boot, "now_mono": mono}))


class _Dues(dict[int, int]):
    """The wall time at which a task is due: the tests give both clocks the same number."""

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.walk = walk

    def __missing__(self, tid: int) -> int:
        found = support.rows(
            self.walk.stores[0].path, "SELECT due_at FROM tasks WHERE tid = ?", tid
        )
        return int(found[0][0] or 0)


# How often each is tried.
BEGINNINGS = [Walk.session, Walk.enqueue]
STEPS: list[Callable[[Walk], None]] = [
    *[Walk.claim] * 5,
    *[Walk.enqueue] * 4,
    *[Walk.effect_intent] * 4,
    *[Walk.effect_record] * 2,
    *[Walk.suspend] * 3,
    *[Walk.fail, Walk.effect_result, Walk.approval_resolve] * 2,
    Walk.effect_place, Walk.last_word,
    Walk.session, Walk.heartbeat, Walk.append, Walk.complete, Walk.wake, Walk.reclaim, Walk.cancel,
    Walk.effect_record, Walk.effect_settle, Walk.effect_fail, Walk.signal, Walk.small_writes,
    Walk.rebase_boot, Walk.taint, Walk.grant, Walk.grant_revoke,
    *[Walk.release, Walk.redrive, Walk.gate_open] * 2,
    Walk.expire, Walk.drop, Walk.gate_set, Walk.gate_pass, Walk.gate_mend,
]  # fmt: skip

WALKS = pytest.mark.req(
    "Q-1", "Q-2", "Q-3", "Q-4", "Q-5", "Q-9", "Q-17", "S-2", "I-1", "I-2", "E-1", "E-2", "E-3"
)


@WALKS
@settings(max_examples=40)
@given(data=st.data())
def test_any_walk(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(Path(folder), lambda found: data.draw(st.sampled_from(found)))
        try:
            walk.go(30)
            walk.drain()
        finally:
            walk.close()


@WALKS
def test_long_walks_meet_every_answer(tmp_path: Path) -> None:
    seen: set[tuple[str, str | None]] = set()
    let_in = 0
    for seed in range(8):
        (tmp_path / str(seed)).mkdir()
        walk = Walk(tmp_path / str(seed), random.Random(seed).choice)
        try:
            walk.go(350)
            walk.drain()
            let_in += walk.let_in
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            walk.close()
        seen |= walk.seen
    assert let_in
    refusals = {(name, code) for name, code in seen if code is not None}
    assert refusals >= {
        (program.name, step.code)
        for program in support.PROGRAMS
        for step in program.steps
        if program.name not in ELSEWHERE and (program.name, step.code) not in UNREACHED
        and step.code is not None
    }  # fmt: skip


# Claims of other kinds, what the timer and a start do: test_store_states.py, test_store_queue.py;
# a call that a grant answers: test_grants.py.
ELSEWHERE = {
    "claim_sessions", "claim_interactive", "recur", "schedule", "postpone", "recovery_report",
    "fork", "grant_use",
}  # fmt: skip
UNREACHED = {
    ("claim", "illegal_transition"),  # a head that is not QUEUED: no such file
    ("effect_intent", "idempotency_conflict"),  # keys shared over tasks: test_store_effects.py
    ("effect_intent", "effect_unknown"),
    ("wake", "unknown_id"), ("cancel", "unknown_id"), ("signal", "unknown_id"),
    ("effect_settle", "unknown_id"), ("effect_fail", "unknown_id"),
    ("approval_resolve", "unknown_id"),
    ("session_event", "session_unknown"),
    ("expire", "unknown_id"), ("release", "unknown_id"), ("redrive", "unknown_id"),
    ("drop", "unknown_id"),
}  # fmt: skip
