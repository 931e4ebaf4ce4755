"""An engine with brains on a home, and tools of every effect class that act on a sink.

Owns the wiring that a daemon has, in small; run as a program it is the life that a fault point
ends. Not in here: any test.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.brains import BrainRunner, NamedBrains
from goclaw.core.clock import SystemClock
from goclaw.core.config import load
from goclaw.core.faults import arm
from goclaw.core.processes import Children
from goclaw.core.records import Done, Retryable, Succeeded, Tool
from goclaw.core.states import TERMINAL, EffectClass
from goclaw.engine import Engine
from goclaw.policy import default, document, egress, pdp
from goclaw.store import open_database, rows
from goclaw.tools.gate import Gate
from goclaw.tools.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from goclaw.core.decisions import Context, Decision, Subject
    from goclaw.core.records import (
        Accepted,
        Attempt,
        Call,
        Outcome,
        Runner,
        Session,
        Task,
        ToolSource,
    )
    from goclaw.policy.egress import Address

HERE = Path(__file__).parent
CLASSES = tuple(str(kind) for kind in EffectClass)
MODES = ["reset", "timeout", "stall", "refuse", "fail", "raise", "cancel", "hang"]

# The tools of these tests; `asked` and `denied` are irreversible ones with another answer.
POLICY = (
    default.TEXT
    + """
[[rule]]
id = "sink"
effect = "allow"
actions = ["tool.call"]
subjects = [{ kind = "run" }]
resources = [{ prefix = "sink/" }]

[[rule]]
id = "sink-asked"
effect = "ask"
actions = ["tool.call"]
resources = [{ exact = "sink/asked" }]
reason = "asked in this test"

[[rule]]
id = "sink-denied"
effect = "deny"
actions = ["tool.call"]
resources = [{ exact = "sink/denied" }]
reason = "denied in this test"

[[rule]]
id = "models"
effect = "allow"
actions = ["brain.call"]
resources = [{ prefix = "model" }]

[[rule]]
id = "models-here"
effect = "allow"
actions = ["net.connect"]
subjects = [{ kind = "daemon" }]
resources = [{ cidr = "127.0.0.1/32" }]

[[rule]]
id = "agents"
effect = "allow"
actions = ["brain.call"]
resources = [{ exact = "acp" }]

[[rule]]
id = "agents-programs"
effect = "allow"
actions = ["exec.run"]
subjects = [{ kind = "daemon", id = "acp" }]
"""
)


def _tool(name: str, effect_class: EffectClass) -> Tool:
    return Tool(
        name=name, source="sink", description="Does one thing to the sink.",
        input_schema={
            "type": "object",
            "required": ["n"],
            "additionalProperties": False,
            "properties": {
                "n": {"type": "integer"},
                "key": {"type": "string"},
                "mode": {"enum": MODES},
            },
        },
        effect_class=effect_class, sandbox="none", key_argument="key",
    )  # fmt: skip


class SinkTools:
    """A ToolSource. ``mode`` says how the call ends: reset (done, no answer), timeout (the same),
    stall (done, then nothing until cancelled), refuse (not done, come again), fail (the tool says
    so), raise, cancel (by itself), hang (not done, until cancelled)."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.refusals = 0
        self.probes = 0
        self.faults_left = 1 << 30
        """Calls whose line fails (reset, timeout, stall); those behind them are answered."""
        self.stalling = asyncio.Event()
        self.tells = True
        """False: a probe cannot tell."""
        self.probe_fault: Exception | None = None
        self.probe_hangs = False
        self.hanging = asyncio.Event()
        self.released = asyncio.Event()

    def tools(self) -> Sequence[Tool]:
        kinds = {kind: EffectClass(kind) for kind in CLASSES}
        kinds |= {"asked": EffectClass.IRREVERSIBLE, "denied": EffectClass.IRREVERSIBLE}
        return [_tool(name, kind) for name, kind in kinds.items()]

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        mode = arguments.get("mode")
        match mode:
            case "refuse":
                self.refusals += 1
                if self.refusals == 1:
                    raise Retryable("busy", "the sink says come again", fingerprint="busy")
            case "raise":
                raise RuntimeError("a bug in the tool")
            case "cancel":
                raise asyncio.CancelledError
            case "hang":
                self.hanging.set()
                await self.released.wait()
        faulty = mode in ("reset", "timeout", "stall") and self.faults_left > 0
        self.faults_left -= faulty
        reset = faulty and mode == "reset"
        request = {"op": "send", "tool": tool.name, "key": key, "reset": reset}
        answer = await ask_sink(self._socket, request)
        if faulty and mode == "timeout":
            raise TimeoutError("no answer in time")
        if faulty and mode == "stall":
            self.stalling.set()
            await asyncio.Event().wait()
        return Done(orjson.dumps({"n": arguments["n"], **answer}), failed=mode == "fail")

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        self.probes += 1
        if self.probe_fault is not None:
            raise self.probe_fault
        if self.probe_hangs:
            await asyncio.Event().wait()
        if not self.tells:
            return None
        answer = await ask_sink(self._socket, {"op": "probe", "key": key})
        return Done(b'{"probed":true}') if answer["happened"] else False


