"""What a story is about: its tastes, the home's queue, and what clients want done when.

Owns the draws. Each seed has a taste for some of the queue's abilities only: those of a story meet
each other more often, and over many seeds all meet all. Not in here: who submits (sim_story.py),
what tasks do (sim_plans.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from goclaw.core.records import Terms

if TYPE_CHECKING:
    import random
    from collections.abc import Set

MINUTE_MS = 60_000
TASTES = (
    "delays", "recurring", "unique", "deadlines", "timeouts", "gates", "rates", "breaker",
    "subtasks", "redrive", "reserved", "narrow", "zombies",
)  # fmt: skip
TOOLS = ("hammer", "saw")
ANY_TIME = Terms()
CLASSES = ("keyed", "irreversible", "probeable")


@dataclass(slots=True)
class Errand:
    """A submission a client wants done: it asks until it was told."""

    session: int
    form: str
    plan: str
    key: str | None
    priority: int
    tool: str = ""
    terms: Terms = ANY_TIME
    told: tuple[str, str] | None = None
    tries: int = 0


def draw_tastes(chance: random.Random, wanted: Set[str]) -> frozenset[str]:
    """About a third of them; ``wanted`` in any case."""
    drawn = {taste for taste in TASTES if chance.random() < 0.3}
    return frozenset(drawn | wanted)


def draw_queue(chance: random.Random, tastes: Set[str]) -> dict[str, Any]:
    """The [queue] of config.toml."""
    lanes = chance.choice((1, 2, 3))
    if "reserved" in tastes:
        lanes = max(2, lanes)
    return {
        "lanes": lanes,
        "reserved_lanes": chance.randint(1, lanes - 1) if "reserved" in tastes else 0,
        "lease_ms": chance.choice((60, 150, 400)),
        "backoff_ms_min": chance.choice((5, 20)),
        "backoff_ms_max": chance.choice((20, 100, 400)),
        "crash_budget": chance.choice((1, 2, 3, 4)),
        "max_attempts": chance.choice((1, 2, 3, 4)),
        "poison": chance.choice((2, 3)),
        "session_limit": chance.choice((3, 5, 20)),
        "total_limit": chance.choice((4, 7)) if "narrow" in tastes else 1_000_000,
        "aging_factor": chance.choice((1, 2, 16)),
    }


def draw_bounds(chance: random.Random, tastes: Set[str]) -> str:
    """queue.bounds of one life: people edit it between two."""
    works = [*(f"tool:{tool}" for tool in TOOLS), "brain:script", "pool:yard"]
    works += [f"tool:{kind}" for kind in CLASSES]
    rules: dict[str, list[str]] = {}
    for work in works:
        if "gates" in tastes and chance.random() < 0.6:
            rules.setdefault(work, []).append(f"{chance.choice((1, 1, 2))} at once")
        if "rates" in tastes and chance.random() < 0.4:
            rules.setdefault(work, []).append(f"{chance.choice((1, 2, 5))}/s")
    return "; ".join(f"{work} {', '.join(rule)}" for work, rule in rules.items()) or "none"


def draw_terms(chance: random.Random, tastes: Set[str], *, now: int, busy_ms: int) -> Terms:
    """Of one submission."""
    if "recurring" in tastes and chance.random() < 0.2:
        misfire = chance.choice(("skip", "once", "all"))
        return Terms(recurrence=("* * * * *", "UTC", misfire))
    not_before = timeout_ms = deadline = unique = None
    if "delays" in tastes and chance.random() < 0.5:
        not_before = now + chance.choice((1, 20, 100, 400))
    if "timeouts" in tastes and chance.random() < 0.6:
        timeout_ms = chance.choice((5, 40, 40, busy_ms + 100))
    if "deadlines" in tastes and chance.random() < 0.6:
        deadline = (not_before or now) + chance.choice((5, 40, 150, 600))
    if "unique" in tastes and chance.random() < 0.6:
        unique = chance.choice(("u", "v"))
    return Terms(not_before, timeout_ms, deadline, unique)
