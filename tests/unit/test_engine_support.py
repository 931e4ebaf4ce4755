"""The virtual loop is what tests of the engine stand on: held to its own promises first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import Stuck, VirtualClock, VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(main: Coroutine[Any, Any, Any], clock: VirtualClock, **options: Any) -> Any:
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock, **options)) as runner:
        return runner.run(main)


@pytest.mark.req("R-6")
def test_time_passes_only_when_nobody_can_go_on() -> None:
    clock = VirtualClock()
    began = clock.ns

    async def main() -> None:
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert clock.ns == began
        await asyncio.gather(asyncio.sleep(30), asyncio.sleep(10))
        assert 30_000_000_000 <= clock.ns - began < 30_000_010_000

    run(main(), clock)


@pytest.mark.req("R-6")
def test_timers_fire_in_the_order_of_their_time() -> None:
    fired: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for delay in (3, 1, 2):
            loop.call_later(delay, fired.append, delay)
        await asyncio.sleep(4)

    run(main(), VirtualClock())
    assert fired == [1, 2, 3]


@pytest.mark.req("R-6")
def test_a_wait_for_nothing_is_found_at_once() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    async def retrying() -> None:
        for _ in range(1_000):
            await asyncio.sleep(1)

    with pytest.raises(Stuck):
        run(forever(), VirtualClock())
    with pytest.raises(Stuck):
        run(retrying(), VirtualClock(), limit_s=60)


@pytest.mark.req("R-6")
def test_work_outside_goes_before_time() -> None:
    clock = VirtualClock()
    began = clock.ns
    batches = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        left = [3]

        def step() -> bool:
            if not left[0]:
                return False
            left[0] -= 1
            batches.append(clock.ns)
            return True

        loop.outside = step
        await asyncio.sleep(1)

    run(main(), clock)
    assert batches == [began] * 3


@pytest.mark.req("R-6")
@pytest.mark.parametrize("hurry", [0, 0.5])
def test_executors_answer_on_the_loop(hurry: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        cancelled = loop.run_in_executor(None, lambda: 7)
        cancelled.cancel()
        await asyncio.sleep(0.01)

    run(main(), VirtualClock(), hurry=hurry)
