"""Attempts outside the daemon: whoever shows the lease token speaks for its task.

Owns what each word of a worker means for its task. Not in here: how it got it (pools), goclaw's own
lanes (scheduler), leases that run out (its reclaims), the wire (gateway).

A word is submitted to the writer before its method returns; what it returns is the answer, later.
So the words of one connection reach the disk in the order in which they came, and many of them
share a flush.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from goclaw.core import limits
from goclaw.core.errors import (
    EffectUnknown,
    GoclawError,
    IdempotencyConflict,
    IllegalTransition,
    InvalidParams,
    LeaseLost,
    Nondeterminism,
    StorageFailed,
    TooLarge,
    UnknownId,
)
from goclaw.core.faults import faultpoint
from goclaw.core.records import Failed
from goclaw.core.states import EffectClass, EffectState, State
from goclaw.engine.budgets import backoff_ms, failed
from goclaw.engine.effects import effect_key
from goclaw.engine.intake import effect_class_of
from goclaw.engine.late import Late, when_late
from goclaw.engine.speech import Speech
from goclaw.protocol.jsonrpc import canonical, encode
from goclaw.store import Note, rows

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.engine.halt import Halt
    from goclaw.store import Committed, Database

    _Row = dict[str, Any]

__all__ = ["External", "Held", "Intended", "Intent", "recorded"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Held:
    """A task, and the token that somebody shows for it. Implements ``effects.Keyed``."""

    tid: int
    task_id: str
    session_id: str
    key: str | None
    effect_class: EffectClass
    token: bytes


@dataclass(frozen=True, slots=True)
class Intent:
    """What a worker is about to do. ``digest``: of kind, name and arguments (E-2)."""

    ordinal: int
    kind: str
    name: str
    digest: bytes
    effect_class: EffectClass
    designated_key: str | None = None


@dataclass(frozen=True, slots=True)
class Intended:
    """The journal's answer to an intent. ``result``: JSON, None while the effect is to be done."""

    ordinal: int
    kind: str
    name: str
    digest: bytes
    key: str
    result: bytes | None = None
    failed: bool = False
    deduplicated: bool = False


