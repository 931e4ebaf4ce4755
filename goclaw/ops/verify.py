"""`goclaw verify`: is every state what the log says, and the log what was written (O-4).

Owns the walk over the events of each session: their ids, their chain, and the fold of tasks and
effects, compared with the rows. Not in here: the audit's own chain (``engine/audit``), whether the
file is sound (doctor).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from goclaw.core import limits
from goclaw.core.errors import UnknownId

if TYPE_CHECKING:
    from goclaw.store import Archive

__all__ = ["Drift", "Verdict", "verify"]

_TIMES: Final = struct.Struct(">qq")
_SETTLED: Final = {"done": "result", "fail": "unknown"}


class Drift(NamedTuple):
    """Something that is not as the log says; ``event_id``: where it shows, 0 for none."""

    session_id: str
    event_id: int
    what: str

    def to_json(self) -> dict[str, Any]:
        """An element of ``faults``."""
        return {"sessionId": self.session_id, "eventId": self.event_id, "what": self.what}


@dataclass(slots=True)
class Verdict:
    """What a walk found; of the drifts at most ``limits.VERIFY_FAULTS_MAX`` are listed."""

    sessions: int = 0
    events: int = 0
    partial: int = 0
    """Sessions whose first events went with retention: their chain has no beginning to begin at."""
    drifts: list[Drift] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Nothing differs."""
        return not self.drifts

    def to_json(self) -> dict[str, Any]:
        """The object of `goclaw verify --json`."""
        return {
            "ok": self.is_ok, "sessions": self.sessions, "events": self.events,
            "partial": self.partial,
            "faults": [drift.to_json() for drift in self.drifts[: limits.VERIFY_FAULTS_MAX]],
            "more": len(self.drifts) > limits.VERIFY_FAULTS_MAX,
        }  # fmt: skip


@dataclass(slots=True)
class _Fold:
    """What the events of a session say of its tasks and effects."""

    states: dict[str, tuple[str, int]] = field(default_factory=dict)
    effects: dict[tuple[str, int], str] = field(default_factory=dict)

    def take(self, type_: str, task_id: str | None, attempt: int, payload: bytes) -> None:
        if task_id is None:
            return
        if type_.startswith("task."):
            to = orjson.loads(payload).get("to")
            if to is not None:
                self.states[task_id] = ("RUNNING" if to == "CLAIMED" else to, attempt)
        elif type_.startswith("effect."):
            body = orjson.loads(payload)
            where = (task_id, int(body["ordinal"]))
            match type_:
                case "effect.intent":
                    self.effects[where] = "intent"
                case "effect.result":
                    self.effects[where] = str(body["state"])
                case "effect.unknown":
                    self.effects[where] = "unknown"
                case "effect.settled":
                    self.effects[where] = _SETTLED.get(body["outcome"], "retryable")


def verify(archive: Archive, session_id: str | None = None) -> Verdict:
    """Every session, or one; each is read in a moment of its own, also while a daemon works.

    UnknownId for a session that there is not. Changes nothing. Blocks.
    """
    verdict = Verdict()
    cursor, found = 0, False
    while page := archive.fetch("sessions_after", cursor=cursor, limit=limits.READ_ROWS_MAX):
        for sid, name in page:
            cursor = sid
            if session_id in (None, name):
                found = True
                with archive.moment():
                    _session(archive, sid, name, verdict)
    if session_id is not None and not found:
        raise UnknownId(
            f"There is no session {session_id[:80]}.", hint="`goclaw task list` names sessions.",
            what="session", id=session_id[:80],
        )  # fmt: skip
    return verdict


def _session(archive: Archive, sid: int, name: str, verdict: Verdict) -> None:
    ((salt, last, head, oldest),) = archive.fetch("chain_of_session", sid=sid)
    fold, link, expected = _Fold(), bytes(32), oldest
    verdict.sessions += 1
    verdict.partial += oldest > 1

    def drift(event_id: int, what: str) -> None:
        verdict.drifts.append(Drift(name, event_id, what))

    cursor = 0
    while page := archive.fetch("chain_after", sid=sid, cursor=cursor, limit=limits.READ_ROWS_MAX):
        for event_id, at, type_, run_id, task_id, body, seal, attempt in page:
            payload, digest = _bytes(body), _bytes(seal)
            cursor = event_id
            if event_id != expected:
                drift(event_id, f"the event {expected} is missing")
            expected = event_id + 1
            if hashlib.sha256(salt + payload).digest() != digest:
                drift(event_id, "its content was changed")
            link = _next(link, event_id, at, type_, run_id, task_id, digest)
            verdict.events += 1
            try:
                fold.take(type_, task_id, attempt, payload)
            except (ValueError, KeyError, TypeError, AttributeError):
                drift(event_id, "its content cannot be read")
    if expected != head + 1:
        drift(expected, f"the log ends there, and the session's head is {head}")
    if oldest == 1 and link != last:
        drift(0, "the chain does not end where the session says: an event was changed or moved")
    _compare(archive, sid, fold, drift)


def _compare(archive: Archive, sid: int, fold: _Fold, drift: Any) -> None:
    """The rows of tasks and effects with the fold; what has no event left is let be."""
    for task_id, state, attempt in archive.fetch("task_states", sid=sid):
        told = fold.states.get(task_id)
        if told is not None and told != (state, attempt):
            drift(
                0, f"{task_id} is {state} at attempt {attempt}, by the log {told[0]} at {told[1]}"
            )
    for task_id, ordinal, state in archive.fetch("effect_states", sid=sid):
        said = fold.effects.get((task_id, ordinal))
        # an intent that its attempt left behind is closed with the attempt, without a word
        if said is not None and said != state and (said, state) != ("intent", "retryable"):
            drift(0, f"effect {ordinal} of {task_id} is {state}, by the log {said}")


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value  # somebody wrote it who is not us


def _next(
    link: bytes, event_id: int, at: int, type_: str, run: str | None, task: str | None, seal: bytes
) -> bytes:
    """The link of an event, as the writer makes it."""
    words = "\0".join((type_, run or "", task or "", ""))
    return hashlib.sha256(link + _TIMES.pack(event_id, at) + words.encode() + seal).digest()
