"""Tasks that were given up: redriven or dropped, singly and by fingerprint (Q-7, G-22)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from engine_support import Home, World, settled

from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import (
    GoclawError,
    IllegalTransition,
    PolicyDenied,
    QueueFull,
    UnknownId,
)
from goclaw.core.records import Failed, Succeeded, Terms
from goclaw.engine.dead_letters import Verb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome, Session

pytestmark = pytest.mark.req("Q-7", "G-22")

ME = Subject(SubjectKind.CLIENT, "me", Origin.UNIX)


def allowed(task_id: str) -> Decision:
    return Decision(
        f"decision_{task_id}", 0, ME, "admin.redrive", task_id, Context(), Verdict.ALLOW, "r",
        "it may", "p", (),
    )  # fmt: skip


def dies(fingerprint: str, *, retryable: bool = True) -> Callable[[Attempt], Any]:
    async def play(attempt: Attempt) -> Outcome:
        # A work of its own: no breaker keeps the next of its kind waiting.
        return Failed(
            "gone", "It is gone.", retryable=retryable, fingerprint=fingerprint,
            work=attempt.task.task_id,
        )  # fmt: skip

    return play


async def well(attempt: Attempt) -> Outcome:
    return Succeeded()


async def dead(
    world: World, session: Session, count: int = 1, name: str = "dies", **terms: Any
) -> list[Accepted]:
    """Tasks that ended as dead letters, oldest first."""
    tasks = [
        await world.tool(session, name, max_attempts=1, terms=Terms(**terms)) for _ in range(count)
    ]
    for task in tasks:
        assert await world.ended(task) == "DEAD_LETTER"
    return tasks


async def audited(world: World) -> list[str]:
    found = await world.database.read("audit_after", seq=0, limit=1 << 20)
    return [orjson.loads(row[2])["resource"] for row in found]


async def everything(world: World) -> list[Any]:
    """What any change would show in: each task, the head of each session, the audit."""
    tasks = await world.engine.tasks(sid=None, before=None, state=None, limit=10_000)
    heads = [await world.database.read("session_bounds", sid=row["sid"]) for row in tasks]
    return [tasks, heads, await audited(world)]


async def letters(world: World, fingerprint: str | None = None) -> list[str]:
    found = await world.engine.dead_letters.listed(
        fingerprint=fingerprint, before=None, limit=9_999
    )
    return [row["task_id"] for row in found]


def test_a_redrive_gives_whole_budgets_and_the_attempts_count_on(home: Path) -> None:
    house = Home(home, max_attempts=2)
    house.plays["dies"] = dies("f")

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.tool(session, "dies")
        assert await world.ended(task) == "DEAD_LETTER"
        before = await world.engine.task(task.task_id)
        assert (before["attempt"], before["failures"], before["fingerprint"]) == (2, 2, "f")
        assert (before["work"], await letters(world)) == ("tool:dies", [task.task_id])

        moved = await world.engine.dead_letters.move(Verb.REDRIVE, task.task_id, decide=allowed)
        assert (moved.tasks, moved.skipped) == ((task.task_id,), ())
        assert await letters(world) == []
        assert await world.ended(task) == "DEAD_LETTER"
        after = await world.engine.task(task.task_id)
        assert (after["attempt"], after["failures"], after["crashes"]) == (4, 2, 0)
        events = await world.events(session)
        assert moved.event_id is not None
        assert events[moved.event_id - 1] == (
            "task.requeued", {"from": "DEAD_LETTER", "to": "QUEUED", "reason": "redrive"}
        )  # fmt: skip

        house.plays["dies"] = well
        await world.engine.dead_letters.move(Verb.REDRIVE, task.task_id, decide=allowed)
        assert await world.ended(task) == "SUCCEEDED"
        final = await world.engine.task(task.task_id)
        assert (final["attempt"], final["failures"], final["error"]) == (5, 0, None)
        assert await audited(world) == [task.task_id] * 2

    house.live(main)


def test_a_failed_task_is_redriven_too_and_joins_the_tail(home: Path) -> None:
    house = Home(home, lanes=1)
    house.plays["fails"] = dies("f", retryable=False)
    gate = asyncio.Event()

    async def waits(attempt: Attempt) -> Outcome:
        await gate.wait()
        return Succeeded()

    house.plays["waits"] = waits

    async def main(world: World) -> None:
        session = await world.session()
        failed = await world.tool(session, "fails")
        assert await world.ended(failed) == "FAILED"
        assert await letters(world) == []  # it is none, and may come back all the same
        house.plays["fails"] = well
        others = [await world.tool(session, "waits"), await world.tool(session, "last")]
        await settled()
        await world.engine.dead_letters.move(Verb.REDRIVE, failed.task_id, decide=allowed)
        gate.set()
        for task in (*others, failed):
            assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.order == ["fails", "waits", "last", "fails"]

    house.live(main)


@pytest.mark.req("Q-1")
def test_what_cannot_be_moved_is_named_and_nothing_changes(home: Path) -> None:
    house = Home(home, lanes=1)
    house.plays["dies"], house.plays["fails"] = dies("f"), dies("f", retryable=False)

    async def main(world: World) -> None:
        move = world.engine.dead_letters.move
        session, other = await world.session(), await world.session()
        (dropped,) = await dead(world, session)
        failed, done = await world.tool(session, "fails"), await world.tool(session, "well")
        assert [await world.ended(failed), await world.ended(done)] == ["FAILED", "SUCCEEDED"]
        canceled = await world.prompt(session, "never", key="c")
        await world.engine.cancel_task(canceled.task_id)
        (orphan,) = await dead(world, other)
        await world.intake.change_session(other, deleted_at=1)
        held = await world.tool(
            session, "later", terms=Terms(not_before_ms=world.clock.wall_ms() + 60_000)
        )
        await move(Verb.DROP, dropped.task_id, decide=allowed)
        assert await letters(world) == [orphan.task_id]
        before = await everything(world)
        for verb, task, state, text in (
            (Verb.REDRIVE, done, "SUCCEEDED", "is SUCCEEDED"),
            (Verb.REDRIVE, canceled, "CANCELED", "is CANCELED"),
            (Verb.REDRIVE, held, "QUEUED", "is QUEUED"),
            (Verb.REDRIVE, dropped, "DEAD_LETTER", "is dropped"),
            (Verb.REDRIVE, orphan, "DEAD_LETTER", "was deleted"),
            (Verb.DROP, dropped, "DEAD_LETTER", "is dropped"),
            (Verb.DROP, failed, "FAILED", "is FAILED"),
            (Verb.DROP, done, "SUCCEEDED", "is SUCCEEDED"),
        ):
            for dry_run in (True, False):
                with pytest.raises(IllegalTransition, match=text) as caught:
                    await move(verb, task.task_id, decide=allowed, dry_run=dry_run)
                assert caught.value.data["from"] == state, (verb, text)
        with pytest.raises(UnknownId, match="no task task_none"):
            await move(Verb.REDRIVE, "task_none", decide=allowed)
        assert await everything(world) == before

    house.live(main)


def test_all_of_one_fingerprint_in_pages_each_an_operation_of_its_own(home: Path) -> None:
    house = Home(home, lanes=8)
    house.plays["dies"], house.plays["other"] = dies("f"), dies("g")

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(3)]
        tasks = [task for one in sessions for task in await dead(world, one, 120)]
        (kept,) = await dead(world, sessions[0], 1, "other")
        ids = [task.task_id for task in tasks]
        assert await letters(world, "f") == ids[::-1]
        house.plays["dies"] = well
        house.plays.begun.clear()
        move = world.engine.dead_letters.move_all
        moved = await move(Verb.REDRIVE, "f", decide=allowed, limit=100)
        assert (list(moved.tasks), moved.skipped) == (ids[:100], ())
        assert moved.following is not None
        # Interrupted here, it is simply called again: what is left is what it finds.
        rest = await move(Verb.REDRIVE, "f", decide=allowed, limit=1_000)
        assert (list(rest.tasks), rest.following) == (ids[100:], None)
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"
        order = [task_id for task_id, _ in house.plays.begun]
        for number in range(3):  # in each session as they were submitted
            mine = ids[number * 120 : (number + 1) * 120]
            assert [one for one in order if one in set(mine)] == mine
        assert await letters(world) == [kept.task_id]
        assert sorted(await audited(world)) == sorted(ids)
        assert (await move(Verb.REDRIVE, "f", decide=allowed)).tasks == ()

    house.live(main)


@pytest.mark.req("Q-10", "Q-12")
def test_one_that_cannot_be_redriven_loses_no_other(home: Path) -> None:
    house = Home(home, lanes=2, session_limit=3)
    house.plays["dies"] = dies("f")
    gate = asyncio.Event()

    async def waits(attempt: Attempt) -> Outcome:
        await gate.wait()
        return Succeeded()

    house.plays["waits"] = waits

    denied: list[Accepted] = []

    def decide(task_id: str) -> Decision:
        if task_id == denied[0].task_id:
            raise PolicyDenied("The policy does not allow it.", ruleId="no")
        return allowed(task_id)

    async def main(world: World) -> None:
        full, keyed, free = [await world.session() for _ in range(3)]
        in_full = await dead(world, full, 3)
        twins = await dead(world, keyed, 1, unique="u") + await dead(world, keyed, 1, unique="u")
        refused, plain = await dead(world, free, 2)
        denied.append(refused)
        (held,) = await dead(world, free, 1, unique="v")
        await world.tool(full, "waits")
        holder = await world.tool(free, "waits", terms=Terms(unique="v"))
        await settled()
        before = await everything(world)
        move = world.engine.dead_letters.move_all
        dry = await move(Verb.REDRIVE, "f", decide=decide, dry_run=True)
        assert await everything(world) == before
        done = await move(Verb.REDRIVE, "f", decide=decide)
        expected = {
            in_full[2].task_id: "queue_full", twins[1].task_id: "illegal_transition",
            refused.task_id: "policy_denied", held.task_id: "illegal_transition",
        }  # fmt: skip
        for moved in (dry, done):  # the dry run named all that would happen
            assert {task: error.code for task, error in moved.skipped} == expected
            assert moved.tasks == (
                in_full[0].task_id, in_full[1].task_id, twins[0].task_id, plain.task_id,
            )  # fmt: skip
        words = {task: str(error) for task, error in done.skipped}
        assert "3 open tasks" in words[in_full[2].task_id]
        assert holder.task_id in words[held.task_id]
        assert "another dead letter" in words[twins[1].task_id]
        house.plays["dies"] = well
        gate.set()
        for task_id in done.tasks:
            assert (await world.engine.run_ended(task_id.replace("task", "run"))).state
        assert sorted(await letters(world)) == sorted(expected)
        assert sorted(await audited(world)) == sorted(done.tasks)

    house.live(main)


@pytest.mark.req("Q-10")
def test_a_redrive_keeps_to_the_bound_of_all_tasks(home: Path) -> None:
    house = Home(home, total_limit=3)
    house.plays["dies"] = dies("f")

    async def main(world: World) -> None:
        tasks = [(await dead(world, await world.session()))[0] for _ in range(4)]
        late = Terms(not_before_ms=world.clock.wall_ms() + 3_600_000)
        await world.tool(await world.session(), "held", terms=late)
        done = await world.engine.dead_letters.move_all(Verb.REDRIVE, "f", decide=allowed)
        assert done.tasks == tuple(task.task_id for task in tasks[:2])
        for _, error in done.skipped:
            assert isinstance(error, QueueFull)
            assert error.data["limit"] == 3
        with pytest.raises(QueueFull, match="The queue has 3"):
            await world.engine.dead_letters.move(Verb.REDRIVE, tasks[3].task_id, decide=allowed)

    house.live(main, lanes=True)


def test_a_dropped_letter_keeps_its_history_and_is_listed_no_more(home: Path) -> None:
    house = Home(home)
    house.plays["dies"] = dies("f")

    async def main(world: World) -> None:
        session = await world.session()
        tasks = await dead(world, session, 3)
        letter = world.engine.dead_letters
        dry = await letter.move(Verb.DROP, tasks[0].task_id, decide=allowed, dry_run=True)
        assert (dry.tasks, dry.event_id, len(await letters(world))) == (
            (tasks[0].task_id,),
            None,
            3,
        )
        moved = await letter.move(Verb.DROP, tasks[0].task_id, decide=allowed)
        assert await letters(world) == [tasks[2].task_id, tasks[1].task_id]
        assert (await world.types(session))[(moved.event_id or 0) - 1] == "dead_letter.dropped"
        assert await world.state(tasks[0]) == "DEAD_LETTER"
        await letter.move_all(Verb.DROP, "f", decide=allowed)
        assert await letters(world) == []
        again = await letter.move_all(Verb.REDRIVE, "f", decide=allowed)
        assert (again.tasks, again.skipped) == ((), ())
        counts = world.engine.task_counts()
        assert (counts["DEAD_LETTER"], counts["QUEUED"]) == (3, 0)

    house.live(main)


def test_of_two_at_once_one_is_told_why_not(home: Path) -> None:
    house = Home(home)
    house.plays["dies"], house.plays["others"] = dies("f"), dies("g")

    async def main(world: World) -> None:
        (task,) = await dead(world, await world.session())
        move = world.engine.dead_letters.move
        ends = await asyncio.gather(
            move(Verb.REDRIVE, task.task_id, decide=allowed),
            move(Verb.DROP, task.task_id, decide=allowed),
            move(Verb.REDRIVE, task.task_id, decide=allowed),
            return_exceptions=True,
        )
        errors = [one for one in ends if isinstance(one, GoclawError)]
        assert [error.code for error in errors] == ["illegal_transition"] * 2
        assert all("from" in error.data for error in errors)
        assert await audited(world) == [task.task_id]

        others = await dead(world, await world.session(), 20, "others")
        tasks = sorted(task.task_id for task in others)
        every = world.engine.dead_letters.move_all
        one, other = await asyncio.gather(
            every(Verb.REDRIVE, "g", decide=allowed), every(Verb.DROP, "g", decide=allowed)
        )
        assert sorted((*one.tasks, *other.tasks)) == tasks
        assert sorted(task for moved in (one, other) for task, _ in moved.skipped) == tasks

    house.live(main)


@pytest.mark.req("Q-5")
def test_a_task_that_kills_the_daemon_has_a_fingerprint_to_go_by(home: Path) -> None:
    house = Home(home, crash_budget=1)

    async def forever(attempt: Attempt) -> Outcome:
        await asyncio.Event().wait()
        return Succeeded()

    house.plays["killer"] = forever

    async def first(world: World) -> list[Accepted]:
        tasks = [await world.prompt(await world.session(), "killer") for _ in range(3)]
        await settled()
        return tasks

    async def second(world: World) -> None:
        assert await letters(world, "crashes_exhausted") == [t.task_id for t in reversed(tasks)]
        house.plays["killer"] = well
        await world.engine.dead_letters.move_all(
            Verb.REDRIVE, "crashes_exhausted", decide=allowed
        )  # fmt: skip
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"
            row = await world.engine.task(task.task_id)
            assert (row["attempt"], row["crashes"], row["fingerprint"]) == (2, 0, None)

    tasks = house.live(first)
    house.live(second)
