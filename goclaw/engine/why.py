"""Why a task waits, is blocked, denied or dead, and which command moves it (Q-14).

Owns the sentences. What is on disk is read as of one moment; the decision what it means does no
I/O. Not in here: the rules that make a task wait (store/queries.sql, ``gates``, ``effects``).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import UnknownId
from goclaw.core.states import TERMINAL, EffectClass, EffectState, State
from goclaw.engine.effects import STATUSES
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from goclaw.core.clock import Clock
    from goclaw.engine.pools import Pools
    from goclaw.engine.scheduler import Scheduler
    from goclaw.store import Database

    _Row = dict[str, Any]

__all__ = ["Because", "Why"]


@dataclass(frozen=True, slots=True)
class Because:
    """One reason: a stable code and a sentence for people."""

    code: str
    text: str
    until_ms: int | None = None
    """Wall time at which it is over by itself, where that is known."""
    command: str | None = None
    """What a person may do about it."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is on disk about a task, all of one moment."""

    row: _Row
    before: int = 0
    """Of its line, of the ready ones of its pool, or at its gate: how many go before it."""
    due: bool = False
    """It was passed so often that every second claim may be its own (Q-8)."""
    gates: tuple[_Row, ...] = ()
    """Of its work or, inside a run, of its calls; with attempts under way and let in."""
    awaited: tuple[_Facts, ...] = ()
    """Of the tasks that it waits for."""
    approvals: tuple[_Row, ...] = ()
    effects: tuple[_Row, ...] = ()
    detail: _Row = field(default_factory=dict)
    """Of the event that suspended it."""


