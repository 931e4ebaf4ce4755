"""`goclaw drill crash`: real daemons on homes of their own, killed at every commit of a run (E-10).

Owns the daemons, the client that drives them and what people are shown. Not in here: the run and
the judgement (``ops/drill.py``), what a daemon of a drill is (``drill_child.py``).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from goclaw.brains.script import load_script, parse_script
from goclaw.cli import show
from goclaw.cli.drill_child import HOME, SINK
from goclaw.cli.place import home_of
from goclaw.client.blocking import SyncClient
from goclaw.client.reach import dial, environment
from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.core.errors import GoclawError, UsageError
from goclaw.core.home import Home
from goclaw.ops import drill
from goclaw.ops.drill import Boundary, Life, Report
from goclaw.ops.sink import Sink
from goclaw.skills.catalog import Catalog

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable, Sequence

    from goclaw.client.records import Approval, Event

__all__ = ["CHILD", "Plan", "conduct", "crash"]

T = TypeVar("T")

CHILD: Final = (sys.executable, "-P", "-m", "goclaw.cli.drill_child")
"""What starts a daemon; the folder follows."""

_COUNTED: Final = ",".join(f"{point}:delay=0" for point in drill.POINTS)
_STUCK: Final = frozenset({"effect_unknown", "nondeterminism"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: a script, the directory that it works in, and what it may call."""

    script: bytes
    cwd: str
    policy: str = drill.policy_text()
    skill: str = ""
    """A call of this tool that does not complete makes the drill pointless."""
    installed: Path | None = None
    """The folder of the skill, where it is none of the built-in ones."""


def crash(options: argparse.Namespace) -> int:
    """0 when the promise held."""
    plan = _plan(options)
    folder = Path(tempfile.mkdtemp(prefix="goclaw-drill-"))
    try:
        report = conduct(
            plan, folder, kills=options.kills, twice=options.twice, on_life=_progress(options)
        )
    except BaseException:
        shutil.rmtree(folder)
        raise
    if report.held:
        shutil.rmtree(folder)
    if options.json:
        show.json_line(report.to_json())
    else:
        _print(report, folder)
    return 0 if report.held else 1


def _plan(options: argparse.Namespace) -> Plan:
    if options.script is not None:
        return Plan(_script(Path(options.script)), os.getcwd())
    if options.skill is None:
        return Plan(drill.script(drill.STEPS), os.getcwd())
    name, file = options.skill
    skill = Catalog(home_of(options).skills).get(name)
    if skill is None:
        raise UsageError(f"There is no skill {name}.", hint="See `goclaw skill list`.")
    argument = skill.manifest.file_argument
    if argument is None:
        raise UsageError(f"{name} takes no file.", hint="Write a script that calls it: --script.")
    path = os.path.abspath(file)
    return Plan(
        drill.script(drill.skill_steps(name, argument, path)),
        os.path.dirname(path),
        drill.policy_text(f"wasm/{name}"),
        skill=name,
        installed=skill.folder if skill.source == "installed" else None,
    )


def _script(path: Path) -> bytes:
    """A person's script; ConfigRefused when it is none, UsageError when it has no such run."""
    load_script(path)
    data = path.read_bytes()
    entries = parse_script(data, str(path))
    if not any(entry.match.search(drill.PROMPT) for entry in entries):
        raise UsageError(
            f"No entry of {path} matches the prompt {drill.PROMPT!r}.",
            hint=f'The run is the entry that does: write {{"match": "^{drill.PROMPT}$", ...}}.',
        )
    return data


def conduct(
    plan: Plan,
    folder: Path,
    *,
    child: Sequence[str] = CHILD,
    kills: int | None = None,
    twice: bool = False,
    on_life: Callable[[int, int], None] = lambda done, all_: None,
) -> Report:
    """Run the plan once in peace to count its commits, then once for each side of each commit.

    ``kills``: at most so many lives, spread over the run. ``twice``: then for each pair of a commit
    of the run and one of the daemon that takes it up, which is killed, too. ``child``: what starts
    a daemon. ``on_life`` is told how many are done. What failed stays in ``folder``, one folder a
    life.
    """
    clock = SystemClock()
    begun_ms = clock.mono_ms()
    peace = _Trial(plan, folder / "0", child, [_COUNTED])
    reference = peace.carry_out()
    for name, status, output in reference.tools:
        if name == plan.skill and status != "completed":
            raise UsageError(
                f"{name} is {status} on that file: {output}.", hint="Drill on a file that it takes."
            )
    once = [(one,) for one in _spread(_boundaries(peace.hits), kills)]
    report = Report(reference, once)
    if not report.violations:
        shutil.rmtree(folder / "0")
        following = _killed_at(report, plan, folder, child, once, on_life)
        if twice:
            pairs = _spread([(one, *rest) for one, rest in following], kills)
            report.boundaries += len(pairs)
            _killed_at(report, plan, folder, child, pairs, on_life)
    report.duration_ms = clock.mono_ms() - begun_ms
    return report


