"""The live figures of Q-8: what they call even, and that each planted unfairness shows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from goclaw.core import limits
from goclaw.engine.fairness import Fairness, Turn, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

pytestmark = pytest.mark.req("Q-8", "O-3")

SESSIONS = 6
Served = list[int]


def told(order: Iterable[int], *, weights: dict[int, int] | None = None) -> dict[str, int]:
    """What is told of claims of these sessions, which all have tasks all the time, from claim 0."""
    fairness = Fairness()
    last: dict[int, int] = {}
    for number, sid in enumerate(order):
        since = last.get(sid, -1) + 1
        weight = (weights or {}).get(sid, 1)
        fairness.note("", sid, [number, 4, weight, number - since, 0, int(since > 0)])
        last[sid] = number
    return measure(fairness.turns())


def even(count: int) -> list[int]:
    return [number % SESSIONS for number in range(count)]


def test_sessions_in_turn_are_even() -> None:
    shown = told(even(200))
    assert shown == {"serviceSkew": 1, "maxWaitSkew": 0, "longestOvertaking": 0, "claims": 200}


def test_nothing_claimed_is_nothing_told() -> None:
    nothing = {"serviceSkew": 0, "maxWaitSkew": 0, "longestOvertaking": 0, "claims": 0}
    assert measure(Fairness().turns()) == nothing


def test_turns_may_change_places_from_round_to_round() -> None:
    there_and_back = [*range(SESSIONS), *reversed(range(SESSIONS))] * 10
    shown = told(there_and_back)
    assert shown["serviceSkew"] == 1
    assert shown["maxWaitSkew"] == 2 * (SESSIONS - 1)


def test_only_the_last_claims_are_told() -> None:
    shown = told([0] * limits.FAIRNESS_CLAIMS + even(limits.FAIRNESS_CLAIMS))
    assert shown["serviceSkew"] <= 1
    assert shown["claims"] == limits.FAIRNESS_CLAIMS


def twice_as_often() -> list[int]:
    return [sid for _ in range(30) for sid in (0, *range(SESSIONS), 0)][:200]


def one_is_forgotten() -> list[int]:
    return [sid for number in range(30) for sid in range(SESSIONS - (number % 10 > 0))]


def the_newest_first() -> list[int]:
    return [*range(SESSIONS), *([4, 5] * 40), *range(SESSIONS)]


@pytest.mark.parametrize(
    ("order", "service", "wait"),
    [(twice_as_often, 20, 0), (one_is_forgotten, 6, 40), (the_newest_first, 30, 60)],
)
def test_a_planted_unfairness_shows(
    order: Callable[[], list[int]], service: int, wait: int
) -> None:
    shown = told(order())
    assert shown["serviceSkew"] >= service
    assert shown["maxWaitSkew"] >= wait


def test_weights_are_no_unfairness() -> None:
    shown = told(twice_as_often(), weights={0: 2})
    assert shown["serviceSkew"] <= 2


def test_a_head_that_still_waits_counts_as_if_it_were_claimed_now() -> None:
    """Else a session that never has its turn would never be seen."""
    claims = [Turn("", n % 5, n, 4, 1, 4, 0, 1) for n in range(100)]
    starving = Turn("", 9, 100, 4, 1, 100, 0, 1)
    assert measure(claims)["serviceSkew"] <= 1
    shown = measure(claims, [starving])
    assert shown["serviceSkew"] == 20
    assert shown["maxWaitSkew"] == 96
    assert shown["claims"] == 100


def test_a_newcomer_and_a_serial_task_that_runs_are_no_unfairness() -> None:
    """A session is behind only in turns it could have had."""
    turns, number = [], 0
    last: Counter[int] = Counter()
    for round_ in range(40):
        for sid in range(3):  # parallel tasks
            turns.append(Turn("", sid, number, 4, 1, number - last[sid], 0, 1))
            number += 1
            last[sid] = number
        if round_ % 10 == 0:  # a serial task that ran for ten rounds
            turns.append(Turn("", 7, number, 4, 1, 1, 0, 1))
            number += 1
        turns.append(Turn("", 100 + round_, number, 4, 1, 0, 0, 0))  # comes from idle
        number += 1
    shown = measure(turns)
    assert shown["serviceSkew"] <= 1
    assert shown["maxWaitSkew"] <= 3


def test_pools_and_levels_have_turns_of_their_own() -> None:
    """Waits are compared where one level is in use; what passes between levels is overtaking."""
    other = [Turn("other", 0, n, 4, 1, 0, 0, 1) for n in range(50)]
    urgent = [Turn("", 1, n, 0, 1, 0, 0, 1) for n in range(60)]
    late = [Turn("", 2, 60, 4, 1, 60, 60, 1)]
    shown = measure([*urgent, *late, *other])
    assert shown == {
        "serviceSkew": 0, "maxWaitSkew": 0, "longestOvertaking": 60, "claims": 111,
    }  # fmt: skip


def test_reserved_lanes_pass_over_others_by_design() -> None:
    """Q-16: what a lane for prompts took is no turn that others missed."""
    turns, number = [], 0
    for _ in range(40):
        turns.append(Turn("", 0, number, 4, 1, 0, 0, 1, in_order=False))
        for sid in range(3):
            number += 1
            turns.append(Turn("", sid, number, 4, 1, 3, 0, 1))
        number += 1
    shown = measure(turns)
    assert shown["serviceSkew"] <= 2
    assert shown["maxWaitSkew"] <= 4
