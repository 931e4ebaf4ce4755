"""What must hold of a storm, judged from the diaries alone, and from the file that is left.

Owns the laws in this project's words. Not in here: how the diaries came about (storm_cast.py).
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from goclaw.core.states import TERMINAL, may

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["AT_ONCE", "Operation", "judge", "operations", "read", "redriven"]

AT_ONCE = 6
"""As many attempts as the gate of the workers' pool lets in."""
CLOCKS_S = 0.1  # a deadline is wall time, a diary is not
LATE_S = 10  # daemons that were ready for that long in all have looked at their deadlines


@dataclass
class Operation:
    """Both edges of one operation; ``k`` is ok, fail, or info when no answer came."""

    op: str
    k: str
    who: str
    asked: float
    answered: float
    fields: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return self.fields.get(name)


def read(folder: Path, names: str = "*.jsonl") -> list[dict[str, Any]]:
    """All edges of all diaries, or of those with such names, in the order of time."""
    lines = [
        json.loads(line)
        for path in sorted(folder.glob(names))
        for line in path.read_text().splitlines()
        if line.endswith("}")  # a writer that was killed may leave half a line
    ]
    return sorted(lines, key=lambda line: line["t"])


def operations(edges: Iterable[dict[str, Any]]) -> list[Operation]:
    """Edges joined by their ids; what was never answered is info."""
    begun: dict[str, dict[str, Any]] = {}
    found = []
    for edge in edges:
        if edge["k"] == "invoke":
            begun[edge["id"]] = edge
            continue
        first = begun.pop(edge["id"], edge)
        fields = {**first, **edge}
        found.append(Operation(edge["op"], edge["k"], edge["p"], first["t"], edge["t"], fields))
    found += [
        Operation(edge["op"], "info", edge["p"], edge["t"], math.inf, edge)
        for edge in begun.values()
    ]
    return found


def redriven(edges: list[dict[str, Any]]) -> set[str]:
    """The tasks whose redrive has come to an end, whichever."""
    return {
        one.task for one in operations(edges) if one.op == "redrive" and one.answered < math.inf
    }


def judge(edges: list[dict[str, Any]]) -> list[str]:
    """Every law that was broken, in words; empty when the storm left no trace."""
    done = operations(edges)
    by: dict[str, list[Operation]] = defaultdict(list)
    for one in done:
        by[one.op].append(one)
    return [
        *_accepted(by), *_leases(by), *_gate(by), *_deadlines(by), *_ends(by), *_effects(by),
        *_events(by), *_replays(by),
    ]  # fmt: skip


def _finals(by: dict[str, list[Operation]]) -> list[Operation]:
    return sorted(by["final"], key=lambda one: one.asked)


def _accepted(by: dict[str, list[Operation]]) -> Iterator[str]:
    """I-3, E-6: what was acknowledged is there ever after; one key, one task."""
    finals = _finals(by)
    keys: dict[str, set[str]] = defaultdict(set)
    for one in by["enqueue"]:
        if one.k != "ok":
            continue
        keys[one.key].add(one.task)
        for final in finals:
            if final.asked > one.answered and one.task not in final.tasks:
                yield f"{one.task} was acknowledged and is lost"
    for key, tasks in keys.items():
        if len(tasks) > 1:
            yield f"the key {key} made {sorted(tasks)}"


def _leases(by: dict[str, list[Operation]]) -> Iterator[str]:
    """I-1: never two who surely own one task; tokens are new, attempts go up by one or more."""
    ends: dict[str, float] = {}
    for one in [*by["complete"], *by["failop"]]:
        if one.k != "fail":
            ends[one.token] = min(ends.get(one.token, math.inf), one.asked)
    cancelled: dict[str, float] = {}
    for one in by["cancel"]:
        if one.k != "fail":
            cancelled[one.task] = min(cancelled.get(one.task, math.inf), one.asked)
    beats: dict[str, float] = {}
    for one in by["beat"]:
        if one.k == "ok":
            beats[one.token] = max(beats.get(one.token, 0), one.asked + one.ttl)
    claims = [one for one in by["claim"] if one.k == "ok" and one.task is not None]
    tokens = Counter(one.token for one in claims)
    yield from (f"the token {token} was given twice" for token, n in tokens.items() if n > 1)
    yield from _stale(by, claims)
    for task, owned in _grouped(claims, "task"):
        owned.sort(key=lambda one: one.attempt)
        if len({one.attempt for one in owned}) < len(owned):
            yield f"{task} has an attempt number twice: {[one.attempt for one in owned]}"
        for one, other in itertools.combinations(owned, 2):
            first, second = sorted((one, other), key=lambda lease: lease.answered)
            over = max(first.asked + first.ttl, beats.get(first.token, 0))
            over = min(over, ends.get(first.token, over), cancelled.get(task, over))
            if second.asked > first.answered and second.answered < over:
                yield f"{task} had two owners: {first.token} and {second.token}"
            if second.attempt < first.attempt and second.asked > first.answered:
                yield f"{task}: attempt {second.attempt} came after {first.attempt}"


