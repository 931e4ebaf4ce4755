"""A short storm over a real daemon, and the judge's eye for what a storm may leave behind.

Longer ones, and the faults that are put in on purpose, run in ``.ci/soak``.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from storm_judge import AT_ONCE, judge, redriven
from storm_planted import FAULTS
from storm_run import Storm

if TYPE_CHECKING:
    from collections.abc import Callable

PLANTED = Path(__file__).with_name("storm_planted.py")
SECONDS = float(os.environ.get("GOCLAW_STORM_SECONDS", "5"))


@pytest.mark.req(
    "Q-1", "Q-2", "Q-3", "Q-4", "Q-5", "Q-6", "Q-9", "Q-11", "Q-12", "Q-13", "Q-16", "E-1", "E-3",
    "E-6", "I-1", "I-2", "I-3", "I-4", "W-4", "W-11", "A-8", "A-10", "G-1", "G-2", "G-3",
)  # fmt: skip
@pytest.mark.timeout(400)
def test_a_storm_leaves_no_trace() -> None:
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:  # socket paths are short
        pure = os.environ.get("GOCLAW_PURE") == "1"
        storm = Storm(Path(folder), 1, SECONDS, pure=pure)
        assert storm.rage() == []
        # The storm's look at the audit sees what a person sees.
        audit = storm.home / "logs" / "audit.jsonl"
        _, _, rest = audit.read_bytes().partition(b"\n")
        audit.write_bytes(rest)
        (found,) = storm.audited()
        assert "record 1 of the file: its line was removed" in found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_a_daemon_that_starts(fault: str, home: Path) -> None:
    """Storms in .ci/soak have to notice it; one that cannot be planted would be noticed, too."""
    done = subprocess.run(
        [sys.executable, str(PLANTED), fault, "task", "list", "--home", str(home / "h")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, cwd=home,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_dead_letter_may_return_until_the_operator_has_heard_of_it() -> None:
    """A storm that took it for the end found the task in the queue again."""
    asked = edge(1, 0, "invoke", "redrive", task="a")
    assert redriven([asked]) == set()
    for k in ("ok", "fail", "info"):
        assert redriven([asked, edge(1, 1, k, "redrive")]) == {"a"}


# -- the judge is seen to condemn -----------------------------------------------------------------

STATES = ("QUEUED", "CLAIMED", "RUNNING", "SUCCEEDED")


def edge(number: int, t: float, k: str, op: str, **fields: Any) -> dict[str, Any]:
    return {"id": str(number), "t": t, "p": "p", "k": k, "op": op, **fields}


def done(number: int, t: float, op: str, **fields: Any) -> list[dict[str, Any]]:
    return [
        edge(number, t, "invoke", op, **fields), edge(number, t + 0.5, "ok", op, **fields),
    ]  # fmt: skip


def history() -> list[dict[str, Any]]:
    """One task from its submission to its end, as three clients saw it."""
    result = {"n": 1}
    task = {
        "state": "SUCCEEDED", "reason": "finished", "failures": 0, "maxAttempts": 4,
        "result": result,
    }  # fmt: skip
    edges = [
        edge(30, 0, "ok", "boot", epoch="e"),
        *done(1, 0, "enqueue", key="k", task="a", deadline=20),
        *done(2, 2, "claim", task="a", attempt=1, token="T1", ttl=10),
        edge(3, 3, "ok", "effect", idem="i", task="a", attempt=1),
        *done(4, 4, "beat", task="a", token="T1", ttl=10),
        *done(5, 5, "complete", task="a", token="T1", result=result),
        *done(6, 50, "final", tasks={"a": task}, drained=True),
        *done(7, 40, "replay", session="s", cursor=1, ids=[2, 3, 4]),
    ]
    for place, (source, target) in enumerate(zip((None, *STATES), STATES, strict=False), 1):
        edges.append(
            edge(
                10 + place, 10 + place, "ok", "event", session="s", event_id=place, task="a",
                to=target, **{"from": source},
            )
        )  # fmt: skip
    return edges


def named(edges: list[dict[str, Any]], op: str) -> list[dict[str, Any]]:
    return [one for one in edges if one["op"] == op]


def lost(edges: list[dict[str, Any]]) -> None:
    for one in named(edges, "final"):
        one["tasks"] = {}


def twice(edges: list[dict[str, Any]]) -> None:
    edges += done(20, 1, "enqueue", key="k", task="b")


def second_owner(edges: list[dict[str, Any]]) -> None:
    edges += done(20, 3, "claim", task="a", attempt=2, token="T2", ttl=10)


def stale(edges: list[dict[str, Any]]) -> None:
    edges += done(20, 4.2, "claim", task="a", attempt=2, token="T2", ttl=10)
    for one in named(edges, "complete"):
        one["t"] += 1


def dead_token(edges: list[dict[str, Any]]) -> None:
    edges += done(20, 3, "failop", task="a", token="T1")


def same_token(edges: list[dict[str, Any]]) -> None:
    edges += done(20, 30, "claim", task="b", attempt=1, token="T1", ttl=1)


def same_attempt(edges: list[dict[str, Any]]) -> None:
    edges += done(20, 30, "claim", task="a", attempt=1, token="T2", ttl=1)


def changed_result(edges: list[dict[str, Any]]) -> None:
    for one in named(edges, "final"):
        one["tasks"]["a"]["result"] = {"n": 2}


def undone(edges: list[dict[str, Any]]) -> None:
    for one in named(edges, "final"):
        one["tasks"]["a"]["state"] = "QUEUED"


def claimed_again(edges: list[dict[str, Any]]) -> None:
    edges += done(20, 30, "claim", task="a", attempt=2, token="T2", ttl=1)


def repeated(edges: list[dict[str, Any]]) -> None:
    edges.append(edge(20, 4, "ok", "effect", idem="i", task="a", attempt=1))


def not_done(edges: list[dict[str, Any]]) -> None:
    edges[:] = [one for one in edges if one["op"] != "effect"]


def crowd(edges: list[dict[str, Any]]) -> None:
    for number in range(AT_ONCE):
        edges += done(
            20 + number, 3, "claim", task=f"b{number}", attempt=1, token=f"B{number}", ttl=9
        )


def hurried(edges: list[dict[str, Any]]) -> None:
    for one in named(edges, "final"):
        one["tasks"]["a"] |= {"state": "FAILED", "reason": "deadline_exceeded"}
    for one in named(edges, "enqueue"):
        one["deadline"] = 60


def ageless(edges: list[dict[str, Any]]) -> None:
    for one in named(edges, "final"):
        one["tasks"]["a"]["state"] = "QUEUED"


def hole(edges: list[dict[str, Any]]) -> None:
    edges.remove(next(one for one in named(edges, "event") if one["event_id"] == 2))


def twin(edges: list[dict[str, Any]]) -> None:
    edges.append({**named(edges, "event")[1], "id": "20", "t": 12.5})


def rebound(edges: list[dict[str, Any]]) -> None:
    edges.append({**named(edges, "event")[1], "id": "20", "p": "q", "to": "RUNNING"})


def short_cut(edges: list[dict[str, Any]]) -> None:
    for one in named(edges, "event")[1:3]:
        one["task"] = None


def short_replay(edges: list[dict[str, Any]]) -> None:
    for one in named(edges, "replay"):
        one["ids"] = [2, 3]


def torn_replay(edges: list[dict[str, Any]]) -> None:
    for one in named(edges, "replay"):
        one["ids"] = [2, 4]


CRIMES: dict[Callable[[list[dict[str, Any]]], None], str] = {
    lost: "is lost", twice: "the key k made", second_owner: "had two owners",
    stale: "listened to a stale token", dead_token: "listened to a stale token",
    same_token: "was given twice", same_attempt: "an attempt number twice",
    changed_result: "has another result", undone: "was completed and is QUEUED",
    claimed_again: "claimed after its completion", repeated: "happened 2 times",
    crowd: "7 attempts ran behind a gate", hurried: "failed before its deadline",
    ageless: "outlived its deadline",
    not_done: "without its effect", hole: "saw event 3 of s after 1",
    twin: "saw event 2 of s after 2", rebound: "is two things",
    short_cut: "goes from RUNNING", short_replay: "ends too soon", torn_replay: "has a hole",
}  # fmt: skip


def test_a_lawful_history_is_left_alone() -> None:
    assert judge(history()) == []


def test_a_deadline_waits_for_a_daemon() -> None:
    """One that passed while the next daemon was on its way has not been outlived yet."""
    edges = history()
    ageless(edges)
    edges += [edge(31, 21, "ok", "end"), edge(32, 49, "ok", "boot", epoch="f")]
    assert not any("outlived" in line for line in judge(sorted(edges, key=lambda one: one["t"])))


@pytest.mark.parametrize("crime", CRIMES, ids=lambda crime: crime.__name__)
def test_every_crime_is_named(crime: Callable[[list[dict[str, Any]]], None]) -> None:
    edges = copy.deepcopy(history())
    crime(edges)
    found = judge(sorted(edges, key=lambda one: one["t"]))
    assert any(CRIMES[crime] in line for line in found), found
