"""Runs WASM skills: a fresh instance per call, every resource bounded, each bound with its name.

Owns the engines, their loaded modules and the ticker thread. Not in here: what a module may ask
of the host (``wasi.py``), compilation (``compile.py``), the decision whether it may run (policy).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import threading
from typing import TYPE_CHECKING, Final, TypeAlias

import orjson

from goclaw.core import limits as house
from goclaw.core.errors import (
    InternalError,
    InvalidParams,
    SkillCancelled,
    SkillFailed,
    SkillFault,
    SkillFuelExhausted,
    SkillMemoryExceeded,
    SkillOutputInvalid,
    SkillRefused,
    SkillStackExceeded,
    SkillTableExceeded,
    SkillTimedOut,
    SkillTrapped,
    TooLarge,
)
from goclaw.skills import cranelift, wasi
from goclaw.skills.compile import Digests, ModuleCache

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import wasmtime

    from goclaw.core.clock import Clock
    from goclaw.core.processes import Children
    from goclaw.skills.catalog import Skill
    from goclaw.skills.manifest import Limits

__all__ = ["CallOutcome", "Sandbox"]

_Key: TypeAlias = tuple[str, str]  # hash of the module, ABI
_PAGE_BYTES: Final = 64 * house.KIB
_LINGER_TICKS: Final = 100  # the ticker outlives the last call, so that a burst wakes it once


@dataclasses.dataclass(frozen=True, slots=True)
class CallOutcome:
    """A call that ended well. ``output`` is one JSON text exactly as the skill wrote it: its
    numbers may exceed any machine type, so splice it, or parse it with that in mind.
    """

    output: bytes
    log: bytes
    fuel_used: int
    wall_ms: int
    memory_bytes: int
    host_calls: int


class Sandbox:
    """Calls skills of ABI ``wasi-command/1``.

    Every method blocks and may be called on any thread, several at once; not on the event loop.
    wasmtime is loaded by the first call, not before: it costs 10 MiB.
    """

    def __init__(self, cache_dir: Path, digests: Digests, clock: Clock, children: Children) -> None:
        self._cache = ModuleCache(cache_dir, digests, children)
        self._clock = clock
        self._ticker = _Ticker(clock)
        self._lock = threading.Lock()
        self._idle: list[_Engine] = []
        self._is_closed = False

    def prepare(self, skill: Skill, cancel: threading.Event | None = None) -> None:
        """Compiles and loads the skill, so that its next call is warm. SkillRefused when its
        module is not acceptable.
        """
        self._give_back(self._engine_with(skill, cancel))

    def call(
        self,
        skill: Skill,
        request: bytes,
        stdin_fd: int | None = None,
        limits: Limits | None = None,
        cancel: threading.Event | None = None,
        given: Collection[str] = (),
    ) -> CallOutcome:
        """Runs the skill once on ``request`` (JSON) and returns its result.

        ``given``: which of ``abi.HOST_CALLS`` it holds; the others answer that it does not.

        ``stdin_fd`` is read from where it stands to its end and stays the caller's to close;
        without it the input is empty. ``limits`` are the manifest's unless given. Raises
        SkillFailed when the skill says that it failed, SkillCancelled, a SkillFault for each
        broken bound, SkillRefused when it cannot run at all.
        """
        if b"\0" in request:
            raise InvalidParams("A request holds no NUL.")
        if len(request) > house.PAYLOAD_BYTES_MAX:
            raise TooLarge(
                f"The request is larger than {house.PAYLOAD_BYTES_MAX} bytes.",
                limit=house.PAYLOAD_BYTES_MAX,
                unit="bytes",
            )
        bounds = limits if limits is not None else skill.manifest.limits
        engine = self._engine_with(skill, cancel)
        try:
            return self._run(engine, skill, request, stdin_fd, bounds, cancel, given)
        finally:
            self._give_back(engine)

    def close(self) -> None:
        """Ends the ticker and drops the engines. Calls that still run are interrupted; twice is
        fine.
        """
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for engine in idle:
            engine.close()
        self._ticker.close()

    # -- engines -------------------------------------------------------------------------------

    def _engine_with(self, skill: Skill, cancel: threading.Event | None) -> _Engine:
        """An engine of the caller's own with the skill loaded, a warm one if there is."""
        key = (skill.manifest.sha256, skill.manifest.abi)
        engine = self._take(key)
        try:
            if key not in engine.modules:
                self._load(engine, key, skill, cancel)
            engine.modules.move_to_end(key)
        except BaseException:
            self._give_back(engine)
            raise
        return engine

    def _load(
        self, engine: _Engine, key: _Key, skill: Skill, cancel: threading.Event | None
    ) -> None:
        import wasmtime

        code = self._cache.artefact(*key, skill.read_module, cancel)
        try:
            engine.load(key, code, skill.name)
        except wasmtime.WasmtimeError:
            # ours by its digest, but of another machine: the home was moved
            code = self._cache.artefact(*key, skill.read_module, cancel, renew=True)
            engine.load(key, code, skill.name)

    def _take(self, key: _Key) -> _Engine:
        with self._lock:
            if self._is_closed:
                raise InternalError("The sandbox is closed.")
            for index, engine in enumerate(self._idle):
                if key in engine.modules:
                    return self._idle.pop(index)
            if self._idle:
                return self._idle.pop()
        return _Engine()

    def _give_back(self, engine: _Engine) -> None:
        with self._lock:
            if not self._is_closed and len(self._idle) < house.WASM_ENGINES_IDLE_MAX:
                self._idle.append(engine)
                return
        engine.close()

    # -- one call ------------------------------------------------------------------------------

    def _run(
        self,
        engine: _Engine,
        skill: Skill,
        request: bytes,
        stdin_fd: int | None,
        bounds: Limits,
        cancel: threading.Event | None,
        given: Collection[str],
    ) -> CallOutcome:
        import wasmtime

        started_ms = self._clock.mono_ms()
        with wasmtime.Store(engine.engine) as store:
            host = wasi.Host(
                argv=(skill.name.encode(), request),
                stdin_fd=stdin_fd,
                limits=bounds,
                clock=self._clock,
                # one tick is the deadline: the next loop or call traps. A nearer deadline would
                # not do, running code reads it anew only when the one it knows is over
                interrupt=engine.engine.increment_epoch,
                given=given,
            )
            store.set_limits(bounds.memory_bytes, bounds.table_elements, 1, 1, 1)
            store.set_fuel(bounds.fuel)
            store.set_epoch_deadline(1)
            watch = _Watch(engine.engine, host, started_ms + bounds.wall_ms, cancel)
            self._ticker.add(watch)
            try:
                trap = engine.start(skill, host, store)
            finally:
                self._ticker.remove(watch)
                memory_bytes = host.memory_bytes()
                host.detach()
            _judge(skill, host, watch, bounds, trap, memory_bytes)
            return CallOutcome(
                output=bytes(host.output),
                log=bytes(host.log),
                fuel_used=bounds.fuel - store.get_fuel(),
                wall_ms=self._clock.mono_ms() - started_ms,
                memory_bytes=memory_bytes,
                host_calls=host.calls_count,
            )


