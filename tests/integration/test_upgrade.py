"""Before another goclaw takes over: the snapshot, and the rehearsal (S-8).

Owns homes of an older schema and parked runs. Not in here: migrations by themselves
(test_store_migrations.py), the replay of a run (test_replay.py).
"""

from __future__ import annotations

import fcntl
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import store_support as support
from roof_support import DEADLINE_MS, World, read_until, script_file, world

from goclaw.brains import REPEATABLE
from goclaw.cli.replay import runner_of
from goclaw.client.blocking import SyncClient
from goclaw.core import limits
from goclaw.core.errors import DatabaseRefused, StorageFailed
from goclaw.ops import backup
from goclaw.ops.rehearsal import Rehearsed, rehearse
from goclaw.policy.redact import Redactor
from goclaw.store import copies, database, database_files, open_database
from goclaw.store.schema import migrate, migrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("S-8")

SHIPPED = migrations()
LATER = (len(SHIPPED) + 1, "c" * 64, "CREATE TABLE later (x);")
BROKEN = (len(SHIPPED) + 1, "c" * 64, "CREATE TABLE later (x); INSERT INTO nowhere VALUES (1);")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def contents(folder: Path) -> dict[str, bytes]:
    """The home's database and its log, while nobody holds them."""
    return {path.name: path.read_bytes() for path in database_files(folder)[:2] if path.exists()}


def rehearsed(place: World) -> Rehearsed:
    home = place.home
    found = rehearse(home, runner_of(home), repeatable=REPEATABLE, cleaner=Redactor())
    assert list((home.run / "rehearsal").iterdir()) == []
    return found


# -- the snapshot ----------------------------------------------------------------------------------


def test_an_older_database_is_backed_up_before_it_is_migrated(place: World) -> None:
    place.lines("init")
    migrate(database_files(place.home.root)[0], SHIPPED[:-1])
    place.lines("run", '/sha256 {"text": "a"}')
    (kept,) = place.lines("backup", "list")
    assert kept["schema"] == len(SHIPPED) - 1
    place.lines("run", '/sha256 {"text": "b"}')
    assert len(place.lines("backup", "list")) == 1, "there was nothing to migrate any more"
    place.lines("restore", kept["name"])
    assert place.lines("task", "list") == []


def test_only_a_file_that_holds_something_and_is_older_needs_one(tmp_path: Path) -> None:
    asked: list[int] = []
    path = database_files(tmp_path)[0]

    def snapshot() -> None:
        asked.append(len(support.rows(path, "SELECT number FROM migrations")))

    open_database(tmp_path, snapshot=snapshot).close()
    open_database(tmp_path, snapshot=snapshot).close()
    assert asked == []
    open_database(tmp_path, schema=[*SHIPPED, LATER], snapshot=snapshot).close()
    assert asked == [len(SHIPPED)], "asked once, while the file was as it had been"


def test_without_a_snapshot_nothing_is_migrated(tmp_path: Path) -> None:
    open_database(tmp_path).close()
    before = contents(tmp_path)

    def snapshot() -> None:
        raise StorageFailed("The disk is full.", hint="Make room.")

    with pytest.raises(DatabaseRefused, match=r"before its migration \(The disk is full"):
        open_database(tmp_path, schema=[*SHIPPED, LATER], snapshot=snapshot)
    assert contents(tmp_path) == before


# -- the rehearsal ---------------------------------------------------------------------------------


def ship(patch: pytest.MonkeyPatch, *more: tuple[int, str, str]) -> None:
    """From here on this process is a newer program."""
    for module in (database, copies):
        patch.setattr(module, "migrations", lambda: [*SHIPPED, *more])


