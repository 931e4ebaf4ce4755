"""`goclaw replay`: runs of every kind come to the same, and a planted departure is named.

Runs are made by the command line; what is planted is planted in the script or in the database.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from roof_support import World, script_file, world

from goclaw.client.blocking import SyncClient
from goclaw.core.errors import InvalidParams
from goclaw.store import database_files

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.req("E-11")

STEPS: list[dict[str, Any]] = [
    {"say": "slow", "chunks": 4, "delayMs": 10},
    {"call": "word-count", "args": {"file": "text"}},
    {"think": "now the other"},
    {"call": "sha256", "args": {"text": "abc"}},
    {"call": "no-such-tool", "args": {}},
    {"sleepMs": 1},
    {"call": "sleep", "args": {"seconds": 0}},
    {"say": "end"},
]
"""Five answers with a call or a sleep, each an effect of its own, and a last one: eleven."""


@pytest.fixture
def w(home: Path) -> Iterator[World]:
    with world(home) as made:
        (made.cwd / "text").write_text("two words\n")
        yield made


@pytest.fixture(scope="module")
def kept() -> Iterator[tuple[World, str, dict[Path, bytes]]]:
    """A place with one scripted run that has ended, the run, and the files of both."""
    folder = Path(tempfile.mkdtemp(prefix="gc-"))  # socket paths are short
    with world(folder) as made:
        (made.cwd / "text").write_text("two words\n")
        run = scripted(made)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        yield made, run, {file: file.read_bytes() for file in files}
    shutil.rmtree(folder)


@pytest.fixture
def recorded(kept: tuple[World, str, dict[Path, bytes]]) -> Iterator[tuple[World, str]]:
    """That run, for a test that alters it: each gets it as it was."""
    made, run, files = kept
    yield made, run
    for file in database_files(made.home.root):
        file.unlink(missing_ok=True)
    for file, content in files.items():
        file.write_bytes(content)


def ran(w: World, prompt: str = "go", *words: str, code: int = 0) -> str:
    """A run to its end; its id."""
    found: str = w.lines("run", prompt, *words, code=code)[-1]["runId"]
    return found


def scripted(w: World, steps: list[dict[str, Any]] | None = None) -> str:
    return ran(w, "go", "--brain", script_file(w.cwd, STEPS if steps is None else steps))


def replayed(w: World, run: str, code: int) -> dict[str, Any]:
    """What both faces of the verb say."""
    (found,) = w.lines("replay", run, code=code)
    shown = w.goclaw("replay", run, code=code).stdout
    assert shown.startswith(found["verdict"])
    assert found["runId"] == run
    assert (found["divergence"] is None) == (found["verdict"] == "identical") == (code == 0)
    return found


def disk(w: World) -> dict[str, bytes]:
    """Every file of the home but the index of the log, which is no data and goes with it."""
    return {
        str(file.relative_to(w.home.root)): hashlib.sha256(file.read_bytes()).digest()
        for file in sorted(w.home.root.rglob("*"))
        if file.is_file() and not file.name.endswith("-shm")
    }


def change(w: World, sql: str, *values: Any) -> None:
    """Nobody has the home open."""
    connection = apsw.Connection(str(database_files(w.home.root)[0]))
    connection.execute(sql, values).fetchall()
    assert connection.changes() == 1
    connection.close()


def test_a_run_of_every_kind_of_effect_is_identical(recorded: tuple[World, str]) -> None:
    w, run = recorded
    found = replayed(w, run, 0)
    assert (found["verdict"], found["whole"], found["state"]) == ("identical", True, "SUCCEEDED")
    assert found["effects"] == 11


def test_a_command_is_identical_also_when_it_failed(w: World) -> None:
    runs = [
        ran(w, prompt, code=code)
        for prompt, code in (("/word-count text", 0), ("/word-count gone", 1), ("what?", 0))
    ]
    for run in runs:
        (found,) = w.lines("replay", run)
        assert (found["verdict"], found["whole"]) == ("identical", True)


def test_a_failed_run_is_identical(w: World) -> None:
    steps: list[dict[str, Any]] = [{"call": "sha256", "args": {"text": "a"}}, {"fail": "odd"}]
    run = ran(w, "go", "--brain", script_file(w.cwd, steps), code=1)
    found = replayed(w, run, 0)
    assert (found["state"], found["whole"], found["effects"]) == ("FAILED", True, 3)
    script_file(w.cwd, [*steps[:1], {"fail": "else"}])
    found = replayed(w, run, 1)
    assert found["divergence"]["ordinal"] == 2
    assert "diverged at effect 2" in w.goclaw("replay", run, code=1).stdout


def test_a_replay_writes_nothing(recorded: tuple[World, str]) -> None:
    w, run = recorded
    before = disk(w)
    replayed(w, run, 0)
    assert disk(w) == before


@pytest.mark.req("W-11")
def test_with_a_daemon_it_is_the_same_and_writes_nothing(w: World) -> None:
    run = scripted(w)
    w.serve()
    before = [w.lines("task", "show", "task_" + run.removeprefix("run_")), w.lines("status")]
    batches = committed(w)
    assert replayed(w, run, 0)["whole"]
    assert committed(w) == batches
    after = [w.lines("task", "show", "task_" + run.removeprefix("run_")), w.lines("status")]
    assert after == before
    assert "There is no run run_none" in w.goclaw("replay", "run_none", code=1).stderr


def committed(w: World) -> int:
    """Commits so far, read by another process than the daemon."""
    uri = f"{database_files(w.home.root)[0].as_uri()}?mode=ro"
    connection = apsw.Connection(uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    ((count,),) = connection.execute("SELECT batches FROM writer").fetchall()
    connection.close()
    assert isinstance(count, int)
    return count


def test_a_run_that_waits_is_identical_as_far_as_it_has_come(w: World) -> None:
    steps: list[dict[str, Any]] = [
        {"call": "sha256", "args": {"text": "a"}},
        {"ask": "Go on?"},
        {"say": "end"},
    ]
    run = ran(w, "go", "--brain", script_file(w.cwd, steps), code=12)
    found = replayed(w, run, 0)
    assert (found["state"], found["whole"]) == ("SUSPENDED", False)
    assert "as far as it has come (SUSPENDED)" in w.goclaw("replay", run).stdout
    w.serve()
    assert not replayed(w, run, 0)["whole"]


def test_a_run_that_was_killed_is_identical_before_and_after_it_went_on(w: World) -> None:
    brain = script_file(w.cwd, STEPS)
    child = w.serve(GOCLAW_FAULTS="before_result:kill@4")
    (ids,) = w.lines("run", "go", "--brain", brain, "--detach")
    child.wait(30)
    assert not replayed(w, ids["runId"], 0)["whole"]
    w.serve()
    (last,) = w.lines("run", "go", "--session", ids["sessionId"])[-1:]  # behind it in the line
    assert last["state"] == "SUCCEEDED"
    found = replayed(w, ids["runId"], 0)
    assert (found["whole"], found["state"]) == (True, "SUCCEEDED")


@pytest.mark.parametrize(
    ("steps", "ordinal", "what"),
    [
        ([{**STEPS[0], "say": "fast"}, *STEPS[1:]], 0, "the brain answers something else"),
        ([*STEPS[:3], {"call": "sha256", "args": {"text": "x"}}, *STEPS[4:]], 2, "else"),
        (STEPS[:-1], 8, "the brain answers something else"),
        ([*STEPS, {"say": "!"}], 10, "the brain answers something else"),
        ([], 0, "the brain answers something else"),
    ],
)
def test_a_script_that_was_changed_is_told_apart(
    recorded: tuple[World, str], steps: list[dict[str, Any]], ordinal: int, what: str
) -> None:
    w, run = recorded
    script_file(w.cwd, steps)
    (found,) = w.lines("replay", run, code=1)
    divergence = found["divergence"]
    assert divergence["ordinal"] == ordinal
    assert what in divergence["what"]
    assert divergence["recorded"] != divergence["requested"]


@pytest.mark.parametrize(
    ("sql", "ordinal", "what"),
    [
        ("UPDATE effects SET hash = zeroblob(32) WHERE ordinal = 3", 3, "another effect"),
        ("UPDATE effects SET request = x'7b7d' WHERE ordinal = 3", 3, "its own hash"),
        ("UPDATE effects SET name = 'x' WHERE ordinal = 3", 3, "its own hash"),
        ("UPDATE effects SET result = x'7b7d' WHERE ordinal = 4", 4, "answers something else"),
        ("UPDATE effects SET result = x'31' WHERE ordinal = 3", None, "the run ends otherwise"),
        ("UPDATE effects SET failed = 1 WHERE ordinal = 1", None, "the run ends otherwise"),
        ("DELETE FROM effects WHERE ordinal = 5", 5, "succeeded without this effect"),
        ("UPDATE effects SET state = 'unknown' WHERE ordinal = 5", 5, "without this effect"),
        (
            "INSERT INTO effects SELECT tid, 11, kind, name, class, state, key, hash, request,"
            " result, failed, deduplicated, call_id, attempt, token, created_at, updated_at,"
            " on_unknown FROM effects WHERE ordinal = 1",
            11,
            "the run ends before this effect",
        ),
        ("UPDATE task_results SET result = x'7b7d'", None, "the run ends otherwise"),
        ("UPDATE tasks SET stop_reason = 'refusal'", None, "the run ends otherwise"),
    ],
)
def test_a_record_that_was_altered_is_told_apart(
    recorded: tuple[World, str], sql: str, ordinal: int | None, what: str
) -> None:
    w, run = recorded
    change(w, sql)
    (found,) = w.lines("replay", run, code=1)
    divergence = found["divergence"]
    assert divergence["ordinal"] == ordinal
    assert what in divergence["what"]


def test_a_run_that_failed_on_the_way_is_identical(w: World) -> None:
    steps: list[dict[str, Any]] = [
        {"call": "sha256", "args": {"text": "a"}},
        {"fail": "busy", "retryable": True, "onAttempts": [1, 2]},
        {"say": "end"},
    ]
    quick: dict[str, Any] = {"GOCLAW_QUEUE_BACKOFF_MS_MIN": "1", "GOCLAW_QUEUE_BACKOFF_MS_MAX": "2"}
    found = w.lines("run", "go", "--brain", script_file(w.cwd, steps), **quick)
    run = found[-1]["runId"]
    assert max(event.get("attempt") or 0 for event in found) == 3
    assert replayed(w, run, 0)["whole"]


@pytest.mark.req("E-7")
def test_what_workers_carry_out_is_neither_replayed_nor_forked(w: World) -> None:
    w.serve()
    with SyncClient(w.home) as client:
        session = client.new_session(w.cwd).session_id
        work = {"sessionId": session, "pool": "p", "payload": 1}
        accepted = client.call("_goclaw/task/submit", work)
        for method, extra in (("replay", {}), ("fork", {"at": accepted["eventId"]})):
            params = {"runId": accepted["runId"], **extra}
            with pytest.raises(InvalidParams, match="workers of the pool p"):
                client.call(f"_goclaw/admin/{method}", params)


@pytest.mark.req("E-7", "U-1")
def test_a_fork_is_made_and_replayed_by_the_command_line(w: World) -> None:
    run = scripted(w)
    (session,) = {one["sessionId"] for one in w.lines("task", "list")}
    log = w.lines("events", session)
    at = next(
        one["eventId"] for one in log if one["type"] == "effect.result" and one["ordinal"] == 3
    )
    assert "--at" in w.goclaw("fork", run, code=2).stderr
    assert "There is no event 999" in w.goclaw("fork", run, "--at", "999", code=None).stderr
    w.serve()
    (fork,) = w.lines("fork", run, "--at", str(at))
    assert (fork["parentSessionId"], fork["parentRunId"], fork["stubbed"]) == (session, run, 4)
    (last,) = w.lines("run", "go", "--session", fork["sessionId"])[-1:]  # behind it in the line
    assert last["state"] == "SUCCEEDED"
    assert replayed(w, fork["runId"], 0)["whole"]
    assert f"approvals list --session {fork['sessionId'][:8]}" in (
        w.goclaw("fork", run, "--at", str(at)).stdout
    )


def test_what_cannot_be_replayed_is_named(w: World) -> None:
    assert "does not exist" in w.goclaw("replay", "run_1", code=5).stderr
    run = scripted(w)
    assert "There is no run run_none" in w.goclaw("replay", "run_none", code=1).stderr
    (w.cwd / "script.json").unlink()
    assert "it cannot be read" in w.goclaw("replay", run, code=3).stderr
    w.serve()
    assert "it cannot be read" in w.goclaw("replay", run, code=None).stderr
