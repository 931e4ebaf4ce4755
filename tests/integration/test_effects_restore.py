"""The restore fence (E-8): an old backup put back repeats nothing that effects.log has noted.

Owns real kills around the note, disks that refuse it, and databases that go back in time beside a
log that does not. Not in here: the file by itself (test_fence.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from effects_support import (
    CLASSES,
    World,
    ask_sink,
    first_life,
    next_life,
    sink_process,
    submit,
)
from wire_support import OPTED_IN, opened

from goclaw.core.errors import StorageFailed
from goclaw.core.records import Succeeded
from goclaw.store import database_files, fence_file
from goclaw.store.fence import Fence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wire_support import Client, House

    from goclaw.core.records import Attempt, Outcome

pytestmark = pytest.mark.req("E-8", "I-4")


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


async def counts(socket: Path) -> tuple[int, int]:
    report = await ask_sink(socket, {"op": "report"})
    return sum(report["sends"].values()), sum(report["effects"].values())


def script(home: Path, *steps: dict[str, Any]) -> str:
    path = home / "script.json"
    path.write_text(json.dumps([{"match": "", "steps": list(steps)}]))
    return f"script:{path}"


def noted(home: Path) -> list[dict[str, Any]]:
    lines = fence_file(home).read_bytes().splitlines()
    return [note for note in map(orjson.loads, lines) if "fence" not in note]


class Backup:
    """A copy of the database of a stopped home, and only of that."""

    def __init__(self, home: Path, name: str = "backup") -> None:
        self.home, self.place = home, home / name
        self.place.mkdir()
        for file in database_files(home):
            if file.exists():
                shutil.copy2(file, self.place)

    def put_back(self) -> None:
        for file in database_files(self.home):
            file.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(self.place / file.name, file)


def accepted_only(home: Path, sink: Path, job: dict[str, Any]) -> Backup:
    """The job is on disk and nothing of it has begun."""

    async def body() -> None:
        async with World(home, sink, brain=job.get("brain", "direct"), open_lanes=False) as world:
            await submit(world, job)

    asyncio.run(body())
    return Backup(home)


def job_of(home: Path, form: str, kind: str, **arguments: Any) -> dict[str, Any]:
    call = {"n": 1, **arguments}
    if form == "task":
        return {"tool": kind, "arguments": call}
    return {"prompt": "go", "brain": script(home, {"call": kind, "args": call}, {"say": "on"})}


def live(home: Path, sink: Path, job: dict[str, Any], *states: str, **queue: Any) -> dict[str, Any]:
    """One life of the home, until the job is where it stays; the task."""

    async def body() -> dict[str, Any]:
        async with World(home, sink, brain=job.get("brain", "direct"), **queue) as world:
            task = await world.until((await submit(world, job)).task_id, *states)
            task["effects"] = [
                row for row in await world.effects(task["tid"]) if row["kind"] == "tool"
            ]
            task["events"] = await world.events()
            return task

    return asyncio.run(body())


def reports(home: Path, sink: Path) -> list[dict[str, Any]]:
    async def body() -> list[dict[str, Any]]:
        async with World(home, sink, open_lanes=False) as world:
            system = await world.engine.intake.system_session()
            found = await world.database.read("events_after", sid=system.sid, cursor=0, limit=99)
            payloads = [orjson.loads(row[8]) for row in found if row[2] == "recovery.report"]
            return [one["fence"] for one in payloads if "fence" in one]

    return asyncio.run(body())


# -- an old backup ---------------------------------------------------------------------------------

# After one life that did it and one on the old database: sends, effects.
AFTER = {"pure": (2, 2), "keyed": (2, 1), "probeable": (1, 1), "irreversible": (1, 1)}


@pytest.mark.req("E-3", "E-4")
@pytest.mark.parametrize("form", ["task", "prompt"])
@pytest.mark.parametrize("kind", CLASSES)
def test_an_old_backup_repeats_nothing(kind: str, form: str, home: Path, sink: Path) -> None:
    job = job_of(home, form, kind)
    backup = accepted_only(home, sink, job)
    done = live(home, sink, job)
    assert done["state"] == "SUCCEEDED"
    assert len(noted(home)) == (kind != "pure")
    backup.put_back()
    task = live(home, sink, job)
    assert task["task_id"] == done["task_id"]
    assert asyncio.run(counts(sink)) == AFTER[kind]
    (before,), (after,) = done["effects"], task["effects"]
    assert (before["key"], before["hash"]) == (after["key"], after["hash"])
    if kind == "irreversible" and form == "task":
        assert (task["state"], task["reason"]) == ("SUSPENDED", "effect_unknown")
    else:
        assert task["state"] == "SUCCEEDED"
    if form == "prompt":
        (tool,) = json.loads(task["result"])["tools"]
        assert tool["status"] == ("unknown" if kind == "irreversible" else "completed")
    unknown = [payload for type_, payload in task["events"] if type_ == "effect.unknown"]
    assert [one["reason"] for one in unknown] == ["restored"] * (
        kind in ("probeable", "irreversible")
    )
    if kind != "pure":
        assert noted(home)[0]["epoch"] == 1
        assert [note["epoch"] for note in noted(home)[1:]] == [2] * (kind == "keyed")
        assert reports(home, sink) == [{"epoch": 2, "fenced": 1}]
    else:
        assert reports(home, sink) == []


def test_what_a_person_says_about_it_holds(home: Path, sink: Path) -> None:
    """not_done sends it, once, under its old key; and that is noted in the new epoch."""
    job = job_of(home, "task", "irreversible")
    backup = accepted_only(home, sink, job)
    live(home, sink, job)
    backup.put_back()
    asyncio.run(ask_sink(sink, {"op": "forget"}))

    async def body() -> None:
        async with next_life(home, sink, job) as world:
            task = await world.until((await submit(world, job)).task_id, "SUSPENDED")
            await world.engine.settlement.settle(task["task_id"], 0, "not_done", by="me")
            await world.until(task["task_id"], "SUCCEEDED")

    asyncio.run(body())
    assert asyncio.run(counts(sink)) == (1, 1)
    one, two = noted(home)
    assert (one["key"], one["epoch"], two["key"], two["epoch"]) == (one["key"], 1, one["key"], 2)
    assert two["n"] > one["n"]


def test_a_sending_after_a_refusal_is_not_forgotten(home: Path, sink: Path) -> None:
    """The backup has the effect as closed without effect, to be sent again; and it was."""
    job = job_of(home, "task", "irreversible", mode="refuse")
    waiting = live(
        home, sink, job, "RETRY_WAIT", backoff_ms_min=3_600_000, backoff_ms_max=3_600_000
    )
    assert waiting["effects"][0]["state"] == "retryable"
    backup = Backup(home)

    async def body() -> dict[str, Any]:
        async with next_life(home, sink, job) as world:
            world.tools.refusals = 1  # it has refused once
            accepted = await submit(world, job)
            task = await world.engine.task(accepted.task_id)
            await world.database.write(
                "wake", tid=task["tid"], now_mono=None, reason="due", now=world.clock.wall_ms()
            )
            return await world.until(accepted.task_id)

    assert asyncio.run(body())["state"] == "SUCCEEDED"
    assert asyncio.run(counts(sink)) == (1, 1)
    backup.put_back()
    assert asyncio.run(body())["reason"] == "effect_unknown"
    assert asyncio.run(counts(sink)) == (1, 1)


def test_a_backup_that_knows_its_effects_is_no_restore(home: Path, sink: Path) -> None:
    job = job_of(home, "task", "irreversible")
    live(home, sink, job)
    Backup(home).put_back()
    assert live(home, sink, job)["state"] == "SUCCEEDED"
    assert reports(home, sink) == []
    assert [note["epoch"] for note in noted(home)] == [1]


def test_older_and_older_backups(home: Path, sink: Path) -> None:
    """Numbers go on over restores, so no epoch hides what another one did."""
    first = job_of(home, "task", "irreversible")
    oldest = accepted_only(home, sink, first)
    live(home, sink, first)
    middle = Backup(home, "middle")

    async def keyed() -> None:
        async with World(home, sink) as world:
            intake, folder = world.engine.intake, str(home)
            session = await intake.create_session(
                cwd=folder, roots=[folder], brain="direct", interactive=True
            )
            accepted = await intake.submit_tool(
                session, "keyed", {"n": 2, "key": "order-7"}, key=None, client=None, origin="unix"
            )
            await world.until(accepted.task_id, "SUCCEEDED")

    asyncio.run(keyed())
    for epoch, backup in enumerate((middle, oldest, middle, oldest), 2):
        backup.put_back()
        asyncio.run(keyed())  # with its key, each time
        assert noted(home)[-1]["epoch"] == epoch
        task = live(home, sink, first)
        assert task["state"] == ("SUCCEEDED" if backup is middle else "SUSPENDED")
    report = asyncio.run(ask_sink(sink, {"op": "report"}))
    assert sorted(report["sends"].values()) == [1, 5]
    assert sorted(report["effects"].values()) == [1, 1]
    assert [note["n"] for note in noted(home)] == [*range(1, 7)]


class Answer:
    """Two calls in one answer: one that an old life has sent, one that is new."""

    world: World

    def __init__(self, *names: str) -> None:
        self.names = names
        self.statuses: list[str] = []

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        calls = [
            await self.world.gate.call(
                attempt.task, attempt.session, "direct", name, {"n": 1, "key": f"{name}-{n}"}
            )
            for n, name in enumerate(self.names)
        ]
        self.statuses = [one.status for one in await attempt.perform(calls)]
        return Succeeded()


@pytest.mark.parametrize("known", ["irreversible", "probeable"])
def test_what_stands_beside_a_restored_effect_is_sent_once(
    known: str, home: Path, sink: Path
) -> None:
    """The new call's intent was made, and not sent, when the old one stopped the attempt: nobody
    needs to be asked about that one."""
    job = {"tool": "irreversible", "arguments": {"n": 0}}
    backup = accepted_only(home, sink, job)

    def run(*names: str, happened: bool = True) -> tuple[Answer, dict[str, Any]]:
        answer = Answer(*names)

        async def body() -> dict[str, Any]:
            async with World(home, sink, runner=answer, open_lanes=False) as world:
                answer.world = world
                world.tools.tells = happened
                world.engine.open_lanes()
                task = await world.until((await submit(world, job)).task_id)
                task["effects"] = {row["ordinal"]: row["state"] for row in await world.effects(1)}
                if task["state"] == "SUSPENDED":
                    await world.engine.settlement.settle(task["task_id"], 0, "done", by="me")
                    await world.until(task["task_id"], "SUCCEEDED")
                return task

        return answer, asyncio.run(body())

    run(known)
    assert asyncio.run(counts(sink)) == (1, 1)
    backup.put_back()
    answer, task = run(known, "irreversible", "keyed", happened=known == "probeable")
    if known == "irreversible":
        assert task["state"] == "SUSPENDED"
        assert task["effects"] == {0: "unknown", 1: "retryable", 2: "retryable"}
    assert answer.statuses == ["completed"] * 3
    assert asyncio.run(counts(sink)) == (3, 3)


@pytest.mark.req("E-5")
def test_a_fenced_key_with_other_arguments_is_a_conflict(home: Path, sink: Path) -> None:
    """Also over a database that is begun anew beside an old log."""
    live(home, sink, {"tool": "irreversible", "arguments": {"n": 1, "key": "order-7"}})
    for file in database_files(home):
        file.unlink(missing_ok=True)
    task = live(home, sink, {"tool": "irreversible", "arguments": {"n": 2, "key": "order-7"}})
    assert (task["state"], task["reason"]) == ("FAILED", "tool_failed")
    assert "other arguments" in json.loads(task["error"])["message"]
    assert asyncio.run(counts(sink)) == (1, 1)
    assert reports(home, sink)[0]["epoch"] == 2


# -- the log itself --------------------------------------------------------------------------------


def test_a_missing_log_is_reported_and_the_start_goes_on(home: Path, sink: Path) -> None:
    live(home, sink, job_of(home, "task", "irreversible"))
    fence_file(home).unlink()
    assert reports(home, sink) == [{"missing": True}]
    assert reports(home, sink) == [{"missing": True}]  # told once: this is the same event

    async def more() -> None:
        async with World(home, sink) as world:
            accepted = await world.tool("irreversible", {"n": 2}, key="2")
            await world.until(accepted.task_id, "SUCCEEDED")

    asyncio.run(more())
    assert [note["n"] for note in noted(home)] == [2]


def test_a_missing_log_is_reported_although_the_first_start_did_not_live_to(
    home: Path, sink: Path
) -> None:
    """Killed when it had begun the file anew and had said nothing."""
    live(home, sink, job_of(home, "task", "irreversible"))
    fence_file(home).unlink()
    Fence(fence_file(home)).open(1)
    assert reports(home, sink) == [{"missing": True}]
    assert reports(home, sink) == [{"missing": True}]


def test_a_log_that_does_not_reach_back_is_reported(home: Path, sink: Path) -> None:
    """Lost, begun anew, and then an old backup: of what lies between nobody knows."""
    job = job_of(home, "task", "irreversible")
    backup = accepted_only(home, sink, job)
    live(home, sink, job)
    fence_file(home).unlink()
    assert reports(home, sink) == [{"missing": True}]
    backup.put_back()
    assert reports(home, sink) == [{"notNoted": {"from": 1, "to": 1}}]


@pytest.mark.parametrize("tail", [b'{"n":99,"epoch":7,"ke', b"\0" * 30])
def test_a_torn_line_is_no_restore(tail: bytes, home: Path, sink: Path) -> None:
    job = job_of(home, "task", "irreversible")
    live(home, sink, job)
    with fence_file(home).open("ab") as log:
        log.write(tail)
    assert live(home, sink, job)["state"] == "SUCCEEDED"
    assert reports(home, sink) == []
    assert len(noted(home)) == 1


def test_every_batch_is_noted_before_it_is_sent(home: Path, sink: Path) -> None:
    """One line for each sending that is not pure, whoever made it and however often."""
    steps = [{"call": kind, "args": {"n": n}} for n, kind in enumerate(CLASSES)]
    steps.append({"call": "irreversible", "args": {"n": 9, "mode": "fail"}})
    job = {"prompt": "go", "brain": script(home, *steps)}
    task = live(home, sink, job)
    assert task["state"] == "SUCCEEDED"
    report = asyncio.run(ask_sink(sink, {"op": "report"}))
    keys = {row["key"] for row in task["effects"] if row["class"] != "pure"}
    assert len(noted(home)) == len(keys) == 4
    assert {note["key"] for note in noted(home)} == keys & report["sends"].keys()
    by_key = {row["key"]: row["hash"].hex() for row in task["effects"]}
    assert all(by_key[note["key"]] == note["hash"] for note in noted(home))


@pytest.mark.req("S-7", "E-3")
@pytest.mark.parametrize("form", ["task", "prompt"])
def test_what_cannot_be_noted_is_not_sent(
    form: str, home: Path, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has no room for a line: nothing is dispatched, nothing becomes unknown, and the next
    attempt sends it."""
    job = job_of(home, form, "irreversible")

    async def body() -> None:
        async with World(home, sink, brain=job.get("brain", "direct"), open_lanes=False) as world:
            real = world.database.fence.note
            refused: list[Any] = []

            def refusing(notes: Any) -> Any:
                if len(refused) < 2:
                    refused.append(notes)
                    future = asyncio.get_running_loop().create_future()
                    future.set_exception(StorageFailed("no room"))
                    return future
                return real(notes)

            monkeypatch.setattr(world.database.fence, "note", refusing)
            world.engine.open_lanes()
            task = await world.until((await submit(world, job)).task_id)
            assert task["state"] == "SUCCEEDED"
            assert (task["attempt"], task["failures"]) == (3, 2)
            assert await counts(sink) == (1, 1)
            events = await world.events()
            assert not [1 for type_, _ in events if type_ == "effect.unknown"]
            closed = [
                p["state"]
                for t, p in events
                if t == "effect.result" and p["name"] == "irreversible"
            ]
            assert closed == ["retryable", "retryable", "result"]

    asyncio.run(body())


