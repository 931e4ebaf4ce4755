"""The methods of ACP v1: handshake, sessions, prompts, cancel.

Owns their params, their answers and the order of what each makes a client see. Not in here: the
extension (``work``), when a message may come (``protocol.session``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import (
    ConfigRefused,
    GoclawError,
    InternalError,
    InvalidParams,
    SessionUnknown,
)
from goclaw.core.states import Outcome
from goclaw.engine.intake import SYSTEM_SESSION
from goclaw.gateway.connection import Connection, Handler, Later, Reply
from goclaw.gateway.history import History
from goclaw.gateway.scopes import ATTEMPT_METHODS
from goclaw.protocol.session import EXTENSION_VERSION, PROTOCOL_VERSION, place

if TYPE_CHECKING:
    from goclaw.core.records import Accepted, RunEnd, Session
    from goclaw.gateway.params import Params

__all__ = ["METHODS", "NOTIFICATIONS", "attached", "own_session", "session_block"]

_TURN_ENDS: Final = frozenset(str(outcome) for outcome in Outcome)
_WITHOUT_MCP: Final = (
    "goclaw cannot start MCP servers yet; the session goes on without their tools."
)
_BLOCKS: Final = {"text": ("text",), "resource_link": ("uri", "name"), "resource": ("resource",)}

# -- the handshake -----------------------------------------------------------------------------


async def _initialize(connection: Connection, params: Params) -> Reply:
    client = connection.handshake.initialize(params.values)
    if client.attempt_token is not None:
        try:
            await connection.narrow(client.attempt_token)
        except GoclawError:
            connection.handshake.refuse()
            raise
    connection.initialized()
    services = connection.services
    queue = services.config.queue
    extension: dict[str, Any] = {
        "version": EXTENSION_VERSION,
        "daemonId": services.daemon_id,
        "bootId": services.boot_id,
        "replay": True,
        "attach": True,
        "queue": {"limit": queue.session_limit},
        "idempotency": {"windowSeconds": queue.idempotency_window_s},
        "limits": {
            "frameBytes": limits.FRAME_BYTES_MAX,
            "lagEvents": limits.LAG_EVENTS_MAX,
            "lagBytes": limits.LAG_BYTES_MAX,
            "answerBytes": limits.ANSWER_BYTES_MAX,
            "stallSeconds": limits.STALL_MS_MAX // 1000,
        },
        "worker": {
            "claimMax": limits.CLAIM_MAX,
            "waitMsMax": limits.CLAIM_WAIT_MS_MAX,
            "leaseMs": queue.lease_ms,
            "attemptToken": "clientCapabilities._meta.goclaw.attemptToken",
        },
    }
    if connection.attempt is not None:
        extension["attempt"] = {
            "taskId": connection.attempt.task_id,
            "attempt": connection.attempt.attempt,
            "methods": sorted(ATTEMPT_METHODS),
        }
    return Reply(
        {
            "protocolVersion": PROTOCOL_VERSION,
            "agentCapabilities": {
                "loadSession": True,
                "promptCapabilities": {"image": False, "audio": False, "embeddedContext": True},
                "sessionCapabilities": {"list": {}, "resume": {}, "close": {}, "delete": {}},
                "_meta": {"goclaw": extension},
            },
            "agentInfo": {"name": "goclaw", "title": "goclaw", "version": services.version},
            "authMethods": [],
        },
        then=connection.tell_storage if connection.engine.database.trouble else None,
    )


# -- sessions ----------------------------------------------------------------------------------


async def own_session(connection: Connection, params: Params) -> Session:
    """The session that ``sessionId`` names, which is one of a client; SessionUnknown."""
    session_id = params.text("sessionId")
    if session_id == SYSTEM_SESSION:
        raise SessionUnknown(
            "Session not found.",
            hint=f"{SYSTEM_SESSION} is the daemon's own: read its events, prompt in another.",
            sessionId=session_id,
        )
    return await connection.engine.intake.session(session_id)


async def session_block(connection: Connection, session: Session, params: Params) -> dict[str, Any]:
    """What PROTOCOL 2.2 says of a session: ``_meta.goclaw`` of new, load and resume."""
    active, queued = await connection.engine.active_turn(session)
    skipped = [
        {"name": str(server.get("name", ""))[: limits.ID_CHARS_MAX], "reason": "not supported yet"}
        for server in params.objects("mcpServers")
    ]
    block = {
        "streamId": session.stream_id,
        "headEventId": session.head,
        "oldestEventId": session.oldest,
        "activeTurn": active,
        "queued": queued,
        "mcpSkipped": skipped,
    }
    return block if session.parent_id is None else {**block, "parentSessionId": session.parent_id}


def _send_commands(connection: Connection, session: Session) -> None:
    update = {
        "sessionUpdate": "available_commands_update",
        "availableCommands": connection.services.commands(session),
    }
    connection.notify("session/update", {"sessionId": session.session_id, "update": update})


def _tell_skipped(connection: Connection, session: Session, block: dict[str, Any]) -> None:
    """Name to the user the MCP servers that the session goes on without (PROTOCOL 1.7)."""
    names = [" ".join(one["name"].split()) or "(no name)" for one in block["mcpSkipped"]]
    if not names:
        return
    more = len(names) - limits.NAMES_SHOWN_MAX
    listed = ", ".join(names[: limits.NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
    title = f"MCP servers that are not started: {listed}."
    update: dict[str, Any] = {
        "sessionUpdate": "notice", "severity": "warning", "title": title,
        "description": _WITHOUT_MCP,
    }  # fmt: skip
    client = connection.handshake.client
    if client is None or not client.notices:
        update = {
            "sessionUpdate": "agent_thought_chunk",
            "messageId": connection.engine.clock.new_id("message"),
            "content": {"type": "text", "text": f"{title} {_WITHOUT_MCP}"},
        }
    connection.notify("session/update", {"sessionId": session.session_id, "update": update})


def _roots(params: Params) -> tuple[str, list[str]]:
    cwd = params.path("cwd")
    others = params.paths("additionalDirectories")
    return cwd, [cwd, *(path for path in dict.fromkeys(others) if path != cwd)]


def _brain(connection: Connection, extension: Params) -> str:
    """The brain that a new session wants."""
    name = extension.text_or_none("brain", chars_max=limits.PATH_CHARS_MAX)
    if name is None:
        return connection.services.config.brain.default
    try:
        connection.services.check_brain(name)
    except ConfigRefused as error:
        raise InvalidParams(error.message, hint=error.hint, param="brain") from None
    return name


async def _new(connection: Connection, params: Params) -> Reply:
    cwd, roots = _roots(params)
    params.objects("mcpServers")
    connection.check_room()
    extension = params.extension
    session = await connection.engine.intake.create_session(
        cwd=cwd,
        roots=roots,
        brain=_brain(connection, extension),
        interactive=extension.flag("interactive", True),
        key=extension.text_or_none("idempotencyKey", chars_max=limits.KEY_CHARS_MAX),
    )
    block = await session_block(connection, session, params)

    def then() -> None:
        connection.attach(session, session.head)
        _send_commands(connection, session)
        _tell_skipped(connection, session, block)
        connection.ask_undecided(session, session.head)

    return Reply({"sessionId": session.session_id, "_meta": {"goclaw": block}}, then=then)


async def _reopen(connection: Connection, params: Params) -> Session:
    """The session of load and resume, with the roots that the client gives now."""
    session = await own_session(connection, params)
    connection.check_room(session)
    changes: dict[str, Any] = {}
    if "cwd" in params:
        cwd, roots = _roots(params)
        if (cwd, roots) != (session.cwd, list(session.roots)):
            changes |= {"cwd": cwd, "roots": roots}
    if session.closed:
        changes["closed_at"] = 0
    if changes:
        intake = connection.engine.intake
        await intake.change_session(session, **changes)
        connection.engine.forget_session(session.sid)
        session = await intake.session(session.session_id)
    return session


async def _load(connection: Connection, params: Params) -> Reply:
    session = await _reopen(connection, params)
    block = await session_block(connection, session, params)
    # From here to ``then`` nothing waits, so nothing can come between: the past up to the head
    # that was read, the answer, and behind it a cursor at that head instead of any older one.
    connection.outbox.send_source(
        History(connection.engine, session, session.head, connection.frame)
    )
    _send_commands(connection, session)

    def then() -> None:
        connection.attach(session, session.head)
        _tell_skipped(connection, session, block)
        connection.ask_undecided(session, session.head)

    return Reply({"_meta": {"goclaw": block}}, then=then)


async def _resume(connection: Connection, params: Params) -> Reply:
    session = await _reopen(connection, params)
    extension = params.extension
    position = place(
        session,
        extension.number("fromEventId", 0, limits.FIGURE_MAX),
        extension.text_or_none("streamId"),
    )
    block = await session_block(connection, session, params)
    _send_commands(connection, session)
    return attached(connection, session, position, {"_meta": {"goclaw": block}}, block=block)


def attached(
    connection: Connection,
    session: Session,
    position: int,
    result: dict[str, Any],
    *,
    controller: bool = True,
    latest: bool = False,
    block: dict[str, Any] | None = None,
) -> Reply:
    """An answer, and behind it what the session did after ``position``.

    ``block``: of a request that gave MCP servers, which are named behind the answer.
    """

    def then() -> None:
        connection.attach(session, position, controller=controller, latest=latest)
        if block is not None:
            _tell_skipped(connection, session, block)
        if controller:
            connection.ask_undecided(session, session.head)

    return Reply(result, then=then)


async def _list(connection: Connection, params: Params) -> Reply:
    cwd = params.path("cwd") if "cwd" in params else None
    sessions, following = await connection.engine.intake.sessions(
        cwd=cwd, cursor=params.text_or_none("cursor"), limit=limits.SESSIONS_PAGE_MAX
    )
    listed = []
    for session in sessions:
        info: dict[str, Any] = {
            "sessionId": session.session_id,
            "cwd": session.cwd,
            "updatedAt": rfc3339(session.updated_at),
            "_meta": {"goclaw": {"closed": session.closed, "headEventId": session.head}},
        }
        if session.parent_id is not None:
            info["_meta"]["goclaw"]["parentSessionId"] = session.parent_id
        listed.append(info if session.title is None else {**info, "title": session.title})
    result: dict[str, Any] = {"sessions": listed}
    if following is not None:
        result["nextCursor"] = following
    return Reply(result)


async def _close(connection: Connection, params: Params) -> Reply:
    session = await own_session(connection, params)
    engine = connection.engine
    await connection.roster.submitted(session.sid)
    receipts = await engine.cancel_session(session, client=None, reason="session/close")
    await engine.intake.change_session(session, closed_at=engine.clock.wall_ms())
    last = max((receipt.event_id or 0 for receipt in receipts), default=0)
    return Reply(
        {}, after=(session.sid, last), then=lambda: connection.outbox.unsubscribe(session.sid)
    )


async def _delete(connection: Connection, params: Params) -> Reply:
    try:
        session = await own_session(connection, params)
    except SessionUnknown:
        return Reply({})  # as the standard wants it: gone is gone
    engine = connection.engine
    await engine.intake.change_session(session, deleted_at=engine.clock.wall_ms())
    await connection.roster.submitted(session.sid)
    await engine.cancel_session(session, client=None, reason="session/delete")
    engine.forget_session(session.sid)
    return Reply({}, then=lambda: connection.roster.session_gone(session.sid))


# -- prompts -----------------------------------------------------------------------------------


def _prompt_blocks(params: Params) -> list[dict[str, Any]]:
    blocks = params.objects("prompt")
    if not blocks:
        raise InvalidParams("prompt must hold at least one block.", param="prompt")
    for block in blocks:
        kind = block.get("type")
        needed = _BLOCKS.get(kind) if isinstance(kind, str) else None
        if needed is None:
            raise InvalidParams(f"A prompt block is one of {', '.join(_BLOCKS)}.", param="prompt")
        for name in needed:
            wanted = dict if name == "resource" else str
            if not isinstance(block.get(name), wanted):
                raise InvalidParams(f"A {kind} block needs {name}.", param="prompt")
    return blocks


async def _prompt(connection: Connection, params: Params) -> Reply | Later:
    session = await own_session(connection, params)
    blocks = _prompt_blocks(params)
    connection.check_room(session)
    key = params.extension.text_or_none("idempotencyKey", chars_max=limits.KEY_CHARS_MAX)
    decision = connection.require("run.submit", session.session_id, session)
    if connection.withdrawn:
        return Reply({"stopReason": str(Outcome.CANCELLED)})
    if session.closed:
        await connection.engine.intake.change_session(session, closed_at=0)
    connection.attach_live(session)
    submission = asyncio.ensure_future(
        connection.engine.intake.submit_prompt(
            session, blocks, key=key or connection.request_key, made=key is None,
            client=connection.client_id, origin=str(connection.origin), trace=params.trace,
            decision=decision,
        )
    )  # fmt: skip
    connection.roster.submitting(session.sid, submission)
    connection.open_turn(session.sid, submission)
    return Later(_turn(connection, session, submission))


async def _turn(
    connection: Connection, session: Session, submission: asyncio.Future[Accepted]
) -> Reply:
    accepted = await asyncio.shield(submission)
    end = await connection.engine.run_ended(accepted.run_id)
    return Reply(_turn_result(end, accepted), after=(session.sid, end.event_id))


def _turn_result(end: RunEnd, accepted: Accepted) -> dict[str, Any] | GoclawError:
    if end.state == "SUCCEEDED":
        reason = end.stop_reason or str(Outcome.END_TURN)
    elif end.state == "CANCELED":
        reason = str(Outcome.CANCELLED)
    elif end.code in _TURN_ENDS:
        reason = str(end.code)
    else:
        text = end.message or "it gave no reason"
        return InternalError(
            f"The turn failed: {text}", code=end.code or end.state.lower(), state=end.state,
            runId=end.run_id, eventId=end.event_id,
        )  # fmt: skip
    extension: dict[str, Any] = {"runId": end.run_id, "eventId": end.event_id}
    if accepted.duplicate:
        extension["duplicate"] = True
    if accepted.expired:
        extension["resultExpired"] = True
    return {"stopReason": reason, "_meta": {"goclaw": extension}}


async def _cancel(connection: Connection, params: Params) -> Reply:
    session = await own_session(connection, params)
    await connection.roster.submitted(session.sid)
    await connection.engine.cancel_session(session, client=connection.client_id)
    return Reply({})


METHODS: Final[dict[str, Handler]] = {
    "initialize": _initialize,
    "session/new": _new,
    "session/load": _load,
    "session/resume": _resume,
    "session/list": _list,
    "session/close": _close,
    "session/delete": _delete,
    "session/prompt": _prompt,
}

NOTIFICATIONS: Final[dict[str, Handler]] = {"session/cancel": _cancel}
