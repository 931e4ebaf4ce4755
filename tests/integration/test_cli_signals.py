"""Ctrl-C and SIGTERM at any moment of a command: no traceback, and nothing left in disorder."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from roof_support import DEADLINE_MS, World, read_until, script_file, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Ctrl-C at the N-th import from that of a certain module on.
AT_IMPORT = """
import os, runpy, signal, sys

class Finder:
    first, left = sys.argv[1], int(sys.argv[2])
    begun = False

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        cls.begun = cls.begun or name == cls.first
        if cls.begun:
            cls.left -= 1
            if cls.left == 0:
                print("interrupted", file=sys.__stdout__, flush=True)
                os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Finder)
sys.argv[:3] = ["goclaw"]
runpy.run_module("goclaw", run_name="__main__", alter_sys=True)
"""


# SIGTERM once the main thread waits for the others for good: taken by another thread, it does not
# end a wait, as one that comes right before the wait does not.
UNWOKEN = """
import os, runpy, signal, sys, threading

def strike():
    with os.fdopen(os.dup(0)) as told:
        told.readline()
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Thread(target=strike, daemon=True).start()
sys.argv[0] = "goclaw"
runpy.run_module("goclaw", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        (made.cwd / "file.txt").write_text("one two\n")
        yield made


def struck(place: World, words: tuple[str, ...], first: str, step: int) -> bool:
    """Ctrl-C there ends the command in silence; False when it has fewer imports."""
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, first, str(step), *words], env=place.environ,
        cwd=place.cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=DEADLINE_MS / 1000, check=False,
    )  # fmt: skip
    if "interrupted" not in done.stdout:
        return False
    if done.returncode == 11:  # the run had begun, and was canceled
        assert all(line.startswith("goclaw: ") for line in done.stderr.splitlines()), step
    else:
        assert (done.returncode, done.stderr) == (130, ""), step
    return True


@pytest.mark.req("U-1", "R-3")
@pytest.mark.parametrize(
    "words", [("status",), ("policy", "show"), ("run", "/word-count file.txt"), ("serve",)]
)
def test_ctrl_c_during_the_imports_is_silent(place: World, words: tuple[str, ...]) -> None:
    if words == ("serve",):
        place.serve()  # the other one finds the home in use, once all is imported
    else:
        place.goclaw("run", "hello")
    hits, step = 0, 1
    while struck(place, words, "goclaw.cli", step):
        hits += 1
        step += 1 + step // 2
    assert hits >= 8


@pytest.mark.req("U-1")
@pytest.mark.parametrize("words", [("run", "/word-count file.txt"), ("serve",), ("doctor",)])
def test_ctrl_c_while_a_native_module_starts_is_silent(
    place: World, words: tuple[str, ...]
) -> None:
    for step in range(1, 7):  # it imports uuid, and crashes where that is interrupted
        assert struck(place, words, "orjson.orjson", step)


def state(place: World, session: str) -> str:
    (task,) = place.lines("task", "list", "--session", session)
    found: str = task["state"]
    return found


@pytest.mark.req("R-3", "U-2", "Q-5")
def test_sigterm_hands_back_what_an_embedded_daemon_runs(place: World) -> None:
    brain = script_file(place.cwd, [{"say": "a b c d", "chunks": 4, "delayMs": 600_000}])
    child = place.popen("run", "go", "--brain", brain, "--json")
    session = read_until(child, "task.running")["sessionId"]
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=DEADLINE_MS / 1000)
    assert child.returncode == 143
    assert "Leaving. The run goes back to the queue" in err
    assert f"goclaw run --session {session}" in err
    assert '"type":"result"' not in out
    assert place.pid() is None  # in good order
    types = [event["type"] for event in place.lines("events", session)]
    assert types.count("task.requeued") == 1
    (task,) = place.lines("task", "list", "--session", session)
    assert (task["state"], task["crashes"], task["failures"]) == ("QUEUED", 0, 0)
    script_file(place.cwd, [{"say": "a b c d", "chunks": 4}])
    place.goclaw("run", "go", "--session", session)
    assert [task["state"] for task in place.lines("task", "list", "--session", session)] == [
        "SUCCEEDED", "SUCCEEDED",
    ]  # fmt: skip


@pytest.mark.req("R-3", "U-2")
def test_sigterm_cancels_nothing_that_a_daemon_runs(place: World) -> None:
    place.serve()
    child = place.popen("run", "/sleep 600", "--json")
    session = read_until(child, "task.suspended")["sessionId"]
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=DEADLINE_MS / 1000)
    assert child.returncode == 143
    assert f"Leaving. The run goes on in the daemon: `goclaw events {session} --follow`." in err
    assert state(place, session) == "SUSPENDED"


def followed(place: World, owner: subprocess.Popen[str], session: str) -> subprocess.Popen[str]:
    """Somebody who uses the owner's embedded daemon on; the owner has done and waits for him."""
    follower = place.popen("events", session, "--follow", "--json")
    assert follower.stdout is not None
    follower.stdout.readline()
    place.goclaw("cancel", place.lines("task", "list")[0]["taskId"])
    assert owner.stderr is not None
    while "other programs use this daemon" not in (line := owner.stderr.readline()):
        assert line
    return follower


@pytest.mark.req("R-3", "U-2")
def test_sigterm_while_others_use_the_embedded_daemon_ends_it_in_good_order(place: World) -> None:
    owner = place.popen("run", "/sleep 600", "--json")
    session = read_until(owner, "task.suspended")["sessionId"]
    follower = followed(place, owner, session)
    owner.send_signal(signal.SIGTERM)
    assert owner.wait(DEADLINE_MS / 1000) == 143
    assert place.pid() in (None, follower.pid)


@pytest.mark.req("R-3", "U-2")
def test_sigterm_that_wakes_nobody_ends_the_wait_for_others(place: World) -> None:
    words = ("run", "/sleep 600", "--json")
    owner = place.popen(*words, program=("-c", UNWOKEN), stdin=subprocess.PIPE)
    session = read_until(owner, "task.suspended")["sessionId"]
    followed(place, owner, session)
    assert owner.stdin is not None
    owner.stdin.write("now\n")
    owner.stdin.flush()
    assert owner.wait(DEADLINE_MS / 1000) == 143


@pytest.mark.req("R-3", "U-2")
def test_a_second_ctrl_c_hands_back_what_an_embedded_daemon_runs(place: World) -> None:
    """The first one cancels; a daemon that has no time to is hurried by the second."""
    brain = script_file(place.cwd, [{"say": "a b c d", "chunks": 4, "delayMs": 2_000}])
    child = place.popen("run", "go", "--brain", brain, "--json")
    session = read_until(child, "task.running")["sessionId"]
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=DEADLINE_MS / 1000)
    assert child.returncode in (130, 11)  # the cancel may have been quicker
    assert "Traceback" not in err
    assert place.pid() is None
    assert state(place, session) == ("QUEUED" if child.returncode == 130 else "CANCELED")


@pytest.mark.req("R-3")
def test_a_second_ctrl_c_hurries_a_daemon(place: World) -> None:
    brain = script_file(place.cwd, [{"say": "a b", "chunks": 2, "delayMs": 600_000}])
    daemon = place.serve()
    child = place.popen("run", "go", "--brain", brain, "--json")
    session = read_until(child, "task.running")["sessionId"]
    daemon.send_signal(signal.SIGINT)
    while place.lines("status", code=None)[0]["ready"]:
        continue
    assert daemon.poll() is None  # it drains
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(DEADLINE_MS / 2000) == 0
    child.kill()
    child.wait()
    assert state(place, session) == "QUEUED"
