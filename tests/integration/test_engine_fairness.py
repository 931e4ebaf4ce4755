"""What a daemon tells of its fairness while it works: even where it is, and each planted bug shows.

Owns the live figures of Q-8 on a real engine. Not in here: the bounds themselves
(test_store_fairness.py), reserved lanes (test_engine_gates.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from engine_support import Home, World, passes

from goclaw.core import limits
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.records import Succeeded
from goclaw.store import queries

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome

pytestmark = pytest.mark.req("Q-8", "O-3")

LANES = 3
CATALOGUE = queries.load()
DECISION = Decision(
    "decision_1", 0, Subject(SubjectKind.WORKER, "w", Origin.UNIX), "worker.claim", "p", Context(),
    Verdict.ALLOW, "workers-claim", "", "policy", (),
)  # fmt: skip


async def a_while(attempt: Attempt) -> Outcome:
    await passes(100)
    return Succeeded()


def planted(patch: pytest.MonkeyPatch, program: str, pattern: str, instead: str) -> None:
    """Change the SQL of a program."""
    before = CATALOGUE.programs[program]
    steps = [step._replace(sql=re.sub(pattern, instead, step.sql)) for step in before.steps]
    assert steps != [*before.steps], f"nothing like {pattern!r} in {program}"
    programs = {**CATALOGUE.programs, program: before._replace(steps=tuple(steps))}
    patch.setattr(queries, "load", lambda: CATALOGUE._replace(programs=programs))


def live(home: Path, **tasks: int) -> dict[str, int]:
    """Four sessions with tasks enough, and what is told of them after 120 claims.

    ``kinds``: so many kinds of parallel tasks in every second session. ``urgent``: so many tasks
    of a more urgent level.
    """
    house = Home(home, lanes=LANES)
    house.plays.plays = dict.fromkeys("abcdefu", a_while)

    async def main(world: World) -> dict[str, int]:
        for number in range(4):
            session = await world.session()
            for _ in range(60):
                kind = "abcdef"[: tasks.get("kinds", 1)] if number % 2 else "a"
                for name in kind:
                    await world.tool(session, name, parallel=True)
        if "urgent" in tasks:
            session = await world.session()
            for _ in range(tasks["urgent"]):
                await world.tool(session, "u", parallel=True, priority=7)
        world.engine.open_lanes()
        while world.engine.scheduler.claims < 120:
            await passes(50)
        return await world.engine.fairness()

    return house.live(main, lanes=False, session_limit=1_000)


@pytest.mark.parametrize("tasks", [{}, {"kinds": 6}, {"urgent": 80}, {"kinds": 6, "urgent": 80}])
def test_a_daemon_at_work_tells_that_it_is_fair(home: Path, tasks: dict[str, int]) -> None:
    told = live(home, **tasks)
    assert told["serviceSkew"] <= 2
    assert told["maxWaitSkew"] <= LANES + 2
    due = limits.AGING_FACTOR * 2 + 2 * 4 if "urgent" in tasks else 0
    assert told["longestOvertaking"] <= due
    assert 120 <= told["claims"] <= 120 + LANES


def test_heads_in_the_order_of_sessions_show(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "claim", r"ORDER BY h\.rank, h\.start.*LIMIT 1", "ORDER BY h.sid LIMIT 1")
    told = live(home)
    assert told["serviceSkew"] > 2
    assert told["maxWaitSkew"] > LANES + 2


def test_a_session_that_is_charged_half_shows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "claim", r"1048576 / s\.weight", "1048576 / (s.weight + (s.sid = 3))")
    assert live(home)["serviceSkew"] > 2


def test_a_share_for_each_kind_of_work_shows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other heads of a session that was served go on as if it had not been."""
    planted(monkeypatch, "claim", r"UPDATE heads\s+SET start(?s:.*)", "SELECT 1 WHERE 0")
    assert live(home, kinds=6)["serviceSkew"] > 2


def test_aging_that_never_comes_shows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "claim", r":last_due = 0", "0")
    told = live(home, urgent=80)
    assert told["longestOvertaking"] > limits.AGING_FACTOR * 2 + 2 * 4


@pytest.mark.req("W-11")
def test_claims_of_workers_are_told_as_well(home: Path) -> None:
    house = Home(home, lanes=LANES)

    async def main(world: World) -> dict[str, int]:
        for _ in range(3):
            session = await world.session()
            for number in range(10):
                await world.intake.submit_work(
                    session, "p", {"n": number}, key=None, client="me", origin="unix"
                )
        for _ in range(3):
            leases = await world.engine.pools.claim(
                "p", most=1, wait_ms=0, owner="w", decision=DECISION
            )
            assert len(leases) == 1
        return await world.engine.fairness()

    told = house.live(main)
    assert told["claims"] == 3
