"""The laws of the queue and the journal, held against every operation as it commits.

Owns a second telling of SPEC 2 and 3: it is fed what the writer was asked and what it answered, in
commit order, folds that into tasks, leases, turns, budgets and effects, and names the first thing
that may not be. Also what is on disk after a crash is compared with it. Not in here: who asks
(sim_story.py), how a crash is made (sim_life.py), the laws of gates (sim_gate_laws.py) and of times
(sim_term_laws.py), which are told from here what happened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import store_support
from sim_broken import Broken, Part, hold
from sim_gate_laws import GateLaws
from sim_term_laws import TermLaws, Terms

from goclaw.core.states import TERMINAL, EffectState, State, may
from goclaw.store import rows

if TYPE_CHECKING:
    import apsw

    from goclaw.store import Event

LIVE = frozenset({State.CLAIMED, State.RUNNING})
ENDING = frozenset({"complete", "fail", "suspend", "reclaim"})
# What a cancelled attempt still says is joined to it and moves nothing.
LATE = frozenset({"late_effect", "late_end"})
"""Words that end an attempt; with a hash they are answered again as they were."""
AT_WORST_NOTHING = frozenset({"effect_orphan"})  # goes before such a word, and does not judge it
SETTLED = {"done": "result", "not_done": "retryable", "redo": "retryable", "fail": "unknown"}
SENT_AGAIN = frozenset({"pure", "keyed"})


@dataclass(slots=True)
class Effect:
    """An effect as its events tell it."""

    state: str
    effect_class: str
    key: str


@dataclass(slots=True)
class Task:
    """A task as its events and the operations on it tell it."""

    tid: int
    sid: int
    task_id: str
    run_id: str
    pool: str
    kind: str
    serial: bool
    max_attempts: int
    on_unknown: str
    payload: bytes
    work: str
    parent: Task | None
    terms: Terms
    state: str | None = None
    reason: str = ""
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    token: bytes | None = None
    tokens: list[bytes] = field(default_factory=list)
    """Of all its attempts."""
    until: int = 0
    ended: tuple[bytes, bytes] | None = None
    ended_mono: int = 0
    canceled_token: bytes | None = None
    fingerprint: str | None = None
    repeats: int = 0
    due: tuple[int, int] | None = None
    wait_ms: int = 0
    runs_ended: int = 0
    ends: int = 0
    lives: int = 0
    effects: dict[int, Effect] = field(default_factory=dict)
    open_approvals: set[str] = field(default_factory=set)
    signals: set[str] = field(default_factory=set)
    dropped: bool = False

    @property
    def is_open(self) -> bool:
        """It has not ended."""
        return self.state not in TERMINAL

    @property
    def nobody_knows(self) -> bool:
        """It waits for a person, for an effect that only a person can settle."""
        return self.on_unknown == "suspend" and any(
            effect.state == EffectState.UNKNOWN
            and (effect.effect_class == "irreversible" or self.pool != "")
            for effect in self.effects.values()
        )


@dataclass(slots=True)
class Session:
    """A session's log and line."""

    sid: int
    session_id: str
    log: list[Event] = field(default_factory=list)
    line: list[Task] = field(default_factory=list)
    turn: Task | None = None
    open: int = 0


