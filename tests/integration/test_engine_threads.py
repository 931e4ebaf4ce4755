"""The engine as the daemon runs it: a writer thread, two reader threads, real time, either loop.

Owns what virtual time cannot show: that the threads' wake-ups arrive. Not in here: anything that
depends on how long something takes.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import store_support
import uvloop

from goclaw.core.clock import SystemClock
from goclaw.core.config import Config
from goclaw.core.records import Call, Done, Succeeded
from goclaw.core.states import EffectClass
from goclaw.engine import Engine
from goclaw.store import open_database

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome

LOOPS = {"asyncio": asyncio.run, "uvloop": uvloop.run}


class Acts:
    """Three effects a task."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        for kind in (EffectClass.IRREVERSIBLE, EffectClass.PURE, EffectClass.KEYED):
            await attempt.perform([Call("tool", str(kind), b"{}", kind, self.dispatch)])
        return Succeeded()

    async def dispatch(self, key: str, cancelled: asyncio.Event) -> Done:
        self.sent.append(key)
        return Done(b"1")


def lived(home: Path, runner: Acts, main: Callable[[Engine], Coroutine[Any, Any, None]]) -> Any:
    async def life() -> None:
        database = open_database(home, synchronous="normal")
        config = Config()
        engine = Engine(
            database, SystemClock(),
            dataclasses.replace(config, queue=dataclasses.replace(config.queue, lanes=6)), runner,
            daemon_boot="b", policy_version=lambda: "p",
        )  # fmt: skip
        try:
            await engine.start()
            engine.open_lanes()
            await main(engine)
            await engine.stop(10_000, asyncio.Event())
        finally:
            database.close()

    return life()


@pytest.mark.req("Q-3", "R-5", "I-4")
@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_every_submission_ends_once(home: Path, loop: str) -> None:
    runner = Acts()

    async def main(engine: Engine) -> None:
        async def client(number: int) -> list[Accepted]:
            session = await engine.intake.create_session(
                cwd="/", roots=["/"], brain="script", interactive=False
            )
            accepted = []
            for turn in range(15):
                task = await engine.intake.submit_tool(
                    session, "t", {"turn": turn}, key=str(turn), client=None, origin="unix",
                    parallel=bool(number % 2),
                )  # fmt: skip
                accepted.append(task)
                if turn % 3 == 0:
                    assert (await engine.run_ended(task.run_id)).state == "SUCCEEDED"
            return accepted

        clients = await asyncio.gather(*(client(number) for number in range(8)))
        for accepted in clients:
            for task in accepted:
                assert (await engine.run_ended(task.run_id)).state == "SUCCEEDED"
        assert engine.task_counts()["SUCCEEDED"] == 8 * 15
        assert engine.open_tasks() == 0

    LOOPS[loop](lived(home, runner, main))
    assert len(runner.sent) == 8 * 15 * 3
    assert len(set(runner.sent)) == 8 * 15 * 3
    store_support.obey(home / "goclaw.db")


@pytest.mark.req("Q-3", "R-3")
@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_stop_in_the_middle_leaves_no_lease(home: Path, loop: str) -> None:
    runner = Acts()

    async def main(engine: Engine) -> None:
        session = await engine.intake.create_session(
            cwd="/", roots=["/"], brain="script", interactive=False
        )
        for turn in range(100):
            task = await engine.intake.submit_tool(
                session, "t", {}, key=None, client=None, origin="unix", parallel=True
            )
            if turn == 30:
                await engine.run_ended(task.run_id)
        await engine.stop(0, asyncio.Event())
        assert await engine.database.read("live_tasks") == []

    LOOPS[loop](lived(home, runner, main))
    store_support.obey(home / "goclaw.db")
    assert len(set(runner.sent)) == len(runner.sent)
