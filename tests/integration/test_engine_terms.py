"""When a task may run: delayed, recurring, unique tasks; time-outs and deadlines (Q-12, Q-13)."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.errors import IdempotencyConflict, InvalidParams, QueueFull
from goclaw.core.records import Call, Done, Failed, Succeeded, Terms
from goclaw.core.states import EffectClass
from goclaw.engine.recurrence import Recurrence

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome

HOUR = 3_600_000
MINUTE = 60_000


async def never(attempt: Attempt) -> Outcome:
    await asyncio.get_running_loop().create_future()
    return Succeeded()


# -- not before -----------------------------------------------------------------------------------


@pytest.mark.req("Q-12", "Q-17")
def test_a_delayed_task_starts_when_it_is_due_and_holds_nobody_up(home: Path) -> None:
    house = Home(home)

    async def first(world: World) -> Any:
        session = await world.session()
        at = world.clock.wall_ms() + HOUR
        late = await world.tool(session, "late", terms=Terms(not_before_ms=at))
        assert await world.ended(await world.tool(session, "now")) == "SUCCEEDED"
        await passes(HOUR // 2)
        row = await world.engine.task(late.task_id)
        assert (row["state"], row["attempt"], row["due_at"]) == ("QUEUED", 0, at)
        return late, at

    async def second(world: World) -> None:
        assert await world.ended(late) == "SUCCEEDED"
        assert at <= world.clock.wall_ms() < at + 1_000
        assert (await world.engine.task(late.task_id))["due_at"] is None

    late, at = house.live(first)
    house.live(second, limit_s=2 * 3600)


@pytest.mark.req("Q-12", "Q-6")
def test_a_jump_of_the_wall_clock_moves_calendar_times(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session = await world.session()
        at = world.clock.wall_ms() + 10 * HOUR
        late = await world.tool(session, "late", terms=Terms(not_before_ms=at))
        world.clock.wall_offset_ms += 11 * HOUR
        began = world.clock.mono_ms()
        assert await world.ended(late) == "SUCCEEDED"
        assert world.clock.mono_ms() - began <= 61_000

    house.live(main)


@pytest.mark.req("Q-9", "Q-12")
def test_a_delayed_task_that_is_due_goes_to_the_tail_of_its_line(home: Path) -> None:
    house = Home(home, lanes=1)

    async def main(world: World) -> None:
        session = await world.session()
        at = world.clock.wall_ms() + 1_000
        house.plays["long"] = _sleeping(5_000)
        tasks = [
            await world.tool(session, "late", terms=Terms(not_before_ms=at)),
            await world.tool(session, "long"),
            await world.tool(session, "behind"),
        ]
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.order == ["long", "behind", "late"]

    house.live(main)


@pytest.mark.req("Q-11", "Q-12")
def test_a_delayed_task_can_be_cancelled(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        at = world.clock.wall_ms() + HOUR
        late = await world.tool(await world.session(), "late", terms=Terms(not_before_ms=at))
        receipt = await world.engine.cancel_task(late.task_id)
        assert receipt.outcome == "stopped"
        await passes(2 * HOUR)
        assert house.plays.order == []

    house.live(main, limit_s=4 * 3600)


def _sleeping(ms: float) -> Any:
    async def play(attempt: Attempt) -> Outcome:
        await passes(ms)
        return Succeeded()

    return play


# -- again and again ------------------------------------------------------------------------------


@pytest.mark.req("Q-12", "G-19")
def test_a_recurring_task_runs_at_each_occurrence_over_restarts(home: Path) -> None:
    house = Home(home)
    ran: list[int] = []

    async def tick(attempt: Attempt) -> Outcome:
        ran.append(house.clock.wall_ms())
        return Succeeded()

    house.plays["tick"] = tick

    async def first(world: World) -> Any:
        task = await world.tool(
            await world.session(), "tick", terms=Terms(recurrence=("0 * * * *", "UTC", "once"))
        )
        assert (await world.engine.task(task.task_id))["due_at"] % HOUR == 0
        while len(ran) < 3:
            await passes(60_000)
        return task

    async def second(world: World) -> None:
        while len(ran) < 5:
            await passes(60_000)

    house.live(first, limit_s=6 * 3600)
    house.live(second, limit_s=6 * 3600)
    assert all(at % HOUR < 1_000 for at in ran)
    assert [later - earlier for earlier, later in itertools.pairwise(at // HOUR for at in ran)] == [
        1
    ] * 4


@pytest.mark.req("Q-12")
@pytest.mark.parametrize(("misfire", "runs"), [("skip", 0), ("once", 1), ("all", 5)])
def test_occurrences_that_nobody_was_there_for(home: Path, misfire: str, runs: int) -> None:
    house = Home(home)

    async def first(world: World) -> None:
        terms = Terms(recurrence=("0 * * * *", "UTC", misfire))
        await world.tool(await world.session(), "tick", terms=terms)
        # ... and the machine is off over five occurrences

    async def second(world: World) -> None:
        await passes(60_000)
        assert house.plays.order == ["tick"] * runs
        while len(house.plays.order) < runs + 2:
            await passes(60_000)

    house.live(first)
    hour_ns = 3_600_000_000_000
    wall_ns = house.clock.wall_offset_ms * 1_000_000 + house.clock.ns
    house.clock.ns += 5 * hour_ns - wall_ns % hour_ns + 1_800_000_000_000
    house.live(second, limit_s=4 * 3600)


@pytest.mark.req("Q-10", "Q-12", "Q-14")
@pytest.mark.parametrize("bound", ["session_limit", "total_limit"])
@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_occurrences_do_not_pile_up_beyond_the_bound(home: Path, bound: str, misfire: str) -> None:
    """One hangs and the queue is full: the next waits, and none of them is lost that its misfire
    rule keeps."""
    house = Home(home, lease_ms=600_000, **{bound: 4})
    go_on = asyncio.Event()

    async def tick(attempt: Attempt) -> Outcome:
        await go_on.wait()
        return Succeeded()

    house.plays["tick"] = tick

    async def main(world: World) -> None:
        terms = Terms(recurrence=("* * * * *", "UTC", misfire))
        first = await world.tool(await world.session(), "tick", terms=terms)
        due = (await world.engine.task(first.task_id))["due_at"]
        most = 0
        while world.clock.wall_ms() < due + 10 * MINUTE + 30_000:
            await passes(10_000)
            most = max(most, world.engine.open_tasks())
        assert most == 4
        (waiting,) = [
            row
            for row in await world.engine.tasks(sid=None, before=None, state="QUEUED", limit=9)
            if row["due_at"] is not None
        ]
        if misfire != "skip":  # that one is left out, and looks at the next
            _, (reason,) = await world.engine.why.explain(waiting["task_id"])
            assert reason.code == "queue_full"
        go_on.set()
        await passes(10_000)
        assert world.engine.open_tasks() == 1  # the one that waits for the next minute
        # One hung, two waited behind it, and who was due then waited for room.
        runs = {"skip": 3, "once": 4, "all": 11}[misfire]
        assert house.plays.order == ["tick"] * runs or (misfire, len(house.plays.order)) == (
            "skip", 4,
        )  # fmt: skip

    house.live(main)


@pytest.mark.req("Q-10", "Q-12")
def test_schedules_that_fill_the_queue_are_due_all_the_same(home: Path) -> None:
    house = Home(home, session_limit=2)

    async def main(world: World) -> None:
        session = await world.session()
        for name in ("one", "two"):
            await world.tool(session, name, terms=Terms(recurrence=("0 * * * *", "UTC", "once")))
        with pytest.raises(QueueFull):
            await world.tool(session, "three")
        await passes(3 * HOUR)
        assert house.plays.order.count("one") >= 2
        assert house.plays.order.count("two") >= 2
        assert world.engine.open_tasks() == 2

    house.live(main, limit_s=24 * 3600)


@pytest.mark.req("Q-12", "Q-11")
def test_the_waiting_occurrence_is_the_schedule(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        terms = Terms(recurrence=("0 * * * *", "UTC", "once"))
        task = await world.tool(await world.session(), "tick", terms=terms)
        assert await world.ended(task) == "SUCCEEDED"
        (waiting,) = await world.engine.tasks(sid=None, before=None, state="QUEUED", limit=9)
        assert waiting["due_at"] > world.clock.wall_ms()
        await world.engine.cancel_task(waiting["task_id"])
        await passes(3 * HOUR)
        assert house.plays.order == ["tick"]
        assert world.engine.open_tasks() == 0
        assert await world.database.read("schedule_of", tid=waiting["tid"]) == []

    house.live(main, limit_s=6 * 3600)


@pytest.mark.req("Q-12", "E-6")
def test_a_schedule_that_is_submitted_again_is_the_same(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session = await world.session()
        terms = Terms(recurrence=("0 * * * *", "UTC", "once"))
        one = await world.tool(session, "tick", key="k", terms=terms)
        two = await world.tool(session, "tick", key="k", terms=terms)
        assert (two.duplicate, two.task_id) == (True, one.task_id)
        await world.ended(one)
        assert len(await world.engine.tasks(sid=None, before=None, state="QUEUED", limit=9)) == 1

    house.live(main, limit_s=6 * 3600)


def moment(text: str, zone: str = "+00:00") -> int:
    return int(datetime.fromisoformat(f"{text}{zone}").timestamp() * 1000)


@pytest.mark.req("Q-12")
@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("30 7 * * 1-5", "UTC", "2026-11-20T08:00", "2026-11-23T07:30+00:00"),  # over a weekend
        ("0 2 * * *", "Europe/Vienna", "2026-03-28T12:00", "2026-03-29T03:00+02:00"),  # the gap
        ("30 2 * * *", "Europe/Vienna", "2026-10-24T12:00", "2026-10-25T02:30+02:00"),  # twice
        ("30 2 * * *", "Europe/Vienna", "2026-10-25T00:30", "2026-10-26T02:30+01:00"),  # but once
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00", "2028-02-29T00:00+00:00"),
        ("*/15 * * * *", "Asia/Kathmandu", "2026-01-01T00:00", "2026-01-01T06:00+05:45"),
    ],
)
def test_the_next_occurrence(cron: str, zone: str, after: str, expected: str) -> None:
    found = Recurrence.checked(cron, zone, "once").after(moment(after))
    wanted = datetime.fromisoformat(expected).timestamp() * 1000
    assert found == wanted, datetime.fromtimestamp(found / 1000, UTC)


@pytest.mark.req("Q-12")
@pytest.mark.parametrize(
    ("cron", "zone", "misfire", "word"),
    [
        ("nonsense", "UTC", "once", "cron"),
        ("61 * * * *", "UTC", "once", "cron"),
        ("* * * *", "UTC", "once", "cron"),
        ("* * * * * *", "UTC", "once", "cron"),
        ("0 0 31 2 *", "UTC", "once", "cron"),
        ("", "UTC", "once", "cron"),
        ("* * * * *", "Mars/Olympus", "once", "time zone"),
        ("* * * * *", "../../etc/passwd", "once", "time zone"),
        ("* * * * *", "", "once", "time zone"),
        ("* * * * *", "UTC", "twice", "misfire"),
    ],
)
def test_cron_nonsense_is_refused_by_name(
    home: Path, cron: str, zone: str, misfire: str, word: str
) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        terms = Terms(recurrence=(cron, zone, misfire))
        with pytest.raises(InvalidParams, match=word):
            await world.tool(await world.session(), "tick", terms=terms)
        assert world.engine.open_tasks() == 0

    house.live(main)


# -- unique ---------------------------------------------------------------------------------------


@pytest.mark.req("Q-12")
def test_a_unique_task_is_there_once_until_it_has_ended(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session, other = await world.session(), await world.session()
        house.plays["work"] = _sleeping(1_000)
        terms = Terms(unique="nightly")
        one = await world.tool(session, "work", terms=terms)
        twin = await world.tool(session, "work", terms=terms)
        assert (twin.task_id, twin.duplicate) == (one.task_id, True)
        elsewhere = await world.tool(other, "work", terms=terms)
        assert not elsewhere.duplicate  # its scope is the session
        await world.ended(one)
        again = await world.tool(session, "work", terms=terms)
        assert (again.duplicate, again.task_id == one.task_id) == (False, False)
        pooled = await world.intake.submit_work(
            session, "builders", 1, key=None, client=None, origin="unix", terms=terms
        )
        same = await world.intake.submit_work(
            other, "builders", 2, key=None, client=None, origin="unix", terms=terms
        )
        assert same.task_id == pooled.task_id  # of a pool it is the pool
        await world.engine.cancel_task(pooled.task_id)

    house.live(main)


# -- time-outs and deadlines ----------------------------------------------------------------------


@pytest.mark.req("Q-12", "E-6")
def test_the_key_of_a_submission_that_found_a_unique_task_stays_with_it(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session, terms = await world.session(), Terms(unique="only")
        first = await world.tool(session, "one", terms=terms)
        second = await world.tool(session, "two", key="mine", terms=terms)
        assert (second.task_id, second.duplicate) == (first.task_id, True)
        assert await world.ended(first) == "SUCCEEDED"
        again = await world.tool(session, "two", key="mine", terms=terms)
        assert (again.task_id, again.duplicate) == (first.task_id, True)
        with pytest.raises(IdempotencyConflict):
            await world.tool(session, "three", key="mine", terms=terms)
        assert house.plays.order == ["one"]

    house.live(main)


@pytest.mark.req("Q-13", "E-6")
def test_a_known_key_is_answered_though_its_deadline_has_passed(home: Path) -> None:
    house = Home(home)
    house.plays["slow"] = _sleeping(5_000)

    async def main(world: World) -> None:
        session = await world.session()
        terms = Terms(deadline_ms=world.clock.wall_ms() + 1_000)
        task = await world.tool(session, "slow", key="k", terms=terms)
        assert await world.ended(task) == "FAILED"
        again = await world.tool(session, "slow", key="k", terms=terms)
        assert (again.task_id, again.state, again.duplicate) == (task.task_id, "FAILED", True)
        with pytest.raises(IdempotencyConflict):
            await world.tool(session, "other", key="k", terms=terms)
        with pytest.raises(InvalidParams):
            await world.tool(session, "slow", key="new", terms=terms)

    house.live(main)


@pytest.mark.req("Q-13", "Q-7")
def test_an_attempt_over_its_time_fails_and_is_tried_again(home: Path) -> None:
    house = Home(home, max_attempts=3, backoff_ms_min=10, backoff_ms_max=10)
    house.plays["hangs"] = never

    async def main(world: World) -> None:
        began = world.clock.mono_ms()
        task = await world.tool(await world.session(), "hangs", terms=Terms(timeout_ms=2_000))
        assert await world.ended(task) == "DEAD_LETTER"
        row = await world.engine.task(task.task_id)
        assert (row["attempt"], row["failures"], row["crashes"]) == (3, 3, 0)
        assert b"attempt_timeout" in str(row["error"]).encode()
        assert 6_000 <= world.clock.mono_ms() - began < 7_000
        assert not world.engine.scheduler.live

    house.live(main)


@pytest.mark.req("Q-13", "E-3")
def test_a_time_out_leaves_an_effect_that_nobody_knows_for_a_person(home: Path) -> None:
    house = Home(home)

    async def hang(key: str, cancelled: asyncio.Event) -> Done:
        await asyncio.get_running_loop().create_future()
        return Done(b"1")

    async def acts(attempt: Attempt) -> Outcome:
        await attempt.perform([Call("tool", "pay", b"{}", EffectClass.IRREVERSIBLE, hang)])
        return Succeeded()

    house.plays["acts"] = acts

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "acts", terms=Terms(timeout_ms=2_000))
        await world.until(task, "SUSPENDED")
        row = await world.engine.task(task.task_id)
        assert (row["reason"], row["failures"]) == ("effect_unknown", 1)

    house.live(main)


@pytest.mark.req("Q-5", "E-3")
def test_no_unknown_effect_buys_another_attempt(home: Path) -> None:
    """The last attempt that is left fails for good; a person settles, and brings it back."""
    house = Home(home)

    async def hang(key: str, cancelled: asyncio.Event) -> Done:
        await asyncio.get_running_loop().create_future()
        return Done(b"1")

    async def acts(attempt: Attempt) -> Outcome:
        await attempt.perform([Call("tool", "pay", b"{}", EffectClass.IRREVERSIBLE, hang)])
        return Succeeded()

    house.plays["acts"] = acts

    async def main(world: World) -> None:
        session, terms = await world.session(), Terms(timeout_ms=2_000)
        task = await world.tool(session, "acts", max_attempts=1, terms=terms)
        assert await world.ended(task) == "DEAD_LETTER"
        row = await world.engine.task(task.task_id)
        assert (row["reason"], row["failures"]) == ("attempts_exhausted", 1)
        await world.engine.settlement.settle(task.task_id, 0, "done", result=b"1", by="me")
        await world.database.write("redrive", tid=task.tid, session_limit=9, now=1)
        assert await world.ended(task) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("Q-13")
def test_a_time_out_is_of_one_attempt_and_ends_with_it(home: Path) -> None:
    house = Home(home)

    async def twice(attempt: Attempt) -> Outcome:
        await attempt.sleep(5_000)
        await passes(1_500)
        return Succeeded()

    house.plays["twice"] = twice

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "twice", terms=Terms(timeout_ms=2_000))
        assert await world.ended(task) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("Q-13", "Q-1")
@pytest.mark.parametrize("what", ["queued", "running", "backoff", "asleep", "asking", "delayed"])
def test_a_deadline_ends_whatever_the_task_waits_for(home: Path, what: str) -> None:
    house = Home(home, lanes=1, backoff_ms_min=HOUR, backoff_ms_max=HOUR)

    async def asleep(attempt: Attempt) -> Outcome:
        await attempt.sleep(HOUR)
        return Succeeded()

    async def backoff(attempt: Attempt) -> Outcome:
        return Failed("busy", "no", retryable=True)

    async def done(key: str, cancelled: asyncio.Event) -> Done:
        return Done(b"1")

    async def asking(attempt: Attempt) -> Outcome:
        await attempt.perform([Call("tool", "pay", b"{}", EffectClass.PURE, done, question=True)])
        return Succeeded()

    for name, play in (
        ("running", never), ("backoff", backoff), ("asleep", asleep), ("asking", asking),
        ("hog", never),
    ):  # fmt: skip
        house.plays[name] = play

    async def main(world: World) -> None:
        session = await world.session()
        if what == "queued":
            await world.tool(session, "hog")
        now = world.clock.wall_ms()
        task = await world.tool(
            session, what,
            terms=Terms(
                deadline_ms=now + 30_000, not_before_ms=now + 29_000 if what == "delayed" else None
            ),
        )  # fmt: skip
        if what == "delayed":
            house.plays["delayed"] = never
        behind = await world.tool(await world.session(), "behind")
        assert await world.ended(task) == "FAILED"
        row = await world.engine.task(task.task_id)
        assert row["reason"] == "deadline_exceeded"
        assert row["crashes"] == 0
        assert 30_000 <= world.clock.wall_ms() - now < 31_000
        assert await world.engine.approvals.listed() == []
        if what != "queued":
            assert await world.ended(behind) == "SUCCEEDED"
        await settled()
        assert len(world.engine.scheduler.live) == (what == "queued")

    house.live(main)


@pytest.mark.req("Q-13")
def test_a_task_that_ended_in_time_stays_so(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        deadline = world.clock.wall_ms() + 10_000
        task = await world.tool(await world.session(), "quick", terms=Terms(deadline_ms=deadline))
        assert await world.ended(task) == "SUCCEEDED"
        await passes(60_000)
        assert await world.state(task) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("Q-13")
@pytest.mark.parametrize(
    "terms",
    [
        {"deadline_ms": -1}, {"deadline_ms": 500, "not_before_ms": 600},
        {"deadline_ms": 500, "recurrence": ("* * * * *", "UTC", "once")},
        {"unique": "u", "recurrence": ("* * * * *", "UTC", "once")},
        {"not_before_ms": 2 * limits.CALENDAR_MS_MAX},
    ],
)  # fmt: skip
def test_terms_that_cannot_be_are_refused_and_nothing_is_accepted(
    home: Path, terms: dict[str, Any]
) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session, now = await world.session(), world.clock.wall_ms()
        moved: dict[str, Any] = {
            name: value + now if isinstance(value, int) else value for name, value in terms.items()
        }
        with pytest.raises(InvalidParams):
            await world.tool(session, "x", terms=Terms(**moved))
        assert await world.engine.tasks(sid=None, before=None, state=None, limit=9) == []

    house.live(main)
