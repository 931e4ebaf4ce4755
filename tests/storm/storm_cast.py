"""Who takes part in a storm, each a process of its own: ``python storm_cast.py ROLE ARGUMENTS``.

Owns what producers, workers, subscribers, the operator and the sink do. Not in here: the daemon's
deaths (storm_run.py). Every choice is drawn from the seed; what becomes of it is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any

from storm_peer import Diary, Lost, Peer, Refused, act

POOL = "storm"
GONE = (-31009, -31015)  # lease_lost, effect_unknown


class Player:
    """What all of them have: a seed, a diary, a connection, an end."""

    def play(self) -> None:
        raise NotImplementedError

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.folder, self.home = Path(arguments["folder"]), Path(arguments["home"])
        self.name: str = arguments["name"]
        self.chance = random.Random(f"{arguments['seed']}.{self.name}")
        self.diary = Diary(self.folder, self.name)
        self.lease_s: float = arguments["lease_s"]
        self.sessions: list[str] = arguments.get("sessions", [])
        self.sink = self.folder / "sink.sock"
        self.peer = Peer(self.home, self.name)

    @property
    def over(self) -> bool:
        """Producers stop when this file is there."""
        return (self.folder / "over").exists()

    @property
    def done(self) -> bool:
        """All others stop when this file is there."""
        return (self.folder / "done").exists()

    def connect(self) -> None:
        self.peer.connect(time.monotonic() + 60)

    def said(
        self, op: str, method: str, params: dict[str, Any], keep: Any = None, **fields: Any
    ) -> dict[str, Any]:
        """One operation with both its edges; Refused, Lost. ``keep``: fields of its ok edge."""
        number = self.diary.begin(op, **fields)
        try:
            result = self.peer.call(method, params)
        except Refused as error:
            self.diary.edge("fail", op, number, code=error.code, **fields)
            raise
        except Lost:
            self.diary.edge("info", op, number, **fields)
            raise
        self.diary.edge("ok", op, number, **fields, **(keep(result) if keep else {}))
        return result

    def insisted(self, *arguments: Any, **fields: Any) -> dict[str, Any]:
        """The same until somebody answers: a repeat must not matter."""
        while True:
            try:
                return self.said(*arguments, **fields)
            except Lost:
                self.connect()


class Producer(Player):
    """Submits until the storm is over, again with the same key when an answer was lost."""

    def play(self) -> None:
        self.connect()
        number = 0
        while not self.over:
            number += 1
            key = f"{self.name}-{number}"
            params = {
                "sessionId": self.chance.choice(self.sessions), "idempotencyKey": key,
                "priority": self.chance.choice([0, 5, 5, 5, 9]),
                "parallel": self.chance.random() < 0.7, "maxAttempts": 4,
            }  # fmt: skip
            fields: dict[str, Any] = {"key": key}
            payload: dict[str, Any] = {"n": number, "by": self.name}
            if self.chance.random() < 0.8:
                params |= {"pool": POOL, "payload": payload}
                if self.chance.random() < 0.1:
                    payload["timeout"] = self.chance.choice((0.3, 1.0))
                    params["timeoutMs"] = int(payload["timeout"] * 1000)
            elif self.chance.random() < 0.7:
                params |= {"tool": "sleep", "arguments": {"seconds": 0.02}}
            else:  # a sub-task, in a session of its own
                params |= {"tool": "delegate", "arguments": {"prompt": "/sleep 0.05"}}
            rest_ms = self.chance.randrange(100, 4000)
            if self.chance.random() < 0.1:
                params["notBeforeMs"] = int(time.time() * 1000) + self.chance.randrange(1500)
                rest_ms += 1500
            if self.chance.random() < 0.05:
                params["deadlineMs"] = int(time.time() * 1000) + rest_ms
                fields["deadline"] = time.monotonic() + rest_ms / 1000
            try:
                accepted = self.insisted(
                    "enqueue", "_goclaw/task/submit", params,
                    keep=lambda result: {"task": result["taskId"]}, **fields,
                )  # fmt: skip
            except Refused as error:
                late = error.code == -32602 and "deadline" in fields  # over before it was heard
                if error.code not in (-31004, -31006) and not late:  # full, or stopping
                    raise
                time.sleep(0.05)
                continue
            if self.chance.random() < 0.05:
                task = accepted["taskId"]
                self.insisted(
                    "cancel", "_goclaw/task/cancel", {"taskId": task}, task=task,
                    keep=lambda result: {"outcome": result["outcome"]},
                )  # fmt: skip
            time.sleep(self.chance.random() * 0.06)


class Worker(Player):
    """Claims and carries out; is late, forgets, fails and repeats itself on purpose."""

    def play(self) -> None:
        self.connect()
        self.handed_back: list[dict[str, str]] = []
        while not self.done:
            try:
                self.turn()
                if self.handed_back and self.chance.random() < 0.7:
                    self.haunt(self.chance.choice(self.handed_back[-3:]))
            except Lost:
                self.connect()
            except Refused as error:
                if error.code not in (*GONE, -31006, -31010):
                    raise

    def haunt(self, lease: dict[str, str]) -> None:
        """A word for a task that was handed back: somebody else may hold it now."""
        named = {"task": lease["taskId"], "token": lease["leaseToken"]}
        if self.chance.random() < 0.5:
            self.said("beat", "_goclaw/worker/heartbeat", lease, **named, ttl=self.lease_s)
        else:
            result = {"n": -1, "by": "a ghost"}
            self.said(
                "complete", "_goclaw/worker/complete", {**lease, "result": result}, **named,
                result=result,
            )  # fmt: skip

    def turn(self) -> None:
        most = self.chance.choice([1, 1, 2, 4])
        began = time.monotonic()
        number = self.diary.begin("claim", at=began, worker=self.name)
        try:
            claimed = self.peer.call(
                "_goclaw/worker/claim",
                {"pool": POOL, "max": most, "waitMs": 200, "workerId": self.name},
            )["tasks"]
        except (Lost, Refused) as error:
            self.diary.edge("info" if isinstance(error, Lost) else "fail", "claim", number)
            raise
        at = time.monotonic()
        if not claimed:
            self.diary.edge("ok", "claim", number, at, worker=self.name, task=None)
        for place, task in enumerate(claimed):
            if place:
                number = self.diary.begin("claim", at=began, worker=self.name)
            self.diary.edge(
                "ok", "claim", number, at, worker=self.name, task=task["taskId"],
                attempt=task["attempt"], token=task["leaseToken"],
                ttl=min(self.lease_s, task["payload"].get("timeout", self.lease_s)),
            )  # fmt: skip
        for task in claimed:
            try:
                self.carry_out(task)
            except Refused as error:
                if error.code not in (*GONE, -31006):
                    raise

    def carry_out(self, task: dict[str, Any]) -> None:
        lease = {"taskId": task["taskId"], "leaseToken": task["leaseToken"]}
        named = {"task": task["taskId"], "token": task["leaseToken"]}
        fate = self.chance.random()
        if fate < 0.04:
            return  # forgotten: the lease runs out
        if fate < 0.12:
            self.said("failop", "_goclaw/worker/release", lease, **named)
            self.handed_back.append(lease)
            return
        if not self.effect(task, lease, forget=0.93 < fate < 0.96):
            return
        if self.chance.random() < 0.3 and "timeout" not in task["payload"]:
            self.said("beat", "_goclaw/worker/heartbeat", lease, **named, ttl=self.lease_s)
        if self.chance.random() < 0.3:
            update = {
                "sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "x"},
            }  # fmt: skip
            self.peer.call("_goclaw/worker/emit", {**lease, "update": update})
        if fate < 0.3 and not self.over:
            # Slow or late: somebody else may have it by now, who is slow too.
            time.sleep(self.lease_s * self.chance.uniform(0.5, 1.8))
        if fate > 0.96:
            # Fingerprints of their own: neither poison nor a breaker, which are tested elsewhere.
            said = {"code": "storm", "message": "on purpose", "retryable": True}
            self.said(
                "failop", "_goclaw/worker/fail",
                {**lease, **said, "fingerprint": str(self.chance.random())}, **named,
            )  # fmt: skip
            return
        result = {"n": task["payload"]["n"], "by": task["payload"]["by"]}
        for _ in range(self.chance.choice([1, 1, 1, 2])):  # twice is as good as once
            self.insisted(
                "complete", "_goclaw/worker/complete", {**lease, "result": result}, **named,
                result=result,
            )  # fmt: skip

    def effect(self, task: dict[str, Any], lease: dict[str, Any], *, forget: bool) -> bool:
        """Pay, once; False when the worker forgot to say so and nobody will ever know."""
        asked = {
            **lease, "ordinal": 0, "kind": "tool", "name": "pay",
            "requestHash": hashlib.sha256(task["taskId"].encode()).hexdigest(),
            "class": "irreversible",
        }  # fmt: skip
        answer: dict[str, Any] | None = None
        while answer is None:
            try:
                answer = self.peer.call("_goclaw/worker/effect", {**asked, "phase": "intent"})
            except Lost:
                self.connect()  # the same under one lease: the same answer
        if answer["go"]:
            act(
                self.sink, idem=answer["idempotencyKey"], task=task["taskId"],
                attempt=task["attempt"],
            )  # fmt: skip
            if forget:
                return False
            while True:
                try:
                    self.peer.call(
                        "_goclaw/worker/effect", {**asked, "phase": "result", "result": "paid"}
                    )
                    break
                except Lost:
                    self.connect()
        return True


class Subscriber(Player):
    """Follows every session by its cursor. The diary's name changes with each connection."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        self.manner: str = arguments["manner"]
        if self.manner == "slow":
            self.peer.receive_bytes = 4096
        self.cursors = dict.fromkeys(self.sessions, 0)
        self.connections = 0

    def play(self) -> None:
        while not self.done:
            try:
                self.follow()
            except Lost:
                continue
            except Refused as error:
                if error.code != -31006:
                    raise

    def follow(self) -> None:
        self.connect()
        self.connections += 1
        name = f"{self.name}.{self.connections}"
        for session in self.sessions:
            self.peer.call(
                "_goclaw/session/subscribe",
                {"sessionId": session, "fromEventId": self.cursors[session]},
            )
        until = time.monotonic() + (self.chance.random() if self.manner == "fickle" else 1e9)
        while not self.done and time.monotonic() < until:
            if self.manner == "slow":
                time.sleep(0.05)
            if not self.peer.notes:
                try:
                    self.peer.notes.append(self.peer.receive(timeout=0.2))
                except TimeoutError:
                    continue
            for note in self.peer.notes:
                self.read(name, note)
            self.peer.notes.clear()
        if self.manner == "fickle" and self.chance.random() < 0.3:
            self.replay(self.chance.choice(self.sessions))
        self.peer.close()

    def read(self, name: str, note: dict[str, Any]) -> None:
        if note.get("method") not in ("session/update", "_goclaw/session/event"):
            return
        params = note["params"]
        event_id = params.get("_meta", {}).get("goclaw", {}).get("eventId")
        if event_id is None:
            return  # no event of the log
        event = params.get("event", {})
        moved = event.get("type", "").startswith("task.")
        self.diary.fact(
            "event", p=name, session=params["sessionId"], event_id=event_id,
            task=event.get("taskId") if moved else None, **{"from": event.get("from")},
            to=event.get("to"),
        )  # fmt: skip
        self.cursors[params["sessionId"]] = event_id

    def replay(self, session: str) -> None:
        """The pull form, page by page, as one whole answer."""
        cursor = self.chance.randrange(max(1, self.cursors[session]))
        number = self.diary.begin("replay", session=session, cursor=cursor)
        ids: list[int] = []
        position = cursor
        while True:
            page = self.peer.call(
                "_goclaw/session/events",
                {"sessionId": session, "fromEventId": position, "limit": 500},
            )
            ids += [one["_meta"]["goclaw"]["eventId"] for one in page["events"]]
            position = page["nextEventId"]
            if not page["events"]:
                break
        self.diary.edge("ok", "replay", number, session=session, cursor=cursor, ids=ids)