def _killed_at(
    report: Report,
    plan: Plan,
    folder: Path,
    child: Sequence[str],
    kills: Sequence[tuple[Boundary, ...]],
    on_life: Callable[[int, int], None],
) -> list[tuple[Boundary, tuple[Boundary]]]:
    """One life for each entry, whose daemons are killed one after the other; each first kill with
    each boundary of the daemon that came after the last."""
    following: list[tuple[Boundary, tuple[Boundary]]] = []
    with ThreadPoolExecutor(min(limits.DRILL_DAEMONS_MAX, os.cpu_count() or 1)) as pool:
        trials = [_Trial(plan, folder / _folder(one), child, _faults(one)) for one in kills]
        lives = [pool.submit(trial.carry_out) for trial in trials]
        try:
            for done, (ends, trial, life) in enumerate(zip(kills, trials, lives, strict=True), 1):
                if report.add(" then ".join(map(str, ends)), life.result(), len(ends)):
                    shutil.rmtree(trial.folder)
                following += [(ends[0], (one,)) for one in _boundaries(trial.hits)]
                on_life(done, len(kills))
        finally:
            pool.shutdown(cancel_futures=True)
    return following


def _folder(ends: Sequence[Boundary]) -> str:
    return "-".join(f"{one.commit}-{drill.POINTS[one.point]}" for one in ends)


def _faults(ends: Sequence[Boundary]) -> list[str]:
    """Of each daemon in turn; the last one counts its own commits."""
    return [*(f"{one.point}:kill@{one.commit}" for one in ends), _COUNTED]


def _boundaries(hits: dict[str, int]) -> list[Boundary]:
    return sorted(
        Boundary(number, point)
        for point in drill.POINTS
        for number in range(1, hits.get(point, 0) + 1)
    )


def _spread(lives: list[T], most: int | None) -> list[T]:
    """At most so many, evenly from the first to the last."""
    if most is None or most >= len(lives):
        return lives
    step = len(lives) / most
    return [lives[int((index + 0.5) * step)] for index in range(most)]


class _Stopped(Exception):
    """The drill cannot go on with this life."""