class Why:
    """Explains the tasks of this home. ``explain`` is called on the loop."""

    def __init__(
        self, database: Database, clock: Clock, scheduler: Scheduler, pools: Pools
    ) -> None:
        self._database, self._clock = database, clock
        self._scheduler, self._pools = scheduler, pools

    async def explain(self, task_id: str) -> tuple[str, list[Because]]:
        """The task's state and its reasons, the one that matters most first; UnknownId.

        Where it waits for another task, that one's reasons follow.
        """
        look = _Look(self._database.fetch, self._scheduler.aging_factor)
        facts = await self._database.snapshot(lambda: look.task("why_task", task_id=task_id))
        if facts is None:
            raise UnknownId(
                f"There is no task {task_id[:80]}.", hint="`goclaw task list` names all.",
                what="task", id=task_id[:80],
            )  # fmt: skip
        return facts.row["state"], list(self._reasons(facts, "It", "it"))

    # -- by state ------------------------------------------------------------------------------

    def _reasons(self, facts: _Facts, who: str, whom: str) -> Iterator[Because]:
        row = facts.row
        state = row["state"]
        match state:
            case State.QUEUED:
                yield from self._queued(facts, who, whom)
            case State.RUNNING:
                yield from self._running(facts, whom)
            case State.RETRY_WAIT:
                yield self._backoff(row, who)
            case State.SUSPENDED:
                yield from self._suspended(facts, who, whom)
            case _:
                yield from _ended(facts, who, whom)
        for other in facts.awaited:
            name = f"task {other.row['task_id']}"
            yield from self._reasons(other, name.capitalize(), name)
        if row["deadline_at"] is not None and state not in TERMINAL:
            at = row["deadline_at"]
            yield Because(
                "deadline", f"{who} fails at {rfc3339(at)} unless it has ended by then.", at
            )

    def _queued(self, facts: _Facts, who: str, whom: str) -> Iterator[Because]:
        row = facts.row
        if row["held"]:
            yield self._held(facts, who)
        elif row["stalled"] == row["tid"]:
            yield from self._gated(facts.gates, whom)
            if facts.before:
                yield Because(
                    "gate_order",
                    f"{who} comes after {_count(facts.before, 'task')} at the gate of "
                    f"{row['work']}.",
                )
        elif row["head"] == row["tid"]:
            yield self._ready(facts, who)
            if facts.before:
                order = "the fair order of its pool" if row["pool"] else "the fair order"
                yield Because(
                    "rank", f"{who} comes after {_count(facts.before, 'ready task')} in {order}."
                )
            if facts.due:
                yield Because(
                    "aging", f"Every second claim goes to tasks that waited as long as {whom}."
                )
        else:
            first = facts.awaited[0].row if facts.awaited else None
            text = f"{who} is about to take its place in line."
            if first is not None:
                text = (
                    f"{who} comes after {_count(facts.before, 'task')} in its session, the first "
                    f"of which, {first['task_id']}, is {first['state']}."
                )
            yield Because("session_turn", text)

    def _held(self, facts: _Facts, who: str) -> Because:
        row, earlier = facts.row, facts.detail
        at = row["due_at"]
        if earlier and at < self._clock.wall_ms():
            text = (
                f"{who} recurs and was due at {rfc3339(at)}; the queue is full, and "
                f"{earlier['task_id']}, the occurrence before it, is {earlier['state']}."
            )
            return Because("queue_full", text, command=f"goclaw why {earlier['task_id']}")
        if row["cron"] is not None:
            text = f"{who} recurs ({row['cron']} in {row['zone']}) and is due at {rfc3339(at)}."
            return Because("recurring", text, at)
        return Because("not_before", f"{who} may not begin before {rfc3339(at)}.", at)

    def _ready(self, facts: _Facts, who: str) -> Because:
        """The head of its line: only a lane or a worker is missing."""
        row = facts.row
        pool, lanes = row["pool"], self._scheduler.lanes
        if pool:
            return self._of_pool(facts, who)
        match self._scheduler.hindrance(row["sid"], prompt=row["kind"] == "prompt"):
            case "no_daemon":
                text = (
                    f"{who} is ready, but no daemon runs: one, or a run in its session, takes it."
                )
                return Because("no_daemon", text, command="goclaw serve")
            case "shutting_down":
                text = f"{who} is ready, but the daemon is stopping."
                return Because("shutting_down", text, command="goclaw serve")
            case "emergency_stop":
                text = f"{who} is ready, but the emergency stop is on."
                return Because("emergency_stop", text, command="goclaw resume")
            case "lanes_busy":
                busy = "the only lane is" if lanes == 1 else f"all {lanes} lanes are"
                text = f"{who} is ready, but {busy} busy."
                return Because("lanes_busy", text, command="goclaw task list --state RUNNING")
            case "lanes_reserved":
                text = f"{who} is ready, but the free lanes are reserved for prompts."
                return Because("lanes_reserved", text)
            case _:
                return Because("ready", f"{who} is ready and about to be claimed.")

    def _of_pool(self, facts: _Facts, who: str) -> Because:
        pool = facts.row["pool"]
        waiting, last_ms = self._pools.asked(pool)
        if waiting:
            return Because("ready", f"{who} is ready, and a worker of the pool {pool} is waiting.")
        if last_ms is None:
            return Because(
                "no_worker",
                f"{who} is ready, but no worker has asked for work of the pool {pool} since the "
                "daemon started.",
                command=f"goclaw worker --pool {pool} MODULE:FUNCTION",
            )
        at = rfc3339(self._clock.wall_ms() - (self._clock.mono_ms() - last_ms))
        held = sum(gate["running"] for gate in facts.gates)
        return Because(
            "workers_busy",
            f"{who} is ready, but no worker of the pool {pool} has asked since {at}; they hold "
            f"{held} of its tasks.",
        )

    def _gated(self, gates: tuple[_Row, ...], whom: str) -> Iterator[Because]:
        """What keeps the gate of each work shut; nothing of it: it opens."""
        for gate in gates:
            work, shut = gate["work"], False
            under_way = gate["running"] + gate["let_in"]
            if gate["broken"] is not None:
                shut, at = True, self._wall(gate["probe_mono"])
                probe = f"the next probe may run at {rfc3339(at)}"
                if under_way:
                    probe = f"a probe is under way, the next may run at {rfc3339(at)}"
                yield Because(
                    "breaker",
                    f"The breaker of {work} is open, since it failed with "
                    f"{_short(gate['broken'])} in several tasks; {probe}.",
                    at,
                )
            if gate["most"] is not None and under_way >= gate["most"]:
                shut = True
                text = f"Of {work} {under_way} are under way, and at most {gate['most']} may be."
                yield Because("bound", text)
            if gate["burst"] is not None and gate["tokens"] <= 0:
                shut, at = True, self._wall(gate["refill_mono"] or self._clock.mono_ms())
                text = f"The rate of {work} is used up; the next may begin at {rfc3339(at)}."
                yield Because("rate", text, at)
            if not shut:
                yield Because("ready", f"The gate of {work} is about to let {whom} in.")

    def _running(self, facts: _Facts, whom: str) -> Iterator[Because]:
        row = facts.row
        attempt, owner = row["attempt"], row["lease_owner"]
        if row["pool"]:
            until = self._wall(row["lease_until_mono"])
            yield Because(
                "running",
                f"Worker {owner} holds attempt {attempt} of {whom}; its lease ends at "
                f"{rfc3339(until)} unless it is heard of.",
                until,
            )
        else:
            yield Because("running", f"Attempt {attempt} of {whom} is under way in a lane.")
        for effect in facts.effects:
            yield Because(
                "effect", f"Effect {effect['ordinal']} ({_short(effect['name'])}) is under way."
            )
        if row["timeout_mono"] is not None:
            at = self._wall(row["timeout_mono"])
            text = f"Attempt {attempt} is ended at {rfc3339(at)} if it has not by itself."
            yield Because("timeout", text, at)

    def _backoff(self, row: _Row, who: str) -> Because:
        at = self._wall(row["due_mono"])
        return Because(
            "backoff",
            f"{who} is tried again at {rfc3339(at)}, after failure {row['failures']} of at most "
            f"{row['max_attempts']}: {_said(row)}.",
            at,
        )

    def _suspended(self, facts: _Facts, who: str, whom: str) -> Iterator[Because]:
        row, reason = facts.row, str(facts.row["reason"])
        kind, _, name = reason.partition(":")
        match kind:
            case "approval":
                yield from (_approval(one, who) for one in facts.approvals)
            case "effect_unknown":
                yield from (_unknown(row, one, whom) for one in facts.effects)
            case "emergency_stop":
                text = f"{who} met the emergency stop before an effect, and waits for its end."
                yield Because("emergency_stop", text, command="goclaw resume")
            case "signal":
                yield Because(
                    "signal", f"{who} waits for the signal {_short(name)}.",
                    command=f"goclaw task signal {row['run_id']} {shlex.quote(name)}",
                )  # fmt: skip
            case "sleep":
                at = self._wall(row["due_mono"])
                yield Because("sleep", f"{who} sleeps until {rfc3339(at)}.", at)
            case "rate_limited":
                at = self._wall(row["due_mono"])
                works = ", ".join(facts.detail.get("works", ())) or "a tool"
                text = f"{who} asks again at {rfc3339(at)} whether it may call {works}."
                yield Because("rate_limited", text, at)
                yield from self._gated(facts.gates, whom)
            case "subtask":
                for other in facts.awaited:
                    name, state = other.row["task_id"], other.row["state"]
                    text = f"{who} waits for its sub-task {name}, which is {state}."
                    yield Because("subtask", text)
            case "nondeterminism":
                yield Because(
                    "nondeterminism",
                    f"Effect {facts.detail.get('ordinal')} of {whom} is another call now than its "
                    "journal holds.",
                    command=f"goclaw cancel {row['task_id']}",
                )
            case _:
                yield Because("suspended", f"{who} is suspended: {_short(reason)}.")

    def _wall(self, mono_ms: int) -> int:
        return self._clock.wall_ms() + mono_ms - self._clock.mono_ms()


