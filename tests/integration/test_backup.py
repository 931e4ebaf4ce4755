"""Backups and restores (S-4), by the command line and real daemons.

Owns copies under load, kills in the middle, damage, and refusals. Not in here: the restore fence by
itself (test_effects_restore.py).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from effects_support import World as Life
from effects_support import ask_sink, sink_process, submit
from roof_support import World, world

import goclaw
from goclaw.core import limits
from goclaw.core.errors import DatabaseRefused, StorageFailed
from goclaw.core.home import Home
from goclaw.ops import backup as ops
from goclaw.store import database_files
from goclaw.store.copies import finish_replacement

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("S-4")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def other_world(folder: Path) -> contextlib.AbstractContextManager[World]:
    folder.mkdir()
    return world(folder)


def one_backup(place: World) -> str:
    place.lines("run", '/sha256 {"text": "abc"}', "--key", "first")
    (made,) = place.lines("backup", "create")
    return str(made["name"])


def run_more(place: World) -> None:
    place.lines("run", '/sha256 {"text": "later"}')


def tasks(place: World) -> set[str]:
    return {one["taskId"] for one in place.lines("task", "list")}


# -- under load ------------------------------------------------------------------------------------


async def flood(place: World, prompts: int, backups: int) -> tuple[list[set[str]], list[str]]:
    """Work is accepted the whole time; what was acknowledged before each backup, and its name."""
    acknowledged: set[str] = set()
    first = asyncio.Event()
    before: list[set[str]] = []
    names: list[str] = []
    async with goclaw.Client(place.home) as client:
        session = await client.call("session/new", {"cwd": str(place.cwd), "mcpServers": []})

        async def produce(number: int) -> None:
            for at in range(prompts):
                task = await client.call(
                    "_goclaw/task/submit",
                    {"sessionId": session["sessionId"], "tool": "sha256", "parallel": True,
                     "arguments": {"text": "x" * 2000}, "idempotencyKey": f"{number}-{at}"},
                )  # fmt: skip
                acknowledged.add(task["taskId"])
                first.set()

        producers = [asyncio.ensure_future(produce(number)) for number in range(4)]
        await first.wait()
        for _ in range(backups):
            before.append(set(acknowledged))
            made = await client.call("_goclaw/admin/backup", {"verb": "create"})
            names.append(made["name"])
        assert not all(producer.done() for producer in producers), "nothing was written meanwhile"
        await asyncio.gather(*producers)
    return before, names


def test_a_backup_under_load_is_one_moment_with_all_that_was_acknowledged(
    place: World, tmp_path: Path
) -> None:
    place.serve()
    before, names = asyncio.run(flood(place, 150, 3))
    assert place.end()
    assert [one["name"] for one in place.lines("backup", "list")] == names[::-1]
    for number, (name, known) in enumerate(zip(names, before, strict=True)):
        place.goclaw("backup", "verify", name)
        with other_world(tmp_path / f"other{number}") as other:
            other.goclaw("status", code=1)  # makes nothing; the restore makes the home
            shutil.copytree(place.home.root / "backups" / name, other.home.root / "backups" / name)
            (done,) = other.lines("restore", name)
            assert done["kept"] is None
            assert known <= tasks(other)
            assert other.home.daemon_id() == place.home.daemon_id()


@pytest.mark.req("E-8", "I-4")
def test_a_restored_home_repeats_no_effect(tmp_path: Path) -> None:
    home, sink = tmp_path / "home", tmp_path / "sink"
    Home(home).ensure("", bytes)
    job = {"tool": "irreversible", "arguments": {"n": 1}}

    async def accept() -> None:
        async with Life(home, socket, open_lanes=False) as life:
            await submit(life, job)

    async def finish(*states: str) -> dict[str, Any]:
        async with Life(home, socket) as life:
            return await life.until((await submit(life, job)).task_id, *states)

    with sink_process(sink) as socket:
        asyncio.run(accept())
        made = ops.create(Home(home), 1_000)
        assert asyncio.run(finish("SUCCEEDED"))["state"] == "SUCCEEDED"
        ops.restore(Home(home), made.name, 2_000)
        task = asyncio.run(finish("SUSPENDED", "SUCCEEDED"))
        assert (task["state"], task["reason"]) == ("SUSPENDED", "effect_unknown")
        report = asyncio.run(ask_sink(socket, {"op": "report"}))
        assert sum(report["effects"].values()) == 1


# -- a restore -------------------------------------------------------------------------------------


def test_a_restore_goes_back_and_keeps_what_it_replaced(place: World) -> None:
    name = one_backup(place)
    then = tasks(place)
    run_more(place)
    later = tasks(place)
    (session,) = {one["sessionId"] for one in place.lines("task", "list")
                  if one["taskId"] in then}  # fmt: skip
    streams = [stream_of(place, session)]
    (place.home.root / "config.toml").write_text("[queue]\nlanes = 2\n")
    (done,) = place.lines("restore", name)
    assert tasks(place) == then < later
    assert "lanes = 2" in (place.home.root / "config.toml").read_text()
    streams.append(stream_of(place, session))
    assert streams[0] != streams[1], "a log that went back is another stream (PROTOCOL 2.2)"
    kept = place.home.backups / done["kept"].rpartition("/")[2]
    for file in database_files(place.home.root):
        file.unlink(missing_ok=True)
        if (kept / file.name).exists():
            shutil.copy(kept / file.name, file)
    assert tasks(place) == later
    place.lines("restore", name, "--settings")
    assert "lanes = 2" not in (place.home.root / "config.toml").read_text()
    # The same submission again: the key is in the backup.
    events = place.lines("run", "/sha256 {\"text\": \"abc\"}", "--key", "first",
                         "--session", session)  # fmt: skip
    assert events[-1]["state"] == "SUCCEEDED"
    assert tasks(place) == then


def stream_of(place: World, session: str) -> str:
    place.serve()
    with goclaw.SyncClient(place.home) as client:
        found = client.call("_goclaw/session/subscribe", {"sessionId": session})
    assert place.end()
    return str(found["streamId"])


@pytest.mark.timeout(180)
def test_a_restore_that_is_killed_is_not_begun_or_goes_on(place: World) -> None:
    name = one_backup(place)
    then = tasks(place)
    hits = (f"during_restore:kill@{hit}" for hit in (1, 2, 3, 4))
    for point in ("before_restore:kill", *hits):
        place.serve()
        run_more(place)
        later = tasks(place)
        assert later > then
        place.end(signal.SIGKILL)  # a log beside the database: the trap
        log = database_files(place.home.root)[1]
        assert log.stat().st_size > 0
        place.goclaw("restore", name, code=-9, GOCLAW_FAULTS=point)
        assert tasks(place) == (later if point.startswith("before") else then), point
        assert not list(place.home.root.glob("goclaw.db.*"))


def test_a_home_in_use_is_refused(place: World) -> None:
    name = one_backup(place)
    place.serve()
    refused = place.goclaw("restore", name, code=4)
    assert "in use by process" in refused.stderr


def test_a_backup_of_another_home_is_refused(place: World, tmp_path: Path) -> None:
    name = one_backup(place)
    with other_world(tmp_path / "other") as other:
        one_backup(other)
        shutil.copytree(
            place.home.root / "backups" / name, other.home.root / "backups" / f"{name}-7"
        )
        before = tasks(other)
        refused = other.goclaw("restore", f"{name}-7", code=3)
        assert "of another home" in refused.stderr
        assert tasks(other) == before


# -- damage ----------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def newer(folder: Path) -> None:
    path = folder / "goclaw.db"
    code = (
        "import apsw,sys; c=apsw.Connection(sys.argv[1]);"
        "c.execute(\"INSERT INTO migrations VALUES (9999, 'x')\"); c.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    resign(folder)


def resign(folder: Path) -> None:
    """As if the manifest had been made for what lies there now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    size, digest = ops._digest(folder / "goclaw.db")
    manifest["files"]["goclaw.db"] = {"bytes": size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def outside(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../auth.token"] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def signed_damage(folder: Path) -> None:
    path = folder / "goclaw.db"
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)
    resign(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda folder: flip(folder / "goclaw.db", 5000), "not what was backed up"),
    "a missing file": (lambda folder: (folder / "goclaw.db").unlink(), "cannot be read"),
    "a changed setting": (
        lambda folder: (folder / "files" / "policy.toml").write_text("x"), "not what was backed up",
    ),
    "a file too many": (lambda folder: (folder / "files" / "more").write_text("x"), "not belong"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest"),
    "a manifest that is none": (
        lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest",
    ),
    "a path that leads out": (outside, "manifest"),
    "another format": (
        lambda folder: (folder / "manifest.json").write_text('{"format": 2}'), "format",
    ),
    "a newer schema": (newer, "newer"),
    "damage under a right digest": (signed_damage, "broken"),
}  # fmt: skip


def test_every_damage_is_named_and_nothing_is_replaced(place: World) -> None:
    name = one_backup(place)
    run_more(place)
    before = tasks(place)
    whole = place.home.root / "whole"
    folder = place.home.root / "backups" / name
    shutil.copytree(folder, whole)
    home = place.home
    for what, (spoil, why) in DAMAGE.items():
        spoil(folder)
        for verb in (
            lambda: ops.verify(home, name),
            lambda: ops.restore(home, name, 9_000),
        ):
            with pytest.raises(DatabaseRefused, match=why):
                verb()
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        assert not [path for path in home.backups.iterdir() if "replaced" in path.name], what
    assert ops.verify(home, name).name == name
    flip(folder / "goclaw.db", 5000)
    assert "not what was backed up" in place.goclaw("restore", name, code=5).stderr
    assert tasks(place) == before
    for odd in ("nothing", "../..", "20260101T000000Z"):
        assert "There is no backup" in place.goclaw("backup", "verify", odd, code=1).stderr


def test_what_a_killed_backup_left_is_no_backup_and_goes(place: World) -> None:
    name = one_backup(place)
    partial = place.home.root / "backups" / ".partial-20200101T000000Z"
    partial.mkdir()
    (partial / "goclaw.db").write_bytes(b"half")
    assert [one["name"] for one in place.lines("backup", "list")] == [name]
    place.lines("backup", "create")
    assert not partial.exists()


def test_a_full_disk_leaves_nothing(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one_backup(place)
    home = place.home
    before = {path.name for path in home.backups.iterdir()}
    monkeypatch.setattr(limits, "BACKUP_ROOM_BYTES", 1 << 60)
    with pytest.raises(StorageFailed, match="Make room"):
        ops.create(home, 5_000)
    assert {path.name for path in home.backups.iterdir()} == before


def test_nothing_is_carried_on_where_nothing_was_begun(tmp_path: Path) -> None:
    finish_replacement(tmp_path)
    assert list(tmp_path.iterdir()) == []
