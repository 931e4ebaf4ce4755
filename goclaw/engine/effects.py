"""The effect journal: the only commit boundary for side effects (E-1 to E-6, E-9).

Owns ordinals, keys, the order intent, COMMIT, dispatch, result, and what becomes of an effect whose
outcome nobody knows. Not in here: what a tool does (tools), what may be done (policy).

What a crash leaves, by the point it hits:
  before the intent's COMMIT    nothing happened, the next attempt begins the effect
  after it, before dispatch     as after dispatch: nobody can tell the two apart
  after dispatch                pure, keyed: sent again (same key); probeable: asked; else unknown
  after the result's COMMIT     the record answers, nothing is sent
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits
from goclaw.core.decisions import Verdict
from goclaw.core.errors import BudgetExhausted, Nondeterminism
from goclaw.core.faults import faultpoint
from goclaw.core.records import CallResult, Done, Retryable, Unclear
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from goclaw.core.clock import Clock
    from goclaw.core.decisions import Decision
    from goclaw.core.records import Call, Task
    from goclaw.store import Database

__all__ = ["Journal", "Park", "effect_key", "request_hash"]

UNKNOWN_TEXT = "outcome unknown: check before repeating"

_Row = dict[str, Any]


class Park(Exception):
    """The attempt is to be SUSPENDED: ``parts`` commit with the suspension."""

    def __init__(
        self, reason: str, parts: Sequence[Any] = (), *, due_ms: int | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.parts, self.due_ms = reason, tuple(parts), due_ms


def request_hash(kind: str, name: str, request: bytes) -> bytes:
    """Kind, name and canonical arguments, and nothing else (E-2)."""
    return hashlib.sha256(b"\0".join((kind.encode(), name.encode(), request))).digest()


def effect_key(task: Task, ordinal: int, name: str, request: bytes, designated: str | None) -> str:
    """E-4: the tool's own key, else H(K, ordinal, name, arguments); K from the submission key."""
    if designated is not None:
        return f"{name}:{designated}"
    if task.key is None:
        base = task.task_id.encode()
    else:
        base = hashlib.sha256(f"{task.session_id}\0{task.key}".encode()).digest()
    parts = (base, str(ordinal).encode(), name.encode(), request)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


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
        effects: list[_Row],
        approvals: list[_Row],
        signals: dict[str, bytes],
    ) -> None:
        self._database, self._clock = database, clock
        self._task, self._token, self._cancelled = task, token, cancelled
        self._rows = {row["ordinal"]: row for row in effects}
        self._approvals = approvals
        self._signals = signals
        self._next = 0
        self._told = {
            row["hash"]
            for row in effects
            if row["failed"] and _status_of(row["result"], failed=True) == "unknown"
        }

    @property
    def done(self) -> list[str]:
        """Names of the effects with a final result so far."""
        return [row["name"] for row in self._rows.values() if row["state"] == "result"]

    def _ordinal(self) -> int:
        if self._next >= limits.EFFECTS_MAX:
            raise BudgetExhausted(f"A task may have {limits.EFFECTS_MAX} effects.")
        self._next += 1
        return self._next - 1

    def _recorded(self, ordinal: int, digest: bytes) -> _Row | None:
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

    def _bind(self, program: str, **arguments: Any) -> Any:
        return self._database.bind(
            program,
            tid=self._task.tid,
            token=self._token,
            now=self._clock.wall_ms(),
            **arguments,
        )

    def _adopt(self, ordinal: int) -> Any:
        return self._database.bind(
            "effect_adopt", tid=self._task.tid, token=self._token, ordinal=ordinal
        )

    def _update(self, update: dict[str, Any]) -> Any:
        return self._bind("append", kind=0, type="update", payload=orjson.dumps(update))

    def _audit(self, decision: Decision | None) -> list[Any]:
        if decision is None:
            return []
        record = orjson.dumps(decision.to_json())
        return [self._database.bind("audit", record=record, now=self._clock.wall_ms())]

    # -- a brain's answer ----------------------------------------------------------------------

    async def think(
        self,
        name: str,
        request: dict[str, Any],
        answer: Callable[[], Awaitable[dict[str, Any]]],
        *,
        decision: Decision | None = None,
    ) -> dict[str, Any]:
        """Record one brain call; its ``updates`` commit with the record, so none is sent twice."""
        ordinal = self._ordinal()
        body = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)
        digest = request_hash("brain", name, body)
        row = self._recorded(ordinal, digest)
        if row is not None and row["state"] == "result":
            recorded: dict[str, Any] = orjson.loads(row["result"])
            return recorded
        result = await answer()
        updates = result.pop("updates", [])
        record = self._bind(
            "effect_record", ordinal=ordinal, kind="brain", name=name, hash=digest, request=body,
            key=effect_key(self._task, ordinal, name, body, None), result=orjson.dumps(result),
            failed=0,
        )  # fmt: skip
        faultpoint("before_result")
        await self._database.apply(
            *self._audit(decision), *(self._update(update) for update in updates), record, live=True
        )
        faultpoint("after_result")
        return result

    # -- tools ---------------------------------------------------------------------------------

    async def perform(self, calls: Sequence[Call]) -> list[CallResult]:
        """Carry out the calls of one answer; ordinals follow their order."""
        entries = [_Entry(self, call, self._ordinal()) for call in calls]
        open_entries = [entry for entry in entries if not entry.settle_from_journal()]
        await self._ask(open_entries)
        await self._intend([entry for entry in open_entries if entry.result is None])
        await self._dispatch([entry for entry in open_entries if entry.result is None])
        return [entry.answer() for entry in entries]

    async def _dispatch(self, entries: list[_Entry]) -> None:
        """All at once; every one has ended before the attempt goes on or ends."""
        ended = await asyncio.gather(
            *(entry.carry_out() for entry in entries), return_exceptions=True
        )
        errors = [error for error in ended if error is not None]
        parked = [error for error in errors if isinstance(error, Park)]
        for error in errors:
            if not isinstance(error, (Park, Retryable)):
                raise error
        if parked:
            parts = [part for error in parked for part in error.parts]
            raise Park(parked[0].reason, parts)
        if errors:
            raise errors[0]

    async def _ask(self, entries: list[_Entry]) -> None:
        """Denied calls are recorded as such; asked ones go on only when a person said yes."""
        parts: list[Any] = []
        asked = False
        for entry in entries:
            verdict = None if entry.call.decision is None else entry.call.decision.effect
            if verdict is Verdict.ALLOW and entry.digest in self._told:
                verdict = Verdict.ASK  # the equal of a call whose outcome nobody knows (E-3)
            if verdict is Verdict.DENY and entry.row is None:
                parts += entry.refuse("denied", entry.call.decision.reason)  # type: ignore[union-attr]
            elif verdict is Verdict.ASK and (entry.row is None or entry.row["state"] != "unknown"):
                approval = self._approval(entry)
                if approval is None:
                    parts += self._open(entry)
                    asked = True
                elif approval["state"] == "open":
                    asked = True
                elif not approval["allowed"]:
                    why = (
                        "the approval expired"
                        if approval["state"] == "expired"
                        else "a person said no"
                    )
                    parts += entry.refuse("rejected", why)
        if asked:
            raise Park("approval", parts)
        if parts:
            await self._database.apply(*parts, live=True)

    def _approval(self, entry: _Entry) -> _Row | None:
        found = None
        for row in self._approvals:
            if row["ordinal"] == entry.ordinal and row["digest"] == entry.digest:
                found = row
        return found

    def _open(self, entry: _Entry) -> list[Any]:
        now = self._clock.wall_ms()
        approval_id = self._clock.new_id("approval")
        tool_call = {} if entry.call.announce is None else entry.call.announce(entry.call_id)
        update = {k: v for k, v in tool_call.items() if k != "sessionUpdate"}
        request = {
            "sessionId": self._task.session_id,
            "toolCall": update or {"toolCallId": entry.call_id, "title": entry.call.title},
            "options": [
                {"optionId": "allow", "name": "Allow once", "kind": "allow_once"},
                {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
            ],
            "_meta": {
                "goclaw": {
                    "approvalId": approval_id,
                    "reason": entry.call.decision.reason if entry.call.decision else "",
                }
            },
        }
        announce = [self._update(tool_call)] if tool_call else []
        return [
            *announce,
            self._bind(
                "approval_open", approval_id=approval_id, ordinal=entry.ordinal,
                digest=entry.digest, request=orjson.dumps(request),
                expires_at=now + limits.APPROVAL_MS,
            ),
        ]  # fmt: skip

    async def _intend(self, entries: list[_Entry]) -> None:
        """Commit every intent of the answer before the first dispatch; pure ones need no wait."""
        faultpoint("before_intent")
        unsettled = [entry for entry in entries if not await entry.settle_unknown()]
        if not unsettled:
            return
        parts = [part for entry in unsettled for part in entry.intent()]
        waiting = self._database.apply(*parts, live=True)
        if all(entry.call.effect_class is EffectClass.PURE for entry in unsettled):
            # Nothing to be afraid of: the result's commit comes behind it in the same queue.
            waiting.add_done_callback(lambda future: future.cancelled() or future.exception())
        else:
            committed = await waiting
            index = 0
            for entry in unsettled:
                index = entry.intended(committed.parts, index)
        faultpoint("after_intent")

    # -- durable waits -------------------------------------------------------------------------

    async def sleep(self, wait_ms: int) -> None:
        """Park until the time has come; the wake is recorded, a crash does not start it anew."""
        ordinal = self._ordinal()
        body = orjson.dumps({"ms": wait_ms})
        row = self._recorded(ordinal, request_hash("sleep", "sleep", body))
        if row is not None and row["state"] == "result":
            return
        record = self._wait_record(ordinal, "sleep", body)
        raise Park("sleep", [record], due_ms=wait_ms)

    async def wait_signal(self, name: str) -> bytes:
        """Answer with the first signal of that name, parking until it is there."""
        ordinal = self._ordinal()
        self._recorded(ordinal, request_hash("signal", name, b"{}"))
        if name in self._signals:
            return self._signals[name]
        raise Park(f"signal:{name}")

    def _wait_record(self, ordinal: int, kind: str, body: bytes) -> Any:
        # The sleep's record commits with the suspension: once parked, the next attempt is past it.
        return self._bind(
            "effect_record", ordinal=ordinal, kind=kind, name=kind, request=body, result=b"null",
            hash=request_hash(kind, kind, body), failed=0,
            key=effect_key(self._task, ordinal, kind, body, None),
        )  # fmt: skip


class _Entry:
    """One call on its way: journal, approval, intent, dispatch, result."""

    def __init__(self, journal: Journal, call: Call, ordinal: int) -> None:
        self._journal = journal
        self.call = call
        self.ordinal = ordinal
        self.digest = request_hash(call.kind, call.name, call.request)
        self.key = effect_key(journal._task, ordinal, call.name, call.request, call.designated_key)
        self.call_id = f"{journal._task.task_id}.{ordinal}"
        self.row = journal._recorded(ordinal, self.digest)
        self.result: CallResult | None = None

    def answer(self) -> CallResult:
        assert self.result is not None
        return self.result

    def _result(self, output: bytes, failed: bool, status: str) -> CallResult:
        return CallResult(self.ordinal, self.call_id, output, failed, status)

    def settle_from_journal(self) -> bool:
        """True when the record answers (E-2)."""
        if self.row is None or self.row["state"] != "result":
            return False
        failed = bool(self.row["failed"])
        output = self.row["result"] or b"null"
        self.result = replace(
            self._result(output, failed, _status_of(output, failed)), replayed=True
        )
        return True

    @property
    def _announced(self) -> bool:
        journal = self._journal
        return self.row is not None or any(
            row["ordinal"] == self.ordinal for row in journal._approvals
        )

    def refuse(self, status: str, why: str) -> list[Any]:
        """Record that the call was not made, so that every later attempt says the same."""
        call, journal = self.call, self._journal
        output = orjson.dumps({"error": f"{status}: {why}", "status": status})
        self.result = self._result(output, True, status)
        parts = journal._audit(call.decision)
        if call.announce is not None and not self._announced:
            parts.append(journal._update(call.announce(self.call_id)))
        if call.report is not None:
            parts.append(journal._update(call.report(self.call_id, self.result)))
        parts.append(
            journal._bind(
                "effect_record",
                ordinal=self.ordinal,
                kind=call.kind,
                name=call.name,
                key=self.key,
                hash=self.digest,
                request=call.request,
                result=output,
                failed=1,
                call_id=self.call_id,
            )
        )
        return parts

    def intent(self) -> list[Any]:
        """The parts that commit before dispatch."""
        call, journal = self.call, self._journal
        parts = journal._audit(call.decision)
        parts.append(
            journal._bind(
                "effect_intent",
                ordinal=self.ordinal,
                kind=call.kind,
                name=call.name,
                hash=self.digest,
                key=self.key,
                request=call.request,
                call_id=self.call_id,
                **{"class": str(call.effect_class)},
            )
        )
        self._parts_count = len(parts)
        self._intent_at = len(parts) - 1
        if call.announce is not None and not self._announced:
            parts.append(journal._update(call.announce(self.call_id)))
            self._parts_count += 1
        return parts

    def intended(self, parts: list[tuple[Any, ...]], index: int) -> int:
        """Read the journal's answer to the intent; the index behind this entry's parts."""
        state, output, failed, deduplicated, _, _ = parts[index + self._intent_at]
        if state == "result" and deduplicated:
            self.result = replace(
                self._result(output or b"null", bool(failed), _status_of(output, bool(failed))),
                replayed=True,
            )
        return index + self._parts_count

    async def settle_unknown(self) -> bool:
        """An effect of an earlier attempt whose outcome nobody knows (E-3); True when answered."""
        if self.row is None or self.row["state"] != "unknown":
            return False
        if self.call.effect_class is EffectClass.KEYED:
            return False
        journal = self._journal
        if self.call.effect_class is EffectClass.PROBEABLE and self.call.probe is not None:
            verdict = await self.call.probe()
            if isinstance(verdict, Done):
                await self._record(verdict, journal._adopt(self.ordinal))
                return True
            if verdict is False:
                await journal._database.apply(
                    journal._adopt(self.ordinal),
                    journal._bind(
                        "effect_result", ordinal=self.ordinal, state="retryable", failed=0
                    ),
                    live=True,
                )
                return False
        if journal._task.on_unknown == "suspend":
            raise Park("effect_unknown")
        await self._tell(journal._adopt(self.ordinal))
        return True

    async def _tell(self, *before: Any) -> None:
        """``tell_brain``: the brain gets to know that nobody knows."""
        output = orjson.dumps({"error": UNKNOWN_TEXT, "status": "unknown"})
        self._journal._told.add(self.digest)
        self.result = self._result(output, True, "unknown")
        await self._commit_result(output, failed=True, before=before)

    async def _record(self, done: Done, *before: Any) -> None:
        failed = done.failed
        self.result = self._result(done.output, failed, "failed" if failed else "completed")
        await self._commit_result(done.output, failed=failed, before=before)

    async def _commit_result(
        self, output: bytes, *, failed: bool, before: Sequence[Any] = ()
    ) -> None:
        journal, call = self._journal, self.call
        assert self.result is not None
        parts = [
            *before,
            journal._bind(
                "effect_result", ordinal=self.ordinal, state="result", result=output,
                failed=int(failed),
            ),
        ]  # fmt: skip
        if call.report is not None:
            parts.append(journal._update(call.report(self.call_id, self.result)))
        await journal._database.apply(*parts, live=True)

    async def _close(self, state: str) -> None:
        journal = self._journal
        await journal._database.apply(
            journal._bind("effect_result", ordinal=self.ordinal, state=state, failed=0), live=True
        )

    async def carry_out(self) -> None:
        """Dispatch and record; nothing but a definite answer is recorded as a result."""
        try:
            done = await self.call.dispatch(self.key, self._journal._cancelled)
        except Retryable:
            await self._close("retryable")
            raise
        except (Unclear, TimeoutError, ConnectionError) as error:
            await self._unclear(error)
            return
        except asyncio.CancelledError:
            # The lease is gone with the attempt; whoever ended it has marked the intent.
            raise
        faultpoint("before_result")
        await self._record(done)
        faultpoint("after_result")

    async def _unclear(self, error: Exception) -> None:
        match self.call.effect_class:
            case EffectClass.PURE | EffectClass.KEYED:
                await self._close("retryable")
                raise Retryable("no_answer", f"{self.call.name}: {error}") from error
            case EffectClass.PROBEABLE:
                await self._close("unknown")
                raise Retryable("no_answer", f"{self.call.name}: {error}") from error
            case _:
                if self._journal._task.on_unknown == "suspend":
                    part = self._journal._bind(
                        "effect_result", ordinal=self.ordinal, state="unknown", failed=0
                    )
                    raise Park("effect_unknown", [part]) from error
                await self._close("unknown")
                await self._tell()


def _status_of(output: bytes | None, failed: bool) -> str:
    if not failed:
        return "completed"
    try:
        found = orjson.loads(output or b"null")
    except orjson.JSONDecodeError:
        return "failed"
    status = found.get("status") if isinstance(found, dict) else None
    return status if status in ("denied", "rejected", "unknown") else "failed"
