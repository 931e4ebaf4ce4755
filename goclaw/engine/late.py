"""What an attempt says after a cancel: its lease is lost, and what it knows is joined to it (Q-11).

Owns nothing but the words. Not in here: what counts as late (``late_effect``, ``late_end`` in
store/queries.sql: only of a task that was cancelled), the refusal (Q-4), which stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.core import limits, log
from goclaw.core.errors import LeaseLost

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from goclaw.core.clock import Clock
    from goclaw.store import Committed, Database

__all__ = ["Late", "when_late"]

_log = log.logger("engine.late")


class Late:
    """The late words of one attempt. Nobody waits for them: they are submitted, and logged when the
    disk refuses them."""

    def __init__(self, database: Database, clock: Clock, tid: int, token: bytes) -> None:
        self._database, self._clock, self._tid, self._token = database, clock, tid, token

    def effect(self, ordinal: int, state: str, result: bytes | None, failed: int) -> None:
        """Join what came of an effect."""
        self._submit("late_effect", ordinal=ordinal, state=state, result=result, failed=failed)

    def end(self, stop_reason: str | None, result: bytes) -> None:
        """Join what the attempt would have answered; of a long result its size only."""
        shown = result if len(result) <= limits.TOOL_SHOWN_BYTES_MAX else None
        self._submit("late_end", stop_reason=stop_reason, size=len(result), result=shown)

    def _submit(self, program: str, **arguments: object) -> None:
        self._database.write(
            program, live=True, tid=self._tid, token=self._token, now=self._clock.wall_ms(),
            **arguments,
        ).add_done_callback(_joined)  # fmt: skip


def when_late(word: asyncio.Future[Committed], join: Callable[[], None]) -> None:
    """Call ``join`` if the word is refused because its lease is over."""

    def answered(word: asyncio.Future[Committed]) -> None:
        if not word.cancelled() and isinstance(word.exception(), LeaseLost):
            join()

    word.add_done_callback(answered)


def _joined(word: asyncio.Future[Committed]) -> None:
    if not word.cancelled() and (error := word.exception()) is not None:
        _log.error("a late result is not on disk", extra={"data": {"error": str(error)}})
