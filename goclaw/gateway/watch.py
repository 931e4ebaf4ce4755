"""The state of the daemon for those who watch it: the latest picture, never a backlog of pictures.

Owns what is in the picture, when it is sent, and what is left out. Not in here: events, which are
never left out (``outbox``), the picture on request (``work``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits, log
from goclaw.core.clock import rfc3339
from goclaw.core.errors import GoclawError
from goclaw.core.states import TERMINAL, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from goclaw.engine import Engine

__all__ = ["FIELDS", "Board", "Watch"]

FIELDS: Final = ("lanes", "queue", "health")
"""What may be watched."""

_OPEN: Final = tuple(state for state in State if state not in TERMINAL)
_log = log.logger("gateway.watch")


class Board:
    """The picture, read once for all who watch. Belongs to the loop."""

    def __init__(self, engine: Engine, connections: Callable[[], int]) -> None:
        self._engine, self._connections = engine, connections
        self._moves, self._read_at = 0, -1
        self._reading: asyncio.Future[list[dict[str, Any]]] | None = None
        self.watchers: set[Watch] = set()

    def moved(self) -> None:
        """Something is different now: a commit, the disk, a shutdown."""
        if self.watchers:
            self._moves += 1
            for watch in tuple(self.watchers):
                watch.touch()

    def now_ms(self) -> int:
        """Epoch milliseconds."""
        return self._engine.clock.wall_ms()

    async def picture(self) -> dict[str, Any]:
        """Every field as it is now. StorageFailed."""
        if self._reading is None or self._read_at != self._moves:
            self._read_at = self._moves
            self._reading = asyncio.ensure_future(self._sessions())
        sessions = await asyncio.shield(self._reading)
        engine = self._engine
        counts, trouble = engine.task_counts(), engine.database.trouble
        return {
            "lanes": {"size": engine.config.queue.lanes, "busy": engine.scheduler.busy},
            "queue": {"states": {str(state): counts[state] for state in _OPEN},
                      "sessions": sessions},
            "health": {
                "accepting": not (engine.intake.closed or trouble),
                "storage": {"ok": not trouble, "message": trouble},
                "connections": self._connections(),
            },
        }  # fmt: skip

    async def _sessions(self) -> list[dict[str, Any]]:
        found = await self._engine.database.read("open_by_session", most=limits.WATCH_TASKS_MAX)
        by_session: dict[str, dict[str, int]] = {}
        for session_id, state, count in found:
            by_session.setdefault(session_id, {})[state] = count
        listed = sorted(by_session.items(), key=lambda one: "RUNNING" not in one[1])
        return [
            {"sessionId": session_id, "states": states}
            for session_id, states in listed[: limits.WATCH_SESSIONS_MAX]
        ]


class Watch:
    """One client's view: at once, then when it has changed, at most once per interval.

    ``send`` takes the params of one notification, or answers False when there is no room for them:
    then the next picture takes their place. Belongs to the loop.
    """

    def __init__(
        self,
        board: Board,
        fields: tuple[str, ...],
        interval_ms: int,
        send: Callable[[dict[str, Any]], bool],
    ) -> None:
        self._board, self._fields, self._send = board, fields, send
        self._interval_s = interval_ms / 1000
        self._shown: dict[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None
        self._is_open = True
        board.watchers.add(self)
        self.touch()

    def touch(self) -> None:
        """The picture may have changed."""
        if self._timer is None and self._telling is None and self._is_open:
            self._telling = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        try:
            picture = await self._board.picture()
        except GoclawError as error:
            _log.warning("no picture for a watcher", extra={"data": {"error": str(error)}})
            picture = {}
        self._telling = None
        if not self._is_open:
            return
        chosen = {name: picture[name] for name in self._fields if name in picture}
        if chosen == self._shown:
            return
        at = rfc3339(self._board.now_ms())
        if self._send({"at": at, **chosen}):
            self._shown = chosen
        # Once more when the interval is over, also without a commit: a lane is free a moment
        # behind the commit that freed it.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._due)

    def _due(self) -> None:
        self._timer = None
        self.touch()

    def close(self) -> None:
        """Tell nothing more; idempotent."""
        self._is_open = False
        self._board.watchers.discard(self)
        if self._timer is not None:
            self._timer.cancel()
