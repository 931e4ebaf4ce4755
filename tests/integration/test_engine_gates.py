"""Gates: how many at once, how often, breakers, reserved lanes, and lines that pass each other."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.records import Call, Done, Failed, Retryable, Succeeded, Terms
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome

HOUR_S = 3600


class Crowd:
    """Plays that count who runs at the same time."""

    def __init__(self, ms: float = 1_000) -> None:
        self.ms = ms
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.begun: list[tuple[str, int]] = []

    async def sleeper(self, attempt: Attempt) -> Outcome:
        """Takes as long, and counts nothing."""
        await passes(self.ms)
        return Succeeded()

    def play(self, house: Home, name: str) -> None:
        async def run(attempt: Attempt) -> Outcome:
            self.begun.append((name, house.clock.mono_ms()))
            self.now[name] += 1
            self.most[name] = max(self.most[name], self.now[name])
            try:
                await passes(self.ms)
            finally:
                self.now[name] -= 1
            return Succeeded()

        house.plays[name] = run


@pytest.mark.req("Q-16", "Q-17")
def test_no_more_at_once_than_the_bound_and_all_of_them_come(home: Path) -> None:
    house, crowd = Home(home, lanes=8, bounds="tool:narrow 2 at once"), Crowd()
    crowd.play(house, "narrow")
    crowd.play(house, "wide")

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(6)]
        tasks = [
            await world.tool(session, name, parallel=parallel)
            for session in sessions
            for name, parallel in (("narrow", True), ("narrow", False), ("wide", True))
        ]
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"
        assert crowd.most["narrow"] == 2
        assert crowd.most["wide"] > 2  # the gate is before its own work only

    house.live(main)


@pytest.mark.req("Q-8", "Q-16")
@pytest.mark.parametrize("then", [2, 16])
@pytest.mark.parametrize("now", [2, 16])
def test_who_waits_at_a_gate_ages_as_configured_now(home: Path, then: int, now: int) -> None:
    """Five claims have passed the less urgent one when the more urgent one comes: at 2 claims for a
    level it is ahead, at 16 it is not."""
    house = Home(home, lanes=2, bounds="tool:narrow 1 at once")
    crowd = Crowd(60_000)
    crowd.play(house, "narrow")

    async def line_up(world: World) -> list[str]:
        async def narrow(priority: int) -> str:
            found = await world.tool(await world.session(), "narrow", priority=priority)
            return found.task_id

        first, less = await narrow(9), await narrow(5)
        for _ in range(5):
            assert await world.ended(await world.tool(await world.session(), "wide")) == "SUCCEEDED"
        waiting = [less, await narrow(6)]
        return [first, *waiting]

    async def order(world: World) -> list[str]:
        for task in tasks:
            while (await world.engine.task(task))["state"] != "SUCCEEDED":
                await passes(1_000)
        return [task for task, _ in house.plays.begun if task in tasks[1:]]

    tasks = house.live(line_up, aging_factor=then)
    _, less, more = tasks
    assert house.live(order, aging_factor=now) == ([less, more] if now == 2 else [more, less])


@pytest.mark.req("Q-8", "Q-16", "Q-17")
@pytest.mark.parametrize("bound", ["1 at once", "2 at once", "1/min"])
def test_more_urgent_work_takes_the_place_of_what_a_gate_let_in_and_no_lane_took(
    home: Path, bound: str
) -> None:
    """The lane is busy with other work, and the gate has let in as many of the least urgent as may
    be; whoever is more urgent goes before them, and they keep their places behind."""
    house = Home(home, lanes=1, bounds=f"tool:narrow {bound}")
    house.plays["wide"] = Crowd(60_000).sleeper

    async def main(world: World) -> None:
        wide = [await world.tool(await world.session(), "wide", priority=5) for _ in range(12)]
        await passes(1_000)
        least = [await world.tool(await world.session(), "narrow", priority=1) for _ in range(3)]
        await passes(1_000)
        most = [await world.tool(await world.session(), "narrow", priority=9) for _ in range(2)]
        before = len(house.plays.begun)
        for task in (*most, *wide, *least):
            assert await world.ended(task) == "SUCCEEDED"
        begun = [task for task, _ in house.plays.begun]
        assert begun.index(most[0].task_id) == before  # the next claim of all
        narrow = [task.task_id for task in (*most, *least)]
        assert [task for task in begun if task in narrow] == narrow

    house.live(main)


@pytest.mark.req("Q-8", "Q-16")
def test_who_is_put_back_at_a_gate_ages_all_the_same(home: Path) -> None:
    """More urgent work of its kind comes without an end: the least urgent goes first once its place
    is the oldest, however often it had to give it up."""
    house = Home(home, lanes=1, aging_factor=4, bounds="tool:narrow 1 at once")
    house.plays["narrow"] = house.plays["wide"] = Crowd(1_000).sleeper

    async def main(world: World) -> None:
        wide = await world.session()
        for _ in range(200):
            await world.tool(wide, "wide", priority=5, parallel=True)
        least = await world.tool(await world.session(), "narrow", priority=4)
        turns = 0
        while await world.state(least) != "SUCCEEDED" and turns < 30:
            turns += 1
            more = await world.tool(await world.session(), "narrow", priority=5)
            assert await world.ended(more) == "SUCCEEDED"
        assert 1 <= turns <= 6

    house.live(main)


@pytest.mark.req("Q-16")
def test_a_bound_holds_over_a_crash_and_goes_with_the_config(home: Path) -> None:
    house, crowd = Home(home, lanes=8), Crowd()
    crowd.play(house, "narrow")

    async def submit(world: World) -> Any:
        tasks = [await world.tool(await world.session(), "narrow") for _ in range(6)]
        await passes(500)
        return tasks

    async def finish(world: World) -> None:
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"

    tasks = house.live(submit, bounds="tool:narrow 1 at once")
    assert crowd.most["narrow"] == 1
    crowd.most.clear()
    crowd.now.clear()
    house.live(finish)  # no bound any more
    assert crowd.most["narrow"] == 6


@pytest.mark.req("Q-16")
def test_no_more_often_than_the_rate_over_restarts(home: Path) -> None:
    house, crowd = Home(home, lanes=8, bounds="tool:often 3/min"), Crowd(ms=10)
    crowd.play(house, "often")

    async def submit(world: World) -> Any:
        tasks = [await world.tool(await world.session(), "often") for _ in range(8)]
        await passes(25_000)
        return tasks

    async def finish(world: World) -> None:
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"

    tasks = house.live(submit)
    house.live(finish)
    times = [at for _, at in crowd.begun]
    assert len(times) == 8
    for start in times:  # a bucket of three, refilled by one each 20 s
        assert sum(start <= at < start + 20_000 for at in times) <= 4
    assert times[-1] - times[0] >= 4 * 20_000


@pytest.mark.req("Q-7", "Q-17")
def test_one_fingerprint_in_several_tasks_opens_the_breaker(home: Path) -> None:
    house = Home(home, lanes=4, backoff_ms_min=100, backoff_ms_max=100)
    up = False
    calls: list[int] = []

    async def far(attempt: Attempt) -> Outcome:
        calls.append(house.clock.mono_ms())
        if not up:
            return Failed("refused", "no", retryable=True, fingerprint="refused")
        return Succeeded()

    house.plays["far"] = far

    async def main(world: World) -> None:
        nonlocal up
        tasks = [await world.tool(await world.session(), "far") for _ in range(30)]
        other = await world.tool(await world.session(), "other")
        assert await world.ended(other) == "SUCCEEDED"  # other work goes on
        await passes(5_000)
        opened = len(calls)
        assert limits.BREAKER_TASKS <= opened <= limits.BREAKER_TASKS + 4
        await passes(limits.BREAKER_PROBE_MS * 3)
        probes = calls[opened:]
        assert 1 <= len(probes) <= 2  # one at a time, ever more seldom
        up = True
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"
        assert len(calls) <= 30 + opened + 4

    house.live(main)


@pytest.mark.req("Q-7")
@pytest.mark.parametrize("takes_ms", [10, 45_000])
def test_one_probe_runs_at_a_time(home: Path, takes_ms: int) -> None:
    """Not several that were let in while all lanes were busy, nor a second while one runs."""
    house = Home(home, lanes=3, backoff_ms_min=100, backoff_ms_max=100, max_attempts=50)
    house.plays["wide"] = Crowd(200_000).sleeper
    running = most = 0
    broken = False

    async def far(attempt: Attempt) -> Outcome:
        nonlocal running, most
        running += 1
        most = max(most, running) if broken else 0
        await passes(takes_ms if broken else 10)
        running -= 1
        what = f"refused {attempt.task.task_id} {len(house.plays.order)}" if broken else "refused"
        return Failed("refused", "no", retryable=True, fingerprint=what)

    house.plays["far"] = far

    async def main(world: World) -> None:
        nonlocal broken
        for _ in range(9):
            await world.tool(await world.session(), "far")
        while not any(row[6] for row in await world.engine.database.read("gates")):
            await passes(50)
        await passes(1_000)
        broken = True
        wide = [await world.tool(await world.session(), "wide") for _ in range(3)]
        for task in wide:
            assert await world.ended(task) == "SUCCEEDED"
        known = house.plays.order.count("far")
        await passes(limits.BREAKER_PROBE_MS_MAX)
        assert house.plays.order.count("far") > known
        assert most == 1

    house.live(main)


@pytest.mark.req("Q-7")
def test_an_open_breaker_survives_a_restart_and_a_reboot(home: Path) -> None:
    house = Home(home, lanes=4, backoff_ms_min=100, backoff_ms_max=100)
    up = False

    async def far(attempt: Attempt) -> Outcome:
        house.plays.order.append("call")
        if up:
            return Succeeded()
        return Failed("refused", "no", retryable=True, fingerprint="refused")

    house.plays["far"] = far

    async def first(world: World) -> Any:
        tasks = [await world.tool(await world.session(), "far") for _ in range(6)]
        await passes(3_000)
        return tasks

    async def second(world: World) -> None:
        nonlocal up
        known = house.plays.order.count("call")
        await passes(1_000)
        assert house.plays.order.count("call") == known
        up = True
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"

    tasks = house.live(first)
    house.live(second)


@pytest.mark.req("Q-7", "Q-16")
def test_calls_inside_runs_come_to_the_same_gate(home: Path) -> None:
    """A prompt's call of a tool whose breaker is open parks the attempt; its lane is free."""
    house = Home(home, lanes=2, backoff_ms_min=100, backoff_ms_max=100)
    up = False
    dispatched: list[int] = []

    async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
        dispatched.append(house.clock.mono_ms())
        if not up:
            raise Retryable("refused", "no", fingerprint="refused")
        return Done(b"1")

    async def asks(attempt: Attempt) -> Outcome:
        await attempt.perform([Call("tool", "far", b"{}", EffectClass.KEYED, dispatch)])
        return Succeeded()

    house.plays["asks"] = asks

    async def main(world: World) -> None:
        nonlocal up
        prompts = [await world.prompt(await world.session(), "asks") for _ in range(8)]
        await passes(5_000)
        opened = len(dispatched)
        assert opened <= limits.BREAKER_TASKS + 2
        states = Counter([await world.state(prompt) for prompt in prompts])
        assert states["SUSPENDED"] + states["RETRY_WAIT"] == 8
        assert not world.engine.scheduler.live
        other = await world.prompt(await world.session(), "other")
        assert await world.ended(other) == "SUCCEEDED"
        up = True
        for prompt in prompts:
            assert await world.ended(prompt) == "SUCCEEDED"
            row = await world.engine.task(prompt.task_id)
            assert row["crashes"] == 0

    house.live(main)


