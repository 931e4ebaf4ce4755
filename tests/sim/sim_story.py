"""A story: one home, its people, tools and external workers, over several lives of the daemon.

Owns everything that a seed decides and that survives a crash because it is not the daemon's: the
plans of tasks, the sink their effects hit, what clients were told and will ask for again, what
external workers hold. Not in here: how the daemon dies (sim_life.py), the laws (sim_laws.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import store_support
from engine_support import VirtualClock, World, passes
from sim_broken import Broken, hold
from sim_errands import (
    MINUTE_MS,
    TOOLS,
    Errand,
    draw_bounds,
    draw_queue,
    draw_tastes,
    draw_terms,
)
from sim_laws import Laws, obey
from sim_life import Doom, Life, installed, run
from sim_plans import Plan, Sink, draw_plan
from sim_worker import LET_IN, POOL, Worker

from goclaw.core import faults, limits
from goclaw.core.config import parse_bounds
from goclaw.core.errors import (
    AlreadyResolved,
    IdempotencyConflict,
    IllegalTransition,
    InvalidParams,
    LeaseLost,
    QueueFull,
    ShuttingDown,
    StorageFailed,
    UnknownId,
)
from goclaw.core.records import Accepted, Call, Child, Done, Retryable, Succeeded, Unclear
from goclaw.core.states import TERMINAL, EffectClass, EffectState, State
from goclaw.engine.dead_letters import Verb
from goclaw.store.schema import NAME

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Set
    from pathlib import Path

    from sim_laws import Task
    from sim_plans import Step

    from goclaw.core.records import Attempt, Outcome, Session, Stream
    from goclaw.store import Event

FATES = ("busy", "failed", "unclear", "silent", "reset", "bug", "hangs")
DAY_MS = 86_400_000


class Story:
    """Everything that happens under one seed. ``run`` raises Broken with the first broken law."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        *,
        build: str = "native",
        calm: bool = True,
        tastes: Set[str] = frozenset(),
    ) -> None:
        self.seed, self.folder, self.build, self.calm_at_last = seed, folder, build, calm
        self.trace: list[tuple[Any, ...]] = []
        self.chance = chance = random.Random(f"{seed} people")
        self.clock = VirtualClock(seed)
        self.tastes = draw_tastes(chance, tastes)
        self.queue = draw_queue(chance, self.tastes)
        self.hurry = chance.choice((0.0, 0.2, 0.5))
        self.failing = chance.choice((0.0, 0.0, 0.02, 0.1))
        self.slow = chance.choice((0.0, 0.05, 0.3))
        self.trouble = chance.choice((0.0, 0.2, 0.5))  # of tools
        self.laws = Laws(
            session_limit=self.queue["session_limit"], total_limit=self.queue["total_limit"],
            crash_budget=self.queue["crash_budget"], poison=self.queue["poison"],
        )  # fmt: skip
        self.sink = Sink(self.laws)
        self.plans: dict[str, Plan] = {}
        self.errands: list[Errand] = []
        self.sessions: list[Session] = []
        self.workers = [Worker(self, number) for number in range(self._crew_size())]
        self.kernel = 1
        self.calm = False
        """No more faults, from now on."""
        self._last_storm = False
        self._thaw = asyncio.Event()
        self._published: dict[int, int] = {}
        self.lives = 0
        self.life: Life = None  # type: ignore[assignment]
        self._running: Counter[str] = Counter()
        """Attempts in this life's lanes, by their task's kind."""
        self._calls: Counter[str] = Counter()
        """Calls under way in this life, by the tool's name; of runs, which come to its gate."""
        self._bounds = "none"

    def _crew_size(self) -> int:
        return self.chance.choice((2, 3) if "zombies" in self.tastes else (0, 1, 2, 2, 3))

    # -- lives -----------------------------------------------------------------------------------

    def run(self) -> None:
        """All lives, and the calm at last: then everything comes to its end."""
        home = self.folder / "0"
        home.mkdir()
        store_support.fresh(home)
        storms = self.chance.choice((1, 1, 2, 2, 3))
        for number in range(storms):
            self._last_storm = self.calm_at_last and number == storms - 1
            home = self._live(home, self._storm)
            self._between_lives()
        if self.calm_at_last and not self.calm:
            self.calm = True
            self._live(home, self._calm)

    def _live(self, home: Path, main: Callable[[World], Awaitable[None]]) -> Path:
        """One life; the folder of the file it left."""
        self.lives += 1
        chance = random.Random(f"{self.seed} faults {self.lives}")
        self.life = life = Life(
            home, self.clock, self.laws, chance, self.trace, build=self.build,
            doom=None if self.calm else self._doom(chance),
            failing=0.0 if self.calm else self.failing, slow=0.0 if self.calm else self.slow,
        )  # fmt: skip
        self.laws.stopping = False
        self.laws.terms.life = self.lives
        self.laws.terms.late_ms = None if self.failing else 1_500 if self.slow else 50
        self._running.clear()
        self._calls.clear()
        if self.lives == 1 or self.chance.random() < 0.3:
            self._bounds = draw_bounds(self.chance, self.tastes)
        self.laws.gates.configured(parse_bounds(self._bounds), self.clock.mono_ms())
        self._thaw.clear()
        self.sink.on_the_way.clear()
        self.note("life", self.lives, "of kernel", self.kernel)
        with installed(life, f"kernel {self.kernel}"):
            world = World(
                home,
                self.clock,
                self,
                boot=f"boot{self.lives}",
                bounds=self._bounds,
                **self.queue,
            )
            life.database = world.database
            try:
                run(life, lambda: self._begin(world, main), hurry=0 if self.calm else self.hurry)
            finally:
                world.database.close()
                if life.dead:
                    self.clock.ns = life.died_at
                    self.clock.chance.setstate(life.chances)
            left = life.heir if life.dead else home
            self._look(left)
        if left != home:
            shutil.rmtree(home)
        return left

    def _doom(self, chance: random.Random) -> Doom | None:
        where = chance.choice(
            ("turn", "turn", "before_flush", "after_flush", "after_flush", "point", "none")
        )
        if where == "none":
            return None
        if where == "point":
            where = chance.choice(sorted(set(faults.POINTS) - {"before_ready"}))
            return Doom(where, int(chance.expovariate(1 / 8)) + 1)
        return Doom(where, int(chance.expovariate(1 / (300 if where == "turn" else 50))) + 1)

    async def _begin(self, world: World, main: Callable[[World], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        loop.outside = self.life.turn  # type: ignore[attr-defined]
        self._published = {sid: len(one.log) for sid, one in self.laws.sessions.items()}
        world.engine.hub.observe(self._publish)
        try:
            await world.engine.start()
        except StorageFailed:
            self.life.kill("a start that the disk refused")
        left = [task for task in self.laws.tasks.values() if task.state == "RUNNING"]
        hold(all(task.pool for task in left), "Q-6", "own leases after a start:", left)
        world.engine.open_lanes()
        while len(self.sessions) < 3:
            with contextlib.suppress(StorageFailed):
                made = await world.session(key=f"session {len(self.sessions)}")
                self.sessions.append(made)
        await main(world)

    def _publish(self, events: list[Event]) -> None:
        """What readers of the hub are given: each committed event, once, in order (I-3)."""
        if self.life.dead:
            return
        for event in events:
            sid, event_id = event[:2]
            before = self._published.get(sid, 0)
            hold(event_id == before + 1, "I-3", f"{event_id} was published after {before}")
            hold(event == self.laws.sessions[sid].log[before], "I-3", "published another event")
            self._published[sid] = event_id

    async def _storm(self, world: World) -> None:
        clients = range(self.chance.choice((2, 3, 4)))
        people = [
            *(asyncio.ensure_future(self._surprised(self._client, world, one)) for one in clients),
            *self._crew(world),
        ]
        await asyncio.wait(people, timeout=self.chance.choice((0.2, 0.5, 1.0)))
        end = self.chance.choice(("stop", "kill", "calm" if self._last_storm else "kill"))
        if end == "kill":
            self.life.kill("the end of a chapter")
        for one in people:
            one.cancel()
        if end == "calm":
            self.note("the faults stop")
            self.calm = True
            self.life.quiet()
            self._thaw.set()
            await self._calm(world)
        else:
            await self._stop(world)

    async def _stop(self, world: World) -> None:
        """SIGTERM, sometimes twice."""
        drain_ms = self.chance.choice((0, 20, 10_000))
        self.note("SIGTERM, drain", drain_ms)
        hurry = asyncio.Event()
        if self.chance.random() < 0.2:
            asyncio.get_running_loop().call_later(self.chance.random() / 10, hurry.set)
        self.laws.stopping = True
        await world.stop(drain_ms, hurry)
        hold(world.engine.scheduler.busy == 0, "R-3", "busy lanes after a stop")
        for sid, session in self.laws.sessions.items():
            shown = self._published.get(sid, 0)
            hold(shown == len(session.log), "I-3", f"published {shown} of {len(session.log)}")
        left = [task for task in self.laws.tasks.values() if task.state == "RUNNING"]
        hold(all(task.pool for task in left), "R-3", "a stop left leases of its own", left)

    def _between_lives(self) -> None:
        """Nobody runs; the machine may be booted, clocks may be set."""
        long_ms = self.chance.choice((1, 2, 3)) * MINUTE_MS if "recurring" in self.tastes else 1_000
        self.clock.ns += self.chance.choice((0, 1, 50, long_ms)) * 1_000_000
        match self.chance.randrange(8):
            case 0:
                self.kernel += 1
                before = self.clock.mono_ms()
                self.clock.wall_offset_ms += before - 5
                self.clock.ns = 5_000_000
                self.laws.gates.booted(before, self.clock.mono_ms())
                self.note("REBOOT, kernel", self.kernel)
                for worker in self.workers:
                    worker.die()
            case 1:
                self._set_the_clock(self.chance.choice((-DAY_MS, DAY_MS + 1, 3_600_000)))

    def _set_the_clock(self, jump_ms: int) -> None:
        if "recurring" in self.tastes and abs(jump_ms) > MINUTE_MS:
            jump_ms = 2 * MINUTE_MS if jump_ms > 0 else -MINUTE_MS  # a day has many occurrences
        self.clock.wall_offset_ms += jump_ms
        self.note("the wall clock jumps by", jump_ms)

    def _look(self, home: Path) -> None:
        """What is on disk, read by nobody that wrote it."""
        obey(home / NAME)
        connection = store_support.connect(home / NAME)
        try:
            self.laws.audit(connection)
        finally:
            connection.close()

    # -- people ----------------------------------------------------------------------------------

    def _crew(self, world: World) -> list[asyncio.Future[None]]:
        return [
            asyncio.ensure_future(self._surprised(worker.work, world)) for worker in self.workers
        ]

    async def _surprised(self, somebody: Callable[..., Awaitable[None]], *given: Any) -> None:
        """Nobody outside gets an answer that the contract does not name."""
        try:
            await somebody(*given)
        except Exception as error:
            if not self.life.dead:
                raise Broken(f"{type(error).__name__}: {error}") from error

    async def _client(self, world: World, number: int) -> None:
        for _ in range(self.chance.choice((3, 6, 10))):
            await passes(self.chance.choice((0, 0, 1, 5, 20, 50)))
            try:
                await self._act(world)
            except (ShuttingDown, QueueFull, StorageFailed) as error:
                self.note("client", number, "was told", error.code)

    async def _act(self, world: World) -> None:
        match self.chance.choice("ssssssrrkcccgaajtx" + "dddddddd" * ("redrive" in self.tastes)):
            case "s":
                await self._submit(world, self._errand())
            case "r" if self.errands:
                await self._submit(world, self.chance.choice(self.errands))
            case "k":
                await self._conflict(world)
            case "c":
                await self._cancel(world)
            case "g":
                await self._signal(world)
            case "a":
                await self._answer(world)
            case "j":
                nearly = MINUTE_MS - self.clock.wall_ms() % MINUTE_MS - 20
                self._set_the_clock(
                    self.chance.choice((-5_000, 5_000, DAY_MS + 1, -DAY_MS, nearly, nearly))
                )
                if self.chance.random() < 0.7:  # the minute is over after which timers look again
                    world.engine._schedules.look_again()
            case "t":
                await self._settle(world)
            case "x":
                await self._reclaim_too_soon(world)
            case "d":
                await self._move(world)

    def _errand(self) -> Errand:
        forms = ["prompt", "prompt", "tool", "parallel", "pool", "pool"]
        form = self.chance.choice(forms + ["pool"] * 4 * ("zombies" in self.tastes))
        if form == "pool" and not self.workers:
            form = "tool"
        name = f"t{len(self.plans)}"
        plan = draw_plan(self.chance, name, self.tastes, external=form == "pool")
        self.plans |= {one.name: one for one in plan.family()}
        key = f"key {name}" if self.chance.random() < 0.7 else None
        errand = Errand(self.chance.randrange(3), form, name, key, self.chance.choice((0, 5, 5, 9)))
        if form != "prompt":
            errand.tool = self.chance.choice(TOOLS)
            now = self.clock.wall_ms()
            errand.terms = draw_terms(self.chance, self.tastes, now=now, busy_ms=plan.busy_ms)
        if key is not None:
            self.errands.append(errand)
        return errand

    async def _submit(self, world: World, errand: Errand) -> None:
        session = self.sessions[errand.session]
        errand.tries += 1
        known = errand.told is not None
        self.note("submits", errand.plan, errand.form, errand.key)
        try:
            accepted = await self._send(world, session, errand, errand.plan)
        except InvalidParams as error:
            late = errand.terms.deadline_ms is not None
            hold(late and not known, "E-6", "a known key was refused:", error)
            return
        told = (accepted.task_id, accepted.run_id)
        hold(told[0] in self.laws.by_id, "I-3", "acknowledged before it was on disk", told)
        hold(errand.told in (None, told), "E-6", "the same key, another task", told)
        errand.told = told

    async def _send(self, world: World, session: Session, errand: Errand, plan: str) -> Accepted:
        how: dict[str, Any] = {"key": errand.key, "client": "me", "origin": "unix"}
        if errand.form == "prompt":
            return await world.prompt(session, plan, key=errand.key)
        how |= {"priority": errand.priority, "terms": errand.terms}
        if errand.form == "pool":
            return await world.intake.submit_work(session, POOL, {"plan": plan}, **how)
        parallel = errand.form == "parallel"
        return await world.intake.submit_tool(
            session, errand.tool, {"plan": plan}, parallel=parallel, **how
        )

    async def _conflict(self, world: World) -> None:
        """A known key for something else: refused, and nothing ran."""
        known = [errand for errand in self.errands if errand.told is not None]
        if not known:
            return
        errand = self.chance.choice(known)
        try:
            await self._send(world, self.sessions[errand.session], errand, f"not {errand.plan}")
        except (IdempotencyConflict, InvalidParams):
            return
        raise Broken(f"E-5: another request under the key {errand.key} was accepted")

    async def _cancel(self, world: World) -> None:
        tasks = list(self.laws.by_id.values())
        if not tasks:
            return
        task = self.chance.choice(tasks)
        self.note("cancels", task.task_id)
        self.laws.asked_to_cancel.add(task.task_id)
        lives = task.lives
        receipt = await world.engine.cancel_task(task.task_id)
        self.note("receipt", receipt.outcome)
        if task.lives > lives:
            return  # somebody brought it back meanwhile
        if receipt.outcome == "already_finished":
            hold(task.state in TERMINAL, "Q-11", "not finished at all")
        else:
            hold(task.state == State.CANCELED, "Q-11", receipt.outcome, "and", task.state)

    async def _move(self, world: World) -> None:
        """An operator looks at the dead letters: back into the queue, or away with them."""
        given_up = [
            task for task in self.laws.tasks.values()
            if task.state in (State.FAILED, State.DEAD_LETTER)
        ]  # fmt: skip
        if not given_up:
            return
        task = self.chance.choice(given_up)
        verb = self.chance.choice((Verb.REDRIVE, Verb.REDRIVE, Verb.REDRIVE, Verb.DROP))
        self.note(verb, task.task_id)
        letters = world.engine.dead_letters
        if task.fingerprint is not None and self.chance.random() < 0.2:
            await letters.move_all(verb, task.fingerprint, decide=lambda _task: LET_IN)
            return
        lives = task.lives
        try:
            await letters.move(verb, task.task_id, decide=lambda _task: LET_IN)
        except (IllegalTransition, UnknownId):
            return
        done = task.dropped if verb is Verb.DROP else task.lives > lives
        hold(done, "Q-7", "acknowledged, and it is not so:", verb, task.task_id)

    async def _reclaim_too_soon(self, world: World) -> None:
        """Somebody looked at the leases, and was slow: by now they are alive (again)."""
        for task in list(self.laws.tasks.values()):
            if task.pool == POOL and task.state == State.RUNNING:
                with contextlib.suppress(LeaseLost):
                    await world.database.write(
                        "reclaim", live=True, tid=task.tid, token=task.token, spent=1,
                        expired_mono=self.clock.mono_ms(), reason="lease_expired",
                        crash_budget=self.queue["crash_budget"], now=self.clock.wall_ms(),
                    )  # fmt: skip

    async def _signal(self, world: World) -> None:
        waiting = list(self.laws.by_id.values())
        if waiting:
            task = self.chance.choice(waiting)
            try:
                await world.engine.signal(task.run_id, "go", b"now")
            except IllegalTransition:
                return
            else:
                hold("go" in task.signals, "E-9", "a signal was acknowledged and is not there")

    async def _answer(self, world: World) -> None:
        for name, outcome in list(self.laws.approvals.items()):
            if outcome != "open" and not self.calm and self.chance.random() < 0.3:
                with contextlib.suppress(AlreadyResolved):
                    await world.engine.approvals.resolve(name, "allow", "late")
                    raise Broken(f"A-7: {name} was answered, and took another answer")
        for approval in await world.engine.approvals.listed():
            option = "allow" if self.calm else self.chance.choice(("allow", "reject"))
            self.note("answers", approval.approval_id, option)
            try:
                await world.engine.approvals.resolve(approval.approval_id, option, "me")
            except AlreadyResolved:
                hold(self.laws.approvals[approval.approval_id] != "open", "A-7", "nobody answered")
                continue
            outcome = self.laws.approvals[approval.approval_id]
            hold(outcome == option, "A-7", "my answer was", option, "and it says", outcome)

    async def _settle(self, world: World) -> None:
        """An operator looks at the sink and says what happened."""
        for task in list(self.laws.tasks.values()):
            if task.state != State.SUSPENDED:
                continue
            for ordinal, effect in list(task.effects.items()):
                if effect.state != EffectState.UNKNOWN or self._may_yet_come(effect.key, task.tid):
                    continue
                found = self.sink.happened(effect.key)
                outcome = "not_done" if found is None else "done"
                if not self.calm and self.chance.random() < 0.2:
                    found, outcome = None, self.chance.choice(("redo", "fail"))
                self.note("settles", task.task_id, ordinal, outcome)
                self.sink.allowed[effect.key] += outcome == "redo"
                try:
                    await world.engine.settlement.settle(
                        task.task_id, ordinal, outcome, result=found, by="me"
                    )
                except (IllegalTransition, UnknownId):
                    continue  # somebody was quicker

    # -- the calm --------------------------------------------------------------------------------

    async def _calm(self, world: World) -> None:
        """No more faults: all work ends within lease, backoff cap and its own time."""
        began = calm_since = self.clock.mono_ms()
        crew = self._crew(world)
        for errand in self.errands:
            await self._submit_at_last(world, errand)
        open_tasks = [task for task in self.laws.tasks.values() if task.state not in TERMINAL]
        bound = (
            2 * self.queue["lease_ms"] + self.queue["backoff_ms_max"] + 2_000
            + (limits.BUSY_MS_MAX if self.failing else 0)
            + sum(self._patience(task) for task in open_tasks)
        )  # fmt: skip
        slack = 1_500 + (limits.BUSY_MS_MAX if self.failing else 0)
        while self.laws.open:
            await passes(20)
            await self._end_what_recurs(world)
            if self._all_may_begin(world):
                calm_since = self.clock.mono_ms()
            self._no_orphans(began, slack - 1_200)
            await self._answer(world)
            await self._settle(world)
            for task in list(self.laws.tasks.values()):
                if task.state == State.SUSPENDED and task.reason == "signal:go":
                    await world.engine.signal(task.run_id, "go", b"now")
            took = self.clock.mono_ms() - began
            left = [
                (task.task_id, task.state, task.reason)
                for task in self.laws.tasks.values() if task.state not in TERMINAL
            ]  # fmt: skip
            hold(took < bound, "liveness", f"after {took} of {bound} ms:", left)
            now, mono = self.clock.wall_ms(), self.clock.mono_ms()
            if mono - calm_since > slack:
                tasks = [task for task in self.laws.tasks.values() if task.is_open]
                self.laws.terms.overdue(tasks, now, mono, slack)
        for one in crew:
            one.cancel()
        await self._stop(world)

    def _all_may_begin(self, world: World) -> bool:
        """Nothing waits for another day: the clock goes on to where all may begin. True: it did."""
        ahead = [
            task.terms.held_until - self.clock.wall_ms()
            for task in self.laws.tasks.values()
            if task.terms.held_until is not None and task.terms.chain is None
        ]
        if max(ahead, default=0) <= 500:
            return False
        self.clock.wall_offset_ms += max(ahead) - 100
        self.note("the wall clock is set forward by", max(ahead) - 100)
        world.engine._schedules.look_again()
        return True

    async def _end_what_recurs(self, world: World) -> None:
        """An operator cancels the occurrence that waits: there will be no other."""
        for chain in list(self.laws.terms.chains.values()):
            if chain.waiting is not None:
                self.laws.asked_to_cancel.add(chain.waiting.task_id)
                await world.engine.cancel_task(chain.waiting.task_id)

    def _no_orphans(self, began: int, slack: int) -> None:
        """A sub-task does not outlive its parent by long."""
        for task in self.laws.tasks.values():
            if task.is_open and task.parent is not None and not task.parent.is_open:
                late = self.clock.mono_ms() - max(began, task.parent.ended_mono)
                hold(late < slack, "Q-9", task.task_id, "outlives its parent by", late)

    def _patience(self, task: Task) -> int:
        """How long it may take, once nothing goes wrong."""
        busy_ms = self.plan_of(task.payload).busy_ms
        if self._bounds != "none" or "breaker" in self.tastes:
            busy_ms += 4 * limits.BREAKER_PROBE_MS_MAX + 1_000
        if "rates" in self.tastes:  # each of its calls may wait for a token of its own
            steps = [step for plan in self.plan_of(task.payload).family() for step in plan.steps]
            busy_ms += 1_000 * (1 + sum(step.effects for step in steps))
        if task.terms.timeout_ms is not None:  # it may be too short for what the task does
            again = task.terms.timeout_ms + self.queue["backoff_ms_max"]
            busy_ms += task.max_attempts * (again + 2 * limits.BREAKER_PROBE_MS_MAX)
        return busy_ms

    async def _submit_at_last(self, world: World, errand: Errand) -> None:
        """Nobody is left without a word: it is known, or new, or refused by name."""
        try:
            await self._submit(world, errand)
        except QueueFull:
            hold(errand.told is None, "E-6", "a known key was refused")

    # -- the runner ------------------------------------------------------------------------------

    def plan_of(self, payload: bytes) -> Plan:
        """By the name its submitter wrote."""
        body = orjson.loads(payload)
        if "payload" in body:
            name = body["payload"]["plan"]
        else:
            name = body["arguments"]["plan"] if "tool" in body else body["prompt"][0]["text"]
        return self.plans[name]

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        """Carry out the task's plan, as a brain would."""
        kind = attempt.task.kind
        self._running[kind] += 1
        others = self._running.total() - self._running["prompt"]
        free = self.queue["lanes"] - self.queue["reserved_lanes"]
        hold(
            self._running.total() <= self.queue["lanes"] or self.life.dead, "R-2", "lanes exceeded"
        )
        hold(others <= free or self.life.dead, "Q-16", others, "of", free, "lanes are not reserved")
        try:
            plan = self.plan_of(attempt.task.payload)
            await self._carry_out(attempt, plan)
        finally:
            self._running[kind] -= 1
        end = None if self.calm else plan.end(attempt.task.attempt)
        return Succeeded(result=b"1") if end is None else end

    async def _carry_out(self, attempt: Attempt, plan: Plan) -> None:
        ordinal = 0
        for number, step in enumerate(plan.steps):
            match step.kind:
                case "work":
                    await self._dither(step.ms, rude=step.rude)
                    continue
                case "think":
                    await self._think(attempt, number)
                case "sleep":
                    await attempt.sleep(step.ms + 1)
                case "signal":
                    hold(await attempt.wait_signal("go") == b"now", "E-9", "another signal")
                case "child":
                    await self._delegate(attempt, step)
                case _:
                    calls = [
                        self._call(attempt, step, ordinal + index) for index in range(step.count)
                    ]
                    await attempt.perform(calls)
            ordinal += step.count

    async def _delegate(self, attempt: Attempt, step: Step) -> None:
        """A sub-task: what it came to is what this run is told (Q-9)."""

        async def never(_key: str, _cancelled: asyncio.Event) -> Done:
            raise Broken("Q-9: a sub-task was dispatched like a call")

        assert step.child is not None
        request = orjson.dumps({"prompt": step.child.name})
        call = Call(
            "tool", "delegate", request, EffectClass.KEYED, never, child=Child(step.child.name),
            decisions=(replace(LET_IN, action="tool.call", resource="builtin/delegate"),),
        )  # fmt: skip
        (result,) = await attempt.perform([call])
        mine = [
            task for task in self.laws.tasks.values()
            if task.parent is not None and task.parent.tid == attempt.task.tid
            and self.plan_of(task.payload) is step.child
        ]  # fmt: skip
        hold(len(mine) == 1 or self.life.dead, "Q-9", len(mine), "sub-tasks for one call")
        told = orjson.loads(result.output)
        if "state" in told and not self.life.dead:
            hold(told["state"] in TERMINAL, "Q-9", "the end of a sub-task is", told["state"])
            hold(told["runId"] == mine[0].run_id, "Q-9", "told of another sub-task")

    async def _think(self, attempt: Attempt, number: int) -> None:
        async def answer(stream: Stream) -> dict[str, Any]:
            if number != 1:
                chunk = {"sessionUpdate": "agent_message_chunk", "messageId": stream.message_id}
                await stream.send([chunk])
            await passes(self.chance.choice((0, 5, 40)))
            return {"number": number, "updates": [{"sessionUpdate": "plan", "entries": []}]}

        said = await attempt.think("model", {"step": number}, answer)
        hold(said["number"] == number, "E-2", "another brain's answer", said)

    def _call(self, attempt: Attempt, step: Step, ordinal: int) -> Call:
        tid, kind, name = attempt.task.tid, step.effect_class, str(step.effect_class)
        request = b'{"n":%d}' % ordinal
        if step.shared is not None:  # a key of the tool's own: other tasks have it too
            name, request = f"shared {kind}", b'{"n":"%s"}' % step.shared.encode()

        async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
            if attempt.task.kind != "prompt":
                return await act(key, cancelled)  # it came through its gate as a whole
            with self._at_its_gate(name):
                return await act(key, cancelled)

        async def act(key: str, cancelled: asyncio.Event) -> Done:
            fate = self._fate()
            self.sink.on_the_way[key] += 1
            try:
                await self._dither(self.chance.choice((0, 0, 5, 30)), rude=step.rude)
                if fate == "busy":
                    wait_ms = self.chance.choice((None, 10))
                    raise Retryable("busy", "later", retry_after_ms=wait_ms, fingerprint="busy")
                answer = self._hit(tid, ordinal, key, kind, request)
            finally:
                self.sink.on_the_way[key] -= 1
            await self._dither(self.chance.choice((0, 0, 5, 30)), rude=step.rude)
            await self._suffer(fate, cancelled)
            return Done(answer, failed=fate == "failed")

        async def probe(key: str) -> Done | bool | None:
            answer = self.sink.happened(key)
            if self._may_yet_come(key, tid) or (not self.calm and self.chance.random() < 0.2):
                return None
            return False if answer is None else Done(answer)

        return Call(
            "tool", name, request, kind, dispatch, question=step.question,
            designated_key=step.shared,
            probe=probe if kind is EffectClass.PROBEABLE else None,
        )  # fmt: skip

    @contextlib.contextmanager
    def _at_its_gate(self, name: str) -> Iterator[None]:
        """A call of a run is under way: never more of them than the tool's bound (Q-16)."""
        self._calls[name] += 1
        gate = self.laws.gates.works[f"tool:{name}"].gate
        if gate is not None and gate.most is not None and not self.life.dead:
            hold(self._calls[name] <= gate.most, "Q-16", self._calls[name], "calls of", name)
        try:
            yield
        finally:
            self._calls[name] -= 1

    def _fate(self) -> str:
        if self.calm or self.chance.random() >= self.trouble:
            return "answers"
        return self.chance.choice(FATES)

    async def _suffer(self, fate: str, cancelled: asyncio.Event) -> None:
        match fate:
            case "unclear":
                raise Unclear("the line went dead")
            case "silent":
                raise TimeoutError
            case "reset":
                raise ConnectionResetError
            case "bug":
                raise ValueError("a fault in the tool")
            case "hangs" if not cancelled.is_set():
                await self._thaw.wait()
                raise Unclear("it hung")

    def _hit(self, tid: int, ordinal: int, key: str, kind: EffectClass, request: bytes) -> bytes:
        if self.life.dead:
            raise asyncio.CancelledError  # a ghost has no hands
        return self.sink.hit(tid, ordinal, key, kind, request)

    async def _dither(self, ms: int, *, rude: bool) -> None:
        """Take that long; a rude one takes no notice of being stopped."""
        try:
            await passes(ms)
        except asyncio.CancelledError:
            if not rude:
                raise
            await passes(ms)

    def _may_yet_come(self, key: str, tid: int) -> bool:
        """Somebody was allowed to send it and has not: no one can say that it did not happen."""
        jobs = [worker.job for worker in self.workers if worker.job is not None]
        return self.sink.on_the_way[key] > 0 or any(
            job.tid == tid and (job.asking or job.sending is not None) for job in jobs
        )

    def note(self, *words: Any) -> None:
        """Into the trace."""
        self.life.note(*words)
