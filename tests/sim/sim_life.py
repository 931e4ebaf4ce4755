"""One life of a daemon's inside, and its death: the writer between two hands, a loop that can die.

Owns how a seed crashes, delays and fails what the engine stands on. A crash keeps what the database
file held at that instant and nothing else: the file is copied, the rest of the life is a ghost that
changes nothing anybody looks at. Not in here: what the outside world does meanwhile (sim_story.py),
what must hold (sim_laws.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

from engine_support import Stuck, VirtualLoop
from sim_broken import Broken, Part

from goclaw import _fast
from goclaw._pure import writer as twin
from goclaw.core import faults, limits
from goclaw.engine import runtime
from goclaw.store import database_files

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from engine_support import VirtualClock
    from sim_laws import Laws

    from goclaw.store import Database


class Remembered:
    """What the twin works out of its programs at every start, kept for the next life: the texts and
    the schema are the same. It would be half of a story's time."""

    def __init__(self) -> None:
        self._described: dict[str, Any] = {}
        self._written: dict[Any, Any] = {}
        self._plain = twin.Writer._describe, twin._written

    def describe(self, writer: Any, sql: str) -> Any:
        if sql not in self._described:
            self._described[sql] = self._plain[0](writer, sql)
        return self._described[sql]

    def written(self, parameters: Any, steps: list[Any], returns: Any) -> Any:
        about = parameters, returns, tuple((step.mode, step.sql, step.skip) for step in steps)
        if about not in self._written:
            self._written[about] = self._plain[1](parameters, steps, returns)
        return self._written[about]


REMEMBERED = Remembered()


SHORTER = {"BREAKER_PROBE_MS": 30, "BREAKER_PROBE_MS_MAX": 120, "GATE_WAIT_MS": 20}
"""A story lasts a second: what would take longer by itself."""


class Killed(SystemExit):
    """kill -9: nothing after it is seen by anybody. The event loop lets it through."""


class Doom:
    """Where a life ends: the ``count``-th time that ``where`` is passed.

    Places: ``turn`` (of the loop), ``before_flush``, ``after_flush`` (on disk, nobody was told) and
    the names of goclaw's fault points.
    """

    def __init__(self, where: str, count: int) -> None:
        self.where, self.left = where, count

    def strikes(self, where: str) -> bool:
        """True when this is the time."""
        if where != self.where:
            return False
        self.left -= 1
        return self.left == 0


class Spy:
    """The writer, with somebody at the door who reads every operation and its answer."""

    def __init__(self, real: Any, programs: list[Any], life: Life) -> None:
        self._real, self._programs, self._life = real, programs, life
        self._asked: dict[int, tuple[Any, ...]] = {}
        self._done: list[Any] = []
        self.wake_fd, self.bind = real.wake_fd, real.bind

    @property
    def waiting(self) -> int:
        """Operations that are not on disk."""
        return len(self._asked)

    def submit(self, parts: tuple[Any, ...], live: bool = False) -> int:
        ticket: int = self._real.submit(parts, live)
        if ticket:
            self._asked[ticket] = parts
        return ticket

    def step(self) -> bool:
        self._life.passed("before_flush")
        ran: bool = self._real.step()
        self._read()
        self._life.passed("after_flush")
        return ran

    def _read(self) -> None:
        done = self._real.drain()
        for ticket, code, _message, returns, events in done:
            self._life.answered(self._named(self._asked.pop(ticket)), code, returns, events)
        self._done += done

    def _named(self, parts: tuple[Any, ...]) -> list[Part]:
        return [
            Part(program.name, dict(zip(program.parameters, values, strict=True)))
            for program, values in ((self._programs[index], values) for index, values in parts)
        ]

    def drain(self) -> list[Any]:
        done, self._done = self._done, []
        return done

    def stats(self) -> Any:
        return self._real.stats()

    def fail_next_commit(self, after: bool) -> None:
        self._real.fail_next_commit(after)

    def close(self) -> None:
        self._real.close()
        self._read()


class Loop(VirtualLoop):
    """The virtual loop of a life: every turn of it may be the last."""

    def __init__(self, clock: VirtualClock, life: Life, *, hurry: float) -> None:
        self._life = life
        super().__init__(clock, hurry=hurry)

    def work_outside(self, *, idle: bool) -> bool:
        self._life.passed("turn")
        return super().work_outside(idle=idle)