class Far:
    """Runs that make one call each, which takes a while; when each began, and how many at once."""

    def __init__(self, house: Home) -> None:
        self.clock, self.begun = house.clock, list[int]()
        self.running = self.most = 0

    async def dispatch(self, key: str, cancelled: asyncio.Event) -> Done:
        self.begun.append(self.clock.mono_ms())
        self.running += 1
        self.most = max(self.most, self.running)
        await passes(500)
        self.running -= 1
        return Done(b"1")

    async def asks(self, attempt: Attempt) -> Outcome:
        await attempt.perform([Call("tool", "far", b"{}", EffectClass.KEYED, self.dispatch)])
        return Succeeded()


@pytest.mark.req("Q-16")
def test_calls_inside_runs_keep_the_bound_and_the_rate(home: Path) -> None:
    house = Home(home, lanes=6, bounds="tool:far 2 at once, 4/min")
    far = Far(house)
    house.plays["asks"] = far.asks

    async def main(world: World) -> None:
        prompts = [await world.prompt(await world.session(), "asks") for _ in range(8)]
        for prompt in prompts:
            assert await world.ended(prompt) == "SUCCEEDED"
        assert far.most == 2
        for start in far.begun:
            assert sum(start <= at < start + 15_000 for at in far.begun) <= 5
        assert far.begun[-1] - far.begun[0] >= 3 * 15_000

    house.live(main)


