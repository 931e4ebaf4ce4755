"""The methods of operators: why a task waits, dead letters, backups, the token of the home.

Owns their params and the shapes of their answers (PROTOCOL 2.8). Not in here: what a redrive or a
drop does (``engine.dead_letters``), the reasons (``engine.why``), what a backup is (``ops``).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import InvalidParams
from goclaw.engine.dead_letters import Verb
from goclaw.gateway.connection import Connection, Handler, Later, Reply
from goclaw.gateway.work import task_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from goclaw.core.decisions import Decision
    from goclaw.core.records import Moved
    from goclaw.engine.why import Because
    from goclaw.gateway.params import Params

__all__ = ["METHODS"]


async def _why(connection: Connection, params: Params) -> Reply:
    state, because = await connection.engine.why.explain(params.text("taskId"))
    return Reply({"state": state, "because": [_because(one) for one in because]})


def _because(one: Because) -> dict[str, Any]:
    found = {"code": one.code, "text": one.text}
    if one.until_ms is not None:
        found["until"] = rfc3339(one.until_ms)
    if one.command is not None:
        found["command"] = one.command
    return found


async def _move(verb: Verb, connection: Connection, params: Params) -> Later:
    task_id, fingerprint = params.text_or_none("taskId"), _fingerprint(params)
    if (task_id is None) == (fingerprint is None):
        raise InvalidParams("Give a taskId or a fingerprint.", param="taskId")
    after, most = params.cursor("after") or 0, params.page()
    dry_run = params.flag("dryRun", False)
    decide: Callable[[str], Decision] = functools.partial(connection.require, f"admin.{verb}")

    async def moved() -> Reply:
        letters = connection.engine.dead_letters
        if task_id is not None:
            return _moved(await letters.move(verb, task_id, decide=decide, dry_run=dry_run))
        assert fingerprint is not None
        return _moved(
            await letters.move_all(
                verb, fingerprint, decide=decide, after=after, limit=most, dry_run=dry_run
            )
        )

    return Later(moved())


def _moved(moved: Moved) -> Reply:
    result: dict[str, Any] = {
        "tasks": list(moved.tasks),
        "skipped": [
            {"taskId": task_id, "code": error.code, "message": str(error)}
            for task_id, error in moved.skipped
        ],
    }
    if moved.event_id is not None:
        result["eventId"] = moved.event_id
    if moved.following is not None:
        result["next"] = str(moved.following)
    return Reply(result)


async def _admin_dlq(connection: Connection, params: Params) -> Reply:
    verb = params.choice("verb", ("list",))
    connection.require("admin.dlq", verb)
    most = params.page()
    found = await connection.engine.dead_letters.listed(
        fingerprint=_fingerprint(params), before=params.cursor("after"), limit=most + 1
    )
    result: dict[str, Any] = {"tasks": [task_object(connection, row) for row in found[:most]]}
    if len(found) > most:
        result["next"] = str(found[most - 1]["tid"])
    return Reply(result)


async def _admin_token(connection: Connection, params: Params) -> Reply:
    verb = params.choice("verb", ("rotate",))
    decision = connection.require("admin.token", verb)
    await connection.engine.audit(decision)
    await connection.services.token.rotate()
    return Reply({})


def _fingerprint(params: Params) -> str | None:
    return params.text_or_none("fingerprint", chars_max=limits.MESSAGE_CHARS_MAX)


async def _admin_backup(connection: Connection, params: Params) -> Later:
    verb = params.choice("verb", ("create",))
    decision = connection.require("admin.backup", verb)
    await connection.engine.audit(decision)

    async def made() -> Reply:
        return Reply(await connection.services.backup())

    return Later(made())


METHODS: Final[dict[str, Handler]] = {
    "_goclaw/task/why": _why,
    "_goclaw/task/redrive": functools.partial(_move, Verb.REDRIVE),
    "_goclaw/task/drop": functools.partial(_move, Verb.DROP),
    "_goclaw/admin/dlq": _admin_dlq,
    "_goclaw/admin/backup": _admin_backup,
    "_goclaw/admin/token": _admin_token,
}
