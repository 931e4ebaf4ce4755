"""A run once more, from its journal alone: every effect is answered by its record (E-11).

Owns the attempt that dispatches nothing, and the word for where it departs from the record. Not in
here: the reading of the journal and the report (``ops/replay.py``), what the run decides (brains).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core.errors import GoclawError
from goclaw.core.records import CallResult, Failed
from goclaw.core.states import EffectState
from goclaw.engine.effects import STATUSES, request_hash, sleep_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from goclaw.core.decisions import Decision
    from goclaw.core.records import Call, Cleaner, Outcome, Runner, Session, Stream, Task

    _Row = dict[str, Any]

__all__ = ["Divergence", "Recorded", "Unrecorded"]


class Divergence(Exception):
    """The run asks for something else than its record holds. ``recorded`` and ``requested`` say
    what, each None where there is nothing."""

    def __init__(
        self,
        what: str,
        ordinal: int | None,
        recorded: dict[str, Any] | None,
        requested: dict[str, Any] | None,
    ) -> None:
        super().__init__(what)
        self.what, self.ordinal = what, ordinal
        self.recorded, self.requested = recorded, requested


class Unrecorded(Exception):
    """The run asks for an effect of which the record holds no end: it had come no further."""

    def __init__(self, ordinal: int, requested: dict[str, Any]) -> None:
        super().__init__(f"effect {ordinal}")
        self.ordinal, self.requested = ordinal, requested


class Recorded:
    """An attempt over a journal that is closed. Implements ``core.records.Attempt``: it answers
    from ``effects`` and has no way to a tool, a model or the disk.

    Brains in ``repeatable`` are asked again, without pauses, and must answer as they did; of others
    the recorded answer is taken for theirs (E-2).
    """

    def __init__(
        self,
        task: Task,
        session: Session,
        *,
        effects: Sequence[_Row],
        repeatable: Collection[str],
        cleaner: Cleaner | None = None,
    ) -> None:
        self.task, self.session = task, session
        self.cleaner = cleaner
        self.cancelled = asyncio.Event()
        self._rows = {row["ordinal"]: row for row in effects}
        self._repeatable = repeatable
        self.asked = 0
        """Effects that the run asked for so far."""

    async def run(self, runner: Runner) -> Outcome:
        """Where the run comes to; Divergence and Unrecorded say why it came to no end."""
        try:
            return await runner.run_attempt(self)
        except GoclawError as error:
            return Failed(error.code, error.message)

    def _taken(self, kind: str, name: str, request: bytes) -> _Row:
        """The record of the next effect, which must be this one."""
        ordinal, self.asked = self.asked, self.asked + 1
        digest = request_hash(kind, name, request)
        requested = {"kind": kind, "name": name, "hash": digest.hex()}
        row = self._rows.get(ordinal)
        if row is None:
            raise Unrecorded(ordinal, requested)
        recorded = {"kind": row["kind"], "name": row["name"], "hash": row["hash"].hex()}
        if row["hash"] != digest:
            raise Divergence("another effect was asked for", ordinal, recorded, requested)
        own = request_hash(row["kind"], row["name"], row["request"])
        if own != digest:
            kept = {**recorded, "hash": own.hex()}
            raise Divergence("the record does not have its own hash", ordinal, kept, requested)
        if row["state"] != EffectState.RESULT:
            raise Unrecorded(ordinal, requested)
        return row

    async def think(
        self,
        name: str,
        request: dict[str, Any],
        answer: Callable[[Stream], Awaitable[dict[str, Any]]],
        *,
        decisions: Sequence[Decision] = (),
    ) -> dict[str, Any]:
        """See Attempt."""
        row = self._taken("brain", name, orjson.dumps(request, option=orjson.OPT_SORT_KEYS))
        recorded: dict[str, Any] = orjson.loads(row["result"])
        if name in self._repeatable:
            again = dict(await answer(_Unheard(row["call_id"])))
            again.pop("updates", None)
            data = orjson.dumps(again)
            if self.cleaner is not None:
                data = self.cleaner.data(data)
            if orjson.loads(data) != recorded:
                raise Divergence(
                    "the brain answers something else", row["ordinal"],
                    {"answer": recorded}, {"answer": again},
                )  # fmt: skip
        return recorded

    async def look_at_taint(self) -> None:
        """See Attempt: nothing is decided here."""

    async def perform(self, calls: Sequence[Call]) -> list[CallResult]:
        """See Attempt."""
        return [self._result(call) for call in calls]

    def _result(self, call: Call) -> CallResult:
        row = self._taken(call.kind, call.name, call.request)
        return CallResult(
            row["ordinal"], row["call_id"] or "", row["result"] or b"null", bool(row["failed"]),
            STATUSES[row["failed"]], replayed=True,
        )  # fmt: skip

    async def emit(
        self, updates: Sequence[dict[str, Any]], decisions: Sequence[Decision] = ()
    ) -> None:
        """See Attempt: only what is dispatched has something to tell."""
        raise RuntimeError("a call of a replay was dispatched")

    async def ask(
        self, digest: bytes, request: dict[str, Any], decisions: Sequence[Decision] = ()
    ) -> str | None:
        """See Attempt: only what is dispatched has something to ask."""
        raise RuntimeError("a call of a replay was dispatched")

    async def sleep(self, wait_ms: int) -> None:
        """See Attempt: it is over at once."""
        self._result(sleep_call(wait_ms))

    async def wait_signal(self, name: str) -> bytes:
        """See Attempt: it came."""
        return bytes(self._taken("signal", name, b"{}")["result"])


class _Unheard:
    """Takes what a brain says along the way."""

    cleaner: Cleaner | None = None
    paced = False

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id

    async def send(self, updates: Sequence[dict[str, Any]]) -> None:
        """See Stream."""
