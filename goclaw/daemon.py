"""The composition root: builds every part, starts and stops them in order (R-1, R-3).

Owns the order of start and stop, the status. Not in here: anything a part can
decide by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import goclaw
from goclaw import _fast
from goclaw.brains import REPEATABLE, BrainRunner, NamedBrains, check_brain
from goclaw.core import limits, log
from goclaw.core.clock import SystemClock
from goclaw.core.errors import ConfigRefused, GoclawError
from goclaw.core.faults import arm, faultpoint
from goclaw.core.home import DaemonRecord, Home
from goclaw.core.metrics import LOOP_LAG_S
from goclaw.core.processes import Children
from goclaw.engine import Engine
from goclaw.engine.audit import Audit
from goclaw.engine.policies import Policies
from goclaw.gateway import Gateway, Services
from goclaw.gateway.access import BearerToken, tls_context
from goclaw.gateway.descent import Orphans, adopt_orphans
from goclaw.ops import backup, metrics
from goclaw.ops.replay import RecordedGate, replay
from goclaw.ops.timeline import timeline
from goclaw.policy import default
from goclaw.policy.redact import Redactor, Registered
from goclaw.skills.catalog import Catalog
from goclaw.skills.sandbox import Sandbox
from goclaw.skills.tools import SkillTools
from goclaw.store import Database, Secrets, database_files, fence_file, open_database
from goclaw.tools.exec import ExecTool
from goclaw.tools.gate import Gate
from goclaw.tools.http import HttpTool
from goclaw.tools.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from goclaw.core.clock import Clock
    from goclaw.core.config import Address, Config, ListenConfig
    from goclaw.core.home import HomeLock
    from goclaw.core.records import Call, CallOf, Session, Task, Tool, ToolSource

__all__ = ["Daemon", "check_config", "serve", "settle_memory"]

_log = log.logger("daemon")


class _Digests:
    """Digests of compiled modules, in the database; called on worker threads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._loop = asyncio.get_running_loop()

    def get(self, key: str) -> str | None:
        found = self._database.fetch("artefact_get", key=key)
        return found[0][0] if found else None

    def put(self, key: str, digest: str) -> None:
        async def write() -> None:
            await self._database.write(
                "artefact_put", key=key, digest=digest, now=self._clock.wall_ms()
            )

        asyncio.run_coroutine_threadsafe(write(), self._loop).result()


