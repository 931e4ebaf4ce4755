"""What a run said and did, gathered from the events of its session.

Owns which event belongs to the run, the joining of messages and the state of its tools. Not in
here: where the events come from, how they are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from goclaw.client.link import goclaw_meta
from goclaw.client.records import PromptResult, ToolUse

if TYPE_CHECKING:
    from goclaw.client.records import Event

__all__ = ["Turn"]


class Turn:
    """One run. It is known by its submission key until its id is known."""

    def __init__(self, session_id: str, key: str, run_id: str = "") -> None:
        self.session_id, self.key, self.run_id = session_id, key, run_id
        self.task_id = ""
        self.whole = False
        """True when the run was seen from its acceptance on."""
        self.state = "QUEUED"
        self.stop_reason: str | None = None
        self.error: dict[str, Any] | None = None
        self._ended = False
        self._messages: dict[str, list[str]] = {}
        self._tools: dict[str, dict[str, Any]] = {}
        self._names: dict[str, str] = {}
        self.held_up_by = ""
        """Why it is suspended: approval, sleep, signal:NAME, effect_unknown, nondeterminism."""

    @property
    def text(self) -> str:
        """What the brain said: its messages, those that a crash cut off left out."""
        return "\n".join("".join(parts) for parts in self._messages.values())

    def add(self, event: Event) -> bool:
        """True when the event is the run's."""
        if event.type == "run.accepted" and event.body.get("idempotencyKey") == self.key:
            self.run_id, self.whole = event.run_id, True
        if not self.run_id or event.run_id != self.run_id:
            return False
        self.task_id = event.task_id
        if event.type == "update":
            self._update(event.body)
        else:
            self._own(event)
        return True

    def _update(self, update: dict[str, Any]) -> None:
        kind = update.get("sessionUpdate")
        if kind == "agent_message_chunk":
            text = (update.get("content") or {}).get("text")
            if isinstance(text, str):
                self._messages.setdefault(str(update.get("messageId", "")), []).append(text)
        elif kind in ("tool_call", "tool_call_update"):
            call = self._tools.setdefault(str(update.get("toolCallId", "")), {})
            call.update({name: value for name, value in update.items() if value is not None})

    def _own(self, event: Event) -> None:
        body = event.body
        if event.type.startswith("task."):
            self.state = str(body.get("to", self.state))
            self.held_up_by = str(body.get("reason")) if self.state == "SUSPENDED" else ""
        elif event.type.startswith("effect.") and "name" in body:
            self._names[f"{event.task_id}.{body.get('ordinal')}"] = str(body["name"])
        elif event.type == "message.interrupted":
            self._messages.pop(str(body.get("messageId", "")), None)
        elif event.type == "run.ended":
            self._ended = True
            self.state = str(body.get("state", self.state))
            self.stop_reason = body.get("stopReason")
            if self.state not in ("SUCCEEDED", "CANCELED"):
                code = str(body.get("code") or body.get("reason") or "failed")
                self.error = {"code": code, "message": str(body.get("message") or code)}

    def _tool(self, call_id: str, call: dict[str, Any]) -> ToolUse:
        title = str(call.get("title", ""))
        name = goclaw_meta(call).get("tool") or call.get("name") or self._names.get(call_id)
        output = call.get("rawOutput")
        if output is None:
            texts = [
                block["content"]["text"]
                for block in call.get("content") or ()
                if isinstance(block.get("content"), dict) and "text" in block["content"]
            ]
            output = "".join(texts) or None
        return ToolUse(str(name or title.split(" ")[0]), str(call.get("status", "")), output)

    def result(
        self,
        answer: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        record: dict[str, Any] | None = None,
    ) -> PromptResult:
        """The run as it stands, with the prompt's answer (or the error instead of one).

        ``record``: the result that the task holds; it knows more than the events show.
        """
        answer = answer or {}
        text = self.text
        tools = tuple(self._tool(call_id, call) for call_id, call in self._tools.items())
        if record is not None:
            text = str(record.get("text", text))
            tools = tuple(
                ToolUse(str(one["name"]), str(one["status"]), one.get("output"))
                for one in record.get("tools", ())
            )
            error = error or record.get("error")
        state, stop_reason = self.state, self.stop_reason or answer.get("stopReason")
        if not self._ended and stop_reason is not None:
            state = "CANCELED" if stop_reason == "cancelled" else "SUCCEEDED"
        elif not self._ended and error is not None:
            state = "FAILED"
        return PromptResult(
            self.session_id, self.run_id, state, stop_reason, text, tools,
            self.error or error, bool(goclaw_meta(answer).get("duplicate")),
        )  # fmt: skip
