"""The effect journal: the only commit boundary for side effects (E-1 to E-6, E-9).

Owns ordinals, keys, the order intent, COMMIT, dispatch, result, and what becomes of an effect whose
outcome nobody knows. Not in here: what a tool does (tools), what may be done (policy).

What a crash leaves, by the point it hits:
  before the intent's COMMIT    nothing happened, the next attempt begins the effect
  after it, before its note     as after dispatch: nobody can tell the three apart
  after the note (E-8)          as after dispatch; an older backup treats it so, too
  after dispatch                pure, keyed: sent again (same key); probeable: asked; else unknown
  after the result's COMMIT     the record answers, nothing is sent
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from goclaw.core import limits, log
from goclaw.core.capability import capabilities
from goclaw.core.decisions import ON_UNKNOWN, Verdict
from goclaw.core.errors import (
    BudgetExhausted,
    EffectUnknown,
    GoclawError,
    IdempotencyConflict,
    IllegalTransition,
    Nondeterminism,
    StorageFailed,
    UnknownId,
)
from goclaw.core.faults import faultpoint
from goclaw.core.records import Call, CallResult, Done, Retryable, Unclear
from goclaw.core.states import EffectClass, EffectState
from goclaw.engine import halt
from goclaw.engine.grants import Grants
from goclaw.engine.late import Late, when_late
from goclaw.store import Note

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from goclaw.core.clock import Clock
    from goclaw.core.decisions import Decision
    from goclaw.core.records import Child, Cleaner, Stream, Task
    from goclaw.engine.gates import Gates
    from goclaw.engine.subtasks import Subtasks
    from goclaw.engine.taints import Taints
    from goclaw.store import Committed, Database

    _Row = dict[str, Any]
    _Part = tuple[int, tuple[Any, ...]]

__all__ = [
    "STATUSES",
    "Journal",
    "Keyed",
    "Park",
    "effect_key",
    "request_hash",
    "sleep_call",
    "task_key",
]

_log = log.logger("engine.effects")

STATUSES: Final = ("completed", "failed", "denied", "rejected", "unknown")
"""What a brain is told about a call; the column ``failed`` holds the index."""

_FORK: Final = "this run is a fork: it acts on nothing without a yes"
UNKNOWN_TEXT: Final = "outcome unknown: check before repeating"
_UNKNOWN: Final = STATUSES.index("unknown")


class Park(Exception):
    """The attempt is to be SUSPENDED: ``parts`` commit with the suspension, ``detail`` goes into
    its event."""

    def __init__(
        self,
        reason: str,
        parts: Sequence[_Part] = (),
        *,
        due_ms: int | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.parts, self.due_ms, self.detail = reason, tuple(parts), due_ms, detail


def request_hash(kind: str, name: str, request: bytes) -> bytes:
    """Kind, name and canonical arguments, and nothing else (E-2)."""
    return hashlib.sha256(b"\0".join((kind.encode(), name.encode(), request))).digest()


class Keyed(Protocol):
    """What the keys of a task's effects are made from."""

    @property
    def task_id(self) -> str:
        """Of the task."""

    @property
    def session_id(self) -> str:
        """Of its session."""

    @property
    def key(self) -> str | None:
        """Of its submission."""


def task_key(task: Keyed) -> bytes:
    """E-4's K: from the submission key when the client gave one, else the task id."""
    if task.key is None:
        return task.task_id.encode()
    return hashlib.sha256(f"{task.session_id}\0{task.key}".encode()).digest()


def effect_key(task: Keyed, ordinal: int, name: str, request: bytes, designated: str | None) -> str:
    """E-4: the tool's own key, else H(K, ordinal, name, arguments). A key of the tool's that would
    fit no header goes out as its hash."""
    if designated is not None:
        if len(designated) > limits.KEY_CHARS_MAX:
            designated = f"sha256:{hashlib.sha256(designated.encode()).hexdigest()}"
        return f"{name}:{designated}"
    parts = (task_key(task), str(ordinal).encode(), name.encode(), request)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def sleep_call(wait_ms: int) -> Call:
    """The effect that a durable sleep is."""

    async def woken(_key: str, _cancelled: asyncio.Event) -> Done:
        return Done(b"null")

    body = orjson.dumps({"ms": wait_ms})
    return Call("sleep", "sleep", body, EffectClass.PURE, woken, wait_ms=wait_ms)