@pytest.mark.req("E-1", "E-3")
@pytest.mark.parametrize("form", ["task", "prompt"])
@pytest.mark.parametrize("point", ["before_note", "after_note"])
@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind != "pure"])
def test_a_kill_around_the_note(kind: str, point: str, form: str, home: Path, sink: Path) -> None:
    """Between the note's flush and the dispatch nobody can tell; with an old backup put back
    afterwards neither. One kind is never sent, the others once."""
    job = job_of(home, form, kind)
    backup = accepted_only(home, sink, job)
    assert first_life(home, sink, job, f"{point}:kill") == -9
    assert len(noted(home)) == (point == "after_note")
    survivor = Backup(home, "survivor")
    for database in (survivor, backup):
        database.put_back()
        asyncio.run(ask_sink(sink, {"op": "forget"}))
        task = live(home, sink, job)
        lost = kind == "irreversible" and (database is survivor or point == "after_note")
        if lost and form == "task":
            assert (task["state"], task["reason"]) == ("SUSPENDED", "effect_unknown")
        else:
            assert task["state"] == "SUCCEEDED"
        sends, effects = asyncio.run(counts(sink))
        assert (sends, effects) == ((0, 0) if lost else (1, 1))


@pytest.mark.parametrize("commit", range(1, 6))
def test_the_fence_outlives_a_kill_while_it_is_taken_up(
    commit: int, home: Path, sink: Path
) -> None:
    """Restored, killed behind one of the first commits of the new life, started again."""
    job = job_of(home, "task", "irreversible")
    backup = accepted_only(home, sink, job)
    live(home, sink, job)
    backup.put_back()
    assert first_life(home, sink, job, f"after_commit:kill@{commit}") == -9
    assert live(home, sink, job)["reason"] == "effect_unknown"
    assert asyncio.run(counts(sink)) == (1, 1)


