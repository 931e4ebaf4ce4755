"""The methods of external workers: claim, heartbeat, effect, emit, complete, fail, release.

Owns their params and the shapes of their answers (PROTOCOL 2.8). Not in here: what each means for
its task (``engine.external``), who waits for which pool (``engine.pools``).

A word is on its way to the disk before its handler returns, and its answer comes when it is there:
so the words of a connection keep their order, and many of them share a flush.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.errors import (
    BudgetExhausted,
    EffectUnknown,
    InvalidParams,
    LeaseLost,
    RateLimited,
    UnknownId,
)
from goclaw.core.states import EffectClass
from goclaw.engine.external import Intent
from goclaw.gateway.connection import Connection, Handler, Later, Reply, Wait
from goclaw.gateway.params import Params
from goclaw.gateway.scopes import attempt_token
from goclaw.protocol.updates import check_update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from goclaw.engine.external import Held, Intended
    from goclaw.engine.pools import Lease

__all__ = ["METHODS"]

_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_PHASES: Final = ("intent", "result")

# -- claims ------------------------------------------------------------------------------------


async def _claim(connection: Connection, params: Params) -> Later:
    pools = connection.engine.pools
    pool = params.text("pool")
    worker = params.text_or_none("workerId") or connection.client_id
    most = params.number("max", 1, limits.CLAIM_MAX, 1) or 1
    wait_ms = params.number("waitMs", 0, limits.FIGURE_MAX, 0) or 0
    decision = connection.require("worker.claim", pool, worker=worker)
    if connection.waits >= limits.CLAIMS_WAITING_MAX:
        raise RateLimited(
            f"{limits.CLAIMS_WAITING_MAX} claims of this connection wait for work already.",
            hint="Wait for one of them.",
            retryAfterMs=limits.BACKOFF_MS_MIN,
        )
    claiming = asyncio.ensure_future(
        pools.claim(
            pool,
            most=most,
            wait_ms=min(wait_ms, limits.CLAIM_WAIT_MS_MAX),
            owner=worker,
            decision=decision,
        )
    )
    wait = Wait(claiming, lambda leases: pools.give_back(lease.token for lease in leases))
    connection.open_wait(wait)
    return Later(_claimed(connection, wait))


async def _claimed(connection: Connection, wait: Wait) -> Reply:
    leases: Sequence[Lease] = await wait.result()
    lease_ms = connection.services.config.queue.lease_ms
    tasks = [
        {
            "taskId": lease.task_id,
            "runId": lease.run_id,
            "sessionId": lease.session_id,
            "attempt": lease.attempt,
            "eventId": lease.event_id,
            "maxAttempts": lease.max_attempts,
            "leaseToken": lease.token.hex(),
            "attemptToken": attempt_token(
                connection.services.token.value, lease.task_id, lease.token
            ),
            "leaseMs": lease_ms,
            "payload": orjson.Fragment(lease.payload),
            "idempotencyKey": lease.key,
            "traceparent": lease.trace,
            "effects": [_finished(effect) for effect in lease.effects],
        }
        for lease in leases
    ]
    unwritten = (lambda: wait.unheard(leases)) if leases else None
    return Reply({"tasks": tasks}, unwritten=unwritten)


def _finished(effect: Intended) -> dict[str, Any]:
    """A finished effect of an earlier attempt."""
    return {
        "ordinal": effect.ordinal,
        "kind": effect.kind,
        "name": effect.name,
        "requestHash": effect.digest.hex(),
        "idempotencyKey": _own_key(effect),
        **_outcome(effect),
    }


def _own_key(effect: Intended) -> str:
    """The key as the worker knows it: one of its own has its tool as scope only in here."""
    return effect.key.removeprefix(f"{effect.name}:")


def _outcome(effect: Intended) -> dict[str, Any]:
    body = orjson.Fragment(effect.result or b"null")
    return {"result": None, "error": body} if effect.failed else {"result": body}


# -- leases ------------------------------------------------------------------------------------


async def _held(connection: Connection, params: Params) -> Held:
    """The task and the token that the params show; a text that is no token is a wrong one.

    On the connection of an attempt they may be left out.
    """
    own = connection.attempt
    text = params.text if own is None else params.text_or_none
    task_id, token = text("taskId"), text("leaseToken")
    shown = None
    if token is not None:
        shown = bytes.fromhex(token) if _TOKEN.fullmatch(token) else b""
    if own is not None:
        task_id, shown = own.show(task_id, shown)
    return await connection.engine.external.held(task_id or "", shown or b"")


async def _heartbeat(connection: Connection, params: Params) -> Later:
    external = connection.engine.external
    if "leases" not in params:
        return Later(_prolonged(external.heartbeat(await _held(connection, params))))
    leases = params.objects("leases")
    if len(leases) > limits.LEASES_MAX:
        raise InvalidParams(f"leases may have {limits.LEASES_MAX} entries.", param="leases")
    beats: list[asyncio.Future[int] | None] = []
    shown = [Params(lease) for lease in leases]
    for lease in shown:
        try:
            beats.append(external.heartbeat(await _held(connection, lease)))
        except (UnknownId, LeaseLost):
            beats.append(None)
    return Later(_prolonged_all([lease.text_or_none("taskId") or "" for lease in shown], beats))


async def _prolonged(beat: asyncio.Future[int]) -> Reply:
    return Reply({"leaseMs": await beat})


async def _prolonged_all(
    task_ids: Sequence[str], beats: Sequence[asyncio.Future[int] | None]
) -> Reply:
    leases: list[dict[str, Any]] = []
    for task_id, beat in zip(task_ids, beats, strict=True):
        try:
            lease_ms = 0 if beat is None else await beat
        except (LeaseLost, EffectUnknown):
            lease_ms = 0
        leases.append({"taskId": task_id, "ok": lease_ms > 0, "leaseMs": lease_ms})
    return Reply({"leases": leases})


# -- effects and updates -----------------------------------------------------------------------


def _digest(text: str) -> bytes:
    """A SHA-256 in hexadecimal as it is; a worker's own kind of hash by its digest."""
    return (
        bytes.fromhex(text) if _DIGEST.fullmatch(text) else hashlib.sha256(text.encode()).digest()
    )


