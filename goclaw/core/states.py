"""The life of a task as a table (SPEC 2). docs/states.md is generated from it.

Owns which transition exists and why. Not in here: who performs it (``store/queries.sql``).
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

__all__ = [
    "LEAVING",
    "TERMINAL",
    "TRANSITIONS",
    "EffectClass",
    "EffectState",
    "Outcome",
    "State",
    "Transition",
    "may",
]


class State(enum.StrEnum):
    """A task's state. Each says: what it means; who moves it on; what a crash leaves."""

    QUEUED = "QUEUED"
    """Accepted and on disk, waits for its session's turn and a lane. The scheduler's claim moves
    it. A crash changes nothing."""
    CLAIMED = "CLAIMED"
    """Owned for an instant inside the claim's transaction. The same transaction moves it to
    RUNNING. A crash never shows it on disk except as an event."""
    RUNNING = "RUNNING"
    """An attempt holds the lease. Its owner ends it, or the lease runs out. A crash leaves it
    RUNNING; recovery requeues it or, with an unknown effect, suspends it."""
    RETRY_WAIT = "RETRY_WAIT"
    """A retryable failure with budget left; waits for its backoff. The timer moves it to QUEUED.
    A crash changes nothing."""
    SUSPENDED = "SUSPENDED"
    """Waits for an answer (approval, signal, settlement) and holds no lane. The answer moves it to
    QUEUED. A crash changes nothing."""
    SUCCEEDED = "SUCCEEDED"
    """Finished with a result. Nobody moves it. A crash changes nothing."""
    FAILED = "FAILED"
    """Failed for good, with a reason code. Only an operator's redrive moves it. A crash changes
    nothing."""
    CANCELED = "CANCELED"
    """Ended by a cancel. Nobody moves it. A crash changes nothing."""
    DEAD_LETTER = "DEAD_LETTER"
    """A budget is used up, or the failure is poison. Only an operator's redrive moves it. A crash
    changes nothing."""


class Transition(NamedTuple):
    """One row of the table; ``source`` None means the task did not exist."""

    source: State | None
    target: State
    when: str


_LIVE: Final = (State.CLAIMED, State.RUNNING)

TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition(None, State.QUEUED, "accepted"),
    Transition(State.QUEUED, State.CLAIMED, "claim"),
    Transition(State.CLAIMED, State.RUNNING, "claim"),
    *(Transition(live, State.QUEUED, "lease lost, or handed back") for live in _LIVE),
    *(Transition(live, State.DEAD_LETTER, "budget used up, or poison") for live in _LIVE),
    *(Transition(live, State.SUSPENDED, "waits for an answer") for live in _LIVE),
    Transition(State.RUNNING, State.SUCCEEDED, "finished"),
    Transition(State.RUNNING, State.FAILED, "failed for good"),
    Transition(State.RUNNING, State.RETRY_WAIT, "retryable failure or time-out, budget left"),
    Transition(State.RETRY_WAIT, State.QUEUED, "due"),
    Transition(State.SUSPENDED, State.QUEUED, "answered or expired"),
    *(
        Transition(source, State.FAILED, "deadline passed, or settled as fail")
        for source in (State.QUEUED, State.CLAIMED, State.RETRY_WAIT, State.SUSPENDED)
    ),
    *(
        Transition(source, State.CANCELED, "cancel")
        for source in (State.QUEUED, *_LIVE, State.RETRY_WAIT, State.SUSPENDED)
    ),
    Transition(State.FAILED, State.QUEUED, "operator redrive"),
    Transition(State.DEAD_LETTER, State.QUEUED, "operator redrive"),
)

TERMINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED, State.DEAD_LETTER})

LEAVING: Final = frozenset(
    {
        "task.requeued", "task.suspended", "task.retry_wait", "task.succeeded", "task.failed",
        "task.canceled", "task.dead_letter",
    }
)  # fmt: skip
"""Types of the events with which a task may leave RUNNING."""

_ALLOWED: Final = frozenset((row.source, row.target) for row in TRANSITIONS)


def may(source: State | None, target: State) -> bool:
    """True when the table has that row (Q-1)."""
    return (source, target) in _ALLOWED


class EffectClass(enum.StrEnum):
    """What may be done about an effect whose outcome nobody knows (E-3)."""

    PURE = "pure"
    """Changes nothing outside: run it again."""
    KEYED = "keyed"
    """The far side deduplicates by our key: send it again with the same key."""
    PROBEABLE = "probeable"
    """It can be asked whether it happened."""
    IRREVERSIBLE = "irreversible"
    """Never repeated; a person or the brain decides."""


class EffectState(enum.StrEnum):
    """Where a journaled effect stands."""

    INTENT = "intent"
    """Committed, perhaps dispatched: unknown as soon as its attempt is over."""
    RETRYABLE = "retryable"
    """Closed without effect; the next attempt dispatches the same ordinal with the same key."""
    RESULT = "result"
    """Final: success, or a tool error that the brain was shown."""
    UNKNOWN = "unknown"
    """Dispatch ended without a definite answer; waits for settlement."""


class Outcome(enum.StrEnum):
    """ACP stop reasons of a run (PROTOCOL 1.4)."""

    END_TURN = "end_turn"
    MAX_TOKENS = "max_tokens"
    MAX_TURN_REQUESTS = "max_turn_requests"
    REFUSAL = "refusal"
    CANCELLED = "cancelled"
