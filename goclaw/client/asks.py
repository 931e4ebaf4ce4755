"""Every request of the clients once, as data: the async and the blocking face both carry it out.

Owns method names, params and which record an answer becomes. Not in here: sending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from goclaw.client.link import goclaw_meta
from goclaw.client.records import (
    Approval,
    EffectInfo,
    EventPage,
    Explained,
    Moved,
    Receipt,
    SessionInfo,
    Status,
    TaskInfo,
)
from goclaw.core.errors import IdempotencyConflict
from goclaw.protocol.messages import RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from goclaw.core.errors import GoclawError

__all__ = [
    "Ask",
    "approvals",
    "cancel",
    "dead_letters",
    "effects",
    "events",
    "exception",
    "greeting",
    "move_task",
    "move_tasks",
    "new_session",
    "probe_effect",
    "prompt",
    "redo_effect",
    "resolve",
    "resume",
    "settle_effect",
    "shown_error",
    "status",
    "subscribe",
    "task",
    "tasks",
    "why",
]

T = TypeVar("T")


class Ask(Generic[T]):
    """A request and how to read its result."""

    __slots__ = ("method", "params", "read")

    def __init__(self, method: str, params: dict[str, Any], read: Callable[[Any], T]) -> None:
        self.method, self.params, self.read = method, _given(params), read


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _extension(**members: Any) -> dict[str, Any] | None:
    given = _given(members)
    return {"goclaw": given} if given else None


def greeting(client_id: str, version: str) -> dict[str, Any]:
    """The params of initialize for a client that has opted in (PROTOCOL 2.1)."""
    extension = {"version": 1, "notifications": True, "clientId": client_id}
    return {
        "protocolVersion": 1,
        "clientInfo": {"name": "goclaw", "version": version},
        "clientCapabilities": {"_meta": {"goclaw": extension}},
    }


def new_session(
    cwd: str,
    *,
    roots: Sequence[str] = (),
    key: str | None = None,
    brain: str | None = None,
    interactive: bool | None = None,
) -> Ask[SessionInfo]:
    """A session in an absolute directory; interactive: a person is there to be asked."""
    params = {
        "cwd": cwd,
        "mcpServers": [],
        "additionalDirectories": list(roots) or None,
        "_meta": _extension(idempotencyKey=key, brain=brain, interactive=interactive),
    }
    return Ask("session/new", params, SessionInfo.read)


def resume(session: str, cwd: str) -> Ask[SessionInfo]:
    """Take up a session; its open questions are asked again."""
    params = {"sessionId": session, "cwd": cwd, "mcpServers": []}
    return Ask("session/resume", params, lambda result: SessionInfo.read(result, session))


def prompt(session: str, blocks: list[dict[str, Any]], key: str | None) -> Ask[dict[str, Any]]:
    """A turn; the answer comes when it has ended."""
    params = {
        "sessionId": session, "prompt": blocks, "_meta": _extension(idempotencyKey=key)
    }  # fmt: skip
    return Ask("session/prompt", params, dict)


def subscribe(session: str, from_event: int | None, latest: bool = False) -> Ask[SessionInfo]:
    """Follow a session after ``from_event``; None: what happens from now on. ``latest``: of a
    backlog the newest event of each kind only."""
    params = {"sessionId": session, "fromEventId": from_event, "role": "observer"}
    if latest:
        params["mode"] = "latest"
    return Ask(
        "_goclaw/session/subscribe", params, lambda result: SessionInfo.read(result, session)
    )


def events(session: str, from_event: int, limit: int) -> Ask[EventPage]:
    """A page of events after ``from_event``."""
    params = {"sessionId": session, "fromEventId": from_event, "limit": limit}
    return Ask("_goclaw/session/events", params, EventPage.read)


def tasks(
    *,
    session: str | None = None,
    states: Sequence[str] = (),
    after: str | None = None,
    limit: int | None = None,
) -> Ask[tuple[list[TaskInfo], str | None]]:
    """A page of tasks and the cursor of the next one."""
    params = {
        "sessionId": session, "states": list(states) or None, "after": after, "limit": limit
    }  # fmt: skip
    return Ask("_goclaw/task/list", params, _task_page)


def _task_page(result: dict[str, Any]) -> tuple[list[TaskInfo], str | None]:
    return [TaskInfo.read(value) for value in result["tasks"]], result.get("next")


def task(task_id: str) -> Ask[TaskInfo]:
    """One task."""
    return Ask("_goclaw/task/get", {"taskId": task_id}, TaskInfo.read)


def cancel(some_id: str) -> Ask[Receipt]:
    """Cancel a task or a run, by its id."""
    if some_id.startswith("run_"):
        return Ask("_goclaw/run/cancel", {"runId": some_id}, Receipt.read)
    return Ask("_goclaw/task/cancel", {"taskId": some_id}, Receipt.read)


def why(task_id: str) -> Ask[Explained]:
    """Why a task waits, and what moves it."""
    return Ask("_goclaw/task/why", {"taskId": task_id}, Explained.read)


def dead_letters(
    fingerprint: str | None = None, after: str | None = None
) -> Ask[tuple[list[TaskInfo], str | None]]:
    """A page of dead letters, newest first, and the cursor of the next one."""
    params = {"verb": "list", "fingerprint": fingerprint, "after": after}
    return Ask("_goclaw/admin/dlq", params, _task_page)


def move_task(verb: str, task_id: str, dry_run: bool) -> Ask[Moved]:
    """Redrive or drop one task."""
    return Ask(f"_goclaw/task/{verb}", {"taskId": task_id, "dryRun": dry_run}, Moved.read)


def move_tasks(
    verb: str, fingerprint: str, dry_run: bool, after: str | None
) -> Ask[tuple[Moved, str | None]]:
    """Redrive or drop a page of the dead letters with one fingerprint; the cursor of the next."""
    params = {"fingerprint": fingerprint, "dryRun": dry_run, "after": after}
    return Ask(
        f"_goclaw/task/{verb}", params, lambda result: (Moved.read(result), result.get("next"))
    )


def approvals(session: str | None = None) -> Ask[list[Approval]]:
    """The open questions, oldest first."""
    return Ask(
        "_goclaw/approvals/list",
        {"sessionId": session},
        lambda result: [Approval.read(value) for value in result["approvals"]],
    )


def resolve(approval_id: str, option_id: str) -> Ask[str]:
    """Answer a question; the outcome."""
    params = {"approvalId": approval_id, "optionId": option_id}
    return Ask("_goclaw/approvals/resolve", params, lambda result: str(result["outcome"]))


def effects(task_id: str, after: int | None = None) -> Ask[tuple[list[EffectInfo], int | None]]:
    """A page of a task's effects, and the ordinal after which the next one begins."""
    return Ask("_goclaw/effects/list", {"taskId": task_id, "after": after}, _effect_page)


