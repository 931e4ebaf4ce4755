"""Gates before a kind of work: how many at once, how often, and the breaker (Q-7, Q-16).

Owns the configured bounds, the timer's part in letting tasks in, and the pass of a call inside a
run. Not in here: which task waits at a gate (``promote``, ``leave`` in store/queries.sql).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import orjson

from goclaw.core import limits, log

if TYPE_CHECKING:
    from collections.abc import Callable

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.engine.halt import Halt
    from goclaw.store import Database, Event

__all__ = ["Gates"]

_log = log.logger("engine.gates")


class Gates:
    """The gates of this home. A work is ``tool:NAME``, ``brain:NAME`` or ``pool:NAME``.

    ``let_in`` is called when tasks that waited may be claimed.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueConfig,
        let_in: Callable[[], None],
        halt: Halt,
    ) -> None:
        self.halt = halt
        """The gate of everything."""
        self._database, self._clock = database, clock
        self._bounds, self._aging_factor = queue.gates, queue.aging_factor
        self._let_in = let_in
        self._gated: set[str] = set()
        self._running: Counter[str] = Counter()

    @property
    def open_for_all(self) -> bool:
        """True while no kind of work has a gate: nothing needs to be looked at."""
        return not self._gated

    async def start(self) -> None:
        """Store the configured bounds and what orders those that wait; what is configured no more
        ends."""
        await self._database.write("aging_set", live=True, factor=self._aging_factor)
        known = {row[1]: row for row in await self._database.read("gates")}
        ended = [work for work, row in known.items() if work not in self._bounds and row[2:4]]
        bind = self._database.bind
        parts = [
            *(
                bind(
                    "gate_set", work=work, pool=_pool(work), most=gate.most,
                    burst=gate.count, refill_ms=gate.refill_ms,
                )
                for work, gate in self._bounds.items()
            ),
            *(bind("gate_set", work=work, pool=_pool(work)) for work in ended),
        ]  # fmt: skip
        for start in range(0, len(parts), limits.BATCH_OPERATIONS_MAX):
            await asyncio.gather(
                *(
                    self._database.apply(part, live=True)
                    for part in parts[start : start + limits.BATCH_OPERATIONS_MAX]
                )
            )
        self._gated = {*self._bounds, *known}

    def observe(self, events: list[Event]) -> None:
        """A breaker that opened is a gate from now on."""
        for event in events:
            if event[3] == "breaker.opened":
                self._gated.add(orjson.loads(event[9])["work"])

    async def look(self) -> int | None:
        """Let in what may come; milliseconds until the next look, None without any gate."""
        if not self._gated:
            return None
        ahead: list[int] = []
        found = await self._database.read("gates")
        self._gated = {*self._bounds, *(row[1] for row in found)}
        for wid, work, _most, burst, tokens, refill, broken, probe, waiting in found:
            now_mono = self._clock.mono_ms()
            times = [probe] if broken is not None and waiting else []
            if refill is not None and (refill == 0 or tokens < burst):
                times.append(refill)
            due = (waiting and broken is None) or any(time <= now_mono for time in times)
            let_in = 0
            while due and let_in < limits.GATE_LINES_MAX:
                committed = await self._database.write(
                    "gate_open", live=True, wid=wid, now_mono=now_mono,
                    probe_ms_max=limits.BREAKER_PROBE_MS_MAX,
                )  # fmt: skip
                due = bool(committed.parts[0][0])
                let_in += due
            if let_in:
                self._let_in()
                _log.info("gate open", extra={"data": {"work": work, "letIn": let_in}})
            if refill is not None and refill <= now_mono:
                ahead.append(1)  # it has been moved on: see to where
            ahead += [time - now_mono if time > now_mono else limits.GATE_WAIT_MS for time in times]
            if due:  # more may come: at once, but not before others had their turn
                ahead.append(1)
        return min(ahead, default=None)

    async def pass_call(self, work: str) -> int | None:
        """A call inside a run wants to begin: None when it may, else milliseconds to wait.

        A call that may is to be followed by ``left``.
        """
        if work not in self._gated:
            return None
        most = self._bounds[work].most if work in self._bounds else None
        if most is not None and self._running[work] >= most:
            return limits.GATE_WAIT_MS
        self._running[work] += 1  # others may ask before this one's answer is there
        passed = False
        try:
            now_mono = self._clock.mono_ms()
            committed = await self._database.write(
                "gate_pass", live=True, work=work, now_mono=now_mono,
                probe_ms_max=limits.BREAKER_PROBE_MS_MAX,
            )  # fmt: skip
            until: int | None = committed.parts[0][0]
            passed = until is None
        finally:
            if not passed:
                self._running[work] -= 1
        return None if until is None else max(1, until - now_mono)

    async def left(self, work: str, *, well: bool) -> None:
        """A call that passed has ended; one that went well closes an open breaker."""
        if self._running[work]:
            self._running[work] -= 1
        if well and work in self._gated:
            await self._database.write("gate_mend", live=True, work=work)


def _pool(work: str) -> str:
    kind, _, name = work.partition(":")
    return name if kind == "pool" else ""
