"""External workers: processes that outlive the daemon, and now and then their own lease.

Owns what such a worker does right and wrong: late words, old tokens, the same word twice. Not in
here: the daemon's side (goclaw.engine.pools, goclaw.engine.external).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from engine_support import passes
from sim_broken import Broken, hold

from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import (
    EffectUnknown,
    IdempotencyConflict,
    IllegalTransition,
    InvalidParams,
    LeaseLost,
    QueueFull,
    ShuttingDown,
    StorageFailed,
)
from goclaw.core.states import EffectClass, EffectState, State
from goclaw.engine.effects import request_hash
from goclaw.engine.external import Intent

if TYPE_CHECKING:
    from engine_support import World
    from sim_plans import Plan, Step
    from sim_story import Story

    from goclaw.engine.pools import Lease

T = TypeVar("T")

POOL = "yard"
LET_IN = Decision(
    "decision_worker", 0, Subject(SubjectKind.WORKER, "w", Origin.UNIX), "worker.claim", POOL,
    Context(), Verdict.ALLOW, "rule", "workers may", "p1", (),
)  # fmt: skip


async def _heard(word: asyncio.Future[T]) -> T:
    """Wait for the answer; the word itself goes on, whoever stops waiting."""
    return await asyncio.shield(word)


@dataclass(slots=True)
class Job:
    """What a worker holds: it remembers what it was told, not what is so."""

    tid: int
    task_id: str
    attempt: int
    token: bytes
    plan: Plan
    zombie: bool
    lost: int = 0
    step: int = 0
    closed: int = 0
    """Effects whose results are on disk, as far as it was told."""
    asking: bool = False
    """It has asked whether it may send, and not heard yet."""
    sending: str | None = None
    """The key of a call that it was allowed and has not closed."""
    answer: bytes | None = None
    word: tuple[Any, ...] | None = None


class Worker:
    """One process: it claims from the pool, works, and may be late, deaf or confused."""

    def __init__(self, story: Story, number: int) -> None:
        self._story, self._name = story, f"worker {number}"
        self.job: Job | None = None
        self._before: list[Job] = []

    def die(self) -> None:
        """Its process is gone, with all that it knew."""
        self.job = None
        self._before.clear()

    async def work(self, world: World) -> None:
        """Until the daemon is gone. What it holds, it holds."""
        chance = self._story.chance
        while True:
            await passes(chance.choice((1, 5, 20)))
            try:
                if self.job is None:
                    await self._claim(world)
                elif self._story.calm or chance.random() < 0.6:
                    await self._go_on(world, self.job)
                else:
                    await self._stray(world, self.job)
                if self._before and chance.random() < 0.3:
                    await self._repeat(world)
            except (LeaseLost, EffectUnknown) as error:
                self._story.note(self._name, "is told", error.code)
                if self.job is not None:
                    await self._lost(self.job)
            except (StorageFailed, QueueFull, ShuttingDown) as error:
                self._story.note(self._name, "was told", error.code)

    async def _lost(self, job: Job) -> None:
        """A good one stops; a zombie sends what it was once allowed to, and talks on."""
        job.lost += 1
        if not job.zombie or job.lost > 3 or self._story.calm:
            self._drop()
        else:
            self._send(job)

    def _drop(self) -> None:
        if self.job is not None:
            self._before.append(self.job)
        self.job = None

    async def _claim(self, world: World) -> None:
        story = self._story
        wait_ms = story.chance.choice((0, 0, 30, 200))
        leases = await world.engine.pools.claim(
            POOL, most=story.chance.choice((1, 1, 2)), wait_ms=wait_ms, owner=self._name,
            decision=LET_IN,
        )  # fmt: skip
        for lease in leases[:1]:
            self.job = self._taken(lease)
        for lease in leases[1:]:
            story.note(self._name, "has one too many:", lease.task_id)
            extra = self._taken(lease)
            self._before.append(extra)
            if story.calm or story.chance.random() < 0.5:
                held = await world.engine.external.held(extra.task_id, extra.token)
                extra.word = ("release",)
                await _heard(world.engine.external.release(held))

    def _taken(self, lease: Lease) -> Job:
        story = self._story
        hold(lease.token in story.laws.tokens, "I-3", "no such lease on disk", lease.task_id)
        zombie = story.chance.random() < (0.8 if "zombies" in story.tastes else 0.3)
        story.note(self._name, "has", lease.task_id, "a zombie" if zombie else "")
        plan = story.plan_of(orjson.dumps({"payload": orjson.loads(lease.payload)}))
        return Job(lease.tid, lease.task_id, lease.attempt, lease.token, plan, zombie=zombie)

    # -- going astray ----------------------------------------------------------------------------

    async def _stray(self, world: World, job: Job) -> None:
        story, external = self._story, world.engine.external
        match story.chance.choice("nnhd" if job.zombie else "hhhhhhndwbo"):
            case "h":
                await _heard(external.heartbeat(await external.held(job.task_id, job.token)))
            case "n":
                story.note(self._name, "naps")
                await passes(story.queue["lease_ms"] * 2)
            case "d":
                story.note(self._name, "dies")
                self.die()
            case "w":
                await self._misspeak(world, job)
            case "b":
                story.note(self._name, "gives back", job.task_id)
                job.word = ("release",)
                await self._say(world, job)
            case "o":
                held = await external.held(job.task_id, job.token)
                await _heard(external.emit(held, {"sessionUpdate": "plan", "entries": []}))

    async def _misspeak(self, world: World, job: Job) -> None:
        """With a token that was never given: nothing may change."""
        try:
            held = await world.engine.external.held(job.task_id, b"guessed")
            await _heard(world.engine.external.complete(held, 1))
        except (LeaseLost, EffectUnknown):
            return
        raise Broken("Q-4: a guessed token was taken")

    async def _repeat(self, world: World) -> None:
        """Speak of an earlier attempt: its last word once more, another in its place, or what it
        never said in time."""
        story, external = self._story, world.engine.external
        again = [job for job in self._before if story.laws.tasks[job.tid].state == State.RUNNING]
        job = story.chance.choice(again or self._before)
        held = await external.held(job.task_id, job.token)
        if job.word is None:
            job.word = self._last_word(job)
        story.note(self._name, "speaks of", job.task_id, job.attempt)
        match story.chance.choice("rrohef"):
            case "r":
                await self._say(world, job)
            case "o":
                await _heard(external.complete(held, "another result"))
            case "f":
                failing = external.fail(held, code="late", message="late", retryable=True)
                await _heard(failing)
            case "h":
                await _heard(external.heartbeat(held))
            case "e":
                task = story.laws.tasks[job.tid]
                under_way = [
                    number for number, one in task.effects.items()
                    if one.state == EffectState.INTENT
                ]  # fmt: skip
                ordinal = max(under_way, default=0)
                if task.state == State.CANCELED and ordinal in task.effects:
                    # Of a cancelled attempt it is joined: then it is what a tool answered.
                    key = task.effects[ordinal].key
                    story.laws.answers.setdefault(key, set()).add(b'"late"')
                try:
                    await _heard(external.result(held, ordinal, "late"))
                except IllegalTransition:
                    return

    # -- going straight --------------------------------------------------------------------------

    async def _go_on(self, world: World, job: Job) -> None:
        if job.step < len(job.plan.steps):
            step = job.plan.steps[job.step]
            if step.kind == "work":
                await passes(step.ms)
            before = sum(one.effects for one in job.plan.steps[: job.step])
            while job.closed < before + step.effects:
                await self._effect(world, job, step)
            job.step += 1
            return
        if job.word is None:
            job.word = self._last_word(job)
        await self._say(world, job)
        hold(
            self._story.laws.tasks[job.tid].token != job.token, "I-3", "told, and not on disk"
        )  # fmt: skip
        self._drop()

    def _last_word(self, job: Job) -> tuple[Any, ...]:
        end = None if self._story.calm else job.plan.end(job.attempt)
        return ("complete",) if end is None else ("fail", end)

    async def _say(self, world: World, job: Job) -> None:
        """The attempt's last word; the same whenever it is said again (Q-4)."""
        external = world.engine.external
        held = await external.held(job.task_id, job.token)
        match job.word:
            case ("complete",):
                state, _ = await _heard(external.complete(held, 1))
                hold(state == State.SUCCEEDED, "Q-4", "completed, and the answer is", state)
            case ("release",):
                await _heard(external.release(held))
            case ("fail", end):
                failing = external.fail(
                    held, code=end.code, message=end.message, retryable=end.retryable,
                    retry_after_ms=end.retry_after_ms, fingerprint=end.fingerprint,
                )  # fmt: skip
                await _heard(failing)

    async def _effect(self, world: World, job: Job, step: Step) -> None:
        """Intent, the world, result; each may be the last that is heard of it."""
        story, external, ordinal = self._story, world.engine.external, job.closed
        held = await external.held(job.task_id, job.token)
        name, request = str(step.effect_class), b"%d" % ordinal
        digest = request_hash("tool", name, request)
        intent = Intent(ordinal, "tool", name, digest, step.effect_class)
        if step.effect_class is EffectClass.PURE:
            await _heard(external.result(held, ordinal, ordinal, pure=intent))
            job.closed += 1
            return
        if job.sending is None:
            job.asking = True
            try:
                found = await _heard(external.intend(held, intent))
            except (IdempotencyConflict, InvalidParams) as error:
                raise Broken(
                    f"E-2: {error.code} for an effect of a worker's own: {error}"
                ) from error
            job.asking = False
            if found.result is not None:
                job.closed += 1
                return
            job.sending = found.key
            await passes(story.chance.choice((0, 0, 5, 100)))
        if job.answer is None and not story.calm and story.chance.random() < 0.1:
            job.sending = None  # from here on it will not: it says that nothing was sent
            await _heard(external.result(held, ordinal, None, retryable=True))
            return
        self._send(job)
        assert job.answer is not None
        try:
            await _heard(external.result(held, ordinal, orjson.loads(job.answer)))
        except IllegalTransition as error:
            raise Broken(f"E-2: the result of an open intent was refused: {error}") from error
        job.closed += 1
        job.sending = job.answer = None

    def _send(self, job: Job) -> None:
        """What it may send it sends once, however late and whoever owns the task by now."""
        if job.sending is None or job.answer is not None:
            return
        step = job.plan.steps[job.step]
        job.answer = self._story.sink.hit(
            job.tid, job.closed, job.sending, step.effect_class, b"%d" % job.closed
        )