class _Engine:
    """One engine, used by one call at a time: its epoch interrupts that call and no other.

    An engine costs 12 us and a few KiB, a loaded module 40 us (measured 2025-11 with wasmtime 50).
    """

    def __init__(self) -> None:
        import wasmtime

        self.engine = cranelift.new_engine()
        self.modules: collections.OrderedDict[_Key, wasmtime.InstancePre] = (
            collections.OrderedDict()
        )
        self._host: wasi.Host | None = None
        self._linker = wasmtime.Linker(self.engine)
        wasi.link(self._linker, self._current)

    def load(self, key: _Key, code: bytes, name: str) -> None:
        """Makes machine code callable; the module that rested longest leaves when there are many.

        Raises WasmtimeError when the code is not for this machine, SkillRefused when the module
        is no command.
        """
        import wasmtime

        module = wasmtime.Module.deserialize(self.engine, code)
        _check_command(module, name)
        try:
            self.modules[key] = self._linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            raise SkillRefused(f"{name}: the module does not link: {error}.") from None
        while len(self.modules) > house.WASM_MODULES_LOADED_MAX:
            self.modules.popitem(last=False)

    def start(self, skill: Skill, host: wasi.Host, store: wasmtime.Store) -> Exception | None:
        """Runs a fresh instance to its end; what wasmtime raised is the result, not an error."""
        import wasmtime

        self._host = host
        try:
            prepared = self.modules[(skill.manifest.sha256, skill.manifest.abi)]
            exports = prepared.instantiate(store).exports(store)
            memory, command = exports["memory"], exports["_start"]
            assert isinstance(memory, wasmtime.Memory)
            assert isinstance(command, wasmtime.Func)
            host.attach(store, memory)
            command(store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as trap:
            return trap
        finally:
            self._host = None
        return None

    def close(self) -> None:
        """Frees the engine. Needed: wasmtime's table of functions keeps it alive. Twice is fine."""
        self.modules.clear()
        self._linker.close()
        self.engine.close()

    def _current(self) -> wasi.Host:
        assert self._host is not None
        return self._host


def _check_command(module: wasmtime.Module, name: str) -> None:
    import wasmtime

    for wanted in module.imports:
        if wanted.module != wasi.MODULE or wanted.name not in wasi.IMPORTS:
            raise SkillRefused(
                f"{name}: the module imports {wanted.module}.{wanted.name}, which wasi-command/1"
                " does not have.",
            )
    exports = {export.name: export.type for export in module.exports}
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise SkillRefused(f"{name}: the module exports no memory called 'memory'.")
    command = exports.get("_start")
    if not isinstance(command, wasmtime.FuncType) or command.params or command.results:
        raise SkillRefused(f"{name}: the module exports no function '_start' without parameters.")


# -- endings -----------------------------------------------------------------------------------


def _judge(
    skill: Skill,
    host: wasi.Host,
    watch: _Watch,
    bounds: Limits,
    trap: Exception | None,
    memory_bytes: int,
) -> None:
    """Raises what the call ended with, in the order of certainty; returns when it ended well."""
    # first of all: a read that was cut short may have let the module end in any way
    if watch.verdict is _CANCELLED:
        raise SkillCancelled(f"{skill.name} was cancelled.")
    if watch.verdict is _TIMED_OUT:
        raise SkillTimedOut(f"{skill.name} ran longer than {bounds.wall_ms} ms.")
    if host.ended is not None:
        raise host.ended
    if host.exit_code is None and trap is not None:
        raise _fault(skill.name, bounds, trap, memory_bytes)
    if host.exit_code:
        raise SkillFailed(_complaint(host), exitCode=host.exit_code)
    if not _is_json(host.output):
        raise SkillOutputInvalid(f"{skill.name} ended well, but its stdout is no JSON.")


def _fault(name: str, bounds: Limits, trap: Exception, memory_bytes: int) -> SkillFault:
    import wasmtime

    text = str(trap)
    code = trap.trap_code if isinstance(trap, wasmtime.Trap) else None
    if code is wasmtime.TrapCode.OUT_OF_FUEL:
        return SkillFuelExhausted(f"{name} used up its {bounds.fuel} units of fuel.")
    if code is wasmtime.TrapCode.STACK_OVERFLOW:
        return SkillStackExceeded(
            f"{name} needs more than {house.WASM_STACK_BYTES_MAX} bytes of stack."
        )
    # a denied growth is an answer to the module, not a trap: who traps at the bound ran into it
    at_the_bound = memory_bytes + _PAGE_BYTES > bounds.memory_bytes
    if at_the_bound or (code is None and "memory" in text):
        return SkillMemoryExceeded(f"{name} needs more than {bounds.memory_bytes} bytes of memory.")
    if code is None and "table" in text:
        return SkillTableExceeded(f"{name} needs more than {bounds.table_elements} table elements.")
    cause = text.rsplit("wasm trap:", 1)[-1].strip() or "no reason given"
    return SkillTrapped(f"{name} trapped: {cause[: house.LABEL_CHARS_MAX]}.")


def _complaint(host: wasi.Host) -> str:
    """What a skill that failed says: its JSON ``error``, else its last line, else its code."""
    for text in (host.output, host.log):
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict) and isinstance(found.get("error"), str):
            return str(found["error"])[: house.LABEL_CHARS_MAX]
    lines = bytes(host.log).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][: house.LABEL_CHARS_MAX] if lines else f"exit code {host.exit_code}"