class _Look:
    """Reads the facts, on a reader thread."""

    def __init__(self, fetch: Callable[..., list[tuple[Any, ...]]], aging_factor: int) -> None:
        self._fetch, self._aging_factor = fetch, aging_factor

    def _rows(self, query: str, **arguments: Any) -> list[_Row]:
        return rows(query, self._fetch(query, **arguments))

    def _number(self, query: str, **arguments: Any) -> int:
        ((number,),) = self._fetch(query, **arguments)
        return int(number)

    def task(self, query: str, depth: int = 0, **arguments: Any) -> _Facts | None:
        """What there is to know about a task, and about those it waits for."""
        found = self._rows(query, **arguments)
        if not found:
            return None
        row = found[0]
        match row["state"]:
            case State.QUEUED:
                return self._queued(row, depth)
            case State.RUNNING:
                return _Facts(row, effects=self._effects(row, EffectState.INTENT))
            case State.SUSPENDED:
                return self._suspended(row, depth)
            case State.RETRY_WAIT:
                return _Facts(row)
            case _:
                refused = self._rows("effects_refused", tid=row["tid"], limit=_LISTED_MAX)
                return _Facts(row, effects=tuple(refused))

    def _queued(self, row: _Row, depth: int) -> _Facts:
        place = {"sid": row["sid"], "line": row["line"], "limit": limits.COUNTED_MAX}
        if row["held"]:
            earlier = self._rows("why_recurs", tid=row["tid"])
            return _Facts(row, detail=earlier[0] if earlier else {})
        if row["stalled"] == row["tid"]:
            before = self._number("why_gate", wid=row["wid"], ripe=row["ripe"], **place)
            return _Facts(row, before, gates=self._gates(row["work"]))
        if row["head"] == row["tid"]:
            at = {name: row[name] for name in ("pool", "rank", "start", "tie", "ready_at", "tid")}
            before = self._number("why_ready", **at, limit=limits.COUNTED_MAX)
            gates = self._gates(row["work"]) if row["pool"] else ()
            return _Facts(row, before, self._due(row), gates)
        before = self._number("why_line", seq=row["seq"], **place)
        first = row["turn"] if row["line"] == 0 and row["turn"] is not None else None
        if first is None:
            first = row["head"] if row["head"] is not None else row["stalled"]
        awaited = self._awaited([first] if first is not None else [], depth)
        if awaited and awaited[0].row["state"] != State.QUEUED:
            before += 1  # it has left the line and holds its turn
        return _Facts(row, before, awaited=awaited)

    def _due(self, row: _Row) -> bool:
        ((passed, top),) = self._fetch("why_level", pool=row["pool"], rank=row["rank"])
        ahead = row["rank"] - top
        return bool(ahead > 0 and passed - row["passed_at"] >= self._aging_factor * ahead)

    def _suspended(self, row: _Row, depth: int) -> _Facts:
        match str(row["reason"]).partition(":")[0]:
            case "approval":
                found = self._rows("why_approvals", tid=row["tid"], limit=_LISTED_MAX)
                return _Facts(row, approvals=tuple(found))
            case "effect_unknown":
                return _Facts(row, effects=self._effects(row, EffectState.UNKNOWN))
            case "subtask":
                children = self._rows("children_of", tid=row["tid"])
                unended = [one["tid"] for one in children if one["state"] not in TERMINAL]
                return _Facts(row, awaited=self._awaited(unended[:_LISTED_MAX], depth))
            case "rate_limited" | "nondeterminism":
                found = self._rows("why_event", sid=row["sid"], event_id=row["end_event"])
                detail = orjson.loads(found[0]["payload"]) if found else {}
                works = detail.get("works", ())
                gates = tuple(gate for work in works for gate in self._gates(work))
                return _Facts(row, gates=gates, detail=detail)
            case _:
                return _Facts(row)

    def _awaited(self, tids: list[int], depth: int) -> tuple[_Facts, ...]:
        if depth > limits.DELEGATION_DEPTH_MAX:
            return ()
        found = (self.task("why_task_by_tid", depth + 1, tid=tid) for tid in tids)
        return tuple(facts for facts in found if facts is not None)

    def _effects(self, row: _Row, state: EffectState) -> tuple[_Row, ...]:
        return tuple(
            self._rows("effects_in_state", tid=row["tid"], state=str(state), limit=_LISTED_MAX)
        )

    def _gates(self, work: str) -> tuple[_Row, ...]:
        found = self._rows("why_work", work=work)
        for gate in found:
            ((gate["running"], gate["let_in"]),) = self._fetch("why_under_way", wid=gate["wid"])
        return tuple(found)