# -- workers outside the daemon --------------------------------------------------------------------

CALL = {"kind": "tool", "name": "charge", "requestHash": "ab" * 32}


async def at_work(house: House, key: str) -> tuple[Client, dict[str, Any]]:
    """The task of one submission, claimed by a worker."""
    client = await house.unix(**OPTED_IN)
    session = await client.new_session(_meta={"goclaw": {"idempotencyKey": "s"}})
    params = {"sessionId": session, "pool": "p", "payload": 1, "idempotencyKey": key}
    await client.call("_goclaw/task/submit", params)
    claim = {"pool": "p", "max": 1, "waitMs": 10_000, "workerId": "w"}
    (task,) = (await client.call("_goclaw/worker/claim", claim))["tasks"]
    return client, {"taskId": task["taskId"], "leaseToken": task["leaseToken"]}


@pytest.mark.req("W-11", "A-10")
@pytest.mark.parametrize("kind", ["keyed", "irreversible"])
def test_a_worker_repeats_nothing_either(kind: str, home: Path) -> None:
    intent = {"ordinal": 0, "phase": "intent", "class": kind, **CALL}

    async def accept() -> None:
        async with opened(home) as house:
            client, lease = await at_work(house, "k")
            await client.call("_goclaw/worker/release", lease)

    async def work() -> str:
        async with opened(home) as house:
            client, lease = await at_work(house, "k")
            go = await client.call("_goclaw/worker/effect", {**lease, **intent})
            assert go["go"] is True
            assert [note["key"] for note in noted(home)] == [go["idempotencyKey"]]
            # Said twice it is noted twice: nobody can tell whether the first word was heard.
            assert await client.call("_goclaw/worker/effect", {**lease, **intent}) == go
            assert [note["n"] for note in noted(home)] == [1, 2]
            await client.call("_goclaw/worker/effect", {**lease, **intent, "phase": "result"})
            await client.call("_goclaw/worker/complete", {**lease, "result": 1})
            key: str = go["idempotencyKey"]
            return key

    async def again(key: str) -> None:
        async with opened(home) as house:
            client, lease = await at_work(house, "k")
            if kind == "keyed":
                go = await client.call("_goclaw/worker/effect", {**lease, **intent})
                assert (go["go"], go["idempotencyKey"]) == (True, key)
                return
            error = await client.refused("_goclaw/worker/effect", {**lease, **intent})
            assert (error["code"], error["data"]["ordinal"]) == (-31015, 0)
            task = await client.call("_goclaw/task/get", {"taskId": lease["taskId"]})
            assert (task["state"], task["reason"]) == ("SUSPENDED", "effect_unknown")

    asyncio.run(accept())
    backup = Backup(home)
    key = asyncio.run(work())
    backup.put_back()
    asyncio.run(again(key))