@pytest.mark.req("Q-16")
def test_calls_that_come_to_a_gate_in_one_moment_keep_its_bound(home: Path) -> None:
    """None of them has passed while the others ask."""
    house = Home(home, lanes=4, bounds="tool:far 1 at once")
    far = Far(house)
    house.plays["asks"] = far.asks

    async def main(world: World) -> None:
        prompts = [await world.prompt(await world.session(), "asks") for _ in range(4)]
        world.engine.open_lanes()
        for prompt in prompts:
            assert await world.ended(prompt) == "SUCCEEDED"
        assert far.most == 1

    house.live(main, lanes=False)


@pytest.mark.req("Q-16", "E-1")
@pytest.mark.parametrize("bound", ["1 at once", "2/s", "1 at once, 2/s"])
def test_an_answer_with_more_calls_than_its_gate_lets_in_comes_to_its_end(
    home: Path, bound: str
) -> None:
    house = Home(home, bounds=f"tool:far {bound}")
    sent: list[bytes] = []
    most = now = 0

    async def run(attempt: Attempt) -> Outcome:
        async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await passes(50)
            now -= 1
            sent.append(key.encode())
            return Done(b"1")

        await attempt.perform(
            [
                Call("tool", "far", b"%d" % number, EffectClass.IRREVERSIBLE, dispatch)
                for number in range(5)
            ]
        )
        return Succeeded()

    house.plays["run"] = run

    async def main(world: World) -> None:
        task = await world.prompt(await world.session(), "run")
        async with asyncio.timeout(30):
            assert await world.ended(task) == "SUCCEEDED"
        assert len(set(sent)) == len(sent) == 5
        assert most == (1 if "once" in bound else 2)

    house.live(main)