_LISTED_MAX: Final = 10  # approvals, effects or sub-tasks that are named: the rest is in listings


def _approval(row: _Row, who: str) -> Because:
    request = orjson.loads(row["request"])
    title = request.get("toolCall", {}).get("title") or "a call"
    reason = request.get("_meta", {}).get("goclaw", {}).get("reason")
    options = "|".join(one["optionId"] for one in request.get("options", ()))
    why = f" ({_short(reason)})" if reason else ""
    return Because(
        "approval",
        f"{who} waits for an answer to {_short(title)}{why}; without one that is a no at "
        f"{rfc3339(row['expires_at'])}.",
        row["expires_at"],
        f"goclaw approvals answer {row['approval_id']} {options}",
    )


def _unknown(row: _Row, effect: _Row, whom: str) -> Because:
    # Nobody can ask in a worker's place (PROTOCOL 2.8).
    probe = effect["class"] == EffectClass.PROBEABLE and not row["pool"]
    words = f"{row['task_id']} {effect['ordinal']}"
    return Because(
        "effect_unknown",
        f"Nobody knows whether effect {effect['ordinal']} ({_short(effect['name'])}) of {whom} "
        "happened.",
        command=f"goclaw effects probe {words}"
        if probe
        else f"goclaw effects settle {words} done|not_done|fail",
    )


