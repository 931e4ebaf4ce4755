"""What the daemon tells a client, as frozen values.

Owns the reading of answers and events, and the shape of an event as programs are shown it (SPEC
12). Not in here: which request gets which answer (``asks.py``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from goclaw.client.link import goclaw_meta
from goclaw.core.clock import rfc3339

__all__ = [
    "Approval",
    "Because",
    "EffectInfo",
    "Event",
    "EventPage",
    "Explained",
    "Moved",
    "PromptResult",
    "Receipt",
    "SessionInfo",
    "Status",
    "TaskInfo",
    "ToolUse",
]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session that this client made or took up; ``head_event_id`` as of the answer."""

    session_id: str
    stream_id: str
    head_event_id: int

    @classmethod
    def read(cls, result: dict[str, Any], session_id: str = "") -> SessionInfo:
        """The result of session/new, resume or subscribe."""
        block = goclaw_meta(result) or result
        return cls(
            str(result.get("sessionId", session_id)),
            str(block.get("streamId", "")),
            int(block.get("headEventId", 0)),
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a session. ``body``: the ACP update, or the fields of goclaw's own event."""

    session_id: str
    event_id: int
    type: str
    at_ms: int
    trace_id: str
    run_id: str
    task_id: str
    attempt: int
    body: dict[str, Any]

    @classmethod
    def read(cls, params: dict[str, Any]) -> Event:
        """The params of session/update or _goclaw/session/event."""
        meta = goclaw_meta(params)
        trace = (params.get("_meta") or {}).get("traceparent", "")
        own = params.get("event")
        body = params.get("update") if own is None else own
        body = dict(body) if isinstance(body, dict) else {}
        kind = "update" if own is None else str(body.pop("type", ""))
        if own is not None:
            for name in ("runId", "taskId", "attempt"):
                body.pop(name, None)
        return cls(
            session_id=str(params.get("sessionId", "")),
            event_id=int(meta.get("eventId", 0)),
            type=kind,
            at_ms=int(meta.get("at", 0)),
            trace_id=trace.split("-")[1] if trace.count("-") == 3 else "",
            run_id=str(meta.get("runId", "")),
            task_id=str(meta.get("taskId", "")),
            attempt=int(meta.get("attempt", 0)),
            body=body,
        )

    @property
    def update(self) -> str:
        """The kind of an ACP update; empty for goclaw's own events."""
        return str(self.body.get("sessionUpdate", "")) if self.type == "update" else ""

    def to_json(self) -> dict[str, Any]:
        """The line of `goclaw events --json`."""
        rest = {"update": self.body} if self.type == "update" else self.body
        return {
            "eventId": self.event_id,
            "type": self.type,
            "at": rfc3339(self.at_ms),
            "sessionId": self.session_id,
            "traceId": self.trace_id or None,
            "runId": self.run_id or None,
            "taskId": self.task_id or None,
            "attempt": self.attempt or None,
            **rest,
        }


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page of events; ``next_event_id`` is the cursor of the next one."""

    events: tuple[Event, ...]
    next_event_id: int
    head_event_id: int

    @classmethod
    def read(cls, result: dict[str, Any]) -> EventPage:
        """The result of _goclaw/session/events."""
        return cls(
            tuple(Event.read(params) for params in result["events"]),
            int(result["nextEventId"]),
            int(result["headEventId"]),
        )


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool call of a run as it ended, or as it stands."""

    name: str
    status: str
    output: Any


@dataclass(frozen=True, slots=True)
class PromptResult:
    """How a run ended. ``error`` is None unless it failed or was refused."""

    session_id: str
    run_id: str
    state: str
    stop_reason: str | None
    text: str
    tools: tuple[ToolUse, ...] = ()
    error: dict[str, Any] | None = None
    duplicate: bool = False

    def to_json(self) -> dict[str, Any]:
        """The last line of `goclaw run --json`."""
        return {
            "type": "result",
            "sessionId": self.session_id,
            "runId": self.run_id,
            "state": self.state,
            "stopReason": self.stop_reason,
            "text": self.text,
            "tools": [dataclasses.asdict(tool) for tool in self.tools],
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task; ``json`` is the whole object of `goclaw task show --json`."""

    task_id: str
    session_id: str
    run_id: str
    state: str
    reason: str | None
    attempt: int
    json: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, value: dict[str, Any]) -> TaskInfo:
        """One task object."""
        return cls(
            value["taskId"], value["sessionId"], value["runId"], value["state"],
            value.get("reason"), int(value.get("attempt", 0)), value,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EffectInfo:
    """A journaled step of a task; ``json`` is the whole object of `goclaw effects list --json`."""

    ordinal: int
    kind: str
    name: str
    effect_class: str
    state: str
    json: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, value: dict[str, Any]) -> EffectInfo:
        """One effect object."""
        return cls(
            int(value["ordinal"]), value["kind"], value["name"], value["class"], value["state"],
            value,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to a cancel: stopped, stopping, may_still_be_running or already_finished."""

    outcome: str
    effects_done: tuple[Any, ...]

    @classmethod
    def read(cls, result: dict[str, Any]) -> Receipt:
        """The result of task/cancel and run/cancel."""
        return cls(str(result["outcome"]), tuple(result.get("effectsDone", ())))


@dataclass(frozen=True, slots=True)
class Because:
    """One reason why a task is where it is; ``until`` RFC 3339, ``command`` what moves it."""

    code: str
    text: str
    until: str | None
    command: str | None


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a task is where it is; ``json`` is the object of `goclaw why --json`."""

    state: str
    because: tuple[Because, ...]
    json: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, value: dict[str, Any]) -> Explained:
        """The result of task/why."""
        because = tuple(
            Because(str(one["code"]), str(one["text"]), one.get("until"), one.get("command"))
            for one in value["because"]
        )
        return cls(str(value["state"]), because, value)


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of tasks that were given up; ``skipped``: (task, reason code, why) of those that
    stayed as they were."""

    tasks: tuple[str, ...]
    skipped: tuple[tuple[str, str, str], ...]

    @classmethod
    def read(cls, result: dict[str, Any]) -> Moved:
        """The result of task/redrive and task/drop."""
        skipped = tuple(
            (str(one["taskId"]), str(one["code"]), str(one["message"]))
            for one in result.get("skipped", ())
        )
        return cls(tuple(result["tasks"]), skipped)

    def and_then(self, page: Moved) -> Moved:
        """With the page behind it."""
        return Moved(self.tasks + page.tasks, self.skipped + page.skipped)

    def to_json(self) -> dict[str, Any]:
        """The object of `goclaw dlq redrive --json`."""
        names = ("taskId", "code", "message")
        return {
            "tasks": list(self.tasks),
            "skipped": [dict(zip(names, one, strict=True)) for one in self.skipped],
        }


@dataclass(frozen=True, slots=True)
class Approval:
    """An open question; ``options`` are (optionId, name, kind)."""

    approval_id: str
    session_id: str
    title: str
    reason: str
    options: tuple[tuple[str, str, str], ...]
    json: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, value: dict[str, Any]) -> Approval:
        """One entry of approvals/list, or the params of session/request_permission."""
        request = value.get("request")
        question = request if isinstance(request, dict) else value
        meta = goclaw_meta(question)
        call = question.get("toolCall") or {}
        options = tuple(
            (str(one.get("optionId")), str(one.get("name")), str(one.get("kind")))
            for one in question.get("options", ())
        )
        return cls(
            str(value.get("approvalId") or meta.get("approvalId", "")),
            str(value.get("sessionId") or question.get("sessionId", "")),
            str(call.get("title", "")), str(meta.get("reason", "")), options, value,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon's state; ``json`` is the whole object of `goclaw status --json`."""

    ready: bool
    version: str
    native: bool
    json: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, value: dict[str, Any]) -> Status:
        """The result of system/status."""
        return cls(
            bool(value.get("ready")), str(value.get("version", "")), bool(value.get("native")),
            value,
        )  # fmt: skip