class External:
    """What workers say. Everything runs on the loop."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueConfig,
        halt: Halt,
    ) -> None:
        self._halt = halt
        self._database, self._clock, self._queue = database, clock, queue
        self._known: OrderedDict[str, Held] = OrderedDict()  # without a token
        self._words: set[asyncio.Future[Any]] = set()
        self._speech = Speech()
        self._intending: Counter[tuple[int, int]] = Counter()  # intents without an answer yet

    # -- who speaks ----------------------------------------------------------------------------

    async def held(self, task_id: str, token: bytes) -> Held:
        """What ``token`` is shown for; UnknownId, LeaseLost for a task of goclaw's own lanes.

        Whether the token is the task's is not looked at here: each word compares it.
        """
        known = self._known.get(task_id)
        if known is None:
            found = await self._database.read("worker_task", task_id=task_id)
            if not found:
                raise UnknownId(
                    f"There is no task {task_id[:80]}.", hint="`goclaw task list` names all.",
                    what="task", id=task_id[:80],
                )  # fmt: skip
            tid, session_id, kind, key, stored = found[0]
            if kind != "pool":
                raise _lost(task_id)
            known = Held(tid, task_id, session_id, key, effect_class_of(stored), b"")
            self.remember(known)
        self._known.move_to_end(task_id)
        return replace(known, token=token)

    async def live(self, task_id: str) -> tuple[int, bytes] | None:
        """Attempt and token of a task's lease; None when no worker holds it."""
        found = await self._database.read("live_lease", task_id=task_id)
        return (found[0][0], found[0][1]) if found else None

    def remember(self, held: Held) -> None:
        """Facts about a task that need not be read again."""
        self._known[held.task_id] = held
        while len(self._known) > limits.WORKER_TASKS_MAX:
            self._known.popitem(last=False)

    async def _late(self, held: Held) -> GoclawError:
        """Why the token counts no more: its effect is unknown, or the lease is simply over."""
        task = await self._database.read("task_by_tid", tid=held.tid)
        row = rows("task_by_tid", task)[0]
        if row["state"] == State.SUSPENDED and row["reason"] == "effect_unknown":
            read = self._database.read
            for (ordinal,) in await read("unknown_effect", tid=held.tid, token=held.token):
                return _unknown(held, ordinal)
        return _lost(held.task_id)

    async def _effect(self, held: Held, ordinal: int) -> _Row | None:
        found = await self._database.read("worker_effect", tid=held.tid, ordinal=ordinal)
        return rows("worker_effect", found)[0] if found else None

    # -- words ---------------------------------------------------------------------------------

    def heartbeat(self, held: Held) -> asyncio.Future[int]:
        """Prolong the lease, counted from now; for how long, in milliseconds."""
        until_mono = self._clock.mono_ms() + self._queue.lease_ms
        beating = self._database.write(
            "heartbeat", live=True, tid=held.tid, token=held.token, lease_until_mono=until_mono
        )

        async def answer() -> int:
            await self._spoken(held, beating)
            return self._queue.lease_ms

        return self._answering(answer())

    def emit(self, held: Held, update: dict[str, Any]) -> asyncio.Future[tuple[int, int]]:
        """An ACP update of the attempt: its event id, and how many bytes at the end of its text are
        held back, since a secret may begin there (A-6). They go out with more of that text, or
        before the attempt's last word."""
        if len(encode(update)) > limits.EVENT_BYTES_MAX:
            raise _too_large("update", limits.EVENT_BYTES_MAX)
        passed, waiting = self._speech.passed(held.token, update, self._database.cleaner)
        emitting = self._append(held, passed)

        async def answer() -> tuple[int, int]:
            event_id: int = (await self._spoken(held, emitting)).parts[0][0]
            return event_id, waiting

        return self._answering(answer())

    def _append(self, held: Held, update: dict[str, Any]) -> asyncio.Future[Committed]:
        return self._database.write(
            "append", live=True, tid=held.tid, token=held.token, kind=0, type="update",
            payload=encode(update), now=self._clock.wall_ms(),
        )  # fmt: skip

    def _finish_speech(self, held: Held) -> None:
        """What was held back stands before the attempt's last word; a stale token's is nobody's."""
        for update in self._speech.rest(held.token):
            self._append(held, update).add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )

    def intend(self, held: Held, effect: Intent) -> asyncio.Future[Intended]:
        """Journal what is about to be done; the answer says whether to do it (E-1, E-2, E-5).

        PolicyDenied while the emergency stop holds it.
        """
        self._halt.check(effect.effect_class)
        faultpoint("before_intent")
        key = effect_key(held, effect.ordinal, effect.name, effect.digest, effect.designated_key)
        bind = self._database.bind
        intending = self._database.apply(
            bind("effect_place", tid=held.tid, token=held.token, ordinal=effect.ordinal),
            bind(
                "effect_intent", tid=held.tid, token=held.token, ordinal=effect.ordinal,
                kind=effect.kind, name=effect.name, key=key, hash=effect.digest, request=b"null",
                now=self._clock.wall_ms(), **{"class": str(effect.effect_class)},
            ),
            live=True,
        )  # fmt: skip
        self._intending[held.tid, effect.ordinal] += 1
        return self._answering(self._counted(held, effect, intending))

    async def _counted(
        self, held: Held, effect: Intent, intending: asyncio.Future[Committed]
    ) -> Intended:
        place = held.tid, effect.ordinal
        try:
            return await self._intended(held, effect, intending)
        finally:
            self._intending[place] -= 1
            if not self._intending[place]:
                del self._intending[place]

    async def _intended(
        self, held: Held, effect: Intent, intending: asyncio.Future[Committed]
    ) -> Intended:
        committed = await self._journaled(held, effect, intending)
        faultpoint("after_intent")
        state, result, failed, deduplicated, key, _, number, epoch = committed.parts[1]
        if state == EffectState.UNKNOWN:
            # Of an attempt before a redrive, or of a life before a restore: still nobody knows.
            await self._park(held, "effect_unknown", {"ordinal": effect.ordinal})
            raise _unknown(held, effect.ordinal)
        if state == EffectState.RESULT:
            result = result or b"null"
        elif number is not None:
            note = Note(number, epoch, key, effect.digest, self._clock.wall_ms())
            await self._note(held, effect.ordinal, note, is_new=bool(committed.events))
        return Intended(
            effect.ordinal, effect.kind, effect.name, effect.digest, key, result, bool(failed),
            bool(deduplicated),
        )  # fmt: skip

    async def _note(self, held: Held, ordinal: int, note: Note, *, is_new: bool) -> None:
        """In effects.log before the worker may go on (E-8); else the intent is closed again, unless
        the same word was said twice: the other one may have been answered."""
        try:
            await self._database.fence.note([note])
        except StorageFailed:
            if not is_new or self._intending[held.tid, ordinal] > 1:
                raise
            await self._database.write(
                "effect_result", live=True, tid=held.tid, token=held.token, ordinal=ordinal,
                state=str(EffectState.RETRYABLE), failed=0, now=self._clock.wall_ms(),
            )  # fmt: skip
            raise
        faultpoint("after_note")

    async def _journaled(
        self, held: Held, effect: Intent, journaling: asyncio.Future[Committed]
    ) -> Committed:
        try:
            return await self._spoken(held, journaling)
        except InvalidParams:
            raise InvalidParams(
                f"Effect {effect.ordinal} leaves a hole: the ordinals of a task are 0, 1, 2, ...",
                hint="Send the intents of all effects before it first.",
                param="ordinal",
            ) from None
        except Nondeterminism:
            raise await self._diverged(held, effect) from None
        except (IdempotencyConflict, EffectUnknown) as error:
            raise _key_taken(effect, error) from None

    async def _diverged(self, held: Held, effect: Intent) -> GoclawError:
        """Another effect than the journal holds: the task waits for a person (E-2)."""
        recorded = await self._effect(held, effect.ordinal)
        assert recorded is not None  # the writer has just compared with it
        data = {
            "ordinal": effect.ordinal,
            "recorded": recorded["hash"].hex(),
            "requested": effect.digest.hex(),
        }
        await self._park(held, "nondeterminism", data)
        return Nondeterminism(
            f"Effect {effect.ordinal} was {recorded['name']} before and is another call now; the "
            "task is SUSPENDED.",
            hint="The program or its inputs changed under a running task: cancel it, or fork.",
            taskId=held.task_id,
            **data,
        )

    async def _park(self, held: Held, reason: str, detail: dict[str, Any]) -> None:
        parking = self._database.write(
            "suspend", live=True, tid=held.tid, token=held.token, reason=reason, hash=b"",
            detail=orjson.dumps(detail).decode(), now=self._clock.wall_ms(),
        )  # fmt: skip
        await self._spoken(held, parking)

    def result(
        self,
        held: Held,
        ordinal: int,
        result: Any,
        *,
        failed: bool = False,
        retryable: bool = False,
        pure: Intent | None = None,
    ) -> asyncio.Future[None]:
        """What came of an intent of this lease: final, or ``retryable`` (nothing was sent).

        ``pure``: the effect itself, which needs no intent then. Twice the same is fine.
        """
        output = encode(result)
        if len(output) > limits.TOOL_OUTPUT_BYTES_MAX:
            raise _too_large("result of an effect", limits.TOOL_OUTPUT_BYTES_MAX)
        faultpoint("before_result")
        state = EffectState.RETRYABLE if retryable else EffectState.RESULT
        kept = None if retryable else output
        closing = self._database.write(
            "effect_result", live=True, tid=held.tid, token=held.token, ordinal=ordinal,
            state=str(state), result=kept, now=self._clock.wall_ms(),
            failed=int(failed and not retryable),
        )  # fmt: skip
        late = Late(self._database, self._clock, held.tid, held.token)
        when_late(closing, lambda: late.effect(ordinal, state, kept, int(failed and not retryable)))

        async def answer() -> None:
            try:
                await self._spoken(held, closing)
            except IllegalTransition:
                await self._resulted(held, ordinal, state, output, failed, pure)
            faultpoint("after_result")

        return self._answering(answer())

    async def _resulted(
        self,
        held: Held,
        ordinal: int,
        state: EffectState,
        output: bytes,
        failed: bool,
        pure: Intent | None,
    ) -> None:
        """A result without an open intent of this lease: said before, or of a pure effect."""
        row = await self._effect(held, ordinal)
        if row is not None and row["state"] == state:
            same = (row["result"], row["failed"]) == (output, int(failed))
            if same or state is EffectState.RETRYABLE:
                return
        elif pure is not None and (row is None or row["class"] == EffectClass.PURE):
            await self._record(held, pure, output, failed)
            return
        raise IllegalTransition(
            f"Effect {ordinal} has no open intent under this lease.",
            hint="Send its intent first; a result that is recorded stays.",
            taskId=held.task_id,
            ordinal=ordinal,
            to=str(state),
            **{"from": None if row is None else row["state"]},
        )

    async def _record(self, held: Held, effect: Intent, output: bytes, failed: bool) -> None:
        bind = self._database.bind
        recording = self._database.apply(
            bind("effect_place", tid=held.tid, token=held.token, ordinal=effect.ordinal),
            bind(
                "effect_record", tid=held.tid, token=held.token, ordinal=effect.ordinal,
                kind=effect.kind, name=effect.name, hash=effect.digest, request=b"null",
                key=effect_key(held, effect.ordinal, effect.name, effect.digest, None),
                result=output, failed=int(failed), now=self._clock.wall_ms(),
            ),
            live=True,
        )  # fmt: skip
        await self._journaled(held, effect, recording)

    # -- last words ----------------------------------------------------------------------------

    def complete(self, held: Held, result: Any) -> asyncio.Future[tuple[str, int]]:
        """RUNNING to SUCCEEDED; state and event id. The same again: the same answer (Q-4)."""
        body = encode(result)
        if len(body) > limits.RESULT_BYTES_MAX:
            raise _too_large("result", limits.RESULT_BYTES_MAX)
        faultpoint("before_complete")
        self._finish_speech(held)
        now, bind = self._clock.wall_ms(), self._database.bind
        completing = self._database.apply(
            bind("effect_orphan", tid=held.tid, token=held.token, now=now),
            bind(
                "complete", tid=held.tid, token=held.token, result=body, now=now,
                hash=_digest("complete", canonical(result)),
            ),
            live=True,
        )  # fmt: skip
        late = Late(self._database, self._clock, held.tid, held.token)
        when_late(completing, lambda: late.end(None, body))

        async def answer() -> tuple[str, int]:
            committed = await self._spoken(held, completing)
            faultpoint("after_complete")
            state, event_id = committed.parts[1]
            return state, event_id

        return self._answering(answer())

    def fail(
        self,
        held: Held,
        *,
        code: str,
        message: str,
        retryable: bool,
        retry_after_ms: int | None = None,
        fingerprint: str | None = None,
    ) -> asyncio.Future[tuple[str, int, int | None]]:
        """The attempt failed: state and event id, and for RETRY_WAIT how long that is.

        A retryable failure that leaves an effect nobody can ask about suspends the task: another
        attempt could not go past it (E-3). The same again: the same answer.
        """
        digest = _digest(f"fail\0{code}\0{message}\0{retryable}\0{fingerprint}")
        arguments = {"code": code, "message": message[: limits.MESSAGE_CHARS_MAX]}
        faultpoint("before_complete")
        self._finish_speech(held)
        return self._answering(
            self._failed(held, arguments, retryable, retry_after_ms, fingerprint, digest)
        )

    async def _failed(
        self,
        held: Held,
        arguments: dict[str, Any],
        retryable: bool,
        retry_after_ms: int | None,
        fingerprint: str | None,
        digest: bytes,
    ) -> tuple[str, int, int | None]:
        task = await self._task(held)
        outcome = Failed(
            **arguments, retryable=retryable, retry_after_ms=retry_after_ms,
            fingerprint=fingerprint,
        )  # fmt: skip
        wait_ms = backoff_ms(self._queue, self._clock, task["failures"], retry_after_ms)
        part = failed(
            self._database, self._clock, self._queue, outcome, tid=held.tid, token=held.token,
            wait_ms=wait_ms, digest=digest,
        )  # fmt: skip
        failing = self._database.apply(part, live=True)
        committed = await self._spoken(held, failing)
        faultpoint("after_complete")
        state, event_id, _ = committed.parts[0]
        if state != State.RETRY_WAIT:
            return state, event_id, None
        if not committed.events:  # said before: what is left of the wait
            due_mono = (await self._task(held))["due_mono"]
            wait_ms = max(0, (due_mono or 0) - self._clock.mono_ms())
        return state, event_id, wait_ms

    async def _task(self, held: Held) -> _Row:
        return rows("task_by_tid", await self._database.read("task_by_tid", tid=held.tid))[0]

    def release(self, held: Held) -> asyncio.Future[tuple[str, int]]:
        """Hand the task back, no budget spent; state and event id. Twice is fine."""
        self._finish_speech(held)
        releasing = self._database.write(
            "reclaim", live=True, tid=held.tid, token=held.token, spent=0, reason="released",
            crash_budget=self._queue.crash_budget, hash=_digest("release"),
            now=self._clock.wall_ms(),
        )  # fmt: skip

        async def answer() -> tuple[str, int]:
            state, event_id, *_ = (await self._spoken(held, releasing)).parts[0]
            return state, event_id

        return self._answering(answer())

    # -- answers -------------------------------------------------------------------------------

    async def _spoken(self, held: Held, word: asyncio.Future[Committed]) -> Committed:
        try:
            return await word
        except LeaseLost:
            raise await self._late(held) from None

    def _answering(self, answer: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Carried to its end whoever waits: what it commits is consistent only as a whole."""
        future = asyncio.ensure_future(answer)
        self._keep(future)
        return future

    def _keep(self, future: asyncio.Future[Any]) -> None:
        self._words.add(future)
        future.add_done_callback(self._said)

    def _said(self, future: asyncio.Future[Any]) -> None:
        self._words.discard(future)
        if not future.cancelled():
            future.exception()

    async def settled(self) -> None:
        """Wait until what was said is on disk, within a bound."""
        if self._words:
            await asyncio.wait(set(self._words), timeout=limits.CLOSE_MS_MAX / 1000)


def recorded(row: _Row) -> Intended:
    """A row of the journal that has a result."""
    return Intended(
        row["ordinal"], row["kind"], row["name"], row["hash"], row["key"], row["result"] or b"null",
        bool(row["failed"]), bool(row["deduplicated"]),
    )  # fmt: skip


def _lost(task_id: str) -> LeaseLost:
    return LeaseLost(
        "The lease is over: another attempt owns the task, or it has ended. Nothing was changed.",
        hint="Stop at once.",
        taskId=task_id,
    )


def _unknown(held: Held, ordinal: int) -> EffectUnknown:
    return EffectUnknown(
        f"Nobody knows whether effect {ordinal} happened: the task is SUSPENDED, the lease gone.",
        hint="Settle it with `goclaw effects settle`.",
        taskId=held.task_id,
        ordinal=ordinal,
    )


def _key_taken(effect: Intent, error: GoclawError) -> GoclawError:
    if isinstance(error, EffectUnknown):
        if error.data:
            return error  # the task's own, already told
        why = "a call with it is under way, or nobody knows whether it happened"
    else:
        why = "it was used before with other arguments"
    return IdempotencyConflict(
        f"The key of effect {effect.ordinal} is taken: {why}. Nothing was recorded.",
        hint="Do not make the call.",
        idempotencyKey=effect.designated_key,
        runId=None,  # its own run has not made the call, and the other's is none of its business
        ordinal=effect.ordinal,
    )


def _too_large(what: str, limit: int) -> TooLarge:
    return TooLarge(f"The {what} may have {limit} bytes.", limit=limit, unit="bytes")


def _digest(word: str, data: bytes = b"") -> bytes:
    return hashlib.sha256(word.encode("utf-8", "replace") + b"\0" + data).digest()
