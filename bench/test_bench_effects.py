"""What the restore fence adds to an effect: the same effects with effects.log and without.

Owns E-8's price: one more flush between the intent's commit and the dispatch, shared by all who
wait together. Not in here: what a commit costs (test_bench_queue.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import uvloop

from goclaw.core.clock import SystemClock
from goclaw.core.config import load
from goclaw.core.records import Call, Done, Succeeded
from goclaw.core.states import EffectClass
from goclaw.engine import Engine
from goclaw.store import open_database

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome
    from goclaw.store import Note

ROUNDS = 5
EFFECTS = 40  # of one attempt, one after the other
MANY = 32  # attempts at once


async def nothing(_key: str, _cancelled: asyncio.Event) -> Done:
    return Done(b"null")


class Effects:
    """A runner whose attempt is nothing but effects; it keeps how long each took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        for number in range(EFFECTS):
            request = orjson.dumps({"n": number, "text": "x" * 150})
            began = time.perf_counter()
            (result,) = await attempt.perform(
                [Call("tool", "noop", request, EffectClass.IRREVERSIBLE, nothing)]
            )
            self.seconds.append(time.perf_counter() - began)
            assert result.status == "completed"
        return Succeeded()


def unnoted(_notes: Sequence[Note]) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def effects(home: Path, attempts: int, *, fenced: bool) -> tuple[list[float], float, int]:
    """Seconds of each effect, seconds of all, flushes of the fence."""

    async def run() -> tuple[list[float], float, int]:
        database, runner = open_database(home), Effects()
        config = load(home, {})
        queue = dataclasses.replace(config.queue, lanes=attempts)
        engine = Engine(
            database, SystemClock(), dataclasses.replace(config, queue=queue), runner,
            daemon_boot="bench", policy_version=lambda: "bench",
        )  # fmt: skip
        if not fenced:
            database.fence.note = unnoted  # type: ignore[assignment, method-assign]
        await engine.start()
        session = await engine.intake.create_session(
            cwd="/", roots=["/"], brain="direct", interactive=False
        )
        accepted = [
            await engine.intake.submit_tool(
                session, "noop", {}, key=None, client=None, origin="unix", parallel=True
            )
            for _ in range(attempts)
        ]
        began = time.perf_counter()
        engine.open_lanes()
        ends = await asyncio.gather(*(engine.run_ended(one.run_id) for one in accepted))
        elapsed = time.perf_counter() - began
        assert {end.state for end in ends} == {"SUCCEEDED"}
        flushes = database.fence.flushes
        await engine.stop(1000, asyncio.Event())
        database.close()
        return runner.seconds, elapsed, flushes

    return uvloop.run(run())


def rounds(folder: Path, attempts: int) -> dict[bool, list[tuple[list[float], float, int]]]:
    found: dict[bool, list[tuple[list[float], float, int]]] = {True: [], False: []}
    for number in range(ROUNDS):
        for fenced in (True, False) if number % 2 else (False, True):
            home = folder / f"{attempts}-{number}-{fenced}"
            home.mkdir()
            found[fenced].append(effects(home, attempts, fenced=fenced))
    return found


@pytest.mark.req("E-8", "P-1")
def test_the_price_of_a_note(benchmark: Any, tmp_path: Path) -> None:
    """Alone an effect waits for three flushes instead of two; many share theirs."""
    found = []

    def measure() -> None:
        found.append((rounds(tmp_path, 1), rounds(tmp_path, MANY)))

    benchmark.pedantic(measure, rounds=1, iterations=1)
    if not found:
        return
    ((alone, many),) = found
    with_ms, without_ms = (
        statistics.median(1000 * statistics.median(seconds) for seconds, _, _ in alone[fenced])
        for fenced in (True, False)
    )
    rates = {
        fenced: statistics.median(MANY * EFFECTS / elapsed for _, elapsed, _ in many[fenced])
        for fenced in (True, False)
    }
    flushes = statistics.median(flushes for _, _, flushes in many[True])
    ratio, slowed = with_ms / without_ms, rates[False] / rates[True]
    shared = MANY * EFFECTS / flushes
    print(
        f"\nalone: {with_ms:.2f} ms an effect, {without_ms:.2f} without the note, {ratio:.2f}x; "
        f"{MANY} at once: {rates[True]:,.0f} effects/s, {rates[False]:,.0f} without, "
        f"{slowed:.2f}x, {shared:.1f} notes a flush"
    )
    benchmark.extra_info.update(alone=ratio, many=slowed, notes_a_flush=shared)
    assert shared > 2, "attempts that wait together must share a flush"
    assert ratio < 2.5
    assert slowed < 2.5
