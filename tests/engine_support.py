"""The engine under a test's hand: virtual time, a writer run by steps, lives that end in a crash.

Owns the loop that is never early nor late, the clock, and a world of one home. Not in here: any
test. It is the seed of the simulator: real database, real engine, one thread, every choice drawn
from one seed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import selectors
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import store_support

from goclaw.core.clock import ulid
from goclaw.core.config import Config
from goclaw.core.records import Succeeded
from goclaw.engine import Engine
from goclaw.store import open_database, rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, MutableSet
    from concurrent.futures import Executor
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome, Runner, Session

T = TypeVar("T")

HOUR_S = 3600.0


class VirtualClock:
    """Time that stands still until the loop is idle; ``core.clock.Clock``."""

    def __init__(self, seed: int = 0) -> None:
        self.ns = 1_000_000_000_000
        self.wall_offset_ms = 1_800_000_000_000
        self.chance = random.Random(seed)

    def mono_ms(self) -> int:
        return self.ns // 1_000_000

    def wall_ms(self) -> int:
        return self.wall_offset_ms + self.mono_ms()

    def random_bytes(self, count: int) -> bytes:
        return self.chance.randbytes(count)

    def random(self) -> float:
        return self.chance.random()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{ulid(self.wall_ms(), self.random_bytes(10))}"


class Stuck(Exception):
    """Everybody waits and nothing is due: somebody missed a wake-up."""


class _Selector(selectors.DefaultSelector):
    """When nothing is ready: first the work that waits outside the loop, then the next timer."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if found or self.loop.work_outside(idle=timeout is None or timeout > 0):
            return found
        if timeout is None:
            raise Stuck("nothing is ready, nothing is due")
        if timeout > 0:
            self.loop.advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Executors run inline; ``outside`` is asked for work whenever the loop could wait.

    With ``hurry`` (0 to 1) it is also asked at random while callbacks are ready, and what ran in an
    executor answers a random while later: the races of threads, drawn from the clock's seed.
    """

    def __init__(self, clock: VirtualClock, *, limit_s: float = HOUR_S, hurry: float = 0) -> None:
        selector = _Selector()
        selector.loop = self
        self.clock, self.hurry = clock, hurry
        self._end_ns = clock.ns + int(limit_s * 1e9)
        self.outside: Callable[[], bool] | None = None
        super().__init__(selector)

    def time(self) -> float:
        return self.clock.ns / 1e9

    def advance(self, seconds: float) -> None:
        self.clock.ns += -int(-seconds * 1e9 // 1)
        if self.clock.ns > self._end_ns:
            raise Stuck("the test's time is up")

    def work_outside(self, *, idle: bool) -> bool:
        if self.outside is None or not (idle or self.clock.random() < self.hurry):
            return False
        return self.outside()

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            answer = func(*args)
        except Exception as error:
            self._later(future.set_exception, error, future)
        else:
            self._later(future.set_result, answer, future)
        return future

    def _later(self, call: Callable[[Any], None], value: Any, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        if self.hurry and self.clock.random() < 0.5:
            self.call_soon(self._later, call, value, future)
        elif self.hurry:
            call(value)
        else:
            self.call_soon(lambda: None if future.cancelled() else call(value))


async def passes(ms: float) -> None:
    """Virtual time goes by."""
    await asyncio.sleep(ms / 1000)


async def settled() -> None:
    """All that can happen without time passing has happened."""
    await asyncio.sleep(0.000_001)


class Plays:
    """A runner: what a task does is a function, named by its prompt's text or its tool."""

    def __init__(self) -> None:
        self.plays: dict[str, Callable[[Attempt], Awaitable[Outcome]]] = {}
        self.begun: list[tuple[str, int]] = []
        self.order: list[str] = []
        self.running: Counter[str] = Counter()
        self.most = 0

    def __setitem__(self, name: str, play: Callable[[Attempt], Awaitable[Outcome]]) -> None:
        self.plays[name] = play

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        name = named(attempt)
        self.begun.append((attempt.task.task_id, attempt.task.attempt))
        self.order.append(name)
        self.running[attempt.task.session_id] += 1
        self.most = max(self.most, self.running.total())
        try:
            play = self.plays.get(name)
            return Succeeded() if play is None else await play(attempt)
        finally:
            self.running[attempt.task.session_id] -= 1