class Journal:
    """The effects of one attempt. Raises LeaseLost as soon as another attempt owns the task."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        task: Task,
        token: bytes,
        cancelled: asyncio.Event,
        *,
        gates: Gates,
        subtasks: Subtasks,
        taints: Taints,
        effects: list[_Row],
        approvals: list[_Row],
    ) -> None:
        self.task = task
        self.gates, self.subtasks, self.taints = gates, subtasks, taints
        self.halt = gates.halt
        self._grants = Grants(database, clock)
        self.cancelled = cancelled
        self._database, self._clock, self._token = database, clock, token
        self._rows = {row["ordinal"]: row for row in effects}
        # The last of an ordinal counts: an earlier one was about the same call, or is void.
        self._approvals = {(row["ordinal"], row["digest"]): row for row in approvals}
        self.late = Late(database, clock, task.tid, token)
        self._next = 0
        self.told = {row["hash"] for row in effects if row["failed"] == _UNKNOWN}
        """Digests of calls whose brain was told that nobody knows; their equals are asked for."""

    def _ordinal(self) -> int:
        if self._next >= limits.EFFECTS_MAX:
            raise BudgetExhausted(
                f"A task may have {limits.EFFECTS_MAX} effects.", budget="effects"
            )
        self._next += 1
        return self._next - 1

    def recorded(self, ordinal: int, digest: bytes) -> _Row | None:
        """What the journal holds of an effect; Nondeterminism when it was another one (E-2)."""
        row = self._rows.get(ordinal)
        if row is not None and row["hash"] != digest:
            raise Nondeterminism(
                f"Effect {ordinal} was {row['name']} before and is another call now.",
                hint="The program or its inputs changed under a running task: cancel it, or fork.",
                ordinal=ordinal,
                recorded=row["hash"].hex(),
                requested=digest.hex(),
            )
        return row

    def approval(self, ordinal: int, digest: bytes) -> _Row | None:
        """The newest approval of this very call."""
        return self._approvals.get((ordinal, digest))

    def bind(self, program: str, **arguments: Any) -> _Part:
        """A part of an operation of this attempt."""
        return self._database.bind(
            program,
            tid=self.task.tid,
            token=self._token,
            now=self._clock.wall_ms(),
            **arguments,
        )

    def adopt(self, ordinal: int) -> _Part:
        """The part that brings an unknown effect of an earlier attempt under this lease."""
        return self._database.bind(
            "effect_adopt", tid=self.task.tid, token=self._token, ordinal=ordinal
        )

    def on_unknown(self, ordinal: int, word: str) -> _Part:
        """The part that keeps what a rule says of an unknown outcome, behind its intent."""
        return self._database.bind(
            "effect_on_unknown", tid=self.task.tid, token=self._token, ordinal=ordinal,
            on_unknown=word,
        )  # fmt: skip

    def update(self, update: dict[str, Any]) -> _Part:
        """The part that appends an ACP update."""
        return self.bind("append", kind=0, type="update", payload=orjson.dumps(update))

    def audit(self, *decisions: Decision) -> list[_Part]:
        """The parts that record decisions."""
        now = self._clock.wall_ms()
        return [
            self._database.bind("audit", record=orjson.dumps(decision.to_record()), now=now)
            for decision in decisions
        ]

    def wall_ms(self) -> int:
        """The time of a note."""
        return self._clock.wall_ms()

    def apply(self, *parts: _Part) -> asyncio.Future[Committed]:
        """Commit the parts as one."""
        return self._database.apply(*parts, live=True)

    # -- a brain's answer ----------------------------------------------------------------------

    async def think(
        self,
        name: str,
        request: dict[str, Any],
        answer: Callable[[Stream], Awaitable[dict[str, Any]]],
        *,
        decisions: Sequence[Decision] = (),
    ) -> dict[str, Any]:
        """Record one brain call; its ``updates`` commit with the record, so none is sent twice."""
        ordinal = self._ordinal()
        body = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)
        digest = request_hash("brain", name, body)
        row = self.recorded(ordinal, digest)
        if row is not None and row["state"] == EffectState.RESULT:
            recorded: dict[str, Any] = orjson.loads(row["result"])
            return recorded
        if self.halt.holds(EffectClass.PURE):
            raise Park(halt.REASON)
        effect = {
            "ordinal": ordinal, "kind": "brain", "name": name, "hash": digest, "request": body,
            "key": effect_key(self.task, ordinal, name, body, None),
            "call_id": f"{self.task.task_id}.{ordinal}.{self.task.attempt}",
        }  # fmt: skip
        stream = _Streamed(self, effect, decisions)
        result = self._clean(dict(await answer(stream)))
        updates = [self.update(update) for update in result.pop("updates", [])]
        record = self.bind("effect_record", **effect, result=orjson.dumps(result), failed=0)
        faultpoint("before_result")
        audit = [] if stream.begun else self.audit(*decisions)
        await self.apply(*audit, *updates, record)
        faultpoint("after_result")
        return result

    def _clean(self, answer: dict[str, Any]) -> dict[str, Any]:
        """A brain's answer as its record will have it: what follows from it, and the hashes of its
        calls, are the same in every attempt (A-6, E-2)."""
        cleaner = self._database.cleaner
        if cleaner is None:
            return answer
        data = orjson.dumps(answer)
        cleaned = cleaner.data(data)
        found: dict[str, Any] = answer if cleaned is data else orjson.loads(cleaned)
        return found

    def tainted(self, call: Call) -> list[_Part]:
        """The parts that mark the session with what a result brings; again is as good as once."""
        if call.taints:
            self.taints.added()
        return [self.bind("taint", label=str(label), source=call.name) for label in call.taints]

    def clean_output(self, output: bytes) -> bytes:
        """A tool's output as its record will have it."""
        cleaner = self._database.cleaner
        return output if cleaner is None else cleaner.data(output)

    @property
    def cleaner(self) -> Cleaner | None:
        """Takes secrets out of what is about to be kept."""
        return self._database.cleaner

    # -- inside an effect ----------------------------------------------------------------------

    async def emit(
        self, updates: Sequence[dict[str, Any]], decisions: Sequence[Decision] = ()
    ) -> None:
        """See Attempt."""
        parts = [*self.audit(*decisions), *(self.update(update) for update in updates)]
        if parts:
            await self.apply(*parts)

    def asked(
        self, digest: bytes, request: dict[str, Any], decisions: Sequence[Decision] = ()
    ) -> str | None:
        """See Attempt; Park until there is an answer. The effect under way is the last begun."""
        ordinal = self._next - 1
        row = self.approval(ordinal, digest)
        if row is not None and row["state"] != "open":
            return row["option_id"] if row["state"] == "resolved" else None
        if row is not None:
            raise Park("approval")
        raise Park("approval", [*self.audit(*decisions), self._question(ordinal, digest, request)])

    def _question(
        self,
        ordinal: int,
        digest: bytes,
        request: dict[str, Any],
        why: str = "",
        sessions: dict[str, Any] | None = None,
    ) -> _Part:
        """The part that opens an approval; durable before anybody sees it. ``sessions``: what a yes
        for the whole session would grant."""
        approval_id = self._clock.new_id("approval")
        told = {
            "approvalId": approval_id,
            "reason": why,
            **({"grant": sessions} if sessions else {}),
        }
        shown = {"sessionId": self.task.session_id, **request, "_meta": {"goclaw": told}}
        return self.bind(
            "approval_open", approval_id=approval_id, ordinal=ordinal, digest=digest,
            request=orjson.dumps(shown), expires_at=self._clock.wall_ms() + limits.APPROVAL_MS,
        )  # fmt: skip

    # -- tools ---------------------------------------------------------------------------------

    async def perform(self, calls: Sequence[Call]) -> list[CallResult]:
        """Carry out the calls of one answer; ordinals follow their order."""
        entries = [_Entry(self, call, self._ordinal()) for call in calls]
        for entry in entries:
            if not entry.settle_from_journal():
                entry.check_halt()
                await entry.settle_unknown()
        await self._ask([entry for entry in entries if entry.result is None])
        try:
            await self._intend([entry for entry in entries if entry.result is None])
            await self._send([entry for entry in entries if entry.result is None])
        finally:
            for entry in entries:  # also what came through its gate and was not sent in the end
                await entry.leave_gate(well=False)
        return [entry.answer() for entry in entries]

    async def _ask(self, entries: list[_Entry]) -> None:
        """Denied calls are recorded as such; asked ones go on only when a person said yes."""
        parts: list[_Part] = []
        asked = False
        for entry in entries:
            verdict = entry.verdict()
            if verdict is Verdict.DENY:
                decision = entry.call.decision
                assert decision is not None
                parts += entry.refuse("denied", decision.reason, rule=decision.rule_id)
            elif verdict is Verdict.ASK:
                approval = self.approval(entry.ordinal, entry.digest)
                if approval is None and await self._granted(entry):
                    continue
                if approval is None:
                    parts += self._open(entry)
                    asked = True
                elif approval["state"] == "open":
                    asked = True
                elif not approval["allowed"]:
                    expired = approval["state"] == "expired"
                    why = "the approval expired" if expired else "a person said no"
                    parts += entry.refuse("rejected", why)
        if asked:
            raise Park("approval", parts)
        if parts:
            await self.apply(*parts)

    async def _granted(self, entry: _Entry) -> bool:
        """Somebody said yes to such calls beforehand: that is the answer, bound to this very call
        and on disk before it is sent. Only what the policy asks is answered so: a brain's own
        question, an unknown equal and a fork's act need their own yes."""
        call, task = entry.call, self.task
        asking = [one for one in call.decisions if one.effect is Verdict.ASK]
        if not asking or not entry.is_policys_question:
            return False
        resources = [one.resource for one in asking]
        for grant_id in await self._grants.for_call(
            call.name, task.sid, resources, entry.digest, entry.question_digest
        ):
            answer = self.bind(
                "grant_use", grant_id=grant_id, approval_id=self._clock.new_id("approval"),
                ordinal=entry.ordinal, digest=entry.digest, request=b"{}",
            )  # fmt: skip
            try:
                await self.apply(answer)
            except UnknownId:
                continue  # used up, over or taken back meanwhile
            self._approvals[(entry.ordinal, entry.digest)] = {
                "state": "resolved", "allowed": 1, "answered_by": grant_id,
            }  # fmt: skip
            return True
        return False

    def _open(self, entry: _Entry) -> list[_Part]:
        """Ask a person."""
        call = entry.call
        announced = call.announce and call.announce(entry.call_id, "pending")
        shown = {name: value for name, value in (announced or {}).items() if name != _UPDATE}
        request = {
            "toolCall": shown or {"toolCallId": entry.call_id, "title": call.title},
            "options": [
                {"optionId": "allow", "name": "Allow once", "kind": "allow_once"},
                *([_session_option(entry.sessions)] if entry.sessions else []),
                {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
            ],
        }
        return [
            *self.audit(*call.decisions),
            *([self.update(announced)] if announced and entry.row is None else []),
            self._question(entry.ordinal, entry.digest, request, entry.why_asked(), entry.sessions),
        ]

    async def _intend(self, entries: list[_Entry]) -> None:
        """Commit every intent of the answer before the first dispatch; pure ones need no wait."""
        # A wait's intent commits with the suspension: once it is there, the wait has begun.
        unsettled = [entry for entry in entries if not entry.call.wait_ms]
        if not unsettled:
            return
        await self._pass_gates(unsettled)
        faultpoint("before_intent")
        waiting = self.apply(*(part for entry in unsettled for part in entry.intent()))
        if all(entry.is_harmless for entry in unsettled):
            # The result's commit comes behind it in the same queue, and its error with it.
            for entry in unsettled:
                entry.intending = waiting
            waiting.add_done_callback(lambda future: future.cancelled() or future.exception())
        else:
            try:
                committed = await waiting
            except (IdempotencyConflict, EffectUnknown):
                await self._intend_each(unsettled)
            else:
                index = 0
                for entry in unsettled:
                    index = entry.intended(committed.parts, index)
        faultpoint("after_intent")
        await self._settle_restored(unsettled)
        await self._note(unsettled)

    async def _pass_gates(self, entries: list[_Entry]) -> None:
        """Bounds, rates and breakers of tools: a wait parks the attempt, so its lane is free. When
        only some may begin, the others wait behind them: all of an answer may be more than a gate
        ever lets in."""
        if self.gates.open_for_all or self.task.kind == "tool":
            return  # a task that is one call came through its gate when it was let in
        waits = await _waits(entries)
        if len(waits) == len(entries):
            raise _limited(waits)
        for entry in waits:
            entry.is_behind = True

    async def _send(self, entries: list[_Entry]) -> None:
        """Dispatch what came through its gate, then what waits behind it. What has to wait for
        longer is closed unsent, and begins at the next attempt."""
        ready = [entry for entry in entries if not entry.is_behind]
        behind = [entry for entry in entries if entry.is_behind]
        try:
            await _dispatch(ready)
            while behind:
                waits = await _waits(behind)
                ready = [entry for entry in behind if entry not in waits]
                behind = list(waits)
                if not ready:
                    raise _limited(waits)
                await _dispatch(ready)
        except (Park, Retryable, StorageFailed):
            await self._unsend(behind)
            raise

    async def _intend_each(self, entries: list[_Entry]) -> None:
        """One of the intents has the key of another call: it is refused, the others are made."""
        for entry in entries:
            try:
                committed = await self.apply(*entry.intent())
            except (IdempotencyConflict, EffectUnknown) as error:
                await self.apply(*entry.refuse("failed", _CONFLICTS[type(error)], error.code))
            else:
                entry.intended(committed.parts, 0)

    async def _settle_restored(self, entries: list[_Entry]) -> None:
        """What was sent in a life that a restored backup knows nothing of (E-8)."""
        restored = [entry for entry in entries if entry.is_unknown]
        try:
            for entry in restored:
                await entry.settle_unknown()
        except (Park, Retryable):
            await self._unsend(entries)
            raise
        again = [entry for entry in restored if entry.result is None]
        if again:  # a probe says that it did not happen
            await self._intend_each(again)

    async def _note(self, entries: list[_Entry]) -> None:
        """One flush of effects.log for the whole answer, before anything of it is sent."""
        notes = [entry.note for entry in entries if entry.note is not None]
        if not notes:
            return
        try:
            await self._database.fence.note(notes)
        except StorageFailed:
            await self._unsend(entries)
            raise
        faultpoint("after_note")

    async def _unsend(self, entries: list[_Entry]) -> None:
        """Close intents of which nothing was sent; while the disk refuses, again."""
        closed = [entry.unsent() for entry in entries if entry.note is not None]
        while closed:
            try:
                await self.apply(*closed)
            except StorageFailed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(limits.BUSY_MS_MAX / 1000):
                        await self.cancelled.wait()
                if self.cancelled.is_set():
                    raise
            else:
                return

    # -- durable waits -------------------------------------------------------------------------

    async def sleep(self, wait_ms: int) -> None:
        """Park until the time has come; a crash does not start it anew (E-9)."""
        await self.perform([sleep_call(wait_ms)])

    async def wait_signal(self, name: str) -> bytes:
        """Answer with the first signal of that name, parking until it is there (E-9). Its intent
        commits with the suspension, its payload as the result: so replays and forks see both."""
        ordinal, request = self._ordinal(), b"{}"
        digest = request_hash("signal", name, request)
        row = self.recorded(ordinal, digest)
        if row is not None and row["state"] == EffectState.RESULT:
            return bytes(row["result"])
        effect = {
            "ordinal": ordinal, "kind": "signal", "name": name, "hash": digest,
            "request": request, "key": effect_key(self.task, ordinal, name, request, None),
        }  # fmt: skip
        signals = dict(await self._database.read("signals_of_task", tid=self.task.tid))
        if name not in signals:
            intent = self.bind("effect_intent", **effect, **{"class": str(EffectClass.PURE)})
            raise Park(f"signal:{name}", [] if row is not None else [intent])
        faultpoint("before_result")
        payload: bytes = signals[name]
        await self.apply(self.bind("effect_record", **effect, result=payload, failed=0))
        faultpoint("after_result")
        return payload


_UPDATE: Final = "sessionUpdate"
_CONFLICTS: Final[dict[type[GoclawError], str]] = {
    IdempotencyConflict: "its key was used before with other arguments; nothing ran",
    EffectUnknown: "a call with its key is under way, or nobody knows whether it happened",
}


async def _waits(entries: list[_Entry]) -> dict[_Entry, int]:
    """Who has to wait at his gate, and for how many milliseconds; the others are through."""
    waits = [(entry, await entry.pass_gate()) for entry in entries]
    return {entry: wait_ms for entry, wait_ms in waits if wait_ms is not None}


def _limited(waits: dict[_Entry, int]) -> Park:
    works = dict.fromkeys(entry.work for entry in waits)
    return Park("rate_limited", due_ms=max(waits.values()), detail={"works": list(works)})


def _session_option(grant: dict[str, Any]) -> dict[str, str]:
    about = ", ".join(grant["resources"])
    if len(about) > limits.SAID_CHARS_MAX:
        about = f"{about[: limits.SAID_CHARS_MAX]}..."
    name = f"Allow for this session: {grant['tool']} on {about}"
    return {"optionId": "allow_session", "name": name, "kind": "allow_always"}


async def _dispatch(entries: list[_Entry]) -> None:
    """All at once; every one has ended before the attempt goes on or ends."""
    ended = await asyncio.gather(*(entry.carry_out() for entry in entries), return_exceptions=True)
    errors = [error for error in ended if error is not None]
    parked = [error for error in errors if isinstance(error, Park)]
    for error in errors:
        if not isinstance(error, (Park, Retryable)):
            raise error
    if parked:
        parts = [part for error in parked for part in error.parts]
        # A wait goes first: what is unknown beside it parks the attempt again when it is over.
        waits = [error for error in parked if error.due_ms is not None]
        due_ms = max((error.due_ms or 0 for error in waits), default=None)
        raise Park((waits or parked)[0].reason, parts, due_ms=due_ms)
    if errors:
        raise errors[0]


class _Streamed:
    """Updates of an answer that is still being made. The first ones journal that it has begun and
    who allowed it (A-8), so that whatever ends the attempt closes the message (B-3)."""

    paced = True

    def __init__(
        self, journal: Journal, effect: dict[str, Any], decisions: Sequence[Decision]
    ) -> None:
        self._journal, self._effect, self._decisions = journal, effect, decisions
        self.begun = False
        self.message_id: str = effect["call_id"]
        self.cleaner = journal.cleaner

    async def send(self, updates: Sequence[dict[str, Any]]) -> None:
        """See Stream."""
        parts = [self._journal.update(update) for update in updates]
        if not self.begun:
            pure = {"class": str(EffectClass.PURE)}
            intent = self._journal.bind("effect_intent", **self._effect, **pure)
            parts = [*self._journal.audit(*self._decisions), intent, *parts]
        if parts:
            await self._journal.apply(*parts)
        self.begun = True


class _Entry:
    """One call on its way: journal, approval, intent, dispatch, result."""

    def __init__(self, journal: Journal, call: Call, ordinal: int) -> None:
        self._journal = journal
        self.call = call
        self.ordinal = ordinal
        self.digest = request_hash(call.kind, call.name, call.request)
        self.key = effect_key(journal.task, ordinal, call.name, call.request, call.designated_key)
        # What a brain says is a message of its attempt (B-3).
        of_attempt = f".{journal.task.attempt}" if call.kind == "brain" else ""
        self.call_id = f"{journal.task.task_id}.{ordinal}{of_attempt}"
        self.row = journal.recorded(ordinal, self.digest)
        self.result: CallResult | None = None
        self.intending: asyncio.Future[Committed] | None = None
        """The commit of an intent that nobody waited for."""
        self._at_gate = False
        self.is_behind = False
        """It waits at its gate behind other calls of the same answer."""
        self.note: Note | None = None
        """What effects.log must hold before the call is sent."""
        self._intent_at = self._parts_count = 0

    def answer(self) -> CallResult:
        """The result; every entry has one in the end."""
        assert self.result is not None
        return self.result

    def _result(self, output: bytes, failed: int) -> CallResult:
        return CallResult(self.ordinal, self.call_id, output, bool(failed), STATUSES[failed])

    @property
    def _state(self) -> EffectState | None:
        return None if self.row is None else EffectState(self.row["state"])

    @property
    def is_harmless(self) -> bool:
        """Nothing is lost when it is dispatched and its intent is not on disk."""
        owed = any(
            obligation not in ON_UNKNOWN
            for decision in self.call.decisions
            for obligation in decision.obligations
        )
        return self.call.effect_class is EffectClass.PURE and not owed

    @property
    def _rule_on_unknown(self) -> str | None:
        """What the rules that let the call happen say (E-3): the stricter word of several."""
        owed = {one for decision in self.call.decisions for one in decision.obligations}
        return next((word for name, word in ON_UNKNOWN.items() if name in owed), None)

    @property
    def _on_unknown(self) -> str:
        return self._rule_on_unknown or self._journal.task.on_unknown

    @property
    def is_unknown(self) -> bool:
        """Nobody knows whether it happened, and nobody was told."""
        return self._state is EffectState.UNKNOWN and self.result is None

    def settle_from_journal(self) -> bool:
        """True when the record answers (E-2)."""
        if self.row is None or self._state is not EffectState.RESULT:
            return False
        self.result = replace(
            self._result(self.row["result"] or b"null", self.row["failed"]), replayed=True
        )
        return True

    # -- may it be sent? -----------------------------------------------------------------------

    def check_halt(self, parts: Sequence[_Part] = ()) -> None:
        """Park when the emergency stop holds it (A-15)."""
        if self._journal.halt.holds(self.call.effect_class) and not self._waited:
            raise Park(halt.REASON, parts)

    def verdict(self) -> Verdict:
        """What the policy, the brain or an unknown equal says about sending it (again)."""
        if self._waited:
            return Verdict.ALLOW  # nothing is sent
        decision = self.call.decision
        found = Verdict.ALLOW if decision is None else decision.effect
        asks = self.call.question or self.digest in self._journal.told or self._acts_in_fork
        return Verdict.ASK if asks and found is Verdict.ALLOW else found

    @property
    def is_policys_question(self) -> bool:
        """Nothing but the policy wants a person's word."""
        told = self.digest in self._journal.told
        return not (self.call.question or told or self._acts_in_fork)

    @property
    def sessions(self) -> dict[str, Any] | None:
        """What a yes for the session would grant: this tool on these very resources, where the same
        question comes; None where a yes is good for one call only."""
        resources = [one.resource for one in self.call.decisions if one.effect is Verdict.ASK]
        # in a grant a star is no letter
        if not resources or not self.is_policys_question or any("*" in one for one in resources):
            return None
        return {
            "tool": self.call.name, "resources": list(dict.fromkeys(resources)),
            "digests": [self.question_digest.hex()],
        }  # fmt: skip

    @property
    def question_digest(self) -> bytes:
        """Which rules ask about which actions, and what class of effect it would be: a yes to that
        is none to what another rule asks, once the run has met what taints it, say (A-11)."""
        asking = {
            (one.action, one.rule_id) for one in self.call.decisions if one.effect is Verdict.ASK
        }
        asked = [str(self.call.effect_class), *(part for pair in sorted(asking) for part in pair)]
        return hashlib.sha256(orjson.dumps(asked)).digest()

    @property
    def _acts_in_fork(self) -> bool:
        return self._journal.task.is_fork and self.call.effect_class is not EffectClass.PURE

    def why_asked(self) -> str:
        """For the person who is asked."""
        decision = self.call.decision
        if decision is not None and decision.effect is Verdict.ASK:
            return decision.reason
        if self.digest in self._journal.told:
            return "the same call was made before, and nobody knows whether it happened"
        return _FORK if self._acts_in_fork else ""

    @property
    def _waited(self) -> bool:
        # The row of a wait commits with the suspension, which only its time ends.
        return bool(self.call.wait_ms) and self.row is not None

    def _shown(self, status: str) -> list[_Part]:
        """What tells clients of the call before its result."""
        call, journal = self.call, self._journal
        if call.announce is None or self.row is not None:
            return []
        approval = journal.approval(self.ordinal, self.digest)
        if approval is None or str(approval["answered_by"]).startswith("grant_"):
            return [journal.update(call.announce(self.call_id, status))]  # nobody was asked
        update = {_UPDATE: "tool_call_update", "toolCallId": self.call_id, "status": status}
        return [journal.update(update)] if status == "in_progress" else []

    def refuse(
        self, status: str, why: str, code: str | None = None, *, rule: str | None = None
    ) -> list[_Part]:
        """Record that the call was not made, so that every later attempt says the same."""
        said = {"error": why, "code": code or status}
        output = orjson.dumps(said if rule is None else {**said, "rule": rule})
        self.result = self._result(output, STATUSES.index(status))
        parts = [*self._journal.audit(*self.call.decisions), *self._shown("pending")]
        return [*parts, *self._recorded(output, STATUSES.index(status))]

    # -- intent --------------------------------------------------------------------------------

    def intent(self) -> list[_Part]:
        """The parts that commit before dispatch."""
        journal = self._journal
        parts = [*journal.audit(*self.call.decisions), *self._shown("in_progress")]
        self._intent_at = len(parts)
        parts.append(
            journal.bind("effect_intent", **self._named, **{"class": str(self.call.effect_class)})
        )
        if self._rule_on_unknown is not None:
            parts.append(journal.on_unknown(self.ordinal, self._rule_on_unknown))
        self._parts_count = len(parts)
        return parts

    @property
    def _named(self) -> dict[str, Any]:
        call = self.call
        return {
            "ordinal": self.ordinal, "kind": call.kind, "name": call.name, "hash": self.digest,
            "key": self.key, "request": call.request, "call_id": self.call_id,
        }  # fmt: skip

    def intended(self, parts: list[tuple[Any, ...]], index: int) -> int:
        """Read the journal's answer to the intent; the index behind this entry's parts."""
        answer = parts[index + self._intent_at]
        state, output, failed, _deduplicated, _key, _event_id, number, epoch = answer
        if state == EffectState.RESULT:
            self.result = replace(self._result(output or b"null", failed), replayed=True)
        elif state == EffectState.UNKNOWN:
            self.row = {"state": state}
        elif number is not None:
            self.note = Note(number, epoch, self.key, self.digest, self._journal.wall_ms())
        return index + self._parts_count

    def unsent(self) -> _Part:
        """The part that closes the intent: nothing of it was sent."""
        return self._closed(EffectState.RETRYABLE)

    async def settle_unknown(self) -> None:
        """An effect of an earlier attempt whose outcome nobody knows (E-3): answered, parked for,
        or, when a probe says that it did not happen, on its way like a new one."""
        if self.row is None or not self.is_unknown:
            return
        journal = self._journal
        adopt = journal.adopt(self.ordinal)
        found = await self._probed()
        if isinstance(found, Done):
            output = journal.clean_output(found.output)
            await self._commit_result(output, int(found.failed), adopt)
        elif found is False:
            await journal.apply(adopt, self._closed(EffectState.RETRYABLE))
            self.row["state"] = EffectState.RETRYABLE
        elif self._on_unknown == "suspend":
            raise Park("effect_unknown")
        else:
            await self._tell(adopt)

    async def _probed(self) -> Done | bool | None:
        call, decision = self.call, self.call.decision
        if call.probe is None or (decision is not None and decision.effect is Verdict.DENY):
            return None  # what is denied is not even asked
        try:
            return await call.probe(self.key)
        except (Unclear, TimeoutError, ConnectionError) as error:
            why = f"nobody says whether {call.name} happened: {error}"
            raise Retryable("no_answer", why, fingerprint=f"no_answer:{call.name}") from error

    async def _tell(self, *before: _Part) -> None:
        """``tell_brain``: the brain gets to know that nobody knows."""
        output = orjson.dumps({"error": UNKNOWN_TEXT, "code": "effect_unknown"})
        self._journal.told.add(self.digest)
        await self._commit_result(output, _UNKNOWN, *before)

    async def pass_gate(self) -> int | None:
        """Milliseconds to wait at the tool's gate, None when the call may begin."""
        if self.call.kind != "tool":
            return None
        wait_ms = await self._journal.gates.pass_call(self.work)
        self._at_gate = wait_ms is None
        return wait_ms

    async def leave_gate(self, *, well: bool) -> None:
        """The call has ended, or will not begin; idempotent."""
        if self._at_gate:
            self._at_gate = False
            await self._journal.gates.left(self.work, well=well)

    @property
    def work(self) -> str:
        """The kind of work that the call is."""
        return f"tool:{self.call.name}"

    # -- dispatch and result -------------------------------------------------------------------

    async def carry_out(self) -> None:
        """Dispatch and record; nothing but a definite answer is recorded as a result."""
        try:
            await self._carry_out()
        except BaseException:
            await self.leave_gate(well=False)
            raise
        await self.leave_gate(well=True)

    async def _carry_out(self) -> None:
        call = self.call
        if call.wait_ms and not self._waited:
            raise Park("sleep", self.intent(), due_ms=call.wait_ms)
        self.check_halt([self._closed(EffectState.RETRYABLE)])  # it came behind the intent
        try:
            if call.child is None:
                done = await call.dispatch(self.key, self._journal.cancelled)
            else:
                done = await self._delegated(call.child)
        except Park:
            raise
        except Retryable as error:
            error.work = error.work or self.work
            await self._journal.apply(*self._decided_inside(), self._closed(EffectState.RETRYABLE))
            raise
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if self._journal.cancelled.is_set() or current is None or current.cancelling():
                raise  # the attempt is over; whoever ended it has marked the intent
            await self._unclear(error)
            return
        except (Unclear, TimeoutError, ConnectionError) as error:
            await self._unclear(error)
            return
        except Exception as error:  # the edge of a tool's code: a fault there tells nothing
            _log.exception("the tool raised", extra={"data": {"tool": call.name}})
            await self._unclear(error)
            return
        faultpoint("before_result")
        await self._commit_result(self._journal.clean_output(done.output), int(done.failed))
        faultpoint("after_result")

    async def _delegated(self, child: Child) -> Done:
        """The end of a sub-task; until then the attempt is parked, and asks again after."""
        right, *_ = capabilities(self.call.decisions, answered=True)
        done = await self._journal.subtasks.delegate(self._journal.task, child, self.key, right)
        if done is None:
            raise Park("subtask", [self._closed(EffectState.RETRYABLE)])
        return done

    def _closed(self, state: EffectState) -> _Part:
        return self._journal.bind("effect_result", ordinal=self.ordinal, state=str(state), failed=0)

    def _decided_inside(self) -> list[_Part]:
        """The decisions of a dispatch, each recorded once."""
        parts = self._journal.audit(*self.call.inside)
        self.call.inside.clear()
        return parts

    def _recorded(self, output: bytes, failed: int) -> list[_Part]:
        """A record that needs no intent, and what tells clients of it."""
        assert self.result is not None
        call, journal = self.call, self._journal
        parts = [journal.bind("effect_record", **self._named, result=output, failed=failed)]
        if call.report is not None:
            parts.append(journal.update(call.report(self.call_id, self.result)))
        return parts

    async def _commit_result(self, output: bytes, failed: int, *before: _Part) -> None:
        journal, call = self._journal, self.call
        self.result = self._result(output, failed)
        if self._waited:
            await journal.apply(*self._recorded(output, failed))
            return
        parts = [
            *before,
            *self._decided_inside(),
            journal.bind(
                "effect_result", ordinal=self.ordinal, state=str(EffectState.RESULT),
                result=output, failed=failed,
            ),
            *journal.tainted(call),
        ]  # fmt: skip
        if call.report is not None:
            parts.append(journal.update(call.report(self.call_id, self.result)))
        closing = journal.apply(*parts)
        when_late(closing, lambda: self._join_late(output, failed))
        try:
            await asyncio.shield(closing)  # a cancel must not hide that it came too late
        except IllegalTransition:
            if self.intending is not None:
                await self.intending  # the intent failed first: its error is the reason
            raise

    def _join_late(self, output: bytes, failed: int) -> None:
        self._journal.late.effect(self.ordinal, EffectState.RESULT, output, failed)

    async def _unclear(self, error: BaseException) -> None:
        """Dispatch ended without a definite answer (E-3)."""
        journal, call = self._journal, self.call
        inside = self._decided_inside()
        match call.effect_class:
            case EffectClass.PURE | EffectClass.KEYED:
                await journal.apply(*inside, self._closed(EffectState.RETRYABLE))
                raise self._no_answer(error) from error
            case EffectClass.PROBEABLE:
                await journal.apply(*inside, self._closed(EffectState.UNKNOWN))
                raise self._no_answer(error) from error
            case _ if self._on_unknown == "suspend":
                parts = [*inside, self._closed(EffectState.UNKNOWN)]
                raise Park("effect_unknown", parts) from error
            case _:
                await journal.apply(*inside, self._closed(EffectState.UNKNOWN))
                await self._tell()

    def _no_answer(self, error: BaseException) -> Retryable:
        name = self.call.name
        text = f"{name}: {error}"
        return Retryable("no_answer", text, fingerprint=f"no_answer:{name}", work=self.work)