class Operator(Player):
    """Settles what nobody knows by asking the sink, and brings dead letters back, once each."""

    def play(self) -> None:
        self.connect()
        redriven: set[str] = set()
        while not self.done:
            try:
                self.settle()
                self.redrive(redriven)
            except Lost:
                self.connect()
            except Refused:
                pass  # it went on by itself meanwhile
            time.sleep(0.2)

    def listed(self, *states: str) -> list[dict[str, Any]]:
        found = self.peer.call("_goclaw/task/list", {"states": list(states), "limit": 200})
        return list(found["tasks"])

    def settle(self) -> None:
        for task in self.listed("SUSPENDED"):
            if task["reason"] != "effect_unknown":
                continue
            # Whoever had it may still be on his way to the sink.
            first = self.folder / "seen"
            first.mkdir(exist_ok=True)
            mark = first / f"{task['taskId']}.{task['attempt']}"
            if not mark.exists():
                mark.touch()
            if time.time() - mark.stat().st_mtime < 2 * self.lease_s:
                continue
            paid = {
                json.loads(line)["task"]
                for line in (self.folder / "sink.jsonl").read_text().splitlines()
            }
            outcome = "done" if task["taskId"] in paid else "not_done"
            params = {"taskId": task["taskId"], "ordinal": 0, "outcome": outcome}
            if outcome == "done":
                params["result"] = "paid"
            self.said("settle", "_goclaw/effects/settle", params, task=task["taskId"])

    def redrive(self, redriven: set[str]) -> None:
        for task in self.listed("DEAD_LETTER"):
            name = task["taskId"]
            if name not in redriven and self.chance.random() < 0.5:
                redriven.add(name)
                self.said("redrive", "_goclaw/task/redrive", {"taskId": name}, task=name)


def sink(arguments: dict[str, Any]) -> None:
    """Writes each side effect down, on disk, before it says so."""
    folder = Path(arguments["folder"])
    diary = Diary(folder, "sink")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "sink.sock"))
        listener.listen(64)
        listener.settimeout(0.2)
        while not (folder / "done").exists():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection, connection.makefile("rb") as lines:
                line = lines.readline()
                if line:
                    diary.fact("effect", **json.loads(line))
                    os.fsync(diary._fd)
                    connection.sendall(b".")


ROLES = {"producer": Producer, "worker": Worker, "subscriber": Subscriber, "operator": Operator}


def main() -> None:
    role, text = sys.argv[1:]
    arguments = json.loads(text)
    if role == "sink":
        sink(arguments)
    else:
        ROLES[role](arguments).play()


if __name__ == "__main__":
    main()