def named(attempt: Attempt) -> str:
    """What the task's submitter wrote."""
    payload = orjson.loads(attempt.task.payload)
    name: str = payload["tool"] if "tool" in payload else payload["prompt"][0]["text"]
    return name


class World:
    """One life of a daemon's inside on a home."""

    def __init__(
        self,
        home: Path,
        clock: VirtualClock,
        plays: Runner,
        *,
        boot: str = "daemon",
        only_sids: MutableSet[int] | None = None,
        ring: dict[str, int] | None = None,
        **queue: Any,
    ) -> None:
        config = Config()
        config = dataclasses.replace(
            config,
            queue=dataclasses.replace(config.queue, **queue),
            events=dataclasses.replace(config.events, **(ring or {})),
        )
        self.home, self.clock, self.plays = home, clock, plays
        self.policy = "policy"
        # What is on disk is looked at through SQLite: these tests need no flush.
        self.database = open_database(home, synchronous="normal", threaded=False)
        self.engine = Engine(
            self.database, clock, config, plays, daemon_boot=boot,
            policy_version=lambda: self.policy, only_sids=only_sids,
        )  # fmt: skip
        self.intake = self.engine.intake

    async def start(self, *, lanes: bool = True) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.outside = self.database.step
        await self.engine.start()
        if lanes:
            self.engine.open_lanes()

    async def session(self, **changes: Any) -> Session:
        arguments = {"cwd": "/", "roots": ["/"], "brain": "script", "interactive": False, **changes}
        return await self.intake.create_session(**arguments)

    async def prompt(self, session: Session, text: str, **changes: Any) -> Accepted:
        arguments = {"key": None, "client": "me", "origin": "unix", **changes}
        block = {"type": "text", "text": text}
        return await self.intake.submit_prompt(session, [block], **arguments)

    async def tool(self, session: Session, name: str, **changes: Any) -> Accepted:
        arguments = {"key": None, "client": "me", "origin": "unix", **changes}
        return await self.intake.submit_tool(session, name, {}, **arguments)

    async def ended(self, accepted: Accepted) -> str:
        """Wait for the end; the state."""
        return (await self.engine.run_ended(accepted.run_id)).state

    async def state(self, accepted: Accepted) -> str:
        state: str = (await self.engine.task(accepted.task_id))["state"]
        return state

    async def until(self, accepted: Accepted, state: str) -> None:
        """Let time pass until the task is in that state."""
        while await self.state(accepted) != state:
            await passes(50)

    async def events(self, session: Session) -> list[tuple[str, dict[str, Any]]]:
        """The session's log: type and payload, in order."""
        found = await self.database.read("events_after", sid=session.sid, cursor=0, limit=1 << 30)
        return [(row[2], orjson.loads(row[8])) for row in found]

    async def types(self, session: Session) -> list[str]:
        return [name for name, _ in await self.events(session)]

    async def stop(self, drain_ms: int = 30_000, hurry: asyncio.Event | None = None) -> None:
        await self.engine.stop(drain_ms, hurry or asyncio.Event())

    async def rows(self, query: str, **arguments: Any) -> list[dict[str, Any]]:
        return rows(query, await self.database.read(query, **arguments))


class Home:
    """A home over several lives; each life is a loop of its own, the clock goes on."""

    def __init__(self, folder: Path, *, seed: int = 0, hurry: float = 0, **queue: Any) -> None:
        self.folder, self.hurry, self.queue = folder, hurry, queue
        self.clock = VirtualClock(seed)
        self.plays = Plays()
        self.lives = 0

    def live(
        self,
        main: Callable[[World], Coroutine[Any, Any, T]],
        *,
        lanes: bool = True,
        limit_s: float = HOUR_S,
        **changes: Any,
    ) -> T:
        """One life: started, ``main``, and then a crash, unless ``main`` stopped it in order.

        The laws of the store are asserted on what is left.
        """
        self.lives += 1
        world = World(
            self.folder, self.clock, self.plays, boot=f"boot{self.lives}",
            **{**self.queue, **changes},
        )  # fmt: skip

        async def life() -> T:
            await world.start(lanes=lanes)
            return await main(world)

        def loop() -> VirtualLoop:
            return VirtualLoop(self.clock, limit_s=limit_s, hurry=self.hurry)

        try:
            with asyncio.Runner(loop_factory=loop) as runner:
                answer = runner.run(life())
        finally:
            world.database.close()
        self.obey()
        return answer

    def obey(self) -> None:
        store_support.obey(self.folder / "goclaw.db")