def test_a_copy_is_migrated_and_the_home_is_not(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.lines("run", '/sha256 {"text": "a"}')
    before = contents(place.home.root)
    ship(monkeypatch, LATER)
    left = place.home.run / "rehearsal"
    left.mkdir()
    database_files(left)[0].write_bytes(b"what a killed rehearsal left")
    found = rehearsed(place)
    assert (found.before, found.after) == (len(SHIPPED), LATER[0])
    assert (found.runs, found.more, found.is_ok) == ((), False, True)
    assert found.size >= len(before[database_files(place.home.root)[0].name])
    ship(monkeypatch, BROKEN)
    with pytest.raises(DatabaseRefused, match="nowhere"):
        rehearsed(place)
    assert contents(place.home.root) == before
    assert list(left.iterdir()) == []


def parked(place: World, number: int) -> tuple[Path, str]:
    """The script and the id of a run that waits for an answer."""
    steps: list[dict[str, Any]] = [{"call": "sha256", "args": {"text": "a"}}, {"ask": "Go on?"}]
    folder = place.cwd / str(number)
    folder.mkdir()
    brain = script_file(folder, steps)
    line = place.lines("run", "go", "--brain", brain, code=12)[-1]
    return folder / "script.json", line["runId"]


def test_it_says_what_parked_runs_will_do(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, same), (other, diverging), (gone, refused) = (parked(place, n) for n in range(3))
    session = place.lines("task", "list")[0]["sessionId"]
    place.serve()
    with SyncClient(place.home) as client:
        work = {"sessionId": session, "pool": "p", "payload": 1, "parallel": True}
        client.call("_goclaw/task/submit", work)
        asked = {"pool": "p", "max": 1, "waitMs": 10_000, "workerId": "w"}
        (task,) = client.call("_goclaw/worker/claim", asked)["tasks"]
        other.write_text(other.read_text().replace("sha256", "word-count"))
        gone.unlink()
        (told,) = place.lines("upgrade", "--rehearse", code=1)
        runs = {one["runId"]: one for one in told["runs"]}
        assert {run: one["verdict"] for run, one in runs.items()} == {
            same: "goes_on", diverging: "diverges", refused: "refused",
            task["taskId"].replace("task", "run"): "worker",
        }  # fmt: skip
        assert (runs[same]["state"], runs[same]["effects"]) == ("SUSPENDED", 4)
        assert "at effect 0" in runs[diverging]["detail"]
        assert "script.json" in runs[refused]["detail"]
        assert (told["ok"], told["more"]) == (False, False)
        assert told["schema"] == {"from": len(SHIPPED), "to": len(SHIPPED)}
        shown = place.goclaw("upgrade", "--rehearse", code=1).stdout
        assert f"diverges  {diverging} (SUSPENDED" in shown
    monkeypatch.setattr(limits, "REHEARSED_RUNS_MAX", 2)
    found = rehearsed(place)
    assert (len(found.runs), found.more) == (2, True)


def test_a_run_that_went_back_to_the_queue_is_made_once_more(place: World) -> None:
    brain = script_file(place.cwd, [{"say": "a b", "chunks": 2, "delayMs": 60_000}])
    child = place.popen("run", "go", "--brain", brain, "--json")
    run = read_until(child, "task.running")["runId"]
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=DEADLINE_MS / 1000)
    place.lines("run", '/sha256 {"text": "a"}')  # the home is free, and this one has ended
    (found,) = rehearsed(place).runs
    assert (found.run_id, found.state, found.verdict) == (run, "QUEUED", "goes_on")


def test_what_cannot_be_rehearsed_is_refused(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing to rehearse" in place.goclaw("upgrade", "--rehearse", code=5).stderr
    assert "--rehearse" in place.goclaw("upgrade", code=2).stderr
    place.lines("run", '/sha256 {"text": "a"}')
    folder = place.home.run / "rehearsal"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (folder / "theirs").touch()
    assert "Another rehearsal" in place.goclaw("upgrade", "--rehearse", code=70).stderr
    assert (folder / "theirs").exists()
    os.close(descriptor)
    monkeypatch.setattr(limits, "BACKUP_ROOM_BYTES", 1 << 60)
    with pytest.raises(StorageFailed, match="Make room"):
        rehearsed(place)
    monkeypatch.undo()
    assert rehearsed(place).is_ok
    place.home.policy.write_text("nonsense = 1\n")
    assert "nonsense" in place.goclaw("upgrade", "--rehearse", code=3).stderr
    assert backup.listed(place.home) == []
