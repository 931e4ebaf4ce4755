"""Submissions: on disk before they are acknowledged, once per key, within bounds (Q-10, E-6)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.errors import (
    IdempotencyConflict,
    InvalidParams,
    QueueFull,
    SessionUnknown,
    ShuttingDown,
    StorageFailed,
    TooLarge,
)
from goclaw.core.records import Succeeded

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


async def forever(attempt: Attempt) -> Outcome:
    await asyncio.Event().wait()
    return Succeeded()


@pytest.mark.req("I-3", "Q-2")
def test_a_prompt_and_the_users_words_are_one_transaction(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session = await world.session()
        accepted = await world.intake.submit_prompt(
            session, [text("one"), text("two")], key="k", client="me", origin="ws"
        )
        assert (accepted.state, accepted.duplicate) == ("QUEUED", False)
        events = await world.events(session)
        assert [name for name, _ in events] == ["run.accepted", "task.queued", "update", "update"]
        assert events[0][1] == {"origin": "ws", "idempotencyKey": "k"}
        assert [payload["content"]["text"] for _, payload in events[2:]] == ["one", "two"]
        assert accepted.event_id == 4
        # A refused disk: nothing is acknowledged, nothing is there.
        world.database.fail_next_commit(after=False)
        with pytest.raises(StorageFailed):
            await world.prompt(session, "lost", key="l")
        assert len(await world.events(session)) == 4
        again = await world.prompt(session, "lost", key="l")
        assert not again.duplicate

    house.live(main, lanes=False)


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.req("E-4", "W-6")
def test_a_made_key_finds_the_prompt_and_is_no_effect_s(home: Path) -> None:
    house = Home(home)
    keys: list[str | None] = []

    async def work(attempt: Attempt) -> Outcome:
        keys.append(attempt.task.key)
        return Succeeded()

    house.plays["work"] = work

    async def main(world: World) -> None:
        session = await world.session()
        accepted = await world.prompt(session, "work", key="k", made=True)
        await world.ended(accepted)
        again = await world.prompt(session, "work", key="k", made=True)
        assert (again.run_id, again.duplicate) == (accepted.run_id, True)
        with pytest.raises(IdempotencyConflict) as conflict:
            await world.prompt(session, "other", key="k", made=True)
        assert conflict.value.data["runId"] == accepted.run_id
        assert (await world.events(session))[0][1]["idempotencyKey"] is None
        assert keys == [None]

    house.live(main)


@pytest.mark.req("E-6", "W-6", "I-3")
def test_a_key_means_one_task_over_its_life_and_restarts(home: Path) -> None:
    house = Home(home)

    async def again(world: World, state: str) -> Accepted:
        session = await world.intake.session(session_id)
        found = await world.prompt(session, "work", key="k")
        assert found.duplicate
        assert found.state == state
        return found

    async def first(world: World) -> tuple[str, Accepted]:
        session = await world.session()
        accepted = await world.prompt(session, "work", key="k")
        # Another session's key is another key; no key is no key.
        other = await world.session()
        assert not (await world.prompt(other, "work", key="k")).duplicate
        tool = await world.tool(other, "work")
        assert (await world.tool(other, "work")).task_id != tool.task_id
        return session.session_id, accepted

    async def second(world: World) -> None:
        assert (await again(world, "QUEUED")).task_id == accepted.task_id
        world.engine.open_lanes()
        assert await world.ended(accepted) == "SUCCEEDED"
        found = await again(world, "SUCCEEDED")
        assert (found.task_id, found.run_id) == (accepted.task_id, accepted.run_id)
        assert (await world.engine.run_ended(found.run_id)).event_id == found.event_id

    async def third(world: World) -> None:
        await again(world, "SUCCEEDED")
        await settled()
        assert house.plays.begun.count((accepted.task_id, 1)) == 1
        session = await world.intake.session(session_id)
        assert (await world.types(session)).count("run.accepted") == 1

    session_id, accepted = house.live(first, lanes=False)
    house.live(second, lanes=False)
    house.live(third)


@pytest.mark.req("E-6", "W-6")
def test_a_key_with_other_words_is_a_conflict_and_runs_nothing(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session = await world.session()
        await world.prompt(session, "work", key="k")
        before = await world.types(session)
        for attempt in (world.prompt(session, "other", key="k"), world.tool(session, "x", key="k")):
            with pytest.raises(IdempotencyConflict) as refused:
                await attempt
            assert refused.value.data["idempotencyKey"] == "k"
        assert await world.types(session) == before
        # The order of members is no difference.
        blocks = [{"type": "text", "text": "a"}, {"text": "a", "type": "text"}]
        answers = [
            await world.intake.submit_prompt(session, [b], key="m", client=None, origin="unix")
            for b in blocks
        ]
        assert [answer.duplicate for answer in answers] == [False, True]

    house.live(main, lanes=False)


@pytest.mark.req("E-6", "W-6")
@pytest.mark.parametrize("seed", range(5))
def test_racing_submissions_with_one_key_are_one_task(home: Path, seed: int) -> None:
    house = Home(home, seed=seed, hurry=0.5)

    async def main(world: World) -> None:
        session = await world.session()
        answers = await asyncio.gather(
            *(world.prompt(session, "work", key="k") for _ in range(10)),
        )
        assert len({answer.task_id for answer in answers}) == 1
        assert sum(not answer.duplicate for answer in answers) == 1
        ends = await asyncio.gather(*(world.engine.run_ended(a.run_id) for a in answers))
        assert {end.state for end in ends} == {"SUCCEEDED"}
        assert len(house.plays.begun) == 1

    house.live(main)


@pytest.mark.req("W-6")
def test_a_key_has_a_length(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session = await world.session()
        assert not (await world.prompt(session, "x", key="k" * limits.KEY_CHARS_MAX)).duplicate
        for key in ("", "k" * (limits.KEY_CHARS_MAX + 1)):
            with pytest.raises(InvalidParams):
                await world.prompt(session, "x", key=key)
            with pytest.raises(InvalidParams):
                await world.session(key=key)

    house.live(main, lanes=False)


@pytest.mark.req("E-6", "W-6")
def test_a_session_is_made_once_per_key(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        first, second = await asyncio.gather(world.session(key="s"), world.session(key="s"))
        assert first == second
        with pytest.raises(IdempotencyConflict):
            await world.session(key="s", cwd="/elsewhere")
        assert (await world.session()).sid != (await world.session()).sid

    house.live(main, lanes=False)


# -- bounds ---------------------------------------------------------------------------------------


@pytest.mark.req("Q-10", "I-5")
def test_a_session_has_room_for_so_many_and_no_more(home: Path) -> None:
    house = Home(home, session_limit=5, lanes=1)

    async def main(world: World) -> None:
        session, other = await world.session(), await world.session()
        answers = await asyncio.gather(
            *(world.tool(session, "work") for _ in range(9)), return_exceptions=True
        )
        taken = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert len(taken) == 5
        for answer in answers:
            if isinstance(answer, BaseException):
                assert isinstance(answer, QueueFull)
                assert answer.data["limit"] == 5
                assert answer.data["retryAfterMs"] > 0
        await world.tool(other, "work")
        world.engine.open_lanes()
        for task in taken:
            assert await world.ended(task) == "SUCCEEDED"  # nothing accepted is shed
        assert await world.ended(await world.tool(session, "work")) == "SUCCEEDED"

    house.live(main, lanes=False)


@pytest.mark.req("Q-10", "I-5", "E-6")
def test_all_sessions_have_room_for_so_many_and_no_more(home: Path) -> None:
    house = Home(home, total_limit=6, lanes=1)

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(4)]
        first = await world.tool(sessions[0], "work", key="k")
        answers = await asyncio.gather(
            *(world.tool(session, "work") for session in sessions * 3), return_exceptions=True
        )
        taken = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert len(taken) == 5
        assert {type(a) for a in answers if isinstance(a, BaseException)} == {QueueFull}
        # A submission that is known is no new work.
        assert (await world.tool(sessions[0], "work", key="k")).task_id == first.task_id
        with pytest.raises(QueueFull):
            await world.tool(sessions[0], "work", key="new")
        await world.engine.cancel_task(first.task_id)
        await world.tool(sessions[1], "work", key="new")

    async def after(world: World) -> None:
        system = await world.intake.system_session()
        with pytest.raises(QueueFull):  # counted anew after a restart
            await world.tool(system, "work")
        world.engine.open_lanes()
        while world.engine.open_tasks():
            await passes(10)
        await world.tool(system, "work")

    house.live(main, lanes=False)
    house.live(after, lanes=False)


@pytest.mark.req("I-5")
def test_a_huge_prompt_is_cut_into_events_and_a_larger_one_refused(home: Path) -> None:
    house = Home(home)
    words = "\U0001f980\x00é" * 700_000  # four bytes, six of JSON, two

    async def main(world: World) -> None:
        session = await world.session()
        resource = {"type": "resource", "resource": {"uri": "file:///x", "text": words[:1_000_000]}}
        blocks = [text(words[:600_000]), resource]
        accepted = await world.intake.submit_prompt(
            session, blocks, key=None, client=None, origin="unix"
        )
        found = await world.database.read("events_after", sid=session.sid, cursor=0, limit=999)
        assert max(len(row[8]) for row in found) <= limits.EVENT_BYTES_MAX
        contents = [orjson.loads(row[8])["content"] for row in found if row[2] == "update"]
        assert "".join(c["text"] for c in contents if c["type"] == "text") == words[:600_000]
        parts = [c["resource"] for c in contents if c["type"] == "resource"]
        assert "".join(part["text"] for part in parts) == words[:1_000_000]
        assert {part["uri"] for part in parts} == {"file:///x"}
        assert accepted.event_id == found[-1][0]
        for refused in (
            [text("x" * limits.FRAME_BYTES_MAX)],
            [text("x")] * (limits.PROMPT_PARTS_MAX + 1),
            [{"type": "resource", "resource": {"uri": "u", "blob": "A" * limits.EVENT_BYTES_MAX}}],
        ):
            with pytest.raises(TooLarge):
                await world.intake.submit_prompt(
                    session, refused, key=None, client=None, origin="unix"
                )
        with pytest.raises(TooLarge):
            await world.intake.submit_tool(
                session, "t", {"x": "y" * limits.PAYLOAD_BYTES_MAX}, key=None, client=None,
                origin="unix",
            )  # fmt: skip
        with pytest.raises(InvalidParams):
            await world.tool(session, "t", priority=limits.PRIORITY_MAX + 1)
        assert world.engine.open_tasks() == 1

    house.live(main, lanes=False)


@pytest.mark.req("R-3")
def test_a_closed_intake_takes_nothing_new(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session = await world.session()
        world.intake.closed = True
        for refused in (world.prompt(session, "x"), world.tool(session, "x"), world.session()):
            with pytest.raises(ShuttingDown) as error:
                await refused
            assert error.value.data["retryAfterMs"] > 0

    house.live(main, lanes=False)


# -- sessions -------------------------------------------------------------------------------------


@pytest.mark.req("Q-1")
def test_sessions_are_found_listed_changed_and_deleted(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        made = []
        for number in range(7):
            made.append(await world.session(cwd="/a" if number % 2 else "/b", roots=["/r", "/s"]))
            world.clock.ns += 1_000_000 * (number % 3)
        assert made[0].roots == ("/r", "/s")
        listed, cursor = [], None
        while True:
            page, cursor = await world.intake.sessions(cwd=None, cursor=cursor, limit=3)
            listed += page
            if cursor is None:
                break
        newest = sorted(made, key=lambda session: (session.created_at, session.sid), reverse=True)
        assert listed == newest
        page, cursor = await world.intake.sessions(cwd="/a", cursor=None, limit=50)
        assert ({session.cwd for session in page}, len(page), cursor) == ({"/a"}, 3, None)
        for bad in ("x", "1.", ".1", "1.2.3", "9" * 60 + ".1", "-1.2"):
            with pytest.raises(InvalidParams):
                await world.intake.sessions(cwd=None, cursor=bad, limit=3)
        await world.intake.change_session(made[0], title="named", closed_at=5, roots=["/t"])
        changed = await world.intake.session(made[0].session_id)
        assert (changed.title, changed.closed, changed.roots) == ("named", True, ("/t",))
        await world.intake.change_session(made[0], closed_at=0)
        assert not (await world.intake.session(made[0].session_id)).closed
        await world.intake.change_session(made[0], deleted_at=5)
        with pytest.raises(SessionUnknown):
            await world.intake.session(made[0].session_id)
        assert (await world.intake.session_by_sid(made[0].sid)).deleted
        with pytest.raises(SessionUnknown):
            await world.intake.session("session_of_nobody")

    house.live(main, lanes=False)


@pytest.mark.req("Q-2")
def test_attempts_that_begin_later_see_a_changed_session(home: Path) -> None:
    house = Home(home)
    roots = []

    async def work(attempt: Attempt) -> Outcome:
        roots.append(attempt.session.roots)
        return Succeeded()

    house.plays["work"] = work

    async def main(world: World) -> None:
        session = await world.session()
        await world.ended(await world.tool(session, "work"))
        await world.intake.change_session(session, roots=["/new"])
        world.engine.forget_session(session.sid)
        await world.ended(await world.tool(session, "work"))
        assert roots == [("/",), ("/new",)]

    house.live(main)