@pytest.mark.req("W-11", "S-7")
@pytest.mark.parametrize("at_once", [False, True])
def test_a_word_that_was_perhaps_answered_is_not_taken_back(
    at_once: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two equal intents one cannot be noted: the worker may be at it because of the other."""
    intent = {"ordinal": 0, "phase": "intent", "class": "irreversible", **CALL}

    async def body() -> None:
        async with opened(home) as house:
            client, lease = await at_work(house, "k")
            fence, calls = house.engine.database.fence, []
            real, bad = fence.note, 0 if at_once else 1

            def one_refused(notes: Any) -> Any:
                calls.append(notes)
                if len(calls) - 1 != bad:
                    return real(notes)
                future = asyncio.get_running_loop().create_future()
                future.set_exception(StorageFailed("no room"))
                return future

            monkeypatch.setattr(fence, "note", one_refused)
            sent = [await client.request("_goclaw/worker/effect", {**lease, **intent})]
            if not at_once:
                await client.answer(sent[0])
            sent.append(await client.request("_goclaw/worker/effect", {**lease, **intent}))
            answers = [await client.answer(request) for request in sent]
            assert sorted("error" in answer for answer in answers) == [False, True]
            about = {"taskId": lease["taskId"]}
            (effect,) = (await client.call("_goclaw/effects/list", about))["effects"]
            assert effect["state"] == "intent"

    asyncio.run(body())


@pytest.mark.req("W-11", "S-7")
def test_a_worker_is_not_let_go_unnoted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intent = {"ordinal": 0, "phase": "intent", "class": "irreversible", **CALL}

    def refusing(_notes: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(StorageFailed("no room"))
        return future

    async def body() -> None:
        async with opened(home) as house:
            client, lease = await at_work(house, "k")
            with monkeypatch.context() as patch:
                patch.setattr(house.engine.database.fence, "note", refusing)
                error = await client.refused("_goclaw/worker/effect", {**lease, **intent})
                assert error["data"]["name"] == "storage_failed"
            about = {"taskId": lease["taskId"]}
            (effect,) = (await client.call("_goclaw/effects/list", about))["effects"]
            assert effect["state"] == "retryable"
            assert (await client.call("_goclaw/worker/effect", {**lease, **intent}))["go"] is True
            assert len(noted(home)) == 1

    asyncio.run(body())
