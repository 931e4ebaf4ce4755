"""Keys that leave the building, and what a repeated one is answered with (E-4, E-5, E-6).

Owns keys over attempts, tasks, redrives and restarts, for effects and submissions. Not in here:
over restores (test_effects_restore.py), the rules of the store (test_store_leases.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import apsw
import orjson
import pytest
from effects_support import CLASSES, World, ask_sink, sink_process
from wire_support import OPTED_IN, opened

from goclaw.core import limits
from goclaw.core.errors import IdempotencyConflict
from goclaw.store import database_files, fence_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "the-submission-key-of-a-client"


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


def script(home: Path, *steps: dict[str, Any]) -> str:
    path = home / "script.json"
    path.write_text(json.dumps([{"match": "", "steps": list(steps)}]))
    return f"script:{path}"


async def sent(socket: Path) -> dict[str, int]:
    sends: dict[str, int] = (await ask_sink(socket, {"op": "report"}))["sends"]
    return sends


# -- effect keys -----------------------------------------------------------------------------------


@pytest.mark.req("E-4", "I-7")
@pytest.mark.parametrize("key", [SECRET, None])
def test_the_submission_key_never_goes_out_bare(key: str | None, home: Path, sink: Path) -> None:
    """What a tool gets is H(K, ordinal, name, arguments), and K is a hash, too."""
    steps = [{"call": kind, "args": {"n": n}} for n, kind in enumerate(CLASSES)]
    # Each call has the brain's answer before it.
    ordinals = {kind: 2 * n + 1 for n, kind in enumerate(CLASSES)}

    async def body() -> None:
        async with World(home, sink, brain=script(home, *steps)) as world:
            accepted = await world.prompt("go", key=key)
            await world.until(accepted.task_id, "SUCCEEDED")
            base = accepted.task_id.encode()
            if key is not None:
                base = hashlib.sha256(f"{accepted.session_id}\0{key}".encode()).digest()
            expected = {
                hashlib.sha256(
                    b"\0".join((base, str(ordinals[kind]).encode(), kind.encode(), b'{"n":%d}' % n))
                ).hexdigest()
                for n, kind in enumerate(CLASSES)
            }
            assert (await sent(sink)).keys() == expected
            effects = await world.engine.settlement.listed(accepted.task_id)
            assert expected <= {one.key for one in effects}

    asyncio.run(body())
    assert SECRET.encode() not in fence_file(home).read_bytes()


@pytest.mark.req("E-4", "Q-5")
def test_a_key_is_stable_over_attempts_and_redrive(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, max_attempts=3, poison=9) as world:
            accepted = await world.tool("keyed", {"n": 1, "mode": "reset"})
            task = await world.until(accepted.task_id)
            assert (task["state"], task["attempt"]) == ("DEAD_LETTER", 3)
            await redrive(world, task)
            task = await world.until(accepted.task_id, "DEAD_LETTER")
            assert task["attempt"] == 6
            world.tools.faults_left = 0
            await redrive(world, task)
            await world.until(accepted.task_id, "SUCCEEDED")
            assert [*(await sent(sink)).values()] == [7]

    asyncio.run(body())


async def redrive(world: World, task: dict[str, Any]) -> None:
    await world.database.write(
        "redrive", tid=task["tid"], session_limit=9, now=world.clock.wall_ms()
    )


@pytest.mark.req("E-4", "I-5")
def test_a_designated_key_of_any_length_fits_a_header(home: Path, sink: Path) -> None:
    """Up to its bound as it is, with the tool's name; a longer one as its hash."""
    longest, longer = "x" * limits.KEY_CHARS_MAX, "x" * (limits.KEY_CHARS_MAX + 1)

    async def body() -> None:
        async with World(home, sink) as world:
            for number, key in enumerate((longest, longer)):
                accepted = await world.tool("keyed", {"n": 1, "key": key}, key=str(number))
                await world.until(accepted.task_id, "SUCCEEDED")
            digest = hashlib.sha256(longer.encode()).hexdigest()
            assert (await sent(sink)).keys() == {f"keyed:{longest}", f"keyed:sha256:{digest}"}

    asyncio.run(body())


@pytest.mark.req("E-5", "I-4")
def test_a_known_key_is_answered_over_restarts(home: Path, sink: Path) -> None:
    """By another task of another life: the recorded result, marked; and in a later attempt of that
    task from its own journal, marked still."""
    arguments = {"n": 1, "key": "order-7"}
    fails = {"fail": "flaky", "retryable": True, "onAttempts": [1]}
    brain = script(home, {"call": "irreversible", "args": arguments}, fails, {"say": "end"})

    async def first() -> bytes:
        async with World(home, sink) as world:
            task = await world.until((await world.tool("irreversible", arguments)).task_id)
            assert task["state"] == "SUCCEEDED"
            result: bytes = task["result"]
            return result

    async def second(result: bytes) -> None:
        async with World(home, sink, brain=brain) as world:
            intake, folder = world.engine.intake, str(home)
            session = await intake.create_session(
                cwd=folder, roots=[folder], brain=brain, interactive=True
            )
            accepted = await intake.submit_prompt(
                session, [{"type": "text", "text": "go"}], key=None, client=None, origin="unix"
            )
            task = await world.until(accepted.task_id, "SUCCEEDED")
            assert task["attempt"] == 2
            (tool,) = json.loads(task["result"])["tools"]
            assert (tool["status"], tool["output"]) == ("completed", orjson.loads(result))
            (row,) = [row for row in await world.effects(task["tid"]) if row["kind"] == "tool"]
            assert (row["state"], row["deduplicated"]) == ("result", 1)
            found = await world.database.read(
                "events_after", sid=session.sid, cursor=0, limit=1_000
            )
            marked = [orjson.loads(one[8]) for one in found if one[2] == "effect.result"]
            assert [one["deduplicated"] for one in marked if "deduplicated" in one] == [True]

    asyncio.run(second(asyncio.run(first())))
    assert [*asyncio.run(sent(sink)).values()] == [1]


