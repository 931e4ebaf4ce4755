"""What the daemon counts about itself (O-3): plain numbers, one set a process.

Owns the counters and histograms that other modules add to. Not in here: how they are shown
(``ops/metrics.py``), and figures that somebody else keeps anyway.

They belong to the loop: adding is not safe on other threads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

__all__ = [
    "BACKPRESSURE_CLOSES",
    "CLAIM_S",
    "DECISIONS",
    "LOOP_LAG_S",
    "SERVICE_FAULTS",
    "SKILL_FAULTS",
    "TRANSITIONS",
    "Histogram",
]


class Histogram:
    """How many observations were at most each bound; seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """One observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


_BOUNDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip

CLAIM_S: Final = Histogram(*_BOUNDS)
"""From asking for a claim that found a task to having it, the flush included."""
LOOP_LAG_S: Final = Histogram(*_BOUNDS)
"""By how much a timer of the event loop was late (R-5)."""
TRANSITIONS: Final[Counter[tuple[str, str]]] = Counter()
"""(state entered, reason) of every committed transition; reason "" where the state says all."""
DECISIONS: Final[Counter[str]] = Counter()
"""By effect: allow, deny, ask."""
BACKPRESSURE_CLOSES: Final[Counter[str]] = Counter()
"""By the reason of PROTOCOL 2.6."""
SKILL_FAULTS: Final[Counter[tuple[str, str]]] = Counter()
"""(skill, reason code)."""
SERVICE_FAULTS: Final[Counter[str]] = Counter()
"""By service: how often a fault of the program ended it, and it began again."""
