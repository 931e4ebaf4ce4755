"""The methods of the extension: subscriptions, runs, approvals, tasks, effects, administration.

Owns their params and the shapes of their answers (PROTOCOL 2.3, 2.8; SPEC 12). Not in here: ACP's
own methods (``handlers``).
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import InvalidParams
from goclaw.core.records import Terms
from goclaw.core.states import EffectClass, State
from goclaw.engine.settlement import OUTCOMES
from goclaw.gateway.connection import Connection, Handler, Later, Reply
from goclaw.gateway.handlers import attached, own_session, session_block
from goclaw.gateway.params import Params
from goclaw.gateway.watch import FIELDS
from goclaw.protocol.messages import KINDS_OPTED_IN
from goclaw.protocol.session import place

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from goclaw.core.decisions import Decision
    from goclaw.core.records import Accepted, Approval, Effect, Receipt, Session

__all__ = ["METHODS", "task_object"]

_STATES: Final = tuple(str(state) for state in State)
_CLASSES: Final = ("irreversible", "keyed", "probeable", "pure")  # the first unless one is named
_PARAMS: Final = b'"params":'

# -- sessions ----------------------------------------------------------------------------------


async def _subscribe(connection: Connection, params: Params) -> Reply:
    session = await connection.engine.intake.session(params.text("sessionId"))
    role = params.choice("role", ("controller", "observer"))
    mode = params.choice("mode", ("lossless", "latest"))
    position = place(
        session,
        params.number("fromEventId", 0, limits.FIGURE_MAX),
        params.text_or_none("streamId"),
    )
    connection.check_room(session)
    block = await session_block(connection, session, params)
    last_close = connection.last_close(session)
    if last_close is not None:
        block["lastClose"] = last_close
    return attached(
        connection, session, position, block,
        controller=role == "controller", latest=mode == "latest",
    )  # fmt: skip


async def _unsubscribe(connection: Connection, params: Params) -> Reply:
    session = await connection.engine.intake.session(params.text("sessionId"))
    connection.outbox.unsubscribe(session.sid)
    return Reply({})


async def _events(connection: Connection, params: Params) -> Reply:
    session = await connection.engine.intake.session(params.text("sessionId"))
    position = place(session, params.number("fromEventId", 0, limits.FIGURE_MAX, 0))
    most = params.page()
    events: list[orjson.Fragment] = []
    size = 0
    while len(events) < most and size < limits.ANSWER_BYTES_MAX // 2:
        page, last = await connection.engine.hub.lines(
            session.session_id, session.sid, position,
            rows_max=most - len(events), mask=KINDS_OPTED_IN,
        )  # fmt: skip
        if last == position:
            break
        position = last
        events += [
            orjson.Fragment(line[line.index(_PARAMS) + len(_PARAMS) : -1])
            for line in page.split(b"\n")[:-1]
        ]
        size += len(page)
    head = max(session.head, position)
    return Reply({"events": events, "nextEventId": position, "headEventId": head})


# -- runs --------------------------------------------------------------------------------------


async def _run_get(connection: Connection, params: Params) -> Reply:
    engine = connection.engine
    run_id = params.text_or_none("runId")
    if run_id is None:
        session = await engine.intake.session(params.text("sessionId"))
        run_id = await engine.submitted(session, params.text("idempotencyKey"))
    task = await engine.run_task(run_id)
    result = {
        "runId": run_id,
        "taskId": task["task_id"],
        "sessionId": task["session_id"],
        "state": task["state"],
        "attempts": task["attempt"],
        "eventId": task["end_event"],
    }
    if task["stop_reason"] is not None:
        result["stopReason"] = task["stop_reason"]
    return Reply(result)


def _receipt(receipt: Receipt) -> Reply:
    return Reply(
        {
            "outcome": receipt.outcome,
            "eventId": receipt.event_id,
            "effectsDone": list(receipt.effects_done),
        }
    )


async def _run_cancel(connection: Connection, params: Params) -> Reply:
    run_id = params.text("runId")
    return _receipt(await connection.engine.cancel_run(run_id, "_goclaw/run/cancel"))


async def _run_signal(connection: Connection, params: Params) -> Reply:
    payload = orjson.dumps(params.values.get("payload"))
    if len(payload) > limits.PAYLOAD_BYTES_MAX:
        raise InvalidParams(f"A payload has at most {limits.PAYLOAD_BYTES_MAX} bytes.")
    event_id, duplicate = await connection.engine.signal(
        params.text("runId"), params.text("name"), payload,
        key=params.text_or_none("idempotencyKey", chars_max=limits.KEY_CHARS_MAX),
    )  # fmt: skip
    return Reply({"eventId": event_id, "duplicate": duplicate})


# -- approvals ---------------------------------------------------------------------------------


def _approval(approval: Approval) -> dict[str, Any]:
    return {
        "approvalId": approval.approval_id,
        "sessionId": approval.session_id,
        "taskId": approval.task_id,
        "runId": approval.run_id,
        "ordinal": approval.ordinal,
        "createdAt": rfc3339(approval.created_at),
        "expiresAt": rfc3339(approval.expires_at),
        "request": orjson.Fragment(approval.request),
    }


async def _approvals_list(connection: Connection, params: Params) -> Reply:
    session = await _session_or_none(connection, params)
    sid = None if session is None else session.sid
    listed = await connection.engine.approvals.listed(sid)
    return Reply({"approvals": [_approval(approval) for approval in listed]})


async def _approvals_resolve(connection: Connection, params: Params) -> Reply:
    outcome = await connection.resolve_approval(params.text("approvalId"), params.text("optionId"))
    return Reply({"outcome": outcome})


# -- tasks -------------------------------------------------------------------------------------


async def _session_or_none(connection: Connection, params: Params) -> Session | None:
    session_id = params.text_or_none("sessionId")
    return None if session_id is None else await connection.engine.intake.session(session_id)


async def _task_submit(connection: Connection, params: Params) -> Reply | Later:
    session = await own_session(connection, params)
    terms = _terms(params)
    submit = _submission(connection, session, params)
    decision = connection.require("run.submit", session.session_id, session)
    connection.services.on_session(session.sid)
    submission = asyncio.ensure_future(
        submit(
            key=params.text_or_none("idempotencyKey", chars_max=limits.KEY_CHARS_MAX),
            client=connection.client_id,
            origin=str(connection.origin),
            priority=params.number("priority", 0, limits.PRIORITY_MAX) or 0
            if "priority" in params
            else limits.PRIORITY,
            parallel=params.flag("parallel", False),
            max_attempts=params.number("maxAttempts", 1, limits.MAX_ATTEMPTS_MAX),
            terms=terms,
            trace=params.trace,
            decision=decision,
        )
    )
    connection.roster.submitting(session.sid, submission)
    return Later(_accepted(submission))


def _terms(params: Params) -> Terms:
    """When the task may run, how long, and whether again (Q-12, Q-13)."""
    schedule, recurrence = params.object("schedule"), None
    if schedule:
        given = Params(schedule)
        recurrence = (
            given.text("cron"),
            given.text_or_none("timeZone") or "UTC",
            given.choice("misfire", ("once", "skip", "all")),
        )
    return Terms(
        not_before_ms=params.number("notBeforeMs", 0, limits.FIGURE_MAX),
        timeout_ms=params.number("timeoutMs", 1, limits.TIMEOUT_MS_MAX),
        deadline_ms=params.number("deadlineMs", 0, limits.FIGURE_MAX),
        unique=params.text_or_none("unique", chars_max=limits.KEY_CHARS_MAX),
        recurrence=recurrence,
    )


def _submission(
    connection: Connection, session: Session, params: Params
) -> Callable[..., Coroutine[Any, Any, Accepted]]:
    """What is submitted: a call of a tool, or work for a pool."""
    intake = connection.engine.intake
    if "pool" not in params:
        for name in ("payload", "effectClass"):
            if name in params:
                raise InvalidParams(f"{name} belongs to a pool.", param=name)
        return functools.partial(
            intake.submit_tool, session, params.text("tool"), params.object("arguments")
        )
    for name in ("tool", "arguments"):
        if name in params:
            raise InvalidParams(f"A task has a pool or a {name}, not both.", param=name)
    effect_class = params.choice("effectClass", _CLASSES)
    return functools.partial(
        intake.submit_work, session, params.text("pool"), params.values.get("payload"),
        effect_class=EffectClass(effect_class),
    )  # fmt: skip


async def _accepted(submission: asyncio.Future[Accepted]) -> Reply:
    accepted = await asyncio.shield(submission)
    result: dict[str, Any] = {
        "taskId": accepted.task_id,
        "runId": accepted.run_id,
        "state": accepted.state,
        "eventId": accepted.event_id,
        "duplicate": accepted.duplicate,
    }
    if accepted.expired:
        result["resultExpired"] = True
    return Reply(result)


def task_object(connection: Connection, row: dict[str, Any]) -> dict[str, Any]:
    """The task object of SPEC 12."""
    until, due = row["lease_until_mono"], row["due_at"]
    expires = None if until is None else max(0, until - connection.engine.clock.mono_ms())
    return {
        "taskId": row["task_id"],
        "sessionId": row["session_id"],
        "runId": row["run_id"],
        "kind": row["kind"],
        "work": row["work"],
        "state": row["state"],
        "reason": row["reason"],
        "attempt": row["attempt"],
        "failures": row["failures"],
        "crashes": row["crashes"],
        "maxAttempts": row["max_attempts"],
        "priority": row["priority"],
        "leaseOwner": row["lease_owner"],
        "leaseExpiresInMs": expires,
        "availableAt": None if due is None else rfc3339(due),
        "deadlineAt": None if row["deadline_at"] is None else rfc3339(row["deadline_at"]),
        "timeoutMs": row["timeout_ms"],
        "fingerprint": row["fingerprint"],
        "createdAt": rfc3339(row["created_at"]),
        "updatedAt": rfc3339(row["updated_at"]),
        "result": None if row["result"] is None else orjson.Fragment(row["result"]),
        "error": None if row["error"] is None else orjson.Fragment(row["error"]),
    }


async def _task_get(connection: Connection, params: Params) -> Reply:
    return Reply(task_object(connection, await connection.engine.task(params.text("taskId"))))


async def _task_list(connection: Connection, params: Params) -> Reply:
    session = await _session_or_none(connection, params)
    states: list[str | None] = list(dict.fromkeys(params.texts("states")))
    if not set(states) <= set(_STATES):
        raise InvalidParams(f"states are of {', '.join(_STATES)}.", param="states")
    pool, after, most = params.text_or_none("pool"), params.cursor("after"), params.page()
    rows: list[dict[str, Any]] = []
    for state in states or [None]:
        rows += await connection.engine.tasks(
            sid=None if session is None else session.sid,
            pool=pool,
            before=after,
            state=state,
            limit=most + 1,
        )
    rows.sort(key=lambda row: -row["tid"])
    result: dict[str, Any] = {"tasks": [task_object(connection, row) for row in rows[:most]]}
    if len(rows) > most:
        result["next"] = str(rows[most - 1]["tid"])
    return Reply(result)


async def _task_cancel(connection: Connection, params: Params) -> Reply:
    task_id = params.text("taskId")
    return _receipt(await connection.engine.cancel_task(task_id, "_goclaw/task/cancel"))


# -- effects -----------------------------------------------------------------------------------


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "ordinal": effect.ordinal,
        "kind": effect.kind,
        "name": effect.name,
        "class": effect.effect_class,
        "state": effect.state,
        "idempotencyKey": effect.key,
        "requestHash": effect.request_hash,
        "at": rfc3339(effect.at),
    }


async def _effects_list(connection: Connection, params: Params) -> Reply:
    most = params.page()
    after = params.number("after", 0, limits.EFFECTS_MAX, -1)
    listed = await connection.engine.settlement.listed(
        params.text("taskId"), after=-1 if after is None else after, limit=most + 1
    )
    result: dict[str, Any] = {"effects": [_effect(effect) for effect in listed[:most]]}
    if len(listed) > most:
        result["next"] = listed[most - 1].ordinal
    return Reply(result)


async def _about_effect(
    connection: Connection, params: Params, verb: str
) -> tuple[str, int, Decision]:
    """The effect that the params name, and the decision that lets this client answer for it."""
    task_id, ordinal = params.text("taskId"), params.number("ordinal", 0, limits.EFFECTS_MAX)
    if ordinal is None:
        raise InvalidParams("ordinal is missing.", param="ordinal")
    engine = connection.engine
    task = await engine.task(task_id)
    session = await engine.intake.session_by_sid(task["sid"])
    return (
        task_id,
        ordinal,
        connection.require("admin.effects", f"{verb}/{task_id}/{ordinal}", session),
    )


def _answered(found: tuple[Effect, int | None]) -> Reply:
    effect, event_id = found
    return Reply({**_effect(effect), "eventId": event_id})


async def _effects_settle(connection: Connection, params: Params) -> Reply:
    if "outcome" not in params:
        raise InvalidParams("outcome is missing.", param="outcome")
    outcome = params.choice("outcome", OUTCOMES)
    result = orjson.dumps(params.values["result"]) if "result" in params else None
    task_id, ordinal, decision = await _about_effect(connection, params, "settle")
    return _answered(
        await connection.engine.settlement.settle(
            task_id, ordinal, outcome, result=result, by=connection.client_id, decision=decision
        )
    )


async def _effects_redo(connection: Connection, params: Params) -> Reply:
    task_id, ordinal, decision = await _about_effect(connection, params, "redo")
    return _answered(
        await connection.engine.settlement.settle(
            task_id, ordinal, "redo", by=connection.client_id, decision=decision
        )
    )


async def _effects_probe(connection: Connection, params: Params) -> Later:
    task_id, ordinal, decision = await _about_effect(connection, params, "probe")

    async def asked() -> Reply:
        return _answered(
            await connection.engine.settlement.ask(
                task_id, ordinal, by=connection.client_id, decision=decision
            )
        )

    return Later(asked())


# -- the daemon --------------------------------------------------------------------------------


async def _status(connection: Connection, _params: Params) -> Reply:
    return Reply(await connection.services.status())


async def _watch(connection: Connection, params: Params) -> Reply:
    fields = params.texts("fields") if "fields" in params else list(FIELDS)
    if not set(fields) <= set(FIELDS):
        raise InvalidParams(f"fields are of {', '.join(FIELDS)}.", param="fields")
    interval_ms = params.number(
        "minIntervalMs", limits.WATCH_MS_MIN, limits.WATCH_MS_MAX, limits.WATCH_MS
    )
    wanted = tuple(dict.fromkeys(fields))
    return Reply({}, then=lambda: connection.watch(wanted, interval_ms or limits.WATCH_MS))


async def _admin_skill(connection: Connection, params: Params) -> Reply:
    verb = params.choice("verb", ("list",))
    connection.require("admin.skill", verb)
    return Reply({"skills": connection.services.skills()})


async def _admin_fork(connection: Connection, params: Params) -> Reply:
    run_id, at = params.text("runId"), params.number("at", 1, limits.FIGURE_MAX)
    if at is None:
        raise InvalidParams("at is missing: the id of an event.", param="at")
    decision = connection.require("admin.fork", run_id)
    forked = await connection.engine.fork(
        run_id, at, key=params.text_or_none("idempotencyKey", chars_max=limits.KEY_CHARS_MAX),
        client=connection.client_id, decision=decision,
    )  # fmt: skip
    connection.services.on_session(forked.sid)
    return Reply(
        {
            "sessionId": forked.session_id,
            "runId": forked.run_id,
            "taskId": forked.task_id,
            "eventId": forked.event_id,
            "stubbed": forked.stubbed,
            "duplicate": forked.duplicate,
            "parentSessionId": forked.parent_session_id,
            "parentRunId": forked.parent_run_id,
            "parentEventId": forked.parent_event_id,
        }
    )


async def _admin_replay(connection: Connection, params: Params) -> Later:
    run_id = params.text("runId")
    connection.require("admin.replay", run_id)

    async def replayed() -> Reply:
        return Reply(await connection.services.replay(run_id))

    return Later(replayed())


async def _admin_timeline(connection: Connection, params: Params) -> Later:
    run_id = params.text("runId")
    connection.require("admin.timeline", run_id)

    async def told() -> Reply:
        return Reply(await connection.services.timeline(run_id))

    return Later(told())


async def _admin_shutdown(connection: Connection, _params: Params) -> Reply:
    decision = connection.require("admin.shutdown", "daemon")
    await connection.engine.audit(decision)
    return Reply({}, then=connection.services.request_stop)


METHODS: Final[dict[str, Handler]] = {
    "_goclaw/session/subscribe": _subscribe,
    "_goclaw/session/unsubscribe": _unsubscribe,
    "_goclaw/session/events": _events,
    "_goclaw/run/get": _run_get,
    "_goclaw/run/cancel": _run_cancel,
    "_goclaw/run/signal": _run_signal,
    "_goclaw/approvals/list": _approvals_list,
    "_goclaw/approvals/resolve": _approvals_resolve,
    "_goclaw/task/submit": _task_submit,
    "_goclaw/task/get": _task_get,
    "_goclaw/task/list": _task_list,
    "_goclaw/task/cancel": _task_cancel,
    "_goclaw/effects/list": _effects_list,
    "_goclaw/effects/probe": _effects_probe,
    "_goclaw/effects/settle": _effects_settle,
    "_goclaw/effects/redo": _effects_redo,
    "_goclaw/system/status": _status,
    "_goclaw/system/watch": _watch,
    "_goclaw/admin/skill": _admin_skill,
    "_goclaw/admin/fork": _admin_fork,
    "_goclaw/admin/replay": _admin_replay,
    "_goclaw/admin/timeline": _admin_timeline,
    "_goclaw/admin/shutdown": _admin_shutdown,
}