class _Trial:
    """One run on a home of its own, with a client that outlives the daemons."""

    def __init__(self, plan: Plan, folder: Path, child: Sequence[str], faults: list[str]) -> None:
        self._plan, self.folder, self._child = plan, folder, child
        self._faults = iter(faults)
        self._kills_max = len(faults) - 1
        self._home = Home(folder / HOME)
        self._process: subprocess.Popen[str] | None = None
        self._life = Life()
        self._late = threading.Event()
        self.hits: dict[str, int] = {}

    def carry_out(self) -> Life:
        """From an empty folder to the end of the run; nothing is left running."""
        self._prepare()
        watch = threading.Timer(limits.DRILL_LIFE_MS_MAX / 1000, self._give_up)
        watch.start()
        try:
            self._start()
            with SyncClient(self._home, reach=self._reach) as client:
                session = self._drive(client)
            while not self._stop():  # the next daemon has to know as much
                self._start()
                with SyncClient(self._home, reach=self._reach) as client:
                    self._read(client, session)
        except (_Stopped, GoclawError, OSError, ValueError) as error:
            self._life.troubles.append(str(error))
        finally:
            watch.cancel()
            self._end()
        self._life.dispatches = Sink(self.folder / SINK).dispatches()
        return self._life

    def _prepare(self) -> None:
        self.folder.mkdir()
        (self.folder / "script.json").write_bytes(self._plan.script)
        self._home.root.mkdir(mode=0o700)
        idle_exit_s = limits.DRILL_LIFE_MS_MAX // 1000
        self._home.config.write_text(
            f'[listen]\naddress = "none"\n[daemon]\nidle_exit_s = {idle_exit_s}\n'
        )
        if self._plan.installed is not None:
            self._home.skills.mkdir(mode=0o700)
            shutil.copytree(self._plan.installed, self._home.skills / self._plan.skill)
        self._home.ensure(self._plan.policy, SystemClock().random_bytes)

    # -- daemons --------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start a daemon; returns when it is ready or gone."""
        variables = {k: v for k, v in environment().items() if not k.startswith("GOCLAW_")}
        if "GOCLAW_PURE" in os.environ:
            variables["GOCLAW_PURE"] = os.environ["GOCLAW_PURE"]
        faults = next(self._faults)
        with open(self.folder / "daemon.log", "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*self._child, str(self.folder)], env=variables | {"GOCLAW_FAULTS": faults},
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                text=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()
        if self._late.is_set():
            self._process.kill()

    def _reach(self) -> socket.socket | None:
        process = self._process
        assert process is not None
        if process.poll() is not None:
            self._end()
            self._count(process.returncode)
            self._start()
        return dial(self._home)

    def _count(self, code: int) -> None:
        """Only armed daemons may be dead, and only by their kill."""
        if self._late.is_set():
            raise _Stopped(f"the run did not end within {limits.DRILL_LIFE_MS_MAX // 1000} s")
        if code != -signal.SIGKILL or self._life.kills == self._kills_max:
            raise _Stopped(f"a daemon that nobody killed ended with exit code {code}")
        self._life.kills += 1

    def _give_up(self) -> None:
        self._late.set()
        if self._process is not None:
            self._process.kill()

    def _stop(self) -> bool:
        """Stop the daemon in good order; False when its kill struck meanwhile: a stop commits."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        said = process.stdout.read()
        code = process.wait()
        if code == 0:
            self.hits = json.loads(said.splitlines()[-1])
            return True
        self._end()
        self._count(code)
        return False

    def _end(self) -> None:
        """Nothing is left of the daemon."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    # -- the client -----------------------------------------------------------------------------

    def _drive(self, client: SyncClient) -> str:
        """The session, when its run has ended."""
        client.on_question = self._answer
        brain = f"script:{self.folder / 'script.json'}"
        session = client.new_session(self._plan.cwd, key="session", brain=brain).session_id
        prompted = client.submit(drill.PROMPT, session=session, key="prompt")
        result = client.wait(prompted, self._shown)
        life = self._life
        life.run_id, life.text = result.run_id, result.text
        life.tools = [(tool.name, tool.status, tool.output) for tool in result.tools]
        self._read(client, session)
        return session

    def _read(self, client: SyncClient, session: str) -> None:
        life = self._life
        life.log = {event.event_id: event.to_json() for event in client.history(session)}
        life.runs = {task.run_id: task.state for task in client.tasks()}

    def _shown(self, event: Event) -> None:
        self._life.shown[event.event_id] = event.to_json()
        if event.type == "task.suspended" and event.body.get("reason") in _STUCK:
            raise _Stopped(f"the run waits: {event.body['reason']}")

    def _answer(self, _approval: Approval) -> str:
        self._life.questions += 1
        return "allow"


# -- what people see -------------------------------------------------------------------------------


def _progress(options: argparse.Namespace) -> Callable[[int, int], None]:
    def tell(done: int, all_: int) -> None:
        print(f"\rgoclaw: kill {done} of {all_}", end="", file=sys.stderr, flush=True)
        if done == all_:
            print(file=sys.stderr)

    return tell if sys.stderr.isatty() and not options.json else lambda done, all_: None


def _print(report: Report, folder: Path) -> None:
    found = report.to_json()
    show.pairs(
        {
            "commit boundaries": found["boundaries"],
            "kills (SIGKILL)": found["kills"],
            "lives that needed fewer commits": found["spared"],
            "tasks lost": found["tasksLost"],
            "events lost": found["eventsLost"],
            "unknown, and said so": found["unknownTold"],
            "questions asked": found["questions"],
            "time": f"{found['durationMs'] / 1000:.1f} s",
        }
    )
    print()
    show.table(
        ("effect", "tool", "dispatched", "happened", "unknown", "allowed"),
        (
            (one["ordinal"], one["tool"], _range(one["dispatched"]), _range(one["happened"]),
             one["unknown"], one["allowed"])
            for one in found["effects"]
        ),
    )  # fmt: skip
    print()
    for one in found["violations"]:
        print(show.one_line(f"{one['where']}: {one['what']}"))
    if report.held:
        print("The promise held: nothing was lost, and nothing happened more often than allowed.")
    elif report.kills:
        print(f"The promise did not hold. What the daemons left is in {folder}.")
    else:
        print(f"Nothing was killed, so nothing is proved. See {folder}.")


def _range(found: dict[str, int]) -> str:
    low, high = found["min"], found["max"]
    return str(low) if low == high else f"{low} to {high}"
