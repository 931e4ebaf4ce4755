"""kill -9 of a process that writes: what it acknowledged is there, and nothing is half."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import store_support as support

KILLS = int(os.environ.get("GOCLAW_KILL_ROUNDS", "44"))  # .ci/soak asks for more
OPEN_LEASES_MIN = 20

# Submits, claims and completes with 64 operations under way, and says each one that was
# acknowledged: a line is written only after drain() brought the answer. Tokens carry a number, so
# that a later process never repeats one.
CHILD = """
import os, random, select, sys
from pathlib import Path
import store_support as support
path, build, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
pick = random.Random(seed)
store = support.Store(path, build, pragmas=support.PROMISED, threaded=True)
sids = [row[0] for row in support.rows(path, "SELECT sid FROM sessions")]
number = 0
live = []
for tid, token in support.rows(path, "SELECT tid, lease_token FROM tasks WHERE state = 'RUNNING'"):
    live.append((tid, token))
waiting = {}
def send(what, program, **arguments):
    waiting[store.writer.submit((store.part(program, **arguments),), True)] = (what, arguments)
def begin():
    global number
    number += 1
    way = pick.randrange(10)
    if live and way < 5:
        tid, token = live.pop(pick.randrange(len(live)))
        if way == 0:
            send("beat", "heartbeat", tid=tid, token=token, lease_until_mono=99)
        elif way == 1:
            send("fail", "fail", tid=tid, token=token, hash=b"h", code="c", message="m",
                 retryable=pick.randrange(2), poison=9, due_mono=1, due_at=1)
        elif way == 2:
            send("said", "append", tid=tid, token=token, kind=0, type="update", payload=b"{}")
        else:
            send("done", "complete", tid=tid, token=token, hash=b"h", result=b"r", stop_reason="s")
    elif way < 7:
        name = f"{seed}.{number}"
        send("took", "enqueue", sid=pick.choice(sids), task_id=name, run_id=name, pool="",
             work="tool:any", kind="prompt", parallel=pick.randrange(2), rank=pick.randrange(3),
             max_attempts=3, on_unknown="suspend", policy_version="p",
             payload=b"x" * pick.randrange(2000),
             origin="unix", session_limit=10**6, hash=b"h", key=name)
    else:
        send("held", "claim", pool="", owner="lane", token=f"{seed}.{number}".encode(),
             lease_until_mono=9, policy_version="p", aging_factor=16)
print("ready", flush=True)
while True:
    while len(waiting) < 64:
        begin()
    select.select([store.writer.wake_fd], [], [])
    lines = []
    for ticket, code, message, returns, events in store.writer.drain():
        what, arguments = waiting.pop(ticket)
        if code is not None:
            lines.append(f"odd {what} {code} {message}")
            continue
        if what == "held":
            if returns[0][0] is None:
                continue
            live.append((returns[0][0], arguments["token"]))
            lines.append(f"held {returns[0][0]} {arguments['token'].decode()}")
        elif what == "took":
            lines.append(f"took {arguments['task_id']} {returns[0][0]}")
        else:
            if what in ("beat", "said"):
                live.append((arguments["tid"], arguments["token"]))
            lines.append(f"{what} {arguments['tid']} {arguments['token'].decode()}")
        lines += [f"event {event[0]} {event[1]} {event[3]}" for event in events]
    os.write(1, "".join(line + "\\n" for line in lines).encode())
"""


def read_until_death(child: subprocess.Popen[bytes], lines: int, spins: int) -> list[str]:
    """Kill it once it has said so many lines and a moment has passed; all the whole lines it said.

    The moment is a count, not a time: the writer's thread is somewhere in its next batches by then.
    """
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    said = b"".join(child.stdout.readline() for _ in range(lines))
    for _ in range(spins):
        pass
    child.send_signal(signal.SIGKILL)
    said += child.stdout.read()
    child.wait()
    child.stdout.close()
    return said[: said.rfind(b"\n") + 1].decode().splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = support.fresh(tmp_path)
    store = support.Store(path, "native")
    for _ in range(5):
        store.session()
    store.close()
    return path


@pytest.mark.req("I-1", "I-2", "I-3", "Q-3", "S-1", "S-2", "S-4")
@pytest.mark.timeout(240 if KILLS < 100 else 3000)
@pytest.mark.parametrize("build", support.BUILDS)
def test_killed_at_any_moment(path: Path, build: str) -> None:
    """One file goes through all the deaths; what each process was told stays true for ever."""
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    chance = random.Random(seed)
    taken: dict[str, int] = {}
    done: set[int] = set()
    failed: set[tuple[int, str]] = set()
    told: set[tuple[int, int, str]] = set()
    open_leases = acknowledged = 0
    here = Path(support.__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    for number in range(KILLS if build == "native" else KILLS // 4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), build, f"{seed + number}"],
            stdout=subprocess.PIPE,
            env=environment,
        )
        lines = read_until_death(
            child,
            chance.choice([0, chance.randrange(40), chance.randrange(2_000)]),
            chance.randrange(100_000),
        )
        held: dict[int, str] = {}
        for line in lines:
            what, first, *rest = line.split(" ", 3)
            assert what != "odd", line
            acknowledged += what != "event"
            if what == "took":
                taken[first] = int(rest[0])
            elif what == "held":
                held[int(first)] = rest[0]
            elif what == "event":
                told.add((int(first), int(rest[0]), rest[1]))
            elif what == "done":
                done.add(int(first))
            elif what == "fail":
                failed.add((int(first), rest[0]))
            if what in ("done", "fail"):
                held.pop(int(first), None)
        support.obey(path)
        tasks = {
            tid: (name, state, token, ended)
            for tid, name, state, token, ended in support.rows(
                path, "SELECT tid, task_id, state, lease_token, ended_token FROM tasks"
            )
        }
        for name, tid in taken.items():
            assert tasks[tid][0] == name
        for tid in done:
            assert tasks[tid][1] == "SUCCEEDED"
        for tid, token in held.items():
            # it may have ended in a commit that nobody was told of
            _name, _state, lease, ended = tasks[tid]
            assert token.encode() in (lease, ended), (tid, token)
        events = set(support.rows(path, "SELECT sid, event_id, type FROM events"))
        assert told <= events
        leases = sum(state == "RUNNING" for _, state, _, _ in tasks.values())
        open_leases += leases > 0
    print(f"{acknowledged} acknowledged, {open_leases} kills hit an open lease")
    # The twin has a quarter of the rounds and is slower in each.
    assert acknowledged > (1000 if build == "native" else 100)
    if build == "native":
        assert open_leases >= OPEN_LEASES_MIN, f"only {open_leases} kills hit an open lease"
