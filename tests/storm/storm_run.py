"""One storm: a real daemon on a real disk that dies every fraction of a second, and its clients.

Owns the deaths, the recovery in between and the end. Not in here: the clients (storm_cast.py), the
laws (storm_judge.py). By hand:
``PYTHONPATH=tests python tests/storm/storm_run.py --seed 1 --seconds 60``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import store_support
import storm_judge
from storm_peer import Diary, Lost, Peer, Refused

HERE = Path(__file__).parent
LEASE_MS = 2_000
SESSIONS = 6
SHOWN = ("state", "failures", "result", "maxAttempts", "reason", "sessionId")
START_S = 60
DRAIN_S = 120
DEAD = "DEAD_LETTER"
KILLS_MIN = 3  # however slow the machine is
CONFIG = f"""
[queue]
lease_ms = {LEASE_MS}
backoff_ms_min = 20
backoff_ms_max = 400
max_attempts = 4
bounds = "pool:storm {storm_judge.AT_ONCE} at once; tool:sleep 2 at once, 40/s"
[listen]
address = "none"
"""


class Storm:
    """One seed, one home, one number of seconds, and of tasks that it takes longer for."""

    def __init__(
        self, folder: Path, seed: int, seconds: float, *, tasks: int = 0, plant: str = "",
        pure: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.seed, self.seconds, self.plant = folder, seed, seconds, plant
        self.tasks_min = tasks
        self.home = folder / "home"
        self.chance = random.Random(seed)
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GOCLAW_")},
            "PYTHONPATH": os.pathsep.join(sys.path),
            **({"GOCLAW_PURE": "1"} if pure else {}),
        }
        self.diary = Diary(folder, "storm")
        self.daemon: subprocess.Popen[bytes] | None = None
        self.cast: list[subprocess.Popen[bytes]] = []
        self.producers: list[subprocess.Popen[bytes]] = []
        self.kills = Counted()
        self.boots: set[str] = set()

    # -- the daemon ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, and wait until its record shows that it is ready."""
        program = ["-m", "goclaw"]
        if self.plant:
            program = [str(HERE / "storm_planted.py"), self.plant]
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, *program, "serve", "--home", str(self.home)],
                env=self.environ, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        until = time.monotonic() + START_S
        while self.boot() in (None, *self.boots):
            if self.daemon.poll() is not None:
                raise RuntimeError(
                    f"the daemon ended by itself with {self.daemon.returncode}:\n"
                    + (self.folder / "daemon.log").read_text()[-2000:]
                )
            if time.monotonic() > until:
                raise RuntimeError("the daemon does not get ready")
            time.sleep(0.01)
        boot = self.boot()
        assert boot is not None
        self.boots.add(boot)
        self.diary.fact("boot", epoch=boot)

    def boot(self) -> str | None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            name: str = json.loads((self.home / "run" / "daemon.json").read_text())["bootId"]
            return name
        return None

    def end(self, number: int) -> None:
        assert self.daemon is not None
        self.diary.fact("end")
        self.daemon.send_signal(number)
        try:
            code = self.daemon.wait(60)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            raise RuntimeError(f"signal {number} does not end the daemon") from None
        if number == signal.SIGTERM and code != 0:
            raise RuntimeError(f"a stop in good order ended with {code}")

    # -- the clients -----------------------------------------------------------------------------

    def join(self, role: str, name: str, **arguments: Any) -> None:
        arguments |= {
            "name": name, "folder": str(self.folder), "home": str(self.home), "seed": self.seed,
            "lease_s": LEASE_MS / 1000,
        }  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            self.cast.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / "storm_cast.py"), role, json.dumps(arguments)],
                    env=self.environ, stdout=log, stderr=log, cwd=self.folder,
                )
            )  # fmt: skip

    def everybody(self, sessions: list[str]) -> None:
        self.join("sink", "sink-process")
        for number in range(4):
            self.join("worker", f"worker{number}")
        for number in range(2):
            self.join("producer", f"producer{number}", sessions=sessions)
            self.producers.append(self.cast[-1])
        for manner in ("steady", "slow", "fickle"):
            self.join("subscriber", manner, sessions=sessions, manner=manner)
        self.join("operator", "operator")

    # -- the storm -------------------------------------------------------------------------------

    def rage(self) -> list[str]:
        """All of it; the laws that were broken."""
        self.home.mkdir(mode=0o700)
        (self.home / "config.toml").write_text(CONFIG)
        self.diary.fact("param", max_attempts=4)
        try:
            self.start()
            sessions = self.open_sessions()
            self.everybody(sessions)
            until = time.monotonic() + self.seconds
            while (
                time.monotonic() < until
                or self.kills.kills < KILLS_MIN
                or self.accepted() < self.tasks_min
            ):
                self.one_life()
                self.start()
                if self.chance.random() < 0.2:
                    self.final(drained=False)
            (self.folder / "over").touch()
            drained = self.drain()
            time.sleep(1)  # the last events are on their way to the subscribers
            self.final(drained=True)
            (self.folder / "done").touch()
            broken = [] if drained else ["not everything came to an end in time"]
            broken += self.leave()
            self.end(signal.SIGTERM)
        finally:
            for process in (*self.cast, *([self.daemon] if self.daemon else [])):
                process.kill()
                process.wait()
        try:
            store_support.obey(self.home / "goclaw.db")
        except AssertionError as error:
            broken.append(f"the file that is left: {error!r}"[:500])
        return broken + self.audited() + storm_judge.judge(storm_judge.read(self.folder))

    def accepted(self) -> int:
        """How many tasks the producers have an answer for."""
        edges = storm_judge.read(self.folder, "producer*.jsonl")
        return sum(edge["op"] == "enqueue" and edge["k"] == "ok" for edge in edges)

    def one_life(self) -> None:
        kind = self.chance.random()
        if kind < 0.6:
            time.sleep(0.1 + 0.2 * self.chance.random())
        else:
            time.sleep(0.3 + 2 * self.chance.random())
        if kind > 0.85:
            self.end(signal.SIGTERM)
            self.kills.terms += 1
            return
        stopped = None
        if self.chance.random() < 0.2:  # a worker that is stopped for longer than its lease
            stopped = self.chance.choice(self.cast[1:5])
            stopped.send_signal(signal.SIGSTOP)
        self.end(signal.SIGKILL)
        self.kills.kills += 1
        if stopped is not None:
            time.sleep(LEASE_MS / 1000 * 1.2 * self.chance.random())
            stopped.send_signal(signal.SIGCONT)

    def peer(self) -> Peer:
        peer = Peer(self.home, "storm")
        peer.connect(time.monotonic() + START_S)
        return peer

    def open_sessions(self) -> list[str]:
        peer = self.peer()
        made = [
            peer.call("session/new", {"cwd": str(self.folder), "mcpServers": []})["sessionId"]
            for _ in range(SESSIONS)
        ]
        peer.close()
        return made

    def tasks(self, peer: Peer) -> dict[str, Any]:
        found: dict[str, Any] = {}
        after = None
        while True:
            page = peer.call("_goclaw/task/list", {"limit": 1000, "after": after})
            for task in page["tasks"]:
                found[task["taskId"]] = {name: task[name] for name in SHOWN}
            after = page.get("next")
            if after is None:
                return found

    def final(self, *, drained: bool) -> None:
        peer = self.peer()
        number = self.diary.begin("final")
        try:
            tasks = self.tasks(peer)
        except (Lost, Refused):
            self.diary.edge("info", "final", number)
        else:
            self.diary.edge("ok", "final", number, tasks=tasks, drained=drained)
        peer.close()

    def drain(self) -> bool:
        """Wait until every task has ended for good: the producers have left, the operator has
        settled what is unknown and has had his one try at each dead letter."""
        for producer in self.producers:
            with contextlib.suppress(subprocess.TimeoutExpired):  # leave() says so
                producer.wait(DRAIN_S)
        peer = self.peer()
        until = time.monotonic() + DRAIN_S
        is_over = False
        while not is_over and time.monotonic() < until:
            # Looked at before and after: a redrive in between shows in one of the looks.
            is_over = self.at_rest(peer) and not self.may_return(peer) and self.at_rest(peer)
            if not is_over:
                time.sleep(0.2)
        peer.close()
        return is_over

    def at_rest(self, peer: Peer) -> bool:
        tasks = peer.call("_goclaw/system/status", {})["tasks"]
        return not any(tasks[state] for state in ("QUEUED", "RUNNING", "RETRY_WAIT", "SUSPENDED"))

    def may_return(self, peer: Peer) -> set[str]:
        """Dead letters that the operator is still going to redrive."""
        letters = {name for name, task in self.tasks(peer).items() if task["state"] == DEAD}
        return letters - storm_judge.redriven(storm_judge.read(self.folder, "operator.jsonl"))

    def leave(self) -> list[str]:
        """Everybody goes home by himself, without a complaint."""
        found = []
        for process in self.cast:
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                code = None
            if code != 0:
                role = str(process.args[2])  # type: ignore[index]
                found.append(f"a {role} ended with {code}")
        for log in sorted(self.folder.glob("*.log")):
            text = log.read_text(errors="replace")
            if log.name != "daemon.log" and text:
                found.append(f"{log.name}: {text[-1500:]}")
            elif "Traceback" in text:
                found.append(f"the daemon wrote a traceback: {text[-1500:]}")
        return found

    def audited(self) -> list[str]:
        """A-8: what the command line finds in the chain, and in the file that was copied from it
        over all the deaths. Nobody else has the home."""
        done = subprocess.run(
            [sys.executable, "-m", "goclaw", "audit", "verify", "--home", str(self.home)],
            env=self.environ, capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        found = [f"the audit: {done.stdout}{done.stderr}"[:1500]] if done.returncode else []
        aside = (self.home / "logs").glob("audit-*.jsonl")
        return found + [f"{file.name} was put aside: another chain" for file in aside]


class Counted:
    """What the daemon went through."""

    kills = 0
    terms = 0


def main() -> int:
    parser = argparse.ArgumentParser(description="storms, one after the other")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tasks", type=int, default=0, help="go on until so many were accepted")
    parser.add_argument("--plant", default="", help="a fault of storm_planted.py")
    parser.add_argument("--noticed", action="store_true", help="0 when laws were broken")
    parser.add_argument("--pure", action="store_true")
    parser.add_argument("--keep", type=Path, help="leave the diaries here")
    parser.add_argument("--checker", type=Path, help="a foreign judge of the same history")
    options = parser.parse_args()
    code = 0
    for seed in range(options.seed, options.seed + options.rounds):
        with tempfile.TemporaryDirectory(prefix="storm-") as fresh:
            folder = options.keep / str(seed) if options.keep else Path(fresh)
            folder.mkdir(parents=True, exist_ok=True)
            storm = Storm(
                folder, seed, options.seconds, tasks=options.tasks, plant=options.plant,
                pure=options.pure,
            )  # fmt: skip
            broken = storm.rage()
            edges = storm_judge.read(folder)
            if options.checker is not None:
                history = folder / "history.json"
                history.write_text("".join(json.dumps(edge) + "\n" for edge in edges))
                found = subprocess.run(
                    [sys.executable, str(options.checker), str(history)],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                if found.returncode != 0:
                    broken.append(f"the foreign judge: {found.stdout[-1500:]}{found.stderr[-500:]}")
            tasks = sum(edge["op"] == "enqueue" and edge["k"] == "ok" for edge in edges)
            ends = f"{storm.kills.kills} kills, {storm.kills.terms} stops"
            made = f"{tasks} tasks, {len(edges)} edges"
            print(f"seed {seed}: {ends}, {made}, {len(broken)} violations", flush=True)
            for line in broken[:20]:
                print(f"  {line}", flush=True)
            code = code or bool(broken) != options.noticed
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
