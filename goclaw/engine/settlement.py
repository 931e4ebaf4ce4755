"""What people say about effects whose outcome nobody knows: listed, asked about, settled (E-3).

Owns which word moves what, and the probe outside an attempt. Not in here: how an effect becomes
unknown (``effects``), who may say so (gateway).

A probe runs without a lease, because the task that holds the effect is SUSPENDED. It may: it only
reads, the policy in force is asked about the tool first, and nothing but its answer is recorded. No
other way leads to a tool without a RUNNING task (tests/house).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits, log
from goclaw.core.decisions import Verdict
from goclaw.core.errors import (
    GoclawError,
    IllegalTransition,
    InvalidParams,
    PolicyDenied,
    UnknownId,
)
from goclaw.core.records import Done, Effect, Retryable, Task, Unclear
from goclaw.core.states import EffectClass, EffectState, State
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from goclaw.core.clock import Clock
    from goclaw.core.decisions import Decision
    from goclaw.core.records import Call, CallOf, Session
    from goclaw.engine.halt import Halt
    from goclaw.store import Database

__all__ = ["OUTCOMES", "Settlement"]

_log = log.logger("engine.settlement")

OUTCOMES: Final = ("done", "not_done", "fail")
"""What may be said of an unknown effect: it happened, it did not, the task is given up over it."""

_TARGETS: Final = {
    "done": EffectState.RESULT, "not_done": EffectState.RETRYABLE, "redo": EffectState.RETRYABLE,
    "fail": State.FAILED,
}  # fmt: skip


class Settlement:
    """The journal of this home, as people see and mend it. ``call_of`` builds the call of a tool
    anew, decided on by the policy in force; ``task`` reads a task by its id (UnknownId)."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        task: Callable[[str], Awaitable[dict[str, Any]]],
        session: Callable[[int], Awaitable[Session]],
        call_of: CallOf | None,
        halt: Halt,
    ) -> None:
        self._halt = halt
        self._database, self._clock = database, clock
        self._task, self._session, self._call_of = task, session, call_of

    async def listed(
        self, task_id: str, *, after: int = -1, limit: int = limits.EVENTS_PAGE_MAX
    ) -> list[Effect]:
        """A task's effects above ordinal ``after``, in order; UnknownId."""
        task = await self._task(task_id)
        found = await self._database.read("effects_page", tid=task["tid"], after=after, limit=limit)
        return [_effect(row) for row in rows("effects_page", found)]

    async def settle(
        self,
        task_id: str,
        ordinal: int,
        outcome: str,
        *,
        by: str,
        result: bytes | None = None,
        decision: Decision | None = None,
    ) -> tuple[Effect, int]:
        """Say what became of an unknown effect; the effect as it stands then, and the event's id.

        ``outcome``: one of OUTCOMES, or redo: send it again, under the same key, whatever became
        of it. ``result`` is what the brain is told of one that is done. The task goes on when its
        last unknown effect is settled; ``fail`` ends it FAILED and leaves the effect unknown.
        UnknownId; IllegalTransition when it is not unknown, or its task cannot go that way.
        ``decision`` let somebody say so; its audit record commits with it.
        """
        if result is not None and outcome != "done":
            raise InvalidParams(
                "Only an effect that is done has a result.", hint="Leave the result out."
            )
        if result is not None and len(result) > limits.TOOL_OUTPUT_BYTES_MAX:
            raise InvalidParams(
                f"A result has at most {limits.TOOL_OUTPUT_BYTES_MAX} bytes.", param="result"
            )
        task, row = await self._unknown(task_id, ordinal, outcome)
        done = Done(result or b"null")
        event_id = await self._say(task, row, outcome, done, by, [decision])
        return await self._seen(task, ordinal), event_id

    async def ask(
        self, task_id: str, ordinal: int, *, by: str, decision: Decision | None = None
    ) -> tuple[Effect, int | None]:
        """Ask the tool whether an unknown effect happened, and settle it by the answer.

        The effect as it stands then; no event id when the tool cannot tell, and nothing changed.
        InvalidParams when the tool is none that can be asked, PolicyDenied when the policy in
        force forbids it. Waits for the tool, at most ``limits.PROBE_MS_MAX``.
        """
        self._halt.check(EffectClass.PROBEABLE)
        task, row = await self._unknown(task_id, ordinal, "done")
        call = await self._rebuilt(task, row)
        decisions = [decision, *call.decisions]
        if call.decision is not None and call.decision.effect is Verdict.DENY:
            await self._audit(decisions)
            raise PolicyDenied(
                f"The policy does not allow {row['name']}: {call.decision.reason}.",
                hint="See `goclaw policy explain`, or settle the effect without a probe.",
                decisionId=call.decision.decision_id,
                reason=call.decision.reason,
                ruleId=call.decision.rule_id,
            )
        event_id = None
        match await _probed(call, row):
            case Done() as done:
                event_id = await self._say(task, row, "done", done, by, decisions)
            case False:
                event_id = await self._say(task, row, "not_done", Done(b"null"), by, decisions)
            case _:
                await self._audit(decisions)
        return await self._seen(task, ordinal), event_id

    async def _unknown(
        self, task_id: str, ordinal: int, outcome: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        task = await self._task(task_id)
        found = await self._database.read("effect_of_task", tid=task["tid"], ordinal=ordinal)
        if not found:
            raise UnknownId(
                f"The task {task_id[:80]} has no effect {ordinal}.",
                hint=f"See `goclaw effects list {task_id[:80]}`.",
                what="effect",
                id=f"{task_id[:80]}/{ordinal}",
            )
        row = rows("effect_of_task", found)[0]
        if row["state"] != EffectState.UNKNOWN:
            raise _illegal(row, row["state"], outcome)
        return task, row

    async def _rebuilt(self, task: dict[str, Any], row: dict[str, Any]) -> Call:
        hint = f"Look yourself, then: goclaw effects settle {task['task_id']} {row['ordinal']} ..."
        if row["class"] != EffectClass.PROBEABLE or self._call_of is None:
            raise InvalidParams(
                f"{row['name']} is {row['class']}: it cannot be asked whether it happened.",
                hint=hint,
            )
        session = await self._session(task["sid"])
        about = Task(
            tid=task["tid"], sid=task["sid"], session_id=task["session_id"],
            task_id=task["task_id"], run_id=task["run_id"], kind=task["kind"],
            attempt=task["attempt"], max_attempts=task["max_attempts"], on_unknown="suspend",
            trace=task["trace"], payload=b"", key=None, client=None, origin="internal",
            policy_version="",
        )  # fmt: skip
        call = await self._call_of(about, session, row["name"], orjson.loads(row["request"]))
        if call.probe is None:
            raise InvalidParams(f"There is no tool {row['name']} now that could say.", hint=hint)
        return call

    async def _say(
        self,
        task: dict[str, Any],
        row: dict[str, Any],
        outcome: str,
        done: Done,
        by: str,
        decisions: list[Decision | None],
    ) -> int:
        named = {"tid": task["tid"], "ordinal": row["ordinal"], "by": by}
        now = self._clock.wall_ms()
        if outcome == "fail":
            message = f"Nobody knows whether {row['name']} happened, and {by} gave the task up."
            part = self._database.bind("effect_fail", **named, message=message, now=now)
        else:
            part = self._database.bind(
                "effect_settle", **named, outcome=outcome, failed=int(done.failed), now=now,
                result=done.output if outcome == "done" else None,
            )  # fmt: skip
        try:
            committed = await self._database.apply(part, *self._records(decisions))
        except IllegalTransition as error:
            # It was settled meanwhile, or the task is where it cannot go that way.
            again = await self._task(task["task_id"])
            raise _illegal(row, again["state"], outcome) from error
        event_id: int = committed.parts[0][0]
        return event_id

    def _records(self, decisions: list[Decision | None]) -> list[Any]:
        now = self._clock.wall_ms()
        return [
            self._database.bind("audit", record=orjson.dumps(decision.to_record()), now=now)
            for decision in decisions
            if decision is not None
        ]

    async def _audit(self, decisions: list[Decision | None]) -> None:
        records = self._records(decisions)
        if records:
            await self._database.apply(*records)

    async def _seen(self, task: dict[str, Any], ordinal: int) -> Effect:
        found = await self._database.read("effect_of_task", tid=task["tid"], ordinal=ordinal)
        return _effect(rows("effect_of_task", found)[0])


async def _probed(call: Call, row: dict[str, Any]) -> Done | bool | None:
    assert call.probe is not None
    try:
        async with asyncio.timeout(limits.PROBE_MS_MAX / 1000):
            return await call.probe(row["key"])
    except (GoclawError, Retryable, Unclear, OSError, TimeoutError) as error:
        _log.warning("no answer", extra={"data": {"tool": row["name"], "error": str(error)}})
        return None


def _illegal(row: dict[str, Any], now: str, outcome: str) -> IllegalTransition:
    target = _TARGETS[outcome]
    return IllegalTransition(
        f"Effect {row['ordinal']} ({row['name']}) cannot be settled as {outcome}: {now} now.",
        hint="Only an effect whose outcome is unknown is settled, and only once.",
        **{"from": now, "to": str(target)},
    )


def _effect(row: dict[str, Any]) -> Effect:
    return Effect(
        ordinal=row["ordinal"], kind=row["kind"], name=row["name"], effect_class=row["class"],
        state=row["state"], key=row["key"], request_hash=row["hash"].hex(), at=row["created_at"],
    )  # fmt: skip
