"""The laws of gates: bounds, rates and the breaker (Q-7, Q-16), told a second time.

Owns what is known of each kind of work: its configured gate, what began behind it, its faults. Not
in here: tasks and their states (sim_laws.py), whose claims these laws are shown.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim_broken import hold

from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from goclaw.core.config import Gate


@dataclass(slots=True)
class Rate:
    """How many may have begun since the gate was set. All of it adds up: who was let in may begin
    late, but never without a token of its own."""

    gate: Gate
    since_mono: int
    allowed: int
    begun: int = 0

    def may(self, mono: int) -> int:
        """As many, up to now."""
        assert self.gate.refill_ms is not None
        return self.allowed + max(0, mono - self.since_mono) // self.gate.refill_ms + 1


@dataclass(slots=True)
class Breaker:
    """An open one. Each probe waits for its time, at least the first wait after the one before."""

    fingerprint: str
    since_mono: int
    wait_ms: int
    """As it was when it opened: a story's limits are its own, and a boot is between two lives."""
    probes: int = 0
    extra: int = 0
    """Each boot of the machine may let one more in: monotonic times mean nothing any more."""


@dataclass(slots=True)
class Work:
    """One kind of work."""

    gate: Gate | None = None
    rate: Rate | None = None
    breaker: Breaker | None = None
    faults: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """By fingerprint: the newest failure of each task."""


class GateLaws:
    """All kinds of work of a home."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = defaultdict(Work)

    def configured(self, bounds: Mapping[str, Gate], mono: int) -> None:
        """A daemon starts with these bounds; the others are void."""
        for name, work in self.works.items():
            if name not in bounds:
                work.gate = work.rate = None
        for name, gate in bounds.items():
            work = self.works[name]
            if work.gate == gate:
                continue
            work.gate = gate
            work.rate = None if gate.count is None else Rate(gate, mono, gate.count)

    def booted(self, before_mono: int, mono: int) -> None:
        """The machine was booted: clocks begin anew, what was earned stays."""
        for work in self.works.values():
            if work.rate is not None:
                work.rate.allowed = work.rate.may(before_mono)
                work.rate.since_mono = mono
            if work.breaker is not None:
                work.breaker.extra += 1 + self._due(work.breaker, before_mono)
                work.breaker.since_mono = mono
            work.faults.clear()

    def _due(self, breaker: Breaker, mono: int) -> int:
        return max(0, mono - breaker.since_mono) // breaker.wait_ms

    def began(self, name: str, running: int, mono: int) -> None:
        """An attempt of that work was claimed; ``running`` counts it too."""
        work = self.works[name]
        if work.gate is not None and work.gate.most is not None:
            hold(running <= work.gate.most, "Q-16", running, "of", name, "at once")
        self.passed(name, mono)

    def passed(self, name: str, mono: int) -> None:
        """An attempt or a call of that work begins."""
        work = self.works[name]
        if work.rate is not None:
            work.rate.begun += 1
            may = work.rate.may(mono)
            hold(work.rate.begun <= may, "Q-16", name, "began", work.rate.begun, "times of", may)
        if work.breaker is not None:
            work.breaker.probes += 1
            due = work.breaker.extra + self._due(work.breaker, mono)
            hold(
                work.breaker.probes <= due, "Q-7", name, "is broken, and", work.breaker.probes,
                "of it began, where", due, "probes were due",
            )  # fmt: skip

    def failed(self, name: str, fingerprint: str, tid: int, mono: int, *, opened: bool) -> None:
        """A retryable failure; ``opened``: the breaker did, in the same transaction."""
        work = self.works[name]
        work.faults[fingerprint][tid] = mono
        for tids in work.faults.values():
            old = [one for one, at in tids.items() if at < mono - limits.BREAKER_WINDOW_MS]
            for one in old:
                del tids[one]
        enough = len(work.faults[fingerprint]) >= limits.BREAKER_TASKS
        due = enough and work.breaker is None
        hold(opened == due, "Q-7", f"the breaker of {name} opened: {opened}, and it was due: {due}")
        if opened:
            work.breaker = Breaker(fingerprint, mono, limits.BREAKER_PROBE_MS)

    def went_well(self, name: str) -> None:
        """A task, or a call, of that work came to a good end: an open breaker closes."""
        work = self.works[name]
        if work.breaker is not None:
            work.breaker = None
            work.faults.clear()