class Laws:
    """Everything that is durable, as the world outside may know it."""

    def __init__(
        self, *, session_limit: int, total_limit: int, crash_budget: int, poison: int
    ) -> None:
        self.session_limit, self.total_limit = session_limit, total_limit
        self.crash_budget, self.poison = crash_budget, poison
        self.gates, self.terms = GateLaws(), TermLaws()
        self.sessions: dict[int, Session] = {}
        self.tasks: dict[int, Task] = {}
        self.by_id: dict[str, Task] = {}
        self.keys: dict[tuple[int, str], tuple[bytes, Task]] = {}
        self.tokens: set[bytes] = set()
        self.approvals: dict[str, str] = {}
        self.answers: dict[str, set[bytes]] = {}
        """What tools really answered, by effect key: nothing else may stand in a journal."""
        self.asked_to_cancel: set[str] = set()
        self._events: list[Event] = []
        self.stopping = False
        """A SIGTERM is being obeyed: from here on the daemon's own leases cost nobody anything."""

    @property
    def open(self) -> int:
        """Tasks that are not terminal."""
        return sum(session.open for session in self.sessions.values())

    # -- operations ------------------------------------------------------------------------------

    def refused(self, parts: list[Part], code: str, mono: int) -> None:
        """An operation failed, so nothing changed: was the reason true?"""
        if code == "lease_lost":
            live = [self._is_live(part, mono) for part in parts if "token" in part.given]
            hold(not all(live), "Q-4", "a live lease was refused", parts[0].program)
        elif code == "queue_full":
            given = parts[0].given
            sid = given["sid"] if "sid" in given else self.tasks[given["tid"]].sid
            session = self.sessions[sid]
            # Of a recurring one the daemon counts what is on its way, too: it may come later.
            by_all = any(part.given.get("session_limit") == 0 for part in parts)
            full = session.open >= self.session_limit or by_all
            hold(full, "Q-10", "refused with room left", session.open)
        elif code == "idempotency_conflict" and parts[0].program == "enqueue":
            given = parts[0].given
            known = self.keys.get((given["sid"], given["key"]))
            hold(known and known[0] != given["hash"], "E-5", "a conflict with nothing")
        elif code == "illegal_transition" and parts[0].program == "redrive":
            task = self.tasks[parts[0].given["tid"]]
            could = task.state in (State.FAILED, State.DEAD_LETTER) and not task.dropped
            taken = self.terms.is_taken(task.terms.unique)
            hold(not could or taken, "Q-7", "a redrive was refused", task.task_id, task.state)
        elif code == "illegal_transition" and parts[0].program == "signal":
            task = self.tasks[parts[0].given["tid"]]
            hold(not task.is_open, "E-9", "a run that goes on refused a signal", task.task_id)
        elif code == "constraint":
            raise Broken(f"Q-1: {parts[0].program} broke a constraint of the schema")

    def committed(
        self, parts: list[Part], returns: list[dict[str, Any]], events: list[Event], mono: int
    ) -> None:
        """An operation is on disk."""
        self._events = events
        for part, returned in zip(parts, returns, strict=True):
            self._before(part, returned, events, mono)
        for event in events:
            self._event(event, parts, mono)
        for part, returned in zip(parts, returns, strict=True):
            self._after(part, returned, mono)

    def _is_live(self, part: Part, mono: int) -> bool:
        given = part.given
        if part.program == "reclaim":
            expired = given["expired_mono"]
            found = [
                task for task in self.tasks.values()
                if task.state in LIVE and task.token == given["token"]
                and given["tid"] in (None, task.tid)
            ]  # fmt: skip
            return bool(found) and (expired is None or found[0].until < expired)
        if given.get("tid") is None:
            return False  # a claim brings a lease, it does not need one
        task = self.tasks[given["tid"]]
        return task.state in LIVE and task.token == given["token"]

    def _before(self, part: Part, returned: dict[str, Any], events: list[Event], mono: int) -> None:
        given = part.given
        if part.program == "enqueue":
            self._enqueue(given, returned)
        elif part.program == "recur" and returned["tid"] is not None:
            self._recur(given, returned["tid"])
        elif part.program == "schedule" and returned["tid"] is not None:
            self.terms.recurs(self.tasks[returned["tid"]], given["misfire"])
        elif part.program == "session_new" and not returned["duplicate"]:
            sid = returned["sid"]
            hold(sid not in self.sessions, "I-2", "two sessions with one number", sid)
            self.sessions[sid] = Session(sid, returned["session_id"])
        elif part.program == "wake" and given["now_mono"] is not None and events:
            task = self.tasks[given["tid"]]
            hold(task.due and task.due[0] <= given["now_mono"], "Q-7", "woken too soon", task.due)
        if given.get("token") is not None and not part.program.startswith("claim"):
            self._fence(part, events, mono)

    def _fence(self, part: Part, events: list[Event], mono: int) -> None:
        """I-1: a stale token changes nothing; only an exact repeat of the end is answered."""
        if self._is_live(part, mono):
            return
        given = part.given
        task = self.tasks.get(given["tid"])
        if part.program in LATE:
            cut = task is not None and task.canceled_token == given["token"]
            last = task is not None and task.tokens[-1:] == [given["token"]]
            joined = cut or (part.program == "late_effect" and last)
            hold(joined or not events, "Q-11", f"{part.program} of nobody's", given["tid"])
            return
        repeated = part.program in AT_WORST_NOTHING or (
            part.program in ENDING
            and task is not None
            and given["hash"] is not None
            and task.ended == (given["token"], given["hash"])
        )
        hold(
            repeated and not events,
            "I-1",
            f"{part.program} with a stale token was taken",
            given["tid"],
        )

    def _enqueue(self, given: dict[str, Any], returned: dict[str, Any]) -> None:
        scope = (given["sid"], given["key"])
        known = self.keys.get(scope) if given["key"] is not None else None
        if known is not None:
            digest, task = known
            hold(digest == given["hash"], "E-5", "another request under a key was taken", scope)
            hold(returned["duplicate"] and returned["tid"] == task.tid, "E-6", "ran anew", scope)
            return
        other = self.terms.is_taken(self.terms.unique_of(given))
        if other is not None:
            hold(returned["tid"] == other.tid, "Q-12", "two unique tasks", other.task_id)
            hold(returned["duplicate"], "Q-12", "a known one was called new", other.task_id)
            if given["key"] is not None:
                self.keys[scope] = (given["hash"], other)
            return
        hold(not returned["duplicate"], "E-6", "a new submission was called a duplicate", scope)
        hold(self.sessions[given["sid"]].open < self.session_limit, "Q-10", "beyond the bound")
        hold(self.open < self.total_limit, "Q-10", "beyond the bound of all:", self.open)
        parent = self.tasks[given["parent_tid"]] if given["parent_tid"] is not None else None
        task = Task(
            returned["tid"], given["sid"], given["task_id"], given["run_id"], given["pool"],
            given["kind"], not given["parallel"], given["max_attempts"], given["on_unknown"],
            given["payload"], given["work"], parent, self.terms.accepted(given),
        )  # fmt: skip
        self._arrives(task)
        self.terms.takes_key(task)
        if given["key"] is not None:
            self.keys[scope] = (given["hash"], task)

    def _recur(self, given: dict[str, Any], tid: int) -> None:
        """The next occurrence, as the last one."""
        last = self.tasks[given["last_tid"]]
        room = self.sessions[last.sid].open < self.session_limit and self.open < self.total_limit
        before = last.terms.chain.last if last.terms.chain is not None else None
        alone = before is None or not before.is_open
        hold(room or alone, "Q-10", "an occurrence beyond the bound", last.task_id)
        terms = Terms(given["due_at"], last.terms.timeout_ms, None, None)
        task = Task(
            tid, last.sid, given["task_id"], given["run_id"], last.pool, last.kind, last.serial,
            last.max_attempts, last.on_unknown, last.payload, last.work, None, terms,
        )  # fmt: skip
        self._arrives(task)
        self.terms.followed(last, task, given["due_at"])

    def _arrives(self, task: Task) -> None:
        hold(task.tid not in self.tasks, "I-3", "a task's number was given again", task.tid)
        self.tasks[task.tid] = self.by_id[task.task_id] = task
        self.sessions[task.sid].line.append(task)

    def _after(self, part: Part, returned: dict[str, Any], mono: int) -> None:
        given = part.given
        match part.program:
            case "claim" | "claim_interactive" if returned["tid"] is not None:
                task, token = self.tasks[returned["tid"]], given["token"]
                hold(token not in self.tokens, "Q-3", "a token was used before")
                self.tokens.add(token)
                task.token, task.until = token, given["lease_until_mono"]
                task.tokens.append(token)
                self.terms.claimed(task, given["now_mono"])
                same = [one for one in self.tasks.values() if one.work == task.work]
                running = sum(one.state == State.RUNNING for one in same)
                self.gates.began(task.work, running, mono)
            case "gate_pass" if returned["until_mono"] is None:
                self.gates.passed(given["work"], given["now_mono"])
            case "gate_mend" if returned["wid"] is not None:
                self.gates.went_well(given["work"])
            case "heartbeat":
                task = self.tasks[given["tid"]]
                task.until = max(task.until, given["lease_until_mono"])
            case "rebase_boot":
                for task in self.tasks.values():
                    task.until = 0
                    if task.due is not None:
                        rest = max(0, min(task.due[1] - given["now"], task.wait_ms))
                        task.due = (given["now_mono"] + rest, task.due[1])

    # -- events ----------------------------------------------------------------------------------

    def _event(self, event: Event, parts: list[Part], mono: int) -> None:
        sid, event_id, _, kind, at, run_id, task_id, attempt, _, payload = event
        session = self.sessions[sid]
        hold(event_id == len(session.log) + 1, "I-2", f"event {event_id} after {len(session.log)}")
        session.log.append(event)
        if task_id is None:
            return
        task = self.by_id[task_id]
        hold((task.sid, task.run_id) == (sid, run_id), "Q-2", "ids that do not belong together")
        fields = orjson.loads(payload)
        if kind.startswith("task."):
            self._step(session, task, kind, attempt, fields, parts, at, mono)
            return
        hold(attempt == task.attempt, "Q-2", kind, "of attempt", attempt, "not", task.attempt)
        if kind.startswith("effect."):
            self._effect(task, kind, fields, parts)
        elif kind.startswith("approval."):
            self._approval(task, kind, fields)
        elif kind == "signal.received":
            hold(fields["name"] not in task.signals, "E-9", "a second signal of one name")
            task.signals.add(fields["name"])
        elif kind == "schedule.due":
            self.terms.due(task, at)
            session.line.remove(task)
            session.line.append(task)
        elif kind == "schedule.missed":
            self.terms.missed(task, fields["dueAt"], at)
        elif kind == "breaker.opened":
            breaker = self.gates.works[fields["work"]].breaker
            named = breaker is not None and breaker.fingerprint == fields["fingerprint"]
            hold(named, "Q-7", "another breaker opened:", fields)
        elif kind == "dead_letter.dropped":
            hold(task.state == State.DEAD_LETTER and not task.dropped, "Q-7", "dropped what?")
            task.dropped = True
        elif kind == "run.ended":
            task.runs_ended += 1
            hold(task.runs_ended == task.ends, "Q-2", "run.ended without an end", task.task_id)
            hold(fields["state"] == task.state, "Q-2", "run.ended says", fields["state"])

    def _step(
        self,
        session: Session,
        task: Task,
        kind: str,
        attempt: int,
        fields: dict[str, Any],
        parts: list[Part],
        at: int,
        mono: int,
    ) -> None:
        """One transition (Q-1, Q-2)."""
        source, target = fields["from"], fields["to"]
        hold(source == task.state, "I-2", f"{kind} from {source}, but it is {task.state}")
        hold(may(source, State(target)), "Q-1", f"{source} to {target} is not in the table")
        hold(fields["reason"], "Q-2", "a transition without a reason")
        named = {"task.requeued": "QUEUED"}.get(kind, kind.removeprefix("task.").upper())
        hold(named == target, "Q-2", f"{kind} to {target}")
        if target == State.CLAIMED:
            hold(attempt == task.attempt + 1, "Q-5", f"attempt {attempt} after {task.attempt}")
            self._claimed(session, task)
        hold(attempt == task.attempt, "Q-2", f"{kind} of attempt {attempt} not {task.attempt}")
        task.due = None
        if source == State.RUNNING:
            self.terms.left(task, mono)
            self._released(task, target, fields, parts)
        if source is None or source in TERMINAL:
            session.open += 1
            task.lives += 1
            if source is not None:
                hold(not task.dropped, "Q-7", "a dropped one comes back", task.task_id)
                self.terms.takes_key(task)
                task.failures = task.crashes = task.repeats = 0
                task.fingerprint = None
                session.line.remove(task)
                session.line.append(task)
        task.state, task.reason = target, fields["reason"]
        if target == State.SUCCEEDED:
            self.gates.went_well(task.work)
            hold(not self.children(task), "Q-9", task.task_id, "ended before its sub-task")
        if target in TERMINAL:
            asked = target != State.CANCELED or task.task_id in self.asked_to_cancel
            orphan = fields["reason"] == "parent_ended" and task.parent and not task.parent.is_open
            hold(asked or orphan, "G-4", "canceled, and nobody asked for it:", task.task_id)
            expired = any(part.program == "expire" for part in parts)
            self.terms.ended(task, fields["reason"], at if expired else None)
            task.ended_mono = mono
            if source != State.RUNNING:
                task.ended = None
            task.ends += 1
            hold(task.ends == task.lives, "Q-11", "a second end of", task.task_id)
            hold(not task.open_approvals or target != State.CANCELED, "A-7", "left open")
            session.open -= 1
            if session.turn is task:
                session.turn = None

    def children(self, task: Task) -> list[Task]:
        """Its sub-tasks that never ended; for one that was brought back it does not wait."""
        return [one for one in self.tasks.values() if one.parent is task and not one.ends]

    def _claimed(self, session: Session, task: Task) -> None:
        task.attempt += 1
        task.crashes += 1  # reserved
        if not task.serial:
            return
        hold(session.turn in (None, task), "Q-9", "two serial tasks of a session at once")
        if session.turn is None:
            waiting = [
                one for one in session.line
                if one.serial and one.is_open and one.terms.held_until is None
            ]  # fmt: skip
            hold(waiting[0] is task, "Q-9", task.task_id, "before", waiting[0].task_id)
            session.turn = task

    def _released(self, task: Task, target: str, fields: dict[str, Any], parts: list[Part]) -> None:
        """An attempt is over: the lease, the budgets, the intents."""
        token, task.token, task.until = task.token, None, 0
        part = next(
            part for part in parts
            if part.program in ENDING | {"cancel", "expire"}
            and part.given["tid"] in (None, task.tid)
        )  # fmt: skip
        task.canceled_token = token if part.program == "cancel" else None
        said = part.given.get("hash")
        task.ended = None if said is None else (part.given["token"], said)
        if target in (State.RETRY_WAIT, State.SUSPENDED) and part.given.get("due_mono") is not None:
            task.due = (part.given["due_mono"], part.given["due_at"])
            task.wait_ms = part.given["due_at"] - part.given["now"]
        spent = part.program == "reclaim" and part.given["spent"]
        hold(not (spent and self.stopping and task.pool == ""), "R-3", "a stop cost a crash")
        if not spent:
            task.crashes -= 1
        if part.program == "fail":
            self._failed(task, target, fields, part.given)
        elif part.program == "reclaim":
            exhausted = bool(spent) and task.crashes >= self.crash_budget
            hold((target == State.DEAD_LETTER) == exhausted, "Q-5", target, "at", task.crashes)
        for ordinal, effect in task.effects.items():
            if effect.state == EffectState.INTENT:
                again = effect.effect_class in SENT_AGAIN
                hold(again, "I-4", "an intent outlived its attempt", task.task_id, ordinal)
                effect.state = EffectState.RETRYABLE

    def _failed(
        self, task: Task, target: str, fields: dict[str, Any], given: dict[str, Any]
    ) -> None:
        """Q-5, Q-7: what the word of a failing attempt comes to."""
        if not given["retryable"]:
            hold(target == State.FAILED, "Q-7", "not retryable, and", target)
            return
        if given["code"] == "attempt_timeout":
            self.terms.timed_out(task, given["now_mono"])
        if given["fingerprint"] is not None:
            opened = any(event[3] == "breaker.opened" for event in self._events)
            self.gates.failed(
                given["fault_work"] or task.work, given["fingerprint"], task.tid,
                given["now_mono"], opened=opened,
            )  # fmt: skip
        task.failures += 1
        hold(fields["failures"] == task.failures, "Q-5", "failures", fields["failures"])
        same = given["fingerprint"] == task.fingerprint
        task.repeats = task.repeats + 1 if same else 1
        poison = given["fingerprint"] is not None and same and task.repeats >= self.poison
        dead = poison or task.failures >= task.max_attempts
        task.fingerprint = given["fingerprint"]
        hold((target == State.DEAD_LETTER) == dead, "Q-5", target, "at", task.failures)
        if not dead:
            due = State.SUSPENDED if task.nobody_knows else State.RETRY_WAIT
            hold(target == due, "E-3", task.task_id, "is", target, "and not", due)

    def _effect(self, task: Task, kind: str, fields: dict[str, Any], parts: list[Part]) -> None:
        """The journal (E-1 to E-5)."""
        ordinal = fields["ordinal"]
        effect = task.effects.get(ordinal)
        before = effect.state if effect is not None else None
        match kind:
            case "effect.intent":
                again = before in (None, EffectState.RETRYABLE) or (
                    before == EffectState.UNKNOWN and fields["class"] == "keyed"
                )
                hold(again, "E-2", f"an intent after {before}", task.task_id, ordinal)
                key = fields["idempotencyKey"]
                hold(effect is None or effect.key == key, "E-4", "its key changed")
                task.effects[ordinal] = Effect(EffectState.INTENT, fields["class"], key)
            case "effect.result":
                hold(before != EffectState.RESULT, "E-2", "a second result", task.task_id, ordinal)
                if effect is None:
                    effect = task.effects[ordinal] = Effect("", fields.get("class", ""), "")
                effect.state = fields["state"]
            case "effect.unknown":
                hold(before == EffectState.INTENT, "E-3", f"unknown after {before}")
                assert effect is not None
                effect.state = EffectState.UNKNOWN
            case "effect.settled":
                hold(before == EffectState.UNKNOWN, "E-3", f"settled after {before}")
                assert effect is not None
                effect.state = SETTLED[fields["outcome"]]
                for part in parts:
                    if part.program == "effect_settle" and part.given["result"] is not None:
                        self.answers.setdefault(effect.key, set()).add(part.given["result"])

    def _approval(self, task: Task, kind: str, fields: dict[str, Any]) -> None:
        name = fields["approvalId"]
        if kind == "approval.opened":
            hold(name not in self.approvals, "A-7", "opened twice")
            self.approvals[name] = "open"
            task.open_approvals.add(name)
        else:
            hold(self.approvals.get(name) == "open", "A-7", "answered twice", name)
            self.approvals[name] = fields["outcome"]
            task.open_approvals.discard(name)

    # -- what is on disk -------------------------------------------------------------------------

    def audit(self, file: apsw.Connection) -> None:
        """The file holds exactly this (I-2, I-3), and nothing in a journal was made up (I-4)."""
        for sid, session in self.sessions.items():
            events = _fetch(file, "events_after", sid=sid, cursor=0, limit=1 << 40)
            seen = [(sid, *row) for row in events]
            if seen != session.log:
                raise Broken(f"I-3: {_difference(session, seen)}")
        everything = {"sid": None, "pool": None, "before": 1 << 62, "state": None, "limit": 1 << 30}
        table = {row["tid"]: row for row in _rows(file, "tasks_listed", **everything)}
        hold(set(table) == set(self.tasks), "I-3", "tasks on disk:", sorted(table))
        for tid, task in self.tasks.items():
            row = table[tid]
            folded = (
                task.state, task.attempt, task.failures, task.crashes, task.dropped,
                task.terms.held_until is not None, task.terms.deadline_at,
            )  # fmt: skip
            stored = (
                *(row[name] for name in ("state", "attempt", "failures", "crashes")),
                row["dropped_at"] is not None, bool(row["held"]), row["deadline_at"],
            )  # fmt: skip
            hold(folded == stored, "I-2", task.task_id, "is", stored, "and its events say", folded)
        leases = {tid: (token, until) for tid, token, _, until, *_ in _fetch(file, "live_tasks")}
        folded_leases = {
            tid: (task.token, task.until)
            for tid, task in self.tasks.items()
            if task.state == State.RUNNING
        }
        hold(leases == folded_leases, "I-1", "leases on disk:", leases, "folded:", folded_leases)
        for task in self.tasks.values():
            self._journal(file, task)
        self.terms.chains_go_on()

    def _journal(self, file: apsw.Connection, task: Task) -> None:
        for row in _rows(file, "effects_of_task", tid=task.tid):
            ordinal, state = row["ordinal"], row["state"]
            effect = task.effects.get(ordinal)
            if row["class"] == "pure":
                continue  # its intent and the end of it are no events of their own
            hold(effect, "I-2", "an effect without an event", task.task_id, ordinal)
            assert effect is not None
            hold(effect.state == state, "I-2", task.task_id, ordinal, state, "not", effect.state)
            # 0 and 1: a tool's own word. Later ones are said in its place.
            if state == EffectState.RESULT and row["name"] == "delegate":
                self._told(task, row)
            elif state == EffectState.RESULT and row["failed"] < 2:
                known = self.answers.get(row["key"], set())
                hold(row["result"] in known, "I-4", "a result nobody gave", task.task_id, ordinal)

    def _told(self, task: Task, row: dict[str, Any]) -> None:
        """What a run was told of its sub-task is of its own one, which has ended (Q-9)."""
        told = orjson.loads(row["result"])
        if "runId" in told:
            child = self.by_id.get("task_" + told["runId"].removeprefix("run_"))
            hold(child and child.parent is task and child.ends, "I-4", "told of", told["runId"])
            hold(told["state"] in TERMINAL, "I-4", "an end that is none:", told["state"])


def _fetch(file: apsw.Connection, query: str, **arguments: Any) -> list[tuple[Any, ...]]:
    return file.execute(store_support.CATALOGUE.queries[query].sql, arguments).fetchall()


def _rows(file: apsw.Connection, query: str, **arguments: Any) -> list[dict[str, Any]]:
    return rows(query, _fetch(file, query, **arguments))


def _difference(session: Session, seen: list[Event]) -> str:
    pairs = enumerate(zip(seen, session.log, strict=False))
    first = next((n for n, (one, other) in pairs if one != other), min(len(seen), len(session.log)))
    return (
        f"session {session.sid} has {len(seen)} events on disk of {len(session.log)} that were "
        f"committed, and differs from number {first + 1} on"
    )


def obey(path: Any) -> None:
    """The laws of a store's file, whoever wrote it; Broken."""
    try:
        store_support.obey(path)
    except AssertionError as error:
        raise Broken(f"I-2: {error}") from error
