"""`goclaw timeline RUN`: every transition, effect, decision and approval of a run, with durations
(O-4).

Owns the fold of the record into entries. Not in here: how they are shown. Nothing here writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import UnknownId
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Read = Callable[..., Awaitable[list[tuple[Any, ...]]]]
    Entry = dict[str, Any]

__all__ = ["timeline"]

_OPENERS: Final = {"effect.intent": "effect", "approval.opened": "approval"}


async def timeline(read: Read, run_id: str) -> dict[str, Any]:
    """The object of `goclaw timeline --json`; UnknownId.

    ``entries`` in the order of their beginnings, each with ``kind`` (transition, effect, approval,
    decision), ``what``, ``sinceMs`` from the beginning of the run and, once it is over,
    ``durationMs``: of a transition that is the time in the state. Decisions are looked for among
    the newest ``limits.TIMELINE_RECORDS_MAX`` records of the audit; ``whole`` is false when that
    did not reach back to the run's beginning.
    """
    task_id = "task_" + run_id.removeprefix("run_")
    found = rows("task_by_id", await read("task_by_id", task_id=task_id))
    if not found:
        raise UnknownId(
            f"There is no run {run_id[:80]}.", hint="`goclaw task list --json` names all.",
            what="run", id=run_id[:80],
        )  # fmt: skip
    task = found[0]
    entries = await _events(read, task["sid"], task_id)
    begun = entries[0]["_at"] if entries else task["created_at"]
    decisions, whole = await _decisions(read, task_id, begun)
    told = sorted(entries + decisions, key=lambda entry: entry["_at"])
    for entry in told:
        at = entry.pop("_at")
        entry.update(at=rfc3339(at), sinceMs=at - begun)
        entry.pop("_key", None)
    return {
        "runId": run_id, "taskId": task_id, "sessionId": task["session_id"],
        "state": task["state"], "whole": whole, "entries": told,
    }  # fmt: skip


async def _events(read: Read, sid: int, task_id: str) -> list[Entry]:
    entries: list[Entry] = []
    open_ones: dict[tuple[str, Any], Entry] = {}
    state: Entry | None = None
    cursor = 0
    while True:
        page = await read("events_after", sid=sid, cursor=cursor, limit=limits.READ_ROWS_MAX)
        for event_id, _kind, type_, at, _run, owner, attempt, _trace, payload in page:
            cursor = event_id
            if owner != task_id or type_ == "update":
                continue
            body = orjson.loads(payload)
            if type_.startswith("task."):
                if state is not None:
                    state["durationMs"] = at - state["_at"]
                state = _entry(at, event_id, attempt, "transition", _step(body))
                entries.append(state)
            elif type_.startswith(("effect.", "approval.")):
                _act(type_, body, _entry(at, event_id, attempt, "", ""), entries, open_ones)
        if len(page) < limits.READ_ROWS_MAX:
            return entries


def _entry(at: int, event_id: int | None, attempt: int | None, kind: str, what: str) -> Entry:
    return {"_at": at, "eventId": event_id, "attempt": attempt, "kind": kind, "what": what}


def _step(body: dict[str, Any]) -> str:
    reason = f" ({body['reason']})" if body.get("reason") else ""
    return f"{body.get('to')}{reason}"


def _act(
    type_: str,
    body: dict[str, Any],
    entry: Entry,
    entries: list[Entry],
    open_ones: dict[tuple[str, Any], Entry],
) -> None:
    """An intent and its result are one entry, and so are a question and its answer."""
    kind = type_.partition(".")[0]
    key = (kind, body.get("approvalId") if kind == "approval" else body.get("ordinal"))
    known = open_ones.get(key)
    if type_ in _OPENERS or known is None:
        entry.update(kind=kind, what=_named(kind, body))
        entries.append(entry)
        open_ones[key] = known = entry
    if type_ not in _OPENERS:
        known["durationMs"] = entry["_at"] - known["_at"]
        known["outcome"] = _outcome(type_, body)


def _named(kind: str, body: dict[str, Any]) -> str:
    if kind == "approval":
        call = (body.get("request") or {}).get("toolCall") or {}
        return str(call.get("title") or body.get("approvalId"))
    sort = f"{body['kind']} " if body.get("kind") else ""
    return f"{body.get('ordinal')} {sort}{body.get('name')} ({body.get('class')})"


def _outcome(type_: str, body: dict[str, Any]) -> str:
    if type_ == "effect.result":
        return "failed" if body.get("failed") else "done"
    return str(body.get("outcome") or type_.partition(".")[2])


async def _decisions(read: Read, task_id: str, begun: int) -> tuple[list[Entry], bool]:
    found: list[Entry] = []
    before, seen = 1 << 62, 0
    while seen < limits.TIMELINE_RECORDS_MAX:
        page = await read("audit_before", seq=before, limit=limits.READ_ROWS_MAX)
        for seq, at, record in page:
            if at < begun:
                return found, True
            before, seen = seq, seen + 1
            decision = orjson.loads(record)
            if (decision.get("subject") or {}).get("taskId") == task_id:
                entry = _entry(
                    at, None, decision["subject"].get("attempt"), "decision",
                    f"{decision['effect']} {decision['action']} {decision['resource']}",
                )  # fmt: skip
                entry["outcome"] = f"{decision['ruleId']}: {decision.get('reason') or ''}".rstrip()
                found.append(entry)
        if len(page) < limits.READ_ROWS_MAX:
            return found, True
    return found, False