class Daemon:
    """One home, served. ``embedded``: for `goclaw run` without a daemon, it runs only the sessions
    of its own clients, on the Unix socket only, and ends when the last client has left.
    ``idle_exit``: ends after ``daemon.idle_exit_s`` without client and work. ``extra_tools``: go
    before all others of their name; only the drill's own children have any."""

    def __init__(
        self,
        home: Home,
        config: Config,
        *,
        embedded: bool = False,
        idle_exit: bool = False,
        extra_tools: Sequence[ToolSource] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.home, self.config = home, config
        self._extra_tools = extra_tools
        self.embedded, self._idle_exit = embedded, idle_exit
        self._environ = os.environ if environ is None else environ
        self.clock = SystemClock()
        self.boot_id = self.clock.new_id("boot")
        self.daemon_id = ""
        self.socket_path: Path | None = None
        self.ws_url: str | None = None
        self.ready = False
        self._one_backup = asyncio.Lock()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drain_ms = 0
        self._owner_left = False
        self._sids: set[int] = set()
        self._undo = contextlib.AsyncExitStack()
        self._quiet_since_ms = self.clock.mono_ms()
        self._orphans = Orphans()

    async def start(self) -> None:
        """Config was read; lock, migrations, recovery, policy, skills, listeners, lanes, ready.

        Any GoclawError stops the start with everything undone.
        """
        try:
            await self._start()
        except BaseException as error:
            if isinstance(error, GoclawError):
                _log.critical(
                    "start failed", extra={"data": {"code": error.code, "why": str(error)}}
                )
            await self._undo.aclose()
            raise

    async def _start(self) -> None:
        undo = self._undo
        adopt_orphans()
        lock: HomeLock = self.home.lock()
        undo.callback(lock.close)
        children = Children(self.home.run / "children", self.clock)
        undo.callback(children.close)
        left = await asyncio.to_thread(children.end_left)
        if left:
            _log.warning(
                "ended what children of the last daemon left", extra={"data": {"groups": left}}
            )
        self.daemon_id = self.home.daemon_id()
        self.database = open_database(
            self.home.root, synchronous=self.config.store.synchronous, snapshot=self._snapshot
        )
        undo.callback(self.database.close)
        self.secrets = Secrets(self.database, self.clock)
        self.secrets.on_change = self._clean_with
        await self.secrets.load()  # before anything is written
        self.policies = Policies(self.clock, self.database, self.home)
        catalog = Catalog(self.home.skills)
        sandbox = Sandbox(
            self.home.run / "compiled", _Digests(self.database, self.clock), self.clock, children
        )
        undo.callback(sandbox.close)
        self.catalog = catalog
        skill_tools = SkillTools(catalog, sandbox)
        undo.callback(skill_tools.close)
        self.registry = Registry(
            [*self._extra_tools, skill_tools, HttpTool(), ExecTool(children, self.home.root)]
        )
        gate = Gate(
            self.registry, self.policies.decide, closed=self._closed_files,
            names=self.policies.names, secrets=self.secrets,
        )  # fmt: skip
        named = NamedBrains(
            self.config.brains, self.registry, environ=self._environ, wall_ms=self.clock.wall_ms,
            children=children, read=self.database.read, secrets=self.secrets,
        )  # fmt: skip
        undo.push_async_callback(named.close)
        runner = BrainRunner(self.registry, gate, named=named, read=self.database.read)
        self.engine = Engine(
            self.database, self.clock, self.config, runner, daemon_boot=self.boot_id,
            policy_version=lambda: self.policies.version,
            only_sids=self._sids if self.embedded else None, call_of=_call_of(gate),
        )  # fmt: skip
        await self.engine.start()
        self._system_sid = (await self.engine.intake.system_session()).sid
        await self.policies.load(sid=self._system_sid)
        self.audit = Audit(self.database, self.clock, self.home.logs / "audit.jsonl")
        await self.audit.start()
        self.engine.hub.observe(self.audit.observe)
        undo.push_async_callback(self.audit.close)
        self.gateway = Gateway(self._services())
        self.database.on_trouble = self._disk_trouble
        undo.push_async_callback(self.gateway.close)
        self.socket_path = self.home.socket_path(self._environ)
        await self.gateway.serve_unix(self.socket_path)
        address = None if self.embedded else self.config.listen.tcp
        if address is not None:
            self.ws_url = await self._serve_ws(address, self.config.listen)
        undo.callback(self.home.remove_daemon_json)
        undo.push_async_callback(self._stop_engine)
        self.engine.open_lanes()
        self._look_at_lag(asyncio.get_running_loop().time())
        undo.callback(lambda: self._lag_timer.cancel())
        faultpoint("before_ready")
        self.ready = True
        self.home.write_daemon_json(
            DaemonRecord(
                pid=os.getpid(), boot_id=self.boot_id, daemon_id=self.daemon_id,
                version=goclaw.__version__, ws=self.ws_url, socket=str(self.socket_path),
            )
        )  # fmt: skip
        _log.info("ready", extra={"data": {"ws": self.ws_url, "native": _fast.NATIVE}})

    async def _serve_ws(self, address: Address, listen: ListenConfig) -> str:
        """The URL; of several names of this machine the first."""
        names = listen.known_as
        tls = None
        if listen.tls is not None:
            certificate, key = (self.home.root / path for path in listen.tls)
            tls = tls_context(certificate, key)
        port = await self.gateway.serve_ws(address.host, address.port, tls=tls, names=names)
        host = names[0] if names else address.host
        host = f"[{host}]" if ":" in host else host
        return f"{'ws' if tls is None else 'wss'}://{host}:{port}/ws"

    def _services(self) -> Services:
        return Services(
            engine=self.engine,
            config=self.config,
            decide=self.policies.decide,
            check_brain=functools.partial(
                check_brain, named=[brain.name for brain in self.config.brains]
            ),
            daemon_id=self.daemon_id,
            boot_id=self.boot_id,
            version=goclaw.__version__,
            commands=self._commands,
            status=self.status,
            policies=self.policies,
            audit=self.audit,
            system_sid=self._system_sid,
            secrets=self.secrets,
            skills=lambda: [skill.as_listing() for skill in self.catalog],
            replay=self._replay,
            backup=self._backup,
            timeline=lambda run_id: timeline(self.database.read, run_id),
            metrics=self._metrics,
            is_ready=lambda: self.ready,
            request_stop=self.request_stop,
            on_session=self._take_up,
            token=BearerToken(
                self.home.token(), lambda: self.home.renew_token(self.clock.random_bytes)
            ),
        )

    def _clean_with(self, seen: Sequence[tuple[str, str, str]]) -> None:
        """From now on nothing of these is written: to the database, the log, stderr (A-6). The keys
        of brains come from the environment and are as secret as others."""
        registered = [Registered(*one) for one in seen]
        for brain in self.config.brains:
            value = self._environ.get(brain.key_env, "")
            if len(value) >= limits.SECRET_CHARS_MIN:
                digest = hashlib.sha256(f"{brain.name}\0{value}".encode()).hexdigest()[:12]
                registered.append(Registered(f"key.{brain.name.lower()}"[:64], digest, value))
        cleaner = Redactor(registered)
        self.database.cleaner = cleaner
        log.clean_with(cleaner.data)

    def _take_up(self, sid: int) -> None:
        """A client came for a session: an embedded daemon runs its tasks too, old ones included."""
        if self.embedded and sid not in self._sids:
            self._sids.add(sid)
            self.engine.look_again()

    def _commands(self, _session: Session) -> list[dict[str, Any]]:
        return [
            {"name": tool.name, "description": tool.description, "input": {"hint": _hint(tool)}}
            for tool in self.registry.tools()
        ]

    def _closed_files(self) -> list[tuple[int, int]]:
        """The store's files: opening the database's in this process would drop SQLite's locks."""
        found = []
        for path in (*database_files(self.home.root), fence_file(self.home.root)):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((stat.st_dev, stat.st_ino))
        return found

    async def _replay(self, run_id: str) -> dict[str, Any]:
        named = NamedBrains(self.config.brains, self.registry)
        runner = BrainRunner(self.registry, RecordedGate(self.registry), named=named)
        found = await replay(
            self.database.read, runner, run_id, repeatable=REPEATABLE,
            cleaner=self.database.cleaner,
        )  # fmt: skip
        return found.to_json()

    async def _metrics(self, lagging: int) -> bytes:
        figures = metrics.Figures(
            await self.status(), self.database.stats(), self.engine.hub.rings, lagging
        )
        return await asyncio.to_thread(metrics.exposition, figures)

    def _look_at_lag(self, due: float) -> None:
        """How late the loop is, twice a second (R-5)."""
        loop = asyncio.get_running_loop()
        LOOP_LAG_S.add(max(0.0, loop.time() - due))
        due = loop.time() + limits.LAG_LOOK_MS / 1000
        self._lag_timer = loop.call_at(due, self._look_at_lag, due)

    def _snapshot(self) -> None:
        """The way back from a migration (S-8)."""
        made = backup.create(self.home, self.clock.wall_ms())
        _log.warning(
            "backed up before the database is migrated", extra={"data": {"backup": made.name}}
        )

    async def _backup(self) -> dict[str, Any]:
        async with self._one_backup:
            made = await asyncio.to_thread(backup.create, self.home, self.clock.wall_ms())
        return made.to_json()

    async def status(self) -> dict[str, Any]:
        """The object of `goclaw status --json`."""
        ((sessions,),) = await self.database.read("sessions_count")
        ((size,),) = await self.database.read("database_bytes")
        recovered = self.engine.recovered
        return {
            "ready": self.ready,
            "version": goclaw.__version__,
            "native": _fast.NATIVE,
            "nativeDetail": _fast.describe(),
            "pid": os.getpid(),
            "bootId": self.boot_id,
            "daemonId": self.daemon_id,
            "lanes": {"size": self.config.queue.lanes, "busy": self.engine.scheduler.busy},
            "tasks": self.engine.task_counts(),
            "recovered": {
                "count": recovered.count,
                "states": recovered.states,
                "eventId": recovered.event_id,
            },
            "sessions": sessions - 1,
            "connections": self.gateway.connections,
            "policyVersion": self.policies.version,
            "stopped": None if self.engine.halt.now is None else self.engine.halt.now.to_json(),
            "synchronous": self.config.store.synchronous,
            "databaseBytes": size,
            "fairness": await self.engine.fairness(),
        }

    def _disk_trouble(self) -> None:
        why = self.database.trouble
        if why:
            _log.error("the disk takes no writes", extra={"data": {"why": why}})
        else:
            _log.info("the disk takes writes again")
        self.gateway.announce_storage()

    def request_stop(self) -> None:
        """Stop in good order; a second call hurries (R-3). Safe from a signal handler."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def owner_left(self) -> None:
        """Whoever embedded the daemon needs it no more: it ends with its last client (U-2)."""
        self._owner_left = True

    async def serve_until_stopped(self) -> None:
        """Serve until ``request_stop``, then stop in good order; everything is closed after."""
        try:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1 if self.embedded else 1.0):
                        await self._stop.wait()
                self._orphans.bury()
                if self._should_end():
                    break
        finally:
            await self._shut_down()

    def _should_end(self) -> bool:
        connections = self.gateway.connections
        if self.embedded:
            return connections == 0 and (self.gateway.had_client or self._owner_left)
        if not self._idle_exit:
            return False
        now = self.clock.mono_ms()
        if connections or self.engine.open_tasks():
            self._quiet_since_ms = now
        return now - self._quiet_since_ms >= self.config.daemon.idle_exit_s * 1000

    async def _shut_down(self) -> None:
        self._drain_ms = 0 if self._hurry.is_set() else self.config.daemon.drain_s * 1000
        self.engine.intake.closed = True
        self.ready = False
        await self.gateway.announce_shutdown(self._drain_ms // 1000)
        await self._undo.aclose()
        _log.info("stopped")

    async def _stop_engine(self) -> None:
        await self.engine.stop(self._drain_ms, self._hurry)


def _call_of(gate: Gate) -> CallOf:
    """The gate for those who ask about a call of the session's brain."""

    async def call_of(task: Task, session: Session, tool: str, arguments: dict[str, Any]) -> Call:
        brain = session.brain.partition(":")[0]  # script:FILE
        return await gate.call(task, session, brain, tool, arguments)

    return call_of


def check_config(config: Config) -> None:
    """What a configuration cannot judge by itself, before anything is made or started.

    Raises ConfigRefused with the key.
    """
    try:
        check_brain(config.brain.default, [brain.name for brain in config.brains])
    except ConfigRefused as error:
        raise ConfigRefused(
            f"brain.default is refused: {error.message}", hint=error.hint, key="brain.default"
        ) from None


def settle_memory() -> None:
    """Called once all is built: what lives as long as the process is never looked at again, and the
    collector runs once in 50,000 allocations, since rows and events are tuples without cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _hint(tool: Tool) -> str:
    """What to type behind the command's name."""
    if tool.file_argument is not None:
        return "PATH"
    return "SECONDS" if tool.name == "sleep" else "{json}"


def serve(
    home: Home,
    config: Config,
    *,
    idle_exit: bool = False,
    extra_tools: Sequence[ToolSource] = (),
) -> int:
    """`goclaw serve`: in the foreground until a signal; 0 after a clean stop.

    Raises GoclawError with the exit code of SPEC 12 when the start fails.
    """
    import uvloop

    check_config(config)
    arm(os.environ)
    log.clean_with(Redactor().data)
    sys.stderr = log.CleanErrors(sys.stderr)
    for line in home.ensure(default.TEXT, SystemClock().random_bytes):
        print(f"goclaw: {line}", file=sys.stderr)
    system_log = log.SystemLog(home.logs / "system.jsonl", SystemClock())
    try:
        uvloop.run(_serve(Daemon(home, config, idle_exit=idle_exit, extra_tools=extra_tools)))
    finally:
        system_log.close()
    return 0


async def _serve(daemon: Daemon) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.request_stop)
    await daemon.start()
    settle_memory()
    print(f"goclaw ready on {daemon.ws_url or daemon.socket_path}", flush=True)
    await daemon.serve_until_stopped()