def _effect_page(result: dict[str, Any]) -> tuple[list[EffectInfo], int | None]:
    return [EffectInfo.read(value) for value in result["effects"]], result.get("next")


def settle_effect(task_id: str, ordinal: int, outcome: str, result: Any = None) -> Ask[EffectInfo]:
    """Say that an unknown effect is done, not_done, or that its task fails over it."""
    params = {"taskId": task_id, "ordinal": ordinal, "outcome": outcome, "result": result}
    return Ask("_goclaw/effects/settle", params, EffectInfo.read)


def redo_effect(task_id: str, ordinal: int) -> Ask[EffectInfo]:
    """Send an unknown effect again."""
    params = {"taskId": task_id, "ordinal": ordinal}
    return Ask("_goclaw/effects/redo", params, EffectInfo.read)


def probe_effect(task_id: str, ordinal: int) -> Ask[EffectInfo]:
    """Ask the tool of an unknown effect whether it happened."""
    params = {"taskId": task_id, "ordinal": ordinal}
    return Ask("_goclaw/effects/probe", params, EffectInfo.read)


def rotate_token() -> Ask[None]:
    """Another token in place of the one in auth.token."""
    return Ask("_goclaw/admin/token", {"verb": "rotate"}, lambda _result: None)


def status() -> Ask[Status]:
    """The state of the daemon."""
    return Ask("_goclaw/system/status", {}, Status.read)


def exception(error: dict[str, Any]) -> GoclawError:
    """The exception for an error that the daemon answered with."""
    return RemoteError(
        error.get("code", 0), str(error.get("message", "")), error.get("data")
    ).exception()


def run_of(message: dict[str, Any]) -> str:
    """The run that the answer to a prompt is about; empty when there is none.

    A conflict of keys names the run that has the key, which is another's.
    """
    error = message.get("error")
    if error and error.get("code") == IdempotencyConflict.rpc:
        return ""
    data = error.get("data") if error else goclaw_meta(message.get("result") or {})
    return str((data or {}).get("runId") or "")


def shown_error(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same as programs are shown it: the reason's name, and the sentence."""
    if error is None:
        return None
    data = error.get("data")
    data = data if isinstance(data, dict) else {}
    code = data.get("code") or data.get("name") or error.get("code")
    return {"code": code, "message": error.get("message", "")}