def _gate(by: dict[str, list[Operation]]) -> Iterator[str]:
    """Q-16: never more attempts at once than the gate lets in, as far as anybody can be sure."""
    over: dict[str, float] = {}
    for one in [*by["complete"], *by["failop"]]:
        over[one.token] = min(over.get(one.token, math.inf), one.asked)
    for one in by["cancel"]:
        over[one.task] = min(over.get(one.task, math.inf), one.asked)
    for one in by["enqueue"]:
        if one.k == "ok" and one.deadline is not None:
            over[one.task] = min(over.get(one.task, math.inf), one.deadline)
    parked: dict[str, list[float]] = defaultdict(list)
    for one in by["event"]:
        if one.task is not None and one.to == "SUSPENDED":
            parked[one.task].append(one.asked)
    edges = []
    for one in by["claim"]:
        if one.k == "ok" and one.task is not None:
            if any(one.asked < at < one.asked + one.ttl for at in parked[one.task]):
                continue  # it held its slot for a part of that time only
            end = min(
                one.asked + one.ttl,
                over.get(one.token, math.inf),
                over.get(one.task, math.inf),
            )
            if end > one.answered:
                edges += [(one.answered, 1), (end, -1)]
    running = 0
    for _, step in sorted(edges):
        running += step
        if running > AT_ONCE:
            yield f"{running} attempts ran behind a gate for {AT_ONCE}"
            return


def _deadlines(by: dict[str, list[Operation]]) -> Iterator[str]:
    """Q-13: a deadline ends its task, gives its own reason, and comes neither early nor never."""
    finals = _finals(by)
    known = {one.task: one.deadline for one in by["enqueue"] if one.k == "ok"}
    for final in finals:
        for task, stands in final.tasks.items():
            deadline = known.get(task)
            failed = stands["reason"] == "deadline_exceeded"
            if failed and (deadline is None or stands["state"] != "FAILED"):
                yield f"{task} is {stands['state']} over a deadline that it has not"
            elif failed and deadline is not None and deadline > final.answered + CLOCKS_S:
                yield f"{task} failed before its deadline"
            elif (
                deadline is not None
                and stands["state"] not in TERMINAL
                and _ready_s(by, deadline, final.asked) > LATE_S
            ):
                yield f"{task} outlived its deadline"


def _ready_s(by: dict[str, list[Operation]], since: float, until: float) -> float:
    """For how long of that time there was a daemon; its starts may take longer than it lives."""
    ends = sorted(one.asked for one in by["end"])
    found = 0.0
    for boot in by["boot"]:
        end = next((at for at in ends if at > boot.asked), math.inf)
        found += max(0.0, min(end, until) - max(boot.asked, since))
    return found


def _stale(by: dict[str, list[Operation]], claims: list[Operation]) -> Iterator[str]:
    """Q-4: no word counts under a token when a later attempt has begun, or its own has ended."""
    attempts = {one.token: one.attempt for one in claims}
    begun = dict(_grouped(claims, "task"))
    over = {one.token: one.answered for one in by["failop"] if one.k == "ok"}
    for one in [*by["complete"], *by["beat"], *by["failop"]]:
        mine = attempts.get(one.token)
        if one.k != "ok" or mine is None:
            continue
        if (
            any(later.attempt > mine and later.answered < one.asked for later in begun[one.task])
            or over.get(one.token, one.asked) < one.asked
        ):
            yield f"{one.task} listened to a stale token: {one.op} of attempt {mine}"


