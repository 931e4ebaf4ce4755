"""The engine as one object: what gateways and the embedded run talk to.

Owns the wiring of intake, scheduler, pools, hub, approvals, settlement and timer, and who waits for
which run. Not in here: each of those.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits
from goclaw.core.clock import boot_id
from goclaw.core.errors import (
    GoclawError,
    IdempotencyConflict,
    IllegalTransition,
    TooLarge,
    UnknownId,
)
from goclaw.core.metrics import TRANSITIONS
from goclaw.core.records import Receipt, RunEnd
from goclaw.core.states import TERMINAL, State
from goclaw.engine.approvals import Approvals
from goclaw.engine.dead_letters import DeadLetters
from goclaw.engine.external import External
from goclaw.engine.fairness import Fairness, Turn, measure
from goclaw.engine.forks import fork
from goclaw.engine.gates import Gates
from goclaw.engine.grants import Grants
from goclaw.engine.halt import Halt
from goclaw.engine.hub import Hub
from goclaw.engine.intake import Intake, check_key
from goclaw.engine.pools import Pools
from goclaw.engine.recovery import Recovered, recover
from goclaw.engine.scheduler import Scheduler
from goclaw.engine.schedules import Schedules
from goclaw.engine.settlement import Settlement
from goclaw.engine.subtasks import Subtasks
from goclaw.engine.taints import Taints
from goclaw.engine.why import Why
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSet

    from goclaw.core.clock import Clock
    from goclaw.core.config import Config
    from goclaw.core.decisions import Decision
    from goclaw.core.records import CallOf, Forked, Runner, Session
    from goclaw.store import Committed, Database, Event

__all__ = ["Engine"]


# What these events always mean; of the others the payload says from where to where.
_STEPS: dict[str, tuple[str | None, str]] = {
    "task.queued": (None, "QUEUED"),
    "task.claimed": ("QUEUED", "CLAIMED"),
    "task.running": ("CLAIMED", "RUNNING"),
    "task.succeeded": ("RUNNING", "SUCCEEDED"),
}


class Engine:
    """Queue life for one home. Everything runs on the loop of ``start``."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        config: Config,
        runner: Runner,
        *,
        daemon_boot: str,
        policy_version: Callable[[], str],
        only_sids: MutableSet[int] | None = None,
        call_of: CallOf | None = None,
    ) -> None:
        self.database, self.clock, self.config = database, clock, config
        self.hub = Hub(
            database, clock, ring_bytes=config.events.ring_bytes,
            ring_bytes_total=config.events.ring_bytes_total,
        )  # fmt: skip
        self.approvals = Approvals(database, clock)
        self.grants = Grants(database, clock)
        self.intake = Intake(
            database, clock, config.queue, open_tasks=self.open_tasks,
            policy_version=policy_version,
        )  # fmt: skip
        self.halt = Halt(database, clock, self._halted)
        self.gates = Gates(database, clock, config.queue, self._let_in, self.halt)
        self.taints = Taints(database)
        self.subtasks = Subtasks(
            database, clock, self.intake, cancel=self.cancel_task, on_session=self._take_up
        )
        self._fairness, self._only_sids = Fairness(), only_sids
        self.scheduler = Scheduler(
            database, clock, config.queue, runner, f"lane:{daemon_boot}", self.gates, self.subtasks,
            self.taints,
            load_session=self._session_of, policy_version=policy_version,
            fairness=self._fairness, only_sids=only_sids,
        )  # fmt: skip
        self.settlement = Settlement(
            database, clock, self.task, self.intake.session_by_sid, call_of, self.halt
        )
        self.dead_letters = DeadLetters(database, clock, config.queue, self.intake)
        self.external = External(database, clock, config.queue, self.halt)
        self.pools = Pools(
            database, clock, config.queue, policy_version=policy_version,
            fairness=self._fairness, remember=self.external.remember, halt=self.halt,
        )  # fmt: skip
        self.why = Why(database, clock, self.scheduler, self.pools)
        self._schedules = Schedules(
            database, clock, config.queue, self.gates, self.intake, self.approvals.expire
        )
        self._sessions: dict[int, Session] = {}
        self._counts: Counter[str] = Counter()
        self._waiting: dict[str, list[asyncio.Future[RunEnd]]] = {}
        self._looks: set[asyncio.Task[None]] = set()
        self.recovered = Recovered()
        """What the start found (Q-15)."""

    async def start(self) -> None:
        """Deliver commits on this loop and recover; nothing runs before ``open_lanes``."""
        self.hub.observe(self._observe)
        self.hub.observe(self.scheduler.observe)
        self.hub.observe(self.pools.observe)
        self.hub.observe(self.gates.observe)
        self.hub.observe(self.subtasks.observe)
        self.hub.observe(self._schedules.observe)
        self.database.start(self.hub.publish)
        for state, count in await self.database.read("task_counts"):
            self._counts[state] = count
        system = await self.intake.system_session()
        self.recovered = await recover(
            self.database, self.clock, self.config.queue, boot=boot_id(), system_sid=system.sid
        )
        await self.halt.start()
        await self.gates.start()
        await self.subtasks.start()
        await self.taints.load()

    def open_lanes(self) -> None:
        """Let timers and lanes go; the last step before the daemon is ready."""
        self._schedules.start()
        self.scheduler.start()
        self.hub.open()

    def _take_up(self, sid: int) -> None:
        """A session of the engine's own making: its tasks run here, whoever's this daemon is."""
        if self._only_sids is not None and sid not in self._only_sids:
            self._only_sids.add(sid)
            self.scheduler.look_again()

    def _let_in(self) -> None:
        self.scheduler.look_again()
        self.pools.look_again()

    def _halted(self) -> None:
        """The emergency stop was set or ended."""
        if self.halt.holds_all:
            self.scheduler.interrupt()
        self._let_in()

    def look_again(self) -> None:
        """Sessions joined ``only_sids``: their tasks may have been waiting for a lane."""
        self.scheduler.look_again()

    async def stop(self, drain_ms: int, hurry: asyncio.Event) -> None:
        """Refuse new work, drain, hand back the rest, stop the timers (R-3, Q-13)."""
        self.intake.closed = True
        self.pools.close()
        await self.scheduler.stop(drain_ms, hurry)
        await self._schedules.stop()  # what drains keeps to its time-outs
        await self.subtasks.stop()
        await asyncio.gather(self.pools.settled(), self.external.settled())
        self.hub.close()

    # -- what commits tell ---------------------------------------------------------------------

    def _observe(self, events: list[Event]) -> None:
        counts = self._counts
        for event in events:
            kind = event[3]
            step = _STEPS.get(kind)
            if step is None:
                if kind == "run.ended":
                    self._ended(event[5] or "", event[6] or "", event[1], orjson.loads(event[9]))
                    continue
                if kind == "run.forked":  # its earlier steps were copied, not taken
                    counts[orjson.loads(event[9])["state"]] += 1
                    continue
                if not kind.startswith("task."):
                    continue
                fields = orjson.loads(event[9])
                step = fields["from"], fields["to"]
                TRANSITIONS[step[1], fields.get("reason") or ""] += 1
            else:
                TRANSITIONS[step[1], ""] += 1
            if step[0] is not None:
                counts[step[0]] -= 1
            counts[step[1]] += 1
            run_id = event[5]
            if run_id in self._waiting and step[1] in TERMINAL:
                # A task that is no prompt has no run.ended of its own.
                asyncio.get_running_loop().call_soon(self._resolve_plain, run_id)

    def _ended(self, run_id: str, task_id: str, event_id: int, fields: dict[str, Any]) -> None:
        end = RunEnd(
            run_id, task_id, fields["state"], fields.get("stopReason"), event_id,
            fields.get("code") or fields.get("reason"), fields.get("message"),
        )  # fmt: skip
        self._answer(end)

    def _resolve_plain(self, run_id: str) -> None:
        if run_id in self._waiting:
            look = asyncio.ensure_future(self._look(run_id))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)

    async def _look(self, run_id: str) -> None:
        try:
            end = await self.run_state(run_id)
        except GoclawError as error:
            for future in self._waiting.pop(run_id, []):
                if not future.done():
                    future.set_exception(error)
            return
        if end is not None:
            self._answer(end)

    def _answer(self, end: RunEnd) -> None:
        for future in self._waiting.pop(end.run_id, []):
            if not future.done():
                future.set_result(end)

    # -- runs and tasks ------------------------------------------------------------------------

    async def task(self, task_id: str) -> dict[str, Any]:
        """The stored task with all its columns; UnknownId."""
        found = await self.database.read("task_by_id", task_id=task_id)
        if not found:
            raise UnknownId(
                f"There is no task {task_id[:80]}.", hint="`goclaw task list` names all.",
                what="task", id=task_id[:80],
            )  # fmt: skip
        return rows("task_by_id", found)[0]

    async def tasks(
        self,
        *,
        sid: int | None,
        pool: str | None = None,
        before: int | None,
        state: str | None,
        limit: int,
    ) -> list[dict[str, Any]]:
        """Newest first; ``before`` is the tid of the last one of the page before."""
        found = await self.database.read(
            "tasks_listed", sid=sid, pool=pool, before=before or (1 << 62), state=state, limit=limit
        )
        return rows("tasks_listed", found)

    async def submitted(self, session: Session, key: str) -> str:
        """The run that a submission key began; UnknownId."""
        found = await self.database.read("submission", sid=session.sid, key=key)
        if not found:
            raise UnknownId(
                f"No submission has the key {key[:80]}.",
                hint="Look for its run in `goclaw task list`; a key is forgotten in time.",
                what="key", id=key[:80],
            )  # fmt: skip
        run_id: str = found[0][1]
        return run_id

    async def audit(self, decision: Decision, *, count: int = 1) -> None:
        """Record a decision that nothing else commits with; ``count``: equal ones joined to it."""
        record = decision.to_record()
        if count > 1:
            record["count"] = count
        await self.record(record)

    async def record(self, record: dict[str, Any]) -> None:
        """A record of the audit that is no decision of its own."""
        await self.database.write("audit", record=orjson.dumps(record), now=self.clock.wall_ms())

    async def run_task(self, run_id: str) -> dict[str, Any]:
        """The task of a run; UnknownId."""
        try:
            return await self.task("task_" + run_id.removeprefix("run_"))
        except UnknownId as error:
            raise UnknownId(
                f"There is no run {run_id[:80]}.", hint="`goclaw task list --json` names all.",
                what="run", id=run_id[:80],
            ) from error  # fmt: skip

    async def run_state(self, run_id: str) -> RunEnd | None:
        """How a run ended, None while it has not; UnknownId."""
        task = await self.run_task(run_id)
        if task["state"] not in TERMINAL:
            return None
        failure = orjson.loads(task["error"]) if task["error"] else {}
        return RunEnd(
            run_id, task["task_id"], task["state"], task["stop_reason"], task["end_event"] or 0,
            failure.get("code") or task["reason"], failure.get("message"),
        )  # fmt: skip

    async def run_ended(self, run_id: str) -> RunEnd:
        """Wait for a run's end; an ended one answers at once. UnknownId."""
        future: asyncio.Future[RunEnd] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(run_id, [])
        waiting.append(future)
        try:
            # Registered first: an end that commits during the look is not missed.
            end = await self.run_state(run_id)
            return end if end is not None else await future
        finally:
            if future in waiting:
                waiting.remove(future)
            if not waiting and self._waiting.get(run_id) is waiting:
                del self._waiting[run_id]

    async def cancel_task(self, task_id: str, reason: str = "cancel") -> Receipt:
        """Cancel it whatever its state (Q-11); UnknownId. A second call says already_finished."""
        return await self._cancel_found(await self.task(task_id), reason)

    async def cancel_run(self, run_id: str, reason: str = "cancel") -> Receipt:
        """Cancel the run's task; as ``cancel_task``."""
        return await self._cancel_found(await self.run_task(run_id), reason)

    async def _cancel_found(self, task: dict[str, Any], reason: str) -> Receipt:
        committed = await self._cancel(task["tid"], reason)
        return await self._receipt(task["tid"], committed, external=task["pool"] != "")

    async def cancel_session(
        self, session: Session, *, client: str | None, reason: str = "session/cancel"
    ) -> list[Receipt]:
        """Cancel the running turn and every waiting prompt that ``client`` sent (PROTOCOL 2.5)."""
        found = await self.database.read("open_tasks_of_session", sid=session.sid)
        tids = [
            tid for tid, _, _, kind, _, owner, turn, _ in found
            if kind == "prompt" and (turn or owner == client or client is None)
        ]  # fmt: skip
        # All at once: a lane that the first of them frees must not begin the next.
        cancels = await asyncio.gather(*(self._cancel(tid, reason) for tid in tids))
        return [
            await self._receipt(tid, committed)
            for tid, committed in zip(tids, cancels, strict=True)
        ]

    def _cancel(self, tid: int, reason: str) -> asyncio.Future[Committed]:
        # The scheduler stops a live attempt when it sees the event.
        return self.database.write(
            "cancel", live=True, tid=tid, reason=reason, now=self.clock.wall_ms()
        )

    async def _receipt(self, tid: int, committed: Committed, *, external: bool = False) -> Receipt:
        was, event_id, _, _ = committed.parts[0]
        effects = await self.database.read("effects_of_task", tid=tid)
        done = tuple(
            row["name"] for row in rows("effects_of_task", effects)
            if row["state"] == "result" and row["kind"] != "brain"
        )  # fmt: skip
        if was in TERMINAL:
            outcome = "already_finished"
        elif was == "RUNNING" and external:
            outcome = "may_still_be_running"
        else:
            outcome = "stopping" if self.scheduler.is_live(tid) else "stopped"
        return Receipt(outcome, event_id, done)

    async def active_turn(self, session: Session) -> tuple[dict[str, Any] | None, int]:
        """The turn in hand ({runId, state, sinceEventId}) and how many prompts wait behind it."""
        found = await self.database.read("open_tasks_of_session", sid=session.sid)
        prompts = [
            (run, state, since) for _, _, run, kind, state, _, _, since in found if kind == "prompt"
        ]
        if not prompts:
            return None, 0
        run_id, state, since = prompts[0]
        shown = {"RUNNING": "running", "SUSPENDED": "requires_action"}.get(state, "queued")
        begun = since or session.oldest  # a task of an older program has not kept it
        return {"runId": run_id, "state": shown, "sinceEventId": begun}, len(prompts) - 1

    async def fork(
        self,
        run_id: str,
        at: int,
        *,
        key: str | None = None,
        client: str | None,
        decision: Decision | None = None,
    ) -> Forked:
        """Branch a run off at an event of its session (E-7); see ``forks.fork``. UnknownId,
        SessionUnknown."""
        await self.intake.check_new(key)
        task = await self.run_task(run_id)
        await self.intake.session(task["session_id"])  # a deleted one has no past to share
        forked = await fork(
            self.database, self.clock, task, at, key=key, client=client, decision=decision
        )
        self.look_again()  # where the run had not been claimed yet, nothing moved it to QUEUED
        return forked

    async def signal(
        self, run_id: str, name: str, payload: bytes, *, key: str | None = None
    ) -> tuple[int, bool]:
        """Give a run a signal: the event of the first one of that name, and whether there was one
        before, which wins (E-9).

        The same key with the same name and payload: the same answer; with others
        IdempotencyConflict. UnknownId; IllegalTransition when the run has ended without it.
        """
        check_key(key)
        if len(payload) > limits.PAYLOAD_BYTES_MAX:
            raise TooLarge(
                f"A signal has at most {limits.PAYLOAD_BYTES_MAX} bytes.",
                limit=limits.PAYLOAD_BYTES_MAX, unit="bytes",
            )  # fmt: skip
        task = await self.run_task(run_id)
        try:
            committed = await self.database.write(
                "signal", tid=task["tid"], name=name, payload=payload, key=key,
                hash=hashlib.sha256(f"{name}\0".encode() + payload).digest(),
                most=limits.SIGNALS_MAX, now=self.clock.wall_ms(),
            )  # fmt: skip
        except TooLarge:
            raise TooLarge(
                f"The run has had {limits.SIGNALS_MAX} signals, and takes no more.",
                limit=limits.SIGNALS_MAX, unit="signals",
            ) from None  # fmt: skip
        except IllegalTransition:
            raise IllegalTransition(
                f"The run {run_id[:80]} has ended ({task['state']}): nothing waits for the signal.",
                **{"from": task["state"], "to": task["state"]},
            ) from None
        except IdempotencyConflict:
            raise IdempotencyConflict(
                "The key was used before for another signal of this run; nothing was sent.",
                hint="Use a new key for a new signal.",
                idempotencyKey=key,
                runId=run_id,
            ) from None
        event_id, duplicate = committed.parts[0]
        return event_id, bool(duplicate)

    # -- state ---------------------------------------------------------------------------------

    def open_tasks(self) -> int:
        """Tasks that are not terminal."""
        return sum(count for state, count in self._counts.items() if state not in TERMINAL)

    async def fairness(self) -> dict[str, int]:
        """How fairly the last claims were shared (Q-8); see ``measure`` in engine/fairness.py."""
        turns = self._fairness.turns()
        pools: list[str] = []
        if self._only_sids is None:  # an embedded daemon leaves the others' tasks alone
            pools = list({turn.pool for turn in turns})

        def told() -> dict[str, int]:
            found = self.database.fetch("heads_waiting", pools=orjson.dumps(pools).decode())
            return measure(turns, [Turn(*row) for row in found])

        shown: dict[str, int] = await self.database.in_reader(told)
        return shown

    def task_counts(self) -> dict[str, int]:
        """How many tasks are in each state; a fold of the committed events."""
        return {str(state): self._counts[state] for state in State}

    async def _session_of(self, sid: int) -> Session:
        session = self._sessions.get(sid)
        if session is None:
            if len(self._sessions) >= limits.CONNECTIONS_MAX:
                self._sessions.clear()
            session = self._sessions[sid] = await self.intake.session_by_sid(sid)
        return session

    def forget_session(self, sid: int) -> None:
        """A session's roots or brain changed: attempts that begin from now on read it anew."""
        self._sessions.pop(sid, None)
