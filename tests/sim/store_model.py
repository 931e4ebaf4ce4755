"""SPEC 2 and 3 as a plain-Python model: what each program of the store must answer.

Owns the model's state and one method for each program it knows, named like it. Each method is given
the arguments and the answer, and asserts that the answer is the one there is; where SPEC leaves a
choice (which ready task is claimed, Q-8), that it is one of those allowed. Not in here: fairness,
gates, events (store_support.obey folds those), how a program is run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store_support import Answer

TERMINAL = ("SUCCEEDED", "FAILED", "CANCELED", "DEAD_LETTER")
SENT_AGAIN = ("pure", "keyed")
BUDGET = 2  # crashes
LIMIT = 7  # open tasks of a session
POISON = 2


@dataclass
class Task:
    """A task that was accepted."""

    tid: int
    sid: int
    parallel: bool
    pool: str
    max_attempts: int
    on_unknown: str
    seq: int
    unique: str | None
    not_before: int | None
    deadline: int | None
    state: str = "QUEUED"
    reason: str | None = None
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    repeats: int = 0
    fingerprint: str | None = None
    token: bytes | None = None
    until: int = 0
    due: int | None = None
    ended: tuple[bytes, bytes, str] | None = None
    dropped: bool = False
    effects: dict[int, tuple[str, str]] = field(default_factory=dict)
    """State and class by ordinal."""
    approvals: dict[str, str] = field(default_factory=dict)
    signals: set[str] = field(default_factory=set)

    @property
    def is_open(self) -> bool:
        """Not terminal."""
        return self.state not in TERMINAL

    @property
    def nobody_knows(self) -> bool:
        """It holds an effect that only a person can settle."""
        return any(
            state == "unknown" and (kind == "irreversible" or self.pool != "")
            for state, kind in self.effects.values()
        )


class Model:
    """What the store has been told, and what follows from it."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.keys: dict[tuple[int, str], tuple[bytes, int]] = {}
        self.turns: dict[int, int | None] = {}
        self.places = 0

    def answered(self, program: str, given: dict[str, Any], answer: Answer) -> None:
        """The store has answered; AssertionError unless that is what must be."""
        if answer.code == "storage_failed":
            return  # nothing was changed, whatever it was
        expected = getattr(self, program)(given, answer)
        assert answer.code == expected, (program, given, answer.code, expected)

    # -- what follows from what ------------------------------------------------------------------

    def ready(self, pool: str) -> set[int]:
        """What may be claimed: parallel tasks in any order, of a serial line the one whose turn it
        is, or the first (Q-9)."""
        waiting = [
            task for task in sorted(self.tasks.values(), key=lambda task: (task.seq, task.tid))
            if task.state == "QUEUED" and task.not_before is None
        ]  # fmt: skip
        first: dict[int, Task] = {}
        for task in waiting:
            if not task.parallel and self.turns.get(task.sid) in (None, task.tid):
                first.setdefault(task.sid, task)
        heads = [task for task in waiting if task.parallel or first.get(task.sid) is task]
        return {task.tid for task in heads if task.pool == pool}

    def open(self, sid: int) -> int:
        """Tasks of a session that are not terminal."""
        return sum(task.is_open for task in self.tasks.values() if task.sid == sid)

    def _holder(self, given: dict[str, Any]) -> Task | None:
        """The task whose live lease that token is."""
        task = self.tasks.get(given["tid"])
        live = task is not None and task.state == "RUNNING" and task.token == given["token"]
        return task if live else None

    def _repeated(self, given: dict[str, Any]) -> str | None:
        """The state that the same call was answered with before (Q-4)."""
        task = self.tasks.get(given["tid"])
        if task is None or task.ended is None or task.token == given["token"]:
            return None
        token, digest, state = task.ended
        return state if (token, digest) == (given["token"], given.get("hash")) else None

    def _tail(self) -> int:
        """Behind all that ever took a place."""
        self.places += 1
        return self.places

    def _orphan(self, task: Task) -> None:
        for ordinal, (state, kind) in task.effects.items():
            if state == "intent":
                told = "retryable" if kind in SENT_AGAIN else "unknown"
                task.effects[ordinal] = (told, kind)

    def _leave(self, task: Task, state: str, reason: str, *, said: Any = None) -> None:
        """The attempt is over; ``said``: the call that ended it, for those who say it again."""
        task.token, task.until = None, 0
        digest = None if said is None else said.get("hash")
        task.ended = None if digest is None else (said["token"], digest, state)
        self._to(task, state, reason)

    def _to(self, task: Task, state: str, reason: str) -> None:
        task.state, task.reason, task.due = state, reason, None
        if state in TERMINAL:
            task.deadline = task.not_before = None
            if self.turns.get(task.sid) == task.tid:
                self.turns[task.sid] = None

    # -- programs --------------------------------------------------------------------------------

    def enqueue(self, given: dict[str, Any], answer: Answer) -> str | None:
        sid, key = given["sid"], given.get("key")
        if key is not None and (sid, key) in self.keys:
            digest, tid = self.keys[sid, key]
            if digest != given["hash"]:
                return "idempotency_conflict"
            assert (answer["tid"], answer["duplicate"]) == (tid, 1)
            assert answer["state"] == self.tasks[tid].state
            return None
        unique = given.get("unique_key")
        for task in self.tasks.values():
            same = unique is not None and task.unique == unique and task.pool == given["pool"]
            if same and task.is_open and (task.pool != "" or task.sid == sid):
                assert (answer["tid"], answer["duplicate"]) == (task.tid, 1)
                if key is not None:
                    self.keys[sid, key] = (given["hash"], task.tid)
                return None
        if self.open(sid) >= LIMIT:
            return "queue_full"
        tid = answer["tid"]
        assert tid not in self.tasks
        assert (answer["duplicate"], answer["state"]) == (0, "QUEUED")
        self.tasks[tid] = Task(
            tid, sid, bool(given["parallel"]), given["pool"], given["max_attempts"],
            given["on_unknown"], self._tail(), unique, given.get("not_before"),
            given.get("deadline_at"),
        )  # fmt: skip
        if key is not None:
            self.keys[sid, key] = (given["hash"], tid)
        return None

    def claim(self, given: dict[str, Any], answer: Answer) -> str | None:
        ready = self.ready(given["pool"])
        tid = answer["tid"]
        if not ready:
            assert tid is None
            return None
        assert tid in ready, (tid, ready)
        task = self.tasks[tid]
        task.attempt += 1
        task.crashes += 1  # reserved
        task.state, task.reason, task.due = "RUNNING", "claim", None
        task.token, task.until = given["token"], given["lease_until_mono"]
        if not task.parallel and self.turns.get(task.sid) is None:
            self.turns[task.sid] = tid
        assert (answer["attempt"], answer["failures"]) == (task.attempt, task.failures)
        return None

    def heartbeat(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self._holder(given)
        if task is None:
            return "lease_lost"
        task.until = max(task.until, given["lease_until_mono"])
        return None

    def append(self, given: dict[str, Any], answer: Answer) -> str | None:
        return None if self._holder(given) else "lease_lost"

    def complete(self, given: dict[str, Any], answer: Answer) -> str | None:
        state = self._repeated(given)
        if state is not None:
            assert answer["state"] == state
            assert not answer.events
            return None
        task = self._holder(given)
        if task is None:
            return "lease_lost"
        task.crashes -= 1
        self._leave(task, "SUCCEEDED", "finished", said=given)
        assert answer["state"] == "SUCCEEDED"
        return None

    def fail(self, given: dict[str, Any], answer: Answer) -> str | None:
        state = self._repeated(given)
        task = self._holder(given)
        if state is None and task is None:
            return "lease_lost"
        if state is None:
            assert task is not None
            state = self._failed(task, given)
        assert answer["state"] == state
        assert answer["failures"] == self.tasks[given["tid"]].failures
        return None

    def _failed(self, task: Task, given: dict[str, Any]) -> str:
        self._orphan(task)
        print_of = given["fingerprint"]
        task.crashes -= 1
        task.failures += given["retryable"]
        task.repeats = task.repeats + 1 if print_of == task.fingerprint else 1
        poison = print_of is not None and print_of == task.fingerprint
        task.fingerprint = print_of
        if not given["retryable"]:
            state = "FAILED"
        elif task.failures >= task.max_attempts or (poison and task.repeats >= POISON):
            state = "DEAD_LETTER"
        elif task.nobody_knows and task.on_unknown == "suspend":
            state = "SUSPENDED"
        else:
            state = "RETRY_WAIT"
        self._leave(task, state, "effect_unknown" if state == "SUSPENDED" else "failed", said=given)
        if state == "RETRY_WAIT":
            task.due = given["due_mono"]
        return state

    def suspend(self, given: dict[str, Any], answer: Answer) -> str | None:
        state = self._repeated(given)
        if state is not None:
            assert answer["ended_state"] == state
            return None
        task = self._holder(given)
        if task is None:
            return "lease_lost"
        self._orphan(task)
        task.crashes -= 1
        self._leave(task, "SUSPENDED", given["reason"], said=given)
        task.due = given["due_mono"]
        assert answer["ended_state"] == "SUSPENDED"
        self._go_on(task, "answered")  # what it waits for may be there
        return None

    def _go_on(self, task: Task, why: str) -> None:
        match task.reason:
            case "approval":
                answered = "open" not in task.approvals.values()
            case "effect_unknown":
                answered = all(state != "unknown" for state, _ in task.effects.values())
            case reason:
                answered = reason in {f"signal:{name}" for name in task.signals}
        if task.state == "SUSPENDED" and answered:
            self._to(task, "QUEUED", why)

    def wake(self, given: dict[str, Any], answer: Answer) -> str | None:
        task, now = self.tasks[given["tid"]], given["now_mono"]
        waits = task.state in ("RETRY_WAIT", "SUSPENDED")
        if waits and (now is None or (task.due is not None and task.due <= now)):
            self._to(task, "QUEUED", given["reason"])
        assert answer["state"] == task.state
        return None

    def reclaim(self, given: dict[str, Any], answer: Answer) -> str | None:
        state = self._repeated(given)
        if state is not None:
            assert answer["state"] == state
            return None
        task, expired = self._holder(given), given["expired_mono"]
        if task is None or (expired is not None and task.until >= expired):
            return "lease_lost"
        self._orphan(task)
        task.crashes -= not given["spent"]
        if given["spent"] and task.crashes >= BUDGET:
            state = "DEAD_LETTER"
        elif task.nobody_knows and task.on_unknown == "suspend":
            state = "SUSPENDED"
        else:
            state = "QUEUED"
        reason = "effect_unknown" if state == "SUSPENDED" else given["reason"]
        self._leave(task, state, reason, said=given)
        assert answer["state"] == state
        return None

    def cancel(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self.tasks[given["tid"]]
        assert answer["was"] == task.state
        if task.is_open:
            self._end(task, "CANCELED", given["reason"])
        return None

    def expire(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self.tasks[given["tid"]]
        if task.is_open and task.deadline is not None and task.deadline <= given["now"]:
            self._end(task, "FAILED", "deadline_exceeded")
        assert answer["state"] == task.state
        return None

    def _end(self, task: Task, state: str, reason: str) -> None:
        """Over its head, wherever it is."""
        self._orphan(task)
        task.crashes -= task.state == "RUNNING"
        for name, outcome in task.approvals.items():
            task.approvals[name] = "cancelled" if outcome == "open" else outcome
        self._leave(task, state, reason)

    def redrive(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self.tasks[given["tid"]]
        if task.state not in ("FAILED", "DEAD_LETTER") or task.dropped:
            return "illegal_transition"
        if self.open(task.sid) >= LIMIT:
            return "queue_full"
        taken = [
            one for one in self.tasks.values()
            if one.is_open and task.unique is not None and one.unique == task.unique
            and one.pool == task.pool and (task.pool != "" or one.sid == task.sid)
        ]  # fmt: skip
        if taken:
            return "illegal_transition"
        task.seq = self._tail()
        task.failures = task.crashes = task.repeats = 0
        task.fingerprint = task.ended = None
        self._to(task, "QUEUED", "redrive")
        assert answer["state"] == "QUEUED"
        return None

    def drop(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self.tasks[given["tid"]]
        if task.state != "DEAD_LETTER" or task.dropped:
            return "illegal_transition"
        task.dropped = True
        return None

    def release(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self.tasks[given["tid"]]
        if task.not_before is not None and task.not_before <= given["now"]:
            task.seq = self._tail()
            task.not_before = None
        return None

    def rebase_boot(self, given: dict[str, Any], answer: Answer) -> str | None:
        for task in self.tasks.values():
            task.until = 0
        return None

    # -- the journal -----------------------------------------------------------------------------

    def effect_intent(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self._holder(given)
        if task is None:
            return "lease_lost"
        state, _ = task.effects.get(given["ordinal"], (None, ""))
        again = state == "unknown" and given["class"] == "keyed"
        if state in (None, "retryable") or again:
            task.effects[given["ordinal"]] = ("intent", given["class"])
            state = "intent"
        assert answer["e_state"] == state
        return None

    def effect_result(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self._holder(given)
        if task is None:
            return "lease_lost"
        state, kind = task.effects.get(given["ordinal"], (None, ""))
        if state != "intent":
            return "illegal_transition"
        task.effects[given["ordinal"]] = (given["state"], kind)
        return None

    def effect_settle(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self.tasks[given["tid"]]
        state, kind = task.effects.get(given["ordinal"], (None, ""))
        gone = given["outcome"] == "redo" and task.state in ("SUCCEEDED", "CANCELED")
        if state != "unknown" or gone:
            return "illegal_transition"
        told = "result" if given["outcome"] == "done" else "retryable"
        task.effects[given["ordinal"]] = (told, kind)
        if task.reason == "effect_unknown":
            self._go_on(task, "settled")
        return None

    def effect_fail(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self.tasks[given["tid"]]
        state, _ = task.effects.get(given["ordinal"], (None, ""))
        if state != "unknown" or task.state not in ("QUEUED", "RETRY_WAIT", "SUSPENDED"):
            return "illegal_transition"
        self._end(task, "FAILED", "settled_as_fail")
        return None

    def approval_open(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self._holder(given)
        if task is None:
            return "lease_lost"
        task.approvals[given["approval_id"]] = "open"
        return None

    def approval_resolve(self, given: dict[str, Any], answer: Answer) -> str | None:
        name = given["approval_id"]
        for task in self.tasks.values():
            if name in task.approvals:
                if task.approvals[name] != "open":
                    return "already_resolved"
                task.approvals[name] = given["state"]
                if task.reason == "approval":
                    self._go_on(task, "answered")
                return None
        return "unknown_id"

    def signal(self, given: dict[str, Any], answer: Answer) -> str | None:
        task = self.tasks[given["tid"]]
        known = given["name"] in task.signals
        if not known and not task.is_open:
            return "illegal_transition"
        assert answer["duplicate"] == known
        task.signals.add(given["name"])
        if task.reason == f"signal:{given['name']}":
            self._go_on(task, "signal")
        return None
