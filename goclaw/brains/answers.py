"""What a brain is asked and what it answers, as values that a journal can keep (B-1).

Owns the shape of an answer and its JSON form. Not in here: any brain, and the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from goclaw.brains.context import Past
    from goclaw.brains.deltas import Deltas
    from goclaw.net.egress import Permit

__all__ = ["Answer", "Brain", "Failure", "Intent", "Refusal", "ToolResult", "Turn", "Usage"]


@dataclass(frozen=True, slots=True)
class Intent:
    """One tool call that a brain wants; checked and decided on by the gate before it runs."""

    tool: str
    arguments: dict[str, Any]
    fault: str | None = None
    """Why the arguments cannot be read: the call fails with this, and nothing runs."""

    def to_json(self) -> dict[str, Any]:
        """As the journal holds it."""
        found = {"tool": self.tool, "arguments": self.arguments}
        return found if self.fault is None else {**found, "fault": self.fault}


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost: tokens, money in what the prices are in, milliseconds of waiting."""

    input_tokens: int
    output_tokens: int
    cost: float
    ms: int

    def to_json(self) -> dict[str, Any]:
        """As the journal holds it."""
        return {
            "inputTokens": self.input_tokens, "outputTokens": self.output_tokens,
            "cost": self.cost, "ms": self.ms,
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Usage:
        """What ``to_json`` kept."""
        return cls(record["inputTokens"], record["outputTokens"], record["cost"], record["ms"])


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that fails the attempt; ``on_attempts`` None: every one."""

    code: str
    retryable: bool
    on_attempts: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a prompt is not carried out, for programs; the answer's text tells it to people."""

    code: str
    message: str

    def to_json(self) -> dict[str, str]:
        """As the journal and the run's result hold it."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Done in this order: fail, sleep, ask, call; then ``stop`` ends the run, and
    without it the brain is asked again."""

    text: str = ""
    """What it said, as its message chunks join up to."""
    intents: tuple[Intent, ...] = ()
    ask: str | None = None
    sleep_ms: int | None = None
    fail: Failure | None = None
    stop: str | None = None
    """An ACP stop reason."""
    refusal: Refusal | None = None
    """Comes with the stop reason ``refusal``."""
    usage: Usage | None = None
    omitted: tuple[int, int] | None = None
    """The first and the last event of what had to stay out of the model's context (B-4)."""

    def to_json(self) -> dict[str, Any]:
        """The record of the journal."""
        fail = self.fail
        found = {
            "text": self.text or None,
            "calls": [one.to_json() for one in self.intents],
            "ask": self.ask,
            "sleepMs": self.sleep_ms,
            "fail": fail
            and {
                "code": fail.code,
                "retryable": fail.retryable,
                "onAttempts": fail.on_attempts and list(fail.on_attempts),
            },
            "stop": self.stop,
            "refusal": self.refusal and self.refusal.to_json(),
            "usage": self.usage and self.usage.to_json(),
            "omitted": self.omitted and list(self.omitted),
        }
        return {name: value for name, value in found.items() if value not in (None, [])}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Answer:
        """The answer that ``to_json`` kept, also that of an older program."""
        fail = record.get("fail")
        on_attempts = fail.get("onAttempts") if fail else None
        refusal, usage = record.get("refusal"), record.get("usage")
        first_last = record.get("omitted")
        return cls(
            text=record.get("text", ""),
            intents=tuple(
                Intent(one["tool"], one["arguments"], one.get("fault"))
                for one in record.get("calls", [])
            ),
            ask=record.get("ask"),
            sleep_ms=record.get("sleepMs"),
            fail=fail
            and Failure(
                fail["code"], fail["retryable"], None if on_attempts is None else tuple(on_attempts)
            ),
            stop=record.get("stop"),
            refusal=refusal and Refusal(refusal["code"], refusal["message"]),
            usage=usage and Usage.from_json(usage),
            omitted=first_last and (first_last[0], first_last[1]),
        )


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What became of one intent: ``status`` is completed, failed, denied, rejected or unknown."""

    name: str
    status: str
    output: bytes
    """One JSON text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a brain is asked: its ``step``-th answer (from 0) of a run, after ``results``."""

    prompt: str
    step: int
    results: tuple[ToolResult, ...]
    """Of the answer before."""
    attempt: int = 1
    made: tuple[tuple[Answer, tuple[ToolResult, ...]], ...] = ()
    """Every answer of the run so far with what came of its calls."""
    past: Past | None = None
    """What was said in the session before; only models are told."""
    permit: Permit | None = None
    """To be asked at its address; for a brain that has one."""


class Brain(Protocol):
    """Answers turns. One object serves all sessions: what it needs to know is in the turn."""

    @property
    def name(self) -> str:
        """The resource of its ``brain.call`` decisions."""

    @property
    def address(self) -> str | None:
        """The URL that it is asked at, the resource of a ``net.connect`` decision; None: it
        reaches no network. Who has one is a model: it is told of the past and kept from loops."""

    @property
    def secret(self) -> str | None:
        """The stored secret that is its key, the resource of a ``secret.use`` decision."""

    async def answer(self, turn: Turn, deltas: Deltas) -> Answer:
        """The answer; what it says along the way goes into ``deltas``."""
