"""What the tasks of a story do, and the world that their effects change.

Owns plans, drawn from a seed and the same at every attempt, and the sink, which counts. Not in
here: who carries a plan out (sim_story.py inside the daemon, sim_worker.py outside).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim_broken import hold

from goclaw.core.records import Failed
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Set

    from sim_laws import Laws

CLASSES = (*EffectClass, EffectClass.IRREVERSIBLE)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan; the same at every attempt (E-2)."""

    kind: str
    ms: int = 0
    effect_class: EffectClass = EffectClass.PURE
    count: int = 1
    question: bool = False
    rude: bool = False
    shared: str | None = None
    child: Plan | None = None

    @property
    def effects(self) -> int:
        """How many ordinals it takes."""
        return 0 if self.kind == "work" else self.count


@dataclass(slots=True)
class Plan:
    """What a task does. ``ends``: how its attempts fail before one succeeds."""

    name: str
    steps: list[Step]
    ends: list[Failed | None]

    def end(self, attempt: int) -> Failed | None:
        """None: it succeeds."""
        return self.ends[attempt - 1] if attempt <= len(self.ends) else None

    @property
    def busy_ms(self) -> int:
        """The longest it takes when nothing goes wrong."""
        below = sum(step.child.busy_ms + 100 for step in self.steps if step.child is not None)
        return below + sum(step.ms + 60 * step.count for step in self.steps)

    def family(self) -> Iterator[Plan]:
        """It and the plans of its sub-tasks."""
        yield self
        for step in self.steps:
            if step.child is not None:
                yield from step.child.family()


def draw_plan(
    chance: random.Random, name: str, tastes: Set[str], *, external: bool, depth: int = 0
) -> Plan:
    """A plan of up to four steps."""
    steps: list[Step] = []
    for _ in range(chance.choice((0, 1, 1, 2, 2, 3, 4))):
        kinds = ["work", "call", "call", "call", "calls"]
        if not external:
            kinds += ["think", "think", "sleep", "signal", "ask"]
            if "subtasks" in tastes and depth < 2:
                kinds += ["child", "child"]
        kind = chance.choice(kinds)
        child = None
        if kind == "child":
            below = f"{name}.{len(steps)}"
            child = draw_plan(chance, below, tastes, external=False, depth=depth + 1)
        steps.append(
            Step(
                kind,
                ms=chance.choice((0, 1, 10, 50, 200)),
                effect_class=chance.choice(CLASSES),
                count=chance.choice((2, 3)) if kind == "calls" else 1,
                question=kind == "ask",
                rude=chance.random() < 0.1,
                shared=chance.choice(("a", "b")) if chance.random() < 0.05 else None,
                child=child,
            )
        )
    ends: list[Failed | None] = []
    # What several fail of in the same way opens a breaker: not everybody's taste.
    prints = ("x", "y", None) if "breaker" in tastes else (f"x of {name}", f"y of {name}", None)
    while chance.random() < (0.5 if "breaker" in tastes or "redrive" in tastes else 0.25):
        ends.append(
            Failed(
                "planned", "as the plan says", retryable=chance.random() < 0.8,
                fingerprint=chance.choice(prints),
                retry_after_ms=chance.choice((None, None, 0, 30)),
            )
        )  # fmt: skip
    return Plan(name, steps, ends)


class Sink:
    """The world that effects change: it counts, and remembers what it answered."""

    def __init__(self, laws: Laws) -> None:
        self._laws = laws
        self.hits: Counter[str] = Counter()
        self.allowed: Counter[str] = Counter()
        """How often more than once somebody said that it may happen."""
        self.on_the_way: Counter[str] = Counter()
        """Calls of the daemon that have not hit yet."""
        self._about: dict[str, tuple[str, bytes]] = {}
        self._last: dict[str, bytes] = {}

    def hit(self, tid: int, ordinal: int, key: str, kind: EffectClass, request: bytes) -> bytes:
        """The world changes. The answer, as JSON."""
        self.hits[key] += 1
        once = kind in (EffectClass.IRREVERSIBLE, EffectClass.PROBEABLE)
        most = 1 + self.allowed[key]
        hold(not once or self.hits[key] <= most, "I-4", f"{kind} effect twice:", tid, ordinal, key)
        about = (str(kind), request)
        hold(self._about.setdefault(key, about) == about, "E-5", "a key for two calls", key)
        if kind is not EffectClass.PURE:
            effect = self._laws.tasks[tid].effects.get(ordinal)
            committed = effect is not None and effect.key == key
            hold(committed, "E-1", "sent before its intent was on disk", tid, ordinal)
        answer = b'"%s %d"' % (key[:8].encode(), self.hits[key])
        self._last[key] = answer
        self._laws.answers.setdefault(key, set()).add(answer)
        return answer

    def happened(self, key: str) -> bytes | None:
        """Its answer, if the world was changed under that key."""
        return self._last.get(key)