def _class(held: Held, params: Params) -> EffectClass:
    """The class that the worker declares, else that of the submission."""
    classes = (held.effect_class, *(one for one in EffectClass if one is not held.effect_class))
    return EffectClass(params.choice("class", tuple(str(one) for one in classes)))


def _effect(held: Held, params: Params, ordinal: int) -> Intent:
    return Intent(
        ordinal,
        params.text("kind"),
        params.text("name"),
        _digest(params.text("requestHash")),
        _class(held, params),
        params.text_or_none("idempotencyKey", chars_max=limits.KEY_CHARS_MAX),
    )


async def _effect_phase(connection: Connection, params: Params) -> Later:
    external = connection.engine.external
    phase = params.text("phase")
    ordinal = params.number("ordinal", 0, limits.FIGURE_MAX)
    if phase not in _PHASES or ordinal is None:
        raise InvalidParams("An effect has an ordinal and a phase: intent or result.")
    held = await _held(connection, params)
    if ordinal >= limits.EFFECTS_MAX:
        raise BudgetExhausted(
            f"A task may have {limits.EFFECTS_MAX} effects.", budget="effects", taskId=held.task_id
        )
    if phase == "intent":
        return Later(_intended(external.intend(held, _effect(held, params, ordinal))))
    error = params.values.get("error")
    failed = error is not None
    retryable = isinstance(error, dict) and error.get("retryable") is True
    pure = "requestHash" in params and _class(held, params) is EffectClass.PURE
    done = external.result(
        held,
        ordinal,
        error if failed else params.values.get("result"),
        failed=failed,
        retryable=retryable,
        pure=_effect(held, params, ordinal) if pure and not retryable else None,
    )
    return Later(_nothing(done))


async def _intended(intending: asyncio.Future[Intended]) -> Reply:
    effect = await intending
    key = {"idempotencyKey": _own_key(effect)}
    if effect.result is None:
        return Reply({"go": True, **key})
    answer = {"go": False, **_outcome(effect), **key}
    return Reply({**answer, "deduplicated": True} if effect.deduplicated else answer)


async def _nothing(done: asyncio.Future[None]) -> Reply:
    await done
    return Reply({})


async def _emit(connection: Connection, params: Params) -> Later:
    update = params.object("update")
    check_update(update)
    held = await _held(connection, params)
    return Later(_emitted(connection.engine.external.emit(held, update)))


async def _emitted(emitting: asyncio.Future[tuple[int, int]]) -> Reply:
    event_id, waiting = await emitting
    return Reply({"eventId": event_id, **({"heldBytes": waiting} if waiting else {})})


# -- last words --------------------------------------------------------------------------------


async def _complete(connection: Connection, params: Params) -> Later:
    held = await _held(connection, params)
    completing = connection.engine.external.complete(held, params.values.get("result"))
    return Later(_completed(completing))


async def _completed(completing: asyncio.Future[tuple[str, int]]) -> Reply:
    state, event_id = await completing
    return Reply({"state": state, "eventId": event_id})


async def _fail(connection: Connection, params: Params) -> Later:
    message = params.values.get("message", "")
    if "retryable" not in params or not isinstance(message, str):
        raise InvalidParams("A failure has a message and says whether it is retryable.")
    held = await _held(connection, params)
    failing = connection.engine.external.fail(
        held,
        code=params.text("code"),
        message=message,
        retryable=params.flag("retryable", False),
        retry_after_ms=params.number("retryAfterMs", 0, limits.FIGURE_MAX),
        fingerprint=params.text_or_none("fingerprint"),
    )
    return Later(_failed(failing))


async def _failed(failing: asyncio.Future[tuple[str, int, int | None]]) -> Reply:
    state, event_id, wait_ms = await failing
    answer = {"state": state, "eventId": event_id}
    return Reply(answer if wait_ms is None else {**answer, "availableInMs": wait_ms})


async def _release(connection: Connection, params: Params) -> Later:
    held = await _held(connection, params)
    return Later(_completed(connection.engine.external.release(held)))


METHODS: Final[dict[str, Handler]] = {
    "_goclaw/worker/claim": _claim,
    "_goclaw/worker/heartbeat": _heartbeat,
    "_goclaw/worker/effect": _effect_phase,
    "_goclaw/worker/emit": _emit,
    "_goclaw/worker/complete": _complete,
    "_goclaw/worker/fail": _fail,
    "_goclaw/worker/release": _release,
}