async def ask_sink(socket: Path, request: dict[str, Any]) -> dict[str, Any]:
    """ConnectionError when the sink gave no answer."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise ConnectionResetError("no answer")
    found: dict[str, Any] = json.loads(line)
    return found


@contextlib.contextmanager
def sink_process(socket: Path) -> Iterator[Path]:
    command = [sys.executable, str(HERE / "effects_sink.py"), str(socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield socket
        finally:
            process.kill()


class World:
    """One life of an engine on a home."""

    def __init__(
        self,
        home: Path,
        socket: Path,
        *,
        brain: str = "direct",
        runner: Runner | None = None,
        policy: str = POLICY,
        open_lanes: bool = True,
        sources: Sequence[ToolSource] = (),
        cwd: Path | None = None,
        **queue: Any,
    ) -> None:
        self.home, self.brain, self.cwd = home, brain, str(cwd or home)
        self.clock = SystemClock()
        self.tools = SinkTools(socket)
        self.policy = document.load(policy, home=str(home))
        self.registry = Registry([self.tools, *sources])
        self.gate = Gate(self.registry, self.decide, names=self._names)
        self._open_lanes = open_lanes
        config = load(home, {})
        named = NamedBrains(
            config.brains, self.registry, environ=os.environ, wall_ms=self.clock.wall_ms,
            children=Children(home / "children", self.clock), read=self._read,
        )  # fmt: skip
        self.named = named
        self._runner = runner or BrainRunner(self.registry, self.gate, named=named, read=self._read)
        quick = {"backoff_ms_min": 1, "backoff_ms_max": 5, **queue}
        self._config = dataclasses.replace(config, queue=dataclasses.replace(config.queue, **quick))

    def _names(self, version: str, subject: Subject, context: Context, place: Address) -> bool:
        now = self.clock.wall_ms()
        return egress.names(self.policy, place, subject=subject, context=context, at_ms=now)

    async def _read(self, query: str, **arguments: Any) -> list[tuple[Any, ...]]:
        return await self.database.read(query, **arguments)

    def decide(
        self,
        subject: Subject,
        action: str,
        resource: str,
        context: Context,
        *,
        version: str | None = None,
    ) -> Decision:
        return pdp.decide(
            self.policy, subject=subject, action=action, resource=resource, context=context,
            decision_id=self.clock.new_id("decision"), at_ms=self.clock.wall_ms(),
        )  # fmt: skip

    async def call_of(
        self, task: Task, session: Session, tool: str, arguments: dict[str, Any]
    ) -> Call:
        return await self.gate.call(task, session, session.brain, tool, arguments)

    async def __aenter__(self) -> World:
        self.database = open_database(self.home)
        self.engine = Engine(
            self.database, self.clock, self._config, self._runner, daemon_boot="test",
            policy_version=lambda: self.policy.version, call_of=self.call_of,
        )  # fmt: skip
        self.changed = asyncio.Condition()
        self.engine.hub.observe(self._observe)
        await self.engine.start()
        if self._open_lanes:
            self.engine.open_lanes()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop(0, asyncio.Event())
        await self.named.close()
        self.database.close()

    def _observe(self, _events: list[Any]) -> None:
        async def tell() -> None:
            async with self.changed:
                self.changed.notify_all()

        self._telling = asyncio.ensure_future(tell())

    async def session(self, *, interactive: bool = True) -> Session:
        return await self.engine.intake.create_session(
            cwd=self.cwd, roots=[self.cwd], brain=self.brain, interactive=interactive,
            key="session",
        )  # fmt: skip

    async def prompt(self, text: str, *, key: str | None = "k") -> Accepted:
        blocks = [{"type": "text", "text": text}]
        return await self.engine.intake.submit_prompt(
            await self.session(), blocks, key=key, client=None, origin="unix"
        )

    async def tool(self, name: str, arguments: dict[str, Any], *, key: str = "k") -> Accepted:
        return await self.engine.intake.submit_tool(
            await self.session(), name, arguments, key=key, client=None, origin="unix"
        )

    async def until(self, task_id: str, *states: str) -> dict[str, Any]:
        """The task, once it is in one of the states (default: one that does not move by itself)."""
        wanted = states or (*(str(state) for state in TERMINAL), "SUSPENDED")
        async with asyncio.timeout(20), self.changed:
            while True:
                task = await self.engine.task(task_id)
                if task["state"] in wanted:
                    return task
                await self.changed.wait()

    async def effects(self, tid: int) -> list[dict[str, Any]]:
        return rows("effects_of_task", await self.database.read("effects_of_task", tid=tid))

    async def events(self) -> list[tuple[str, dict[str, Any]]]:
        """(type, payload) of every event of the session, in order."""
        session = await self.session()
        found = await self.database.read("events_after", sid=session.sid, cursor=0, limit=10_000)
        return [(row[2], orjson.loads(row[8])) for row in found]

    async def updates(self, kind: str) -> list[dict[str, Any]]:
        """ACP updates of one kind."""
        return [
            payload
            for type_, payload in await self.events()
            if type_ == "update" and payload["sessionUpdate"] == kind
        ]


# -- the life that ends by a fault ---------------------------------------------------------------


def first_life(home: Path, socket: Path, job: dict[str, Any], faults: str) -> int:
    """Run ``job`` in a process of its own until it is done or killed; its exit status."""
    command = [sys.executable, str(HERE / "effects_support.py"), str(home), str(socket)]
    environ = {**os.environ, "GOCLAW_FAULTS": faults, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [*command, json.dumps(job)], env=environ, capture_output=True, check=False, timeout=30
    )
    assert done.returncode in (0, -9), done.stderr.decode()
    return done.returncode


async def submit(world: World, job: dict[str, Any]) -> Accepted:
    """The same submission in every life: its key makes it one."""
    if "prompt" in job:
        return await world.prompt(job["prompt"])
    return await world.tool(job["tool"], job["arguments"])


class Waits:
    """A Runner that waits for a signal between two calls, and answers with what it was."""

    world: World

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        await self._call(attempt, 1)
        payload = await attempt.wait_signal("door")
        await self._call(attempt, 2)
        return Succeeded(result=payload)

    async def _call(self, attempt: Attempt, n: int) -> None:
        task, session = attempt.task, attempt.session
        await attempt.perform([await self.world.gate.call(task, session, "x", "keyed", {"n": n})])


def runner_of(job: dict[str, Any]) -> Waits | None:
    """The job's own runner; None: its brain's."""
    return Waits() if "signal" in job else None


async def _live(home: Path, socket: Path, job: dict[str, Any]) -> None:
    runner = runner_of(job)
    async with World(
        home, socket, brain=job.get("brain", "direct"), runner=runner, open_lanes=False
    ) as world:
        if runner is not None:
            runner.world = world
        world.engine.open_lanes()
        accepted = await submit(world, job)
        if runner is not None:
            await world.until(accepted.task_id)
            await world.engine.signal(accepted.run_id, "door", job["signal"].encode(), key="s")
        ends = runner is not None or "ends" in job
        await world.until(accepted.task_id, *(TERMINAL if ends else ()))


@contextlib.asynccontextmanager
async def next_life(home: Path, socket: Path, job: dict[str, Any]) -> AsyncIterator[World]:
    """The life after it, in this process."""
    runner = runner_of(job)
    async with World(
        home, socket, brain=job.get("brain", "direct"), runner=runner, open_lanes=False
    ) as world:
        if runner is not None:
            runner.world = world
        world.engine.open_lanes()
        yield world


if __name__ == "__main__":
    arm(os.environ)
    asyncio.run(_live(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