def _ended(facts: _Facts, who: str, whom: str) -> Iterator[Because]:
    row = facts.row
    reason = str(row["reason"])
    redrive = f"goclaw dlq redrive {row['task_id']}"
    match row["state"]:
        case State.SUCCEEDED:
            yield Because("finished", f"{who} has ended well.")
        case State.CANCELED:
            yield Because("canceled", f"{who} was canceled by {_short(reason)}.")
        case State.FAILED:
            text = f"{who} failed for good: {_said(row)}."
            yield Because(reason, text, command=redrive)
        case _:
            yield Because(
                reason,
                f"{who} was given up: {_given_up(row)}.",
                command=None if row["dropped_at"] is not None else redrive,
            )
    if row["dropped_at"] is not None:
        yield Because("dropped", f"{who} was dropped at {rfc3339(row['dropped_at'])}.")
    for effect in facts.effects:
        yield _refused(effect, whom)


def _given_up(row: _Row) -> str:
    match row["reason"]:
        case "crashes_exhausted":
            return f"{row['crashes']} of its attempts ended without a word"
        case "poison":
            return f"its last failures were all alike ({_short(row['fingerprint'])}): {_said(row)}"
        case _:
            spent = f"{row['failures']} of at most {row['max_attempts']}"
            return f"it failed {spent} times, the last with {_said(row)}"


def _refused(effect: _Row, whom: str) -> Because:
    """A call that was not made, since the policy or a person said no."""
    said = orjson.loads(effect["result"] or b"{}")
    why = _short(str(said.get("error", "")))
    call = f"Effect {effect['ordinal']} ({_short(effect['name'])}) of {whom}"
    if STATUSES[effect["failed"]] == "rejected":
        return Because("rejected", f"{call} was not made: {why}.")
    rule = f" by the rule {said['rule']}" if said.get("rule") else ""
    return Because("denied", f"{call} was denied{rule}: {why}.", command="goclaw policy show")


def _said(row: _Row) -> str:
    """The task's error, as the rest of a sentence."""
    if not row["error"]:
        return _short(str(row["reason"]))
    error = orjson.loads(row["error"])
    message = _short(str(error.get("message", ""))).rstrip(".")
    return f"{_short(str(error['code']))}: {message}" if message else _short(str(error["code"]))


def _short(text: str) -> str:
    """On one line, and no longer than a sentence bears."""
    line = " ".join(text.split())
    return line if len(line) <= limits.SAID_CHARS_MAX else f"{line[: limits.SAID_CHARS_MAX - 3]}..."


def _count(number: int, what: str) -> str:
    if number >= limits.COUNTED_MAX:
        return f"{limits.COUNTED_MAX} or more {what}s"
    return f"{number} {what}{'' if number == 1 else 's'}"