class Life:
    """What a seed has in store for one life of the daemon."""

    def __init__(
        self,
        folder: Path,
        clock: VirtualClock,
        laws: Laws,
        chance: random.Random,
        trace: list[tuple[Any, ...]],
        *,
        build: str,
        doom: Doom | None,
        failing: float,
        slow: float,
    ) -> None:
        self.folder, self.clock, self.laws, self.chance = folder, clock, laws, chance
        self.trace, self.build, self.doom = trace, build, doom
        self.failing, self.slow = failing, slow
        self.dead = False
        self.heir = folder.with_name(f"{folder.name}+")
        """Where the file lies that the crash left."""
        self.database: Database | None = None
        self._spy: Spy | None = None
        self._flushing = False
        self.chances = clock.chance.getstate()
        self.died_at = 0
        """What time and chance were: a ghost goes on with both."""

    # -- the disk --------------------------------------------------------------------------------

    def open_writer(self, path: str, programs: list[Any], *rest: Any, **options: Any) -> Spy:
        """In place of goclaw._fast's: the build that is asked for, behind a spy."""
        kind = "fast" if self.build == "native" else "pure"
        module = importlib.import_module(f"goclaw._{kind}.writer")
        module.attach()
        self._spy = Spy(module.Writer(path, programs, *rest, **options), programs, self)
        return self._spy

    def turn(self) -> bool:
        """For ``VirtualLoop.outside``: the writer's thread takes what waits, some time later."""
        assert self._spy is not None
        if self._flushing or not self._spy.waiting:
            return False
        wait_ms = self._flush_ms()
        if wait_ms:
            self._flushing = True
            asyncio.get_running_loop().call_later(wait_ms / 1000, self._flushed)
        else:
            self._flush()
        return True

    def _flush_ms(self) -> int:
        if self.dead or self.chance.random() >= self.slow:
            return 0
        return self.chance.choice((1, 1, 2, 5, 20, 100, 700))

    def _flushed(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        assert self.database is not None
        if not self.dead and self.failing and self.chance.random() < self.failing:
            after = self.chance.random() < 0.5
            self.note("the disk fails", "after" if after else "before", "COMMIT")
            self.database.fail_next_commit(after=after)
        self.database.step()

    def answered(
        self, parts: list[Part], code: str | None, returns: list[Any], events: list[Any]
    ) -> None:
        """An operation has an outcome; in commit order."""
        if self.dead:
            return
        assert self.database is not None
        self.trace.append((self.clock.mono_ms(), "op", parts, code, returns, events))
        mono = self.clock.mono_ms()
        if code is None:
            named = [
                self.database.returns(part.program, values)
                for part, values in zip(parts, returns, strict=True)
            ]
            self.laws.committed(parts, named, events, mono)
        else:
            self.laws.refused(parts, code, mono)

    # -- the end ---------------------------------------------------------------------------------

    def passed(self, where: str) -> None:
        """A place where this life may end."""
        if not self.dead and self.doom is not None and self.doom.strikes(where):
            self.kill(where)

    def kill(self, why: str) -> None:
        """What the file holds now is all that is left."""
        self.note("KILLED at", why)
        self.heir.mkdir()
        for file in database_files(self.folder)[:2]:  # not the shared memory: it is memory
            with contextlib.suppress(FileNotFoundError):
                (self.heir / file.name).write_bytes(file.read_bytes())
        self.dead = True
        self.chances, self.died_at = self.clock.chance.getstate(), self.clock.ns
        raise Killed(0)

    def quiet(self) -> None:
        """From here on nothing goes wrong."""
        self.doom, self.failing, self.slow = None, 0.0, 0.0

    def note(self, *words: Any) -> None:
        """Into the trace; ghosts write nothing."""
        if not self.dead:
            self.trace.append((self.clock.mono_ms(), *words))


class _Lines(logging.Handler):
    """goclaw's own log, as part of the trace."""

    def __init__(self, life: Life) -> None:
        super().__init__(logging.INFO)
        self._life = life

    def emit(self, record: logging.LogRecord) -> None:
        self._life.note("log:", record.getMessage(), getattr(record, "data", ""))


@contextlib.contextmanager
def installed(life: Life, kernel_boot: str) -> Iterator[None]:
    """The world as this life finds it: its writer, its fault points, its machine, its log."""
    saved = _fast.open_writer, runtime.boot_id, faults._armed, faults._strike  # type: ignore[attr-defined]
    plain = twin.Writer._describe, twin._written
    twin.Writer._describe = lambda *given: REMEMBERED.describe(*given)  # type: ignore[method-assign]
    twin._written = REMEMBERED.written
    log, lines = logging.getLogger("goclaw"), _Lines(life)
    quiet = log.propagate, log.level
    waits = {name: getattr(limits, name) for name in SHORTER}
    for name, shorter in SHORTER.items():
        setattr(limits, name, shorter)
    _fast.open_writer = life.open_writer
    runtime.boot_id = lambda: kernel_boot  # type: ignore[attr-defined]
    faults._armed, faults._strike = {}, life.passed  # type: ignore[assignment]
    log.addHandler(lines)
    log.propagate = False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _fast.open_writer, runtime.boot_id, faults._armed, faults._strike = saved  # type: ignore[attr-defined]
        twin.Writer._describe, twin._written = plain  # type: ignore[method-assign]
        for name, wait in waits.items():
            setattr(limits, name, wait)
        log.removeHandler(lines)
        log.propagate = quiet[0]
        log.setLevel(quiet[1])


def run(life: Life, main: Callable[[], Any], *, hurry: float) -> None:
    """Run ``main`` to its end or to the kill. Broken, also for an error that nobody caught."""
    uncaught: list[dict[str, Any]] = []
    loop = Loop(life.clock, life, hurry=hurry)
    loop.set_exception_handler(
        lambda _loop, context: None if life.dead else uncaught.append(context)
    )
    try:
        loop.run_until_complete(main())
    except Killed:
        pass
    finally:
        life.dead = life.dead or sys.exc_info()[0] is not None
        _bury(loop)
    if uncaught:
        raise Broken(f"I-8: nobody caught {uncaught[0].get('exception')!r}: {uncaught[0]}")


def _bury(loop: Loop) -> None:
    """Let every task end; a ghost may not be able to."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        with contextlib.suppress(Stuck, Broken, Killed):
            loop.run_until_complete(asyncio.wait(left))
    loop.close()