@pytest.mark.req("Q-16")
def test_a_call_that_is_not_sent_leaves_its_gate(home: Path) -> None:
    """Its intent did not reach the disk: the slot is another's."""
    house = Home(home, lanes=2, bounds="tool:far 1 at once")

    async def run(attempt: Attempt) -> Outcome:
        async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
            return Done(b"1")

        if attempt.task.attempt == 1:
            database = vars(attempt)["_database"]
            write = database.apply

            def failing(*parts: Any, live: bool = False) -> Any:
                database.apply = write
                database.fail_next_commit(after=False)
                return write(*parts, live=live)

            database.apply = failing
        await attempt.perform([Call("tool", "far", b"{}", EffectClass.KEYED, dispatch)])
        return Succeeded()

    house.plays["run"] = run

    async def main(world: World) -> None:
        task = await world.prompt(await world.session(), "run")
        async with asyncio.timeout(60):
            assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.begun[-1][1] == 2  # the second attempt, at once

    house.live(main)


@pytest.mark.req("Q-16", "R-2")
def test_reserved_lanes_are_for_prompts(home: Path) -> None:
    house, crowd = Home(home, lanes=4, reserved_lanes=2), Crowd(ms=10_000)
    crowd.play(house, "tool")
    crowd.play(house, "prompt")

    async def main(world: World) -> None:
        tools = [await world.tool(await world.session(), "tool") for _ in range(12)]
        await passes(1_000)
        assert crowd.now["tool"] == 2
        began = world.clock.mono_ms()
        prompts = [await world.prompt(await world.session(), "prompt") for _ in range(2)]
        await settled()
        assert crowd.now["prompt"] == 2
        for prompt in prompts:
            await world.ended(prompt)
        assert world.clock.mono_ms() - began < 11_000
        # Prompts may have all lanes.
        many = [await world.prompt(await world.session(), "prompt") for _ in range(8)]
        for task in (*many, *tools):
            assert await world.ended(task) == "SUCCEEDED"
        assert crowd.most["tool"] == 2
        assert house.plays.most <= 4

    house.live(main)


@pytest.mark.req("Q-9", "Q-17")
def test_a_parallel_task_that_nobody_takes_holds_nobody_up(home: Path) -> None:
    house = Home(home, lanes=1)

    async def main(world: World) -> None:
        session = await world.session()
        pooled = await world.intake.submit_work(
            session, "nobody", 1, key=None, client=None, origin="unix", parallel=True
        )
        for parallel in (True, False):
            task = await world.tool(session, "x", parallel=parallel)
            assert await world.ended(task) == "SUCCEEDED"
        assert await world.state(pooled) == "QUEUED"

    house.live(main)


@pytest.mark.req("Q-8", "Q-9")
def test_several_lines_are_no_larger_share(home: Path) -> None:
    """A session whose parallel tasks are of many kinds gets what one with a single kind gets."""
    house = Home(home, lanes=1)

    async def main(world: World) -> None:
        many, single = await world.session(), await world.session()
        first = await world.tool(await world.session(), "first")
        tasks = [await world.tool(single, "single", parallel=True) for _ in range(40)]
        tasks += [await world.tool(many, f"kind{n % 8}", parallel=True) for n in range(40)]
        world.engine.open_lanes()
        for task in (first, *tasks):
            await world.ended(task)
        order = [name for name in house.plays.order if name != "first"]
        assert len(order) == 80
        for end in range(1, 80):
            started = Counter(name == "single" for name in order[:end])
            assert abs(started[True] - started[False]) <= 2, (end, order[:end])

    house.live(main, lanes=False)


@pytest.mark.req("Q-13", "Q-16")
def test_a_task_at_a_gate_has_its_deadline(home: Path) -> None:
    house, crowd = Home(home, lanes=4, bounds="tool:narrow 1 at once"), Crowd(ms=60_000)
    crowd.play(house, "narrow")

    async def main(world: World) -> None:
        first = await world.tool(await world.session(), "narrow")
        deadline = world.clock.wall_ms() + 5_000
        late = await world.tool(await world.session(), "narrow", terms=Terms(deadline_ms=deadline))
        behind = await world.tool(await world.session(), "narrow")
        assert await world.ended(late) == "FAILED"
        for task in (first, behind):
            assert await world.ended(task) == "SUCCEEDED"

    house.live(main)