@pytest.mark.req("E-5")
def test_a_known_key_with_other_arguments_is_a_conflict_over_restarts(
    home: Path, sink: Path
) -> None:
    async def call(n: int, key: str) -> dict[str, Any]:
        async with World(home, sink) as world:
            accepted = await world.tool("keyed", {"n": n, "key": "order-7"}, key=key)
            return await world.until(accepted.task_id)

    assert asyncio.run(call(1, "1"))["state"] == "SUCCEEDED"
    for turn in range(2):
        task = asyncio.run(call(2, str(2 + turn)))
        assert (task["state"], task["reason"]) == ("FAILED", "tool_failed")
        assert "other arguments" in json.loads(task["error"])["message"]
    assert [*asyncio.run(sent(sink)).values()] == [1]


# -- submission keys (E-6) -------------------------------------------------------------------------


def forget_results(home: Path) -> None:
    """What payload retention will do."""
    connection = apsw.Connection(str(database_files(home)[0]))
    connection.execute("DELETE FROM task_results")
    connection.close()


@pytest.mark.req("E-6")
@pytest.mark.parametrize("form", ["task", "prompt"])
@pytest.mark.parametrize("end", ["SUCCEEDED", "FAILED", "CANCELED"])
def test_a_repeated_submission_is_the_same_task(
    end: str, form: str, home: Path, sink: Path
) -> None:
    """While it runs, after it ended, over restarts; and when its result is no longer kept it says
    so, and runs nothing."""
    arguments = {"n": 1, **({"mode": "hang"} if end == "CANCELED" else {})}
    tool = "denied" if end == "FAILED" else "irreversible"
    steps: list[dict[str, Any]] = [{"call": tool, "args": arguments}]
    if end == "FAILED":
        steps.append({"fail": "broken"})
    brain = script(home, *steps)

    async def submit(world: World) -> Any:
        if form == "prompt":
            return await world.prompt("go", key=SECRET)
        return await world.tool(tool, arguments, key=SECRET)

    async def first() -> tuple[str, str]:
        async with World(home, sink, brain=brain) as world:
            accepted = await submit(world)
            again = await submit(world)
            assert (again.task_id, again.duplicate, again.expired) == (
                accepted.task_id,
                True,
                False,
            )
            if end == "CANCELED":
                await world.tools.hanging.wait()
                await world.engine.cancel_task(accepted.task_id)
            await world.until(accepted.task_id, end)
            return accepted.task_id, accepted.run_id

    async def later(expired: bool) -> tuple[str, str]:
        async with World(home, sink, brain=brain) as world:
            once, again = await submit(world), await submit(world)
            for one in (once, again):
                assert (one.duplicate, one.expired, one.state) == (True, expired, end)
            other = (
                world.prompt("another", key=SECRET)
                if form == "prompt"
                else world.tool(tool, {"n": 2}, key=SECRET)
            )
            with pytest.raises(IdempotencyConflict):
                await other
            return again.task_id, again.run_id

    known = asyncio.run(first())
    assert asyncio.run(later(False)) == known
    forget_results(home)
    assert asyncio.run(later(end != "CANCELED")) == known  # which has no result to lose
    assert sum(asyncio.run(sent(sink)).values()) == (end == "SUCCEEDED")


@pytest.mark.req("E-6", "W-6")
def test_an_expired_result_is_said_on_the_wire(home: Path) -> None:
    async def talk(expired: bool) -> None:
        async with opened(home) as house:
            client = await house.unix(**OPTED_IN)
            session = await client.new_session(_meta={"goclaw": {"idempotencyKey": "s"}})
            params = {
                "sessionId": session, "tool": "echo", "arguments": {}, "idempotencyKey": "t"
            }  # fmt: skip
            for turn in range(2):
                result = await client.turn(session, "hello", idempotencyKey="p")
                assert result["stopReason"] == "end_turn"
                ours = result["_meta"]["goclaw"]
                assert ours.get("duplicate", False) == (expired or turn == 1)
                assert ours.get("resultExpired", False) == expired
                answer = await client.call("_goclaw/task/submit", params)
                await client.event("task.succeeded") if not (expired or turn) else None
                assert answer.get("resultExpired", False) == expired
                assert answer["duplicate"] == (expired or turn == 1)
                await house.engine.run_ended(answer["runId"])

    asyncio.run(talk(False))
    forget_results(home)
    asyncio.run(talk(True))
