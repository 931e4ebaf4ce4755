"""How fairly the tasks that were claimed last had their turn (Q-8).

Owns the live figures, told by what claims return. Not in here: the pick itself (``claim`` in
store/queries.sql).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Fairness", "Turn", "measure"]


class Turn(NamedTuple):
    """One claim. Numbers and waits count the claims of its pool."""

    pool: str
    sid: int
    number: int
    rank: int
    weight: int
    waited: int
    """Claims since its head was ready and its session had its last turn."""
    overtaken: int
    """Claims of more urgent levels meanwhile."""
    stayed: int
    """1: its session had not been idle since its last turn."""
    in_order: bool = True
    """False: a reserved lane, which passes over others by design (Q-16)."""

    @property
    def ready_at(self) -> int:
        """The number of the first claim that could have been this one."""
        return self.number - self.waited


_level = attrgetter("pool", "rank")
_number = attrgetter("number")
_by_number = attrgetter("pool", "rank", "number")


class Fairness:
    """The last claims of all pools. Belongs to the loop."""

    def __init__(self) -> None:
        self._noted: deque[tuple[str, int, Sequence[int], bool]] = deque(
            maxlen=limits.FAIRNESS_CLAIMS
        )

    def note(self, pool: str, sid: int, served: Sequence[int], *, in_order: bool = True) -> None:
        """A claim: ``served`` is what it returned from ``claims`` on."""
        self._noted.append((pool, sid, served, in_order))

    def turns(self) -> list[Turn]:
        """The claims noted last, at most ``FAIRNESS_CLAIMS``."""
        return [
            Turn._make((pool, sid, *served, in_order))
            for pool, sid, served, in_order in self._noted
        ]


def measure(claimed: Sequence[Turn], waiting: Sequence[Turn] = ()) -> dict[str, int]:
    """The object of `goclaw status --json`; ``waiting``: heads as if they were claimed now.

    Takes milliseconds: not for the loop.
    serviceSkew: the most by which a session was behind another of its priority and weight, in
    turns that the other had while this one could have had them. maxWaitSkew: the most claims
    by which a head waited longer than that of a session which had two turns meanwhile.
    """
    service = wait = 0
    turns = sorted((*claimed, *waiting), key=_by_number)
    for _, level in groupby(turns, key=_level):
        equals = list(level)
        service = max(service, _service_skew(equals))
        wait = max(wait, _wait_skew(equals))
    return {
        "serviceSkew": service,
        "maxWaitSkew": wait,
        "longestOvertaking": max((turn.overtaken for turn in turns), default=0),
        "claims": len(claimed),
    }


def _service_skew(turns: list[Turn]) -> int:
    """Of the turns of one level, in order."""
    had: Counter[int] = Counter()
    missed: defaultdict[int, Counter[int]] = defaultdict(Counter)
    worst = 0
    for place, turn in enumerate(turns):
        others = missed[turn.sid]
        for at in _meanwhile(turns, place):
            other = turns[at]
            if other.sid != turn.sid and other.weight == turn.weight and other.in_order:
                others[other.sid] += 1
        worst = max(worst, max(others.values(), default=0) - had[turn.sid])
        had[turn.sid] += 1
    return worst


def _wait_skew(turns: list[Turn]) -> int:
    """Of the turns of one level, in order; where no other level had one meanwhile."""
    last: dict[int, int] = {}
    since: list[int] = []  # when the session of each turn had the one before
    worst = 0
    for place, turn in enumerate(turns):
        since.append(last.get(turn.sid, -1))
        last[turn.sid] = turn.number
        first = max(0, place - turn.waited)
        alone = turns[first].number - first == turn.number - place
        if not (alone and turn.in_order and turn.waited > worst):
            continue
        for at in _meanwhile(turns, place):
            other = turns[at]
            twice = since[at] >= turn.ready_at and other.stayed
            if twice and other.weight == turn.weight and other.in_order:
                worst = max(worst, turn.waited - other.waited)
    return worst


def _meanwhile(turns: list[Turn], place: int) -> range:
    """The places of turns that others had while that one's head was ready."""
    return range(bisect_left(turns, turns[place].ready_at, hi=place, key=_number), place)
