"""Proves what connections share: who is told what, what is remembered, and how much.

Owns members that only write down. Not in here: connections.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from goclaw.core import limits
from goclaw.gateway.roster import Roster

if TYPE_CHECKING:
    from goclaw.core.records import Accepted


class Diary:
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def approval_opened(self, sid: int, event_id: int, approval: dict[str, Any]) -> None:
        self.told.append(("opened", sid, event_id, approval["approvalId"]))

    def approval_resolved(self, sid: int, event_id: int, approval: dict[str, Any]) -> None:
        self.told.append(("resolved", sid, event_id, approval["approvalId"]))

    def lease_over(self) -> None:
        self.told.append(("lease over",))

    def run_ended(self, sid: int, event_id: int, run_id: str, at_ms: int) -> None:
        self.told.append(("ended", sid, event_id, run_id, at_ms))

    def session_gone(self, sid: int) -> None:
        self.told.append(("gone", sid))


def event(event_id: int, kind: str, **payload: Any) -> Any:
    return (1, event_id, 1, kind, 5, "run_1", "task_1", 1, None, orjson.dumps(payload))


@pytest.mark.req("W-8")
def test_everybody_is_told_what_concerns_all() -> None:
    roster, members = Roster(), [Diary(), Diary()]
    roster.members.update(members)
    roster.observe(
        [
            event(1, "task.queued"),
            event(2, "approval.opened", approvalId="a"),
            event(3, "approval.resolved", approvalId="a"),
            event(4, "run.ended"),
        ]
    )
    roster.session_gone(1)
    for member in members:
        assert member.told == [
            ("opened", 1, 2, "a"), ("resolved", 1, 3, "a"),
            ("ended", 1, 4, "run_1", 5), ("gone", 1),
        ]  # fmt: skip
    assert roster.was_resolved("a")
    assert not roster.was_resolved("b")


@pytest.mark.req("W-9", "I-5")
def test_memories_are_bounded() -> None:
    roster = Roster()
    for n in range(limits.CONNECTIONS_MAX + 10):
        roster.remember_close([f"k{n}"], {"n": n})
        roster.observe([event(1, "approval.resolved", approvalId=f"a{n}")])
    assert roster.take_close("k9") is None
    assert not roster.was_resolved("a9")
    assert roster.take_close("k10") == {"n": 10}
    assert roster.take_close("k10") is None


@pytest.mark.req("W-7")
def test_a_cancel_waits_for_what_is_on_its_way() -> None:
    async def main() -> None:
        roster = Roster()
        await roster.submitted(1)
        loop = asyncio.get_running_loop()
        pending: list[asyncio.Future[Accepted]] = [loop.create_future() for _ in range(3)]
        for future in pending:
            roster.submitting(1, future)
        waiting = asyncio.ensure_future(roster.submitted(1))
        pending[0].set_exception(OSError())
        pending[1].cancel()
        await asyncio.sleep(0)
        await roster.submitted(2)
        assert not waiting.done()
        pending[2].set_exception(OSError())
        await waiting
        await roster.submitted(1)

    asyncio.run(main())


def test_what_outlives_its_connection_is_waited_for() -> None:
    async def main() -> list[str]:
        roster, done = Roster(), []

        async def work(word: str, fails: bool) -> None:
            await asyncio.sleep(0)
            done.append(word)
            if fails:
                raise OSError(word)

        roster.background(work("a", False))
        roster.background(work("b", True))
        await roster.settled()
        return done

    assert asyncio.run(main()) == ["a", "b"]