def _is_json(text: bytearray) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        # orjson refuses numbers beyond a double, which JSON allows
        try:
            json.loads(text.decode("utf-8"), parse_float=str, parse_int=str, parse_constant=_no)
        except (ValueError, RecursionError):
            return False
    return True


def _no(word: str) -> None:
    raise ValueError(word)


# -- time and cancel ---------------------------------------------------------------------------

_CANCELLED: Final = "cancelled"
_TIMED_OUT: Final = "timed out"


@dataclasses.dataclass(slots=True, eq=False)
class _Watch:
    """A running call as the ticker sees it."""

    engine: wasmtime.Engine
    host: wasi.Host
    deadline_ms: int
    cancel: threading.Event | None
    verdict: str | None = None


class _Ticker:
    """One thread that looks after the running calls every tick, and sleeps when there are none."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wake = threading.Condition()
        self._watches: set[_Watch] = set()
        self._thread: threading.Thread | None = None
        self._is_parked = False
        self._is_closed = False

    def add(self, watch: _Watch) -> None:
        """From now on the call is interrupted when it is due or cancelled."""
        with self._wake:
            self._watches.add(watch)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="goclaw-skill-ticker", daemon=True
                )
                self._thread.start()
            elif self._is_parked:
                self._wake.notify()

    def remove(self, watch: _Watch) -> None:
        """After it the call's engine is not touched again."""
        with self._wake:
            self._watches.discard(watch)

    def close(self) -> None:
        """Interrupts what still runs as cancelled and ends the thread; twice is fine."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        idle_ticks = 0
        with self._wake:
            while self._watches or not self._is_closed:
                now_ms = self._clock.mono_ms()
                for watch in self._watches:
                    self._look(watch, now_ms)
                idle_ticks = 0 if self._watches else idle_ticks + 1
                self._is_parked = idle_ticks > _LINGER_TICKS
                self._wake.wait(None if self._is_parked else house.WASM_TICK_MS / 1000)

    def _look(self, watch: _Watch, now_ms: int) -> None:
        if watch.verdict is None:
            if self._is_closed or (watch.cancel is not None and watch.cancel.is_set()):
                watch.verdict = _CANCELLED
            elif now_ms >= watch.deadline_ms:
                watch.verdict = _TIMED_OUT
            else:
                return
        # again at every tick: the call may have been about to set its deadline
        watch.host.stop_requested = True
        watch.engine.increment_epoch()