def _ends(by: dict[str, list[Operation]]) -> Iterator[str]:
    """A completion that was acknowledged is the only one, and stays as it was."""
    finals = _finals(by)
    redriven = {one.task for one in by["redrive"] if one.k != "fail"}
    completed = [one for one in by["complete"] if one.k == "ok"]
    first: dict[str, Operation] = {}
    for task, words in _grouped(completed, "task"):
        if len({one.token for one in words}) > 1:
            yield f"{task} was completed under two tokens"
        first[task] = min(words, key=lambda one: one.answered)
        for final in finals:
            stands = final.tasks.get(task)
            if final.asked < first[task].answered or stands is None:
                continue
            if stands["state"] != "SUCCEEDED":
                yield f"{task} was completed and is {stands['state']}"
            elif stands["result"] != words[0].result:
                yield f"{task} has another result: {stands['result']}"
    for one in by["claim"]:
        if one.k == "ok" and one.task in first and one.asked > first[one.task].answered:
            yield f"{one.task} was claimed after its completion"
    for earlier, later in itertools.pairwise(finals):
        for task, stood in earlier.tasks.items():
            stands = later.tasks.get(task, {}).get("state")
            if stood["state"] in TERMINAL and stands != stood["state"] and task not in redriven:
                yield f"{task} left {stood['state']} for {stands}"
    if finals and finals[-1].drained:
        for task, stands in finals[-1].tasks.items():
            if stands["state"] not in TERMINAL:
                yield f"{task} is stuck: {stands}"
            if stands["failures"] > stands["maxAttempts"]:
                yield f"{task} failed {stands['failures']} times of {stands['maxAttempts']}"


def _effects(by: dict[str, list[Operation]]) -> Iterator[str]:
    """I-4: an irreversible effect once, and not without it where the task says it succeeded."""
    counted = Counter(one.idem for one in by["effect"])
    yield from (f"the effect {key} happened {n} times" for key, n in counted.items() if n > 1)
    acted = {one.task for one in by["effect"]}
    for one in by["complete"]:
        if one.k == "ok" and one.task not in acted:
            yield f"{one.task} succeeded without its effect"


def _events(by: dict[str, list[Operation]]) -> Iterator[str]:
    """I-2, W-4: each connection sees each event once, in order, without a hole; all see the same;
    a task's events are a path of the table of states that ends where the task stands."""
    known: dict[tuple[str, int], tuple[Any, ...]] = {}
    for (who, session), seen in itertools.groupby(
        sorted(by["event"], key=lambda one: (one.who, one.session)),
        key=lambda one: (one.who, one.session),
    ):
        ids = []
        for one in sorted(seen, key=lambda event: event.asked):
            said = one.task, one.fields.get("from"), one.to
            if known.setdefault((session, one.event_id), said) != said:
                yield f"event {one.event_id} of {session} is two things"
            ids.append(one.event_id)
        for earlier, later in itertools.pairwise(ids):
            if later != earlier + 1:
                yield f"{who} saw event {later} of {session} after {earlier}"
    for session in {session for session, _ in known}:
        ids = sorted(number for name, number in known if name == session)
        if ids != list(range(ids[0], ids[-1] + 1)):
            yield f"nobody saw some events of {session}"
    states: dict[str, str | None] = {}
    for _, (task, source, target) in sorted(known.items()):
        if task is None:
            continue
        if source != states.get(task):
            yield f"{task} goes from {source} to {target} and was {states.get(task)}"
        if not may(source, target):
            yield f"{task} went from {source} to {target}"
        states[task] = target
    finals = _finals(by)
    if finals and finals[-1].drained:
        for task, stands in finals[-1].tasks.items():
            if task in states and states[task] != stands["state"]:
                yield f"{task} is {stands['state']}, its events say {states[task]}"


def _replays(by: dict[str, list[Operation]]) -> Iterator[str]:
    """A pull from a cursor to the head has everything that was there when it began."""
    for one in by["replay"]:
        if one.k != "ok":
            continue
        if one.ids != list(range(one.cursor + 1, one.cursor + 1 + len(one.ids))):
            yield f"a replay of {one.session} from {one.cursor} has a hole"
        before = [
            event.event_id
            for event in by["event"]
            if event.session == one.session and event.answered < one.asked
        ]
        if before and max(before) > max(one.ids, default=one.cursor):
            yield f"a replay of {one.session} from {one.cursor} ends too soon"


def _grouped(found: list[Operation], name: str) -> Iterator[tuple[str, list[Operation]]]:
    groups: dict[str, list[Operation]] = defaultdict(list)
    for one in found:
        groups[one.fields[name]].append(one)
    yield from groups.items()
