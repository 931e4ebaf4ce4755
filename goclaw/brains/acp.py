"""Any ACP agent as a brain: its turn is one effect that is never repeated (B-2, E-3).

Owns what a turn is to the journal, what becomes of the agent's updates and requests, and which
process answers a session. Not in here: the process and its messages (agents), the policy (gate).

A turn is irreversible: the agent acts on its own. While it waits for a person the attempt is
SUSPENDED and the process is kept; an answer goes to the same process. What a crash cut off is
unknown; the agent's own session is taken up again where it can be, and told to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import shlex
import shutil
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.brains.agents import Agent, AgentGone
from goclaw.brains.deltas import Deltas
from goclaw.core import limits, log
from goclaw.core.decisions import Verdict
from goclaw.core.errors import (
    BrainFailed,
    ConfigRefused,
    GoclawError,
    InvalidParams,
    MethodUnknown,
    PolicyDenied,
)
from goclaw.core.records import Call, Done, Failed, Succeeded, Unclear
from goclaw.core.states import TERMINAL, EffectClass, Outcome
from goclaw.protocol import jsonrpc
from goclaw.protocol.updates import check_update
from goclaw.tools.gate import error_output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from goclaw.core.capability import Capability
    from goclaw.core.decisions import Decision
    from goclaw.core.processes import Children
    from goclaw.core.records import Attempt, Session, Task
    from goclaw.core.records import Outcome as RunOutcome
    from goclaw.protocol.messages import Notification
    from goclaw.tools.gate import Gate

    Read = Callable[..., Awaitable[list[tuple[Any, ...]]]]

__all__ = ["AgentBrain", "check_command"]

_log = log.logger("brains.acp")

_CONTINUE: Final = (
    "Your last turn was cut off: the connection to you was lost in the middle of it. Look at what"
    " you have done already, check before you repeat anything, and go on to the end. You had been"
    " asked: "
)
_STRANGER: Final = "(A new session of the agent: it does not know what was said here before.)\n"
_ASKED: Final = [
    {"optionId": "allow", "name": "Allow once", "kind": "allow_once"},
    {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
]
_NOT_ENDED: Final = frozenset({Outcome.CANCELLED})
_OPENED: Final = b'"agentSession"'
"""In the event that stands in the log before a prompt is sent: whose session, and which turn."""


def check_command(command: str) -> None:
    """ConfigRefused when it is no command line."""
    try:
        if shlex.split(command):
            return
        why = "it is empty"
    except ValueError as error:
        why = str(error)
    raise ConfigRefused(
        f"The agent's command {command[:80]!r} cannot be read: {why}.",
        hint="Write it as in a shell: acp:PROGRAM ARGUMENT ...",
    )


class AgentBrain:
    """A brain whose answers are another program's. One object serves all sessions, each with a
    process of its own that outlives the turn."""

    def __init__(
        self,
        name: str,
        command: str,
        *,
        children: Children | None,
        read: Read | None,
        environ: Mapping[str, str],
    ) -> None:
        self.name = name
        self._command = shlex.split(command)
        self._children, self._read = children, read
        self._environ = {
            key: value for key, value in environ.items() if not key.startswith("GOCLAW_")
        }
        self._agents: dict[str, Agent] = {}
        self._chores: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """End every process."""
        chores, self._chores = self._chores, {}
        for chore in chores.values():
            chore.cancel()
        await asyncio.gather(*chores.values(), return_exceptions=True)
        agents, self._agents = self._agents, {}
        await asyncio.gather(*(agent.end() for agent in agents.values()))

    # -- the run -------------------------------------------------------------------------------

    async def run(self, attempt: Attempt, gate: Gate) -> RunOutcome:
        """A run: the turn, and further ones while the agent must be told to go on."""
        decisions = self._decide(attempt.task, attempt.session, gate)
        prompt = orjson.loads(attempt.task.payload)["prompt"]
        for number in range(limits.AGENT_TURNS_MAX):
            turn = _Turn(self, attempt, gate, number, prompt, decisions[-1])
            call = Call(
                kind="brain", name=self.name, request=orjson.dumps({"turn": number}),
                effect_class=EffectClass.IRREVERSIBLE, dispatch=turn.dispatch,
                decisions=decisions, title=f"start {shlex.join(self._command)[:80]}",
                probe=functools.partial(self._happened, attempt.task, number),
            )  # fmt: skip
            (found,) = await attempt.perform([call])
            said = orjson.loads(found.output)
            if found.status == "completed":
                result = orjson.dumps({"text": said["text"], "tools": []})
                return Succeeded(said["stopReason"], result)
            if found.status != "unknown":
                codes = {"denied": "policy_denied", "rejected": "approval_rejected"}
                return Failed(codes.get(found.status, said["code"]), said["error"])
        return Failed("agent_gone", f"The agent was lost {limits.AGENT_TURNS_MAX} times.")

    def _decide(self, task: Task, session: Session, gate: Gate) -> tuple[Decision, ...]:
        """May it answer, and may its program run? An ask is for the turn's own approval."""
        program = shutil.which(self._command[0], path=self._environ.get("PATH"))
        found = (
            gate.decide_brain(task, session, self.name),
            gate.decide_own(task, session, self.name, "exec.run", program or self._command[0]),
        )
        for decision in found:
            if decision.effect is Verdict.DENY:
                raise PolicyDenied(
                    f"The brain {self.name} may not answer: {decision.action} on"
                    f" {decision.resource}: {decision.reason} ({decision.rule_id}).",
                    hint=f"Allow {decision.action} in policy.toml; docs/brains.md shows how.",
                    decisionId=decision.decision_id,
                    reason=decision.reason,
                )
        return found

    async def _happened(self, task: Task, number: int, _key: str) -> bool | None:
        """Did the turn happen? False when its prompt was never sent: nothing of it is in the log;
        or when the process that was kept is still at it, and can be followed to its end."""
        agent = self._agents.get(task.session_id)
        if agent is not None and agent.turn == task.task_id and agent.is_alive:
            return False
        async for name, of_run, payload in self._backwards(task.sid):
            if of_run != task.run_id:
                continue
            if name == "effect.unknown" and b'"restored"' in payload:
                return None  # this log is older than what was sent (E-8)
            if _OPENED in payload and _told(payload).get("turn") == number:
                return None
        return False

    # -- processes -----------------------------------------------------------------------------

    async def agent(self, attempt: Attempt, right: Capability, *, known_only: bool) -> Agent:
        """The process that answers the session, ready for a prompt. Retryable and BrainFailed:
        nothing was sent. ``known_only``: it must know what was said before."""
        session = attempt.session
        chore = self._chores.pop(session.session_id, None)
        if chore is not None:
            await asyncio.wait([chore])
        agent = self._agents.get(session.session_id)
        if agent is not None and agent.is_alive and agent.turn is None:
            return agent
        if agent is not None:
            await self.drop(session.session_id)
        await self._make_room()
        known = await self._known(session)
        assert self._children is not None
        agent = await Agent.start(
            self._children, right, self._command[1:], env=self._environ, cwd=session.cwd
        )
        try:
            taken_up = await agent.open_session(session.cwd, session.roots, known)
            if known_only and not taken_up:
                raise BrainFailed(
                    "The agent was lost in the middle of its turn and cannot take its session up"
                    " again: nobody knows what it did.",
                    hint="Look at what it may have done, then ask again.",
                )
            if known is not None and not taken_up:
                thought = {"type": "text", "text": _STRANGER}
                note = {"sessionUpdate": "agent_thought_chunk", "content": thought}
                await attempt.emit([note])
        except BaseException:
            await agent.end()
            raise
        self._agents[session.session_id] = agent
        return agent

    async def _make_room(self) -> None:
        """One more is wanted: whoever has been idle longest gives way."""
        while len(self._agents) >= limits.AGENTS_MAX:
            idle = [key for key, agent in self._agents.items() if agent.turn is None]
            await self.drop(
                min(idle or self._agents, key=lambda key: self._agents[key].last_used_s)
            )

    async def drop(self, session_id: str) -> None:
        """End the session's process; the next turn starts another."""
        agent = self._agents.pop(session_id, None)
        if agent is not None:
            await agent.end()

    async def _known(self, session: Session) -> str | None:
        """The agent's own session of this one, by the log."""
        async for _name, _run, payload in self._backwards(session.sid):
            if _OPENED in payload:
                told = _told(payload)
                if told.get("agent") == self.name:
                    return str(told["agentSession"])
        return None

    async def _backwards(self, sid: int) -> AsyncIterator[tuple[str, str | None, bytes]]:
        """(type, run, payload) of the session's events, the newest first."""
        assert self._read is not None
        cursor = 1 << 62
        for _ in range(limits.BRAIN_PAST_EVENTS_MAX // limits.READ_ROWS_MAX):
            rows = await self._read(
                "events_before", sid=sid, cursor=cursor, limit=limits.READ_ROWS_MAX
            )
            for event_id, _kind, name, _at, run_id, payload in rows:
                cursor = event_id
                yield name, run_id, payload
            if len(rows) < limits.READ_ROWS_MAX:
                break

    def leave(self, session_id: str, work: Awaitable[None]) -> None:
        """What is still to be done with a session's process while nobody waits for it."""

        async def do() -> None:
            await work

        self._chores[session_id] = asyncio.ensure_future(do())

    async def abandon(self, session_id: str, agent: Agent) -> None:
        """Its turn counts no more: cancel it, or end the process."""
        if not await agent.cancel() and self._agents.get(session_id) is agent:
            await self.drop(session_id)

    async def watch(self, task: Task, agent: Agent) -> None:
        """A turn waits for a person: when the task ends without an answer, it ends, too."""
        while agent.turn == task.task_id:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.AGENT_LOOK_MS / 1000):
                    await asyncio.Event().wait()
            assert self._read is not None
            ((state,),) = await self._read("task_state", tid=task.tid)
            if state in TERMINAL:
                await self.abandon(task.session_id, agent)
                return


class _Emitted:
    """The updates of a turn, as a stream of deltas."""

    paced = True

    def __init__(self, attempt: Attempt, message_id: str) -> None:
        self._attempt, self.message_id = attempt, message_id
        self.cleaner = attempt.cleaner

    async def send(self, updates: Sequence[dict[str, Any]]) -> None:
        """See Stream."""
        await self._attempt.emit(updates)


class _Turn:
    """One turn of an agent in one attempt."""

    def __init__(
        self,
        brain: AgentBrain,
        attempt: Attempt,
        gate: Gate,
        number: int,
        prompt: list[dict[str, Any]],
        program: Decision,
    ) -> None:
        self._brain, self._attempt, self._gate = brain, attempt, gate
        self._program = program
        self._task, self._session = attempt.task, attempt.session
        self._number, self._prompt = number, prompt
        task = attempt.task
        message_id = f"{task.task_id}.{number}.{task.attempt}"
        self._deltas = Deltas(_Emitted(attempt, message_id))

    async def dispatch(self, _key: str, _cancelled: asyncio.Event) -> Done:
        """Send the prompt, or go on with the turn that waits; follow it to its end."""
        brain, session_id = self._brain, self._session.session_id
        agent = brain._agents.get(session_id)
        if agent is None or agent.turn != self._task.task_id:
            try:
                agent = await self._begun()
            except BrainFailed as error:
                return Done(error_output(str(error), error.code), failed=True)
        else:
            chore = brain._chores.pop(session_id, None)
            if chore is not None:
                chore.cancel()  # a person answered: nobody has to watch
        try:
            return await self._follow(agent)
        except asyncio.CancelledError:
            brain.leave(session_id, brain.abandon(session_id, agent))
            raise
        except AgentGone as error:
            await self._attempt.emit(await self._deltas.rest())
            await brain.drop(session_id)
            raise Unclear(f"The agent was lost in its turn: {error}") from None
        except BaseException:  # it waits for a person, or the disk: the process is kept
            brain.leave(session_id, brain.watch(self._task, agent))
            raise
        finally:
            self._deltas.abandon()

    async def _begun(self) -> Agent:
        right = self._gate.granted(self._program, answered=True)  # the journal sent the turn
        agent = await self._brain.agent(self._attempt, right, known_only=self._number > 0)
        own = {
            "agent": self._brain.name, "agentSession": agent.session_id, "turn": self._number,
        }  # fmt: skip
        note = {"sessionUpdate": "session_info_update", "_meta": {"goclaw": own}}
        await self._attempt.emit([note])
        again = [{"type": "text", "text": _CONTINUE}] if self._number else []
        try:
            await agent.begin(self._task.task_id, [*again, *self._prompt])
        except AgentGone as error:
            await self._brain.drop(self._session.session_id)
            raise Unclear(f"The agent was lost: {error}") from None
        return agent

    async def _follow(self, agent: Agent) -> Done:
        """Message by message; one leaves the inbox when all that it means is done."""
        while True:
            await agent.wait()
            incoming = agent.inbox[0]
            if isinstance(incoming, jsonrpc.Answer):
                if incoming.request_id == agent.prompt_id:
                    await self._attempt.emit(await self._deltas.rest())
                    agent.inbox.popleft()
                    agent.finish()
                    agent.last_used_s = asyncio.get_running_loop().time()
                    return _ended(agent, incoming)
            elif isinstance(incoming, jsonrpc.Call):
                await self._request(agent, incoming)
            elif not isinstance(incoming, (jsonrpc.Cancel, jsonrpc.Send)):
                await self._notified(agent, incoming)
            agent.inbox.popleft()

    # -- what it says --------------------------------------------------------------------------

    async def _notified(self, agent: Agent, note: Notification) -> None:
        params = note.params if isinstance(note.params, dict) else {}
        update = params.get("update")
        if note.method != "session/update" or not isinstance(update, dict):
            return
        try:
            check_update(update)
        except InvalidParams as error:
            _log.warning("an update was dropped", extra={"data": {"why": str(error)}})
            return
        self._take(agent, update)
        await self._deltas.push()

    def _take(self, agent: Agent, update: dict[str, Any]) -> None:
        kind = update["sessionUpdate"]
        content = update.get("content")
        text = content.get("text") if isinstance(content, dict) else None
        if kind == "user_message_chunk":
            return  # our own words
        if kind == "agent_message_chunk" and isinstance(text, str):
            self._deltas.say(text)
            agent.said.append(text)
            return
        if kind == "agent_thought_chunk" and isinstance(text, str):
            self._deltas.think(text)
            return
        if "toolCallId" in update:
            update = {**update, **self._of_ours(update)}
        elif kind == "agent_message_chunk":
            update = {**update, "messageId": self._deltas.message_id}
        if len(orjson.dumps(update)) > limits.EVENT_BYTES_MAX // 2:
            kept = ("sessionUpdate", "toolCallId", "title", "kind", "status")
            update = {key: update[key] for key in kept if key in update}
            if "toolCallId" not in update:
                return
        self._deltas.note(update)

    def _of_ours(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Ids of two turns must not meet; nobody but the agent knows its terminals."""
        found: dict[str, Any] = {"toolCallId": f"{self._task.task_id}:{call['toolCallId']}"}
        if isinstance(call.get("content"), list):
            found["content"] = [
                part
                for part in call["content"]
                if isinstance(part, dict) and part.get("type") != "terminal"
            ]
        return found

    # -- what it asks --------------------------------------------------------------------------

    async def _request(self, agent: Agent, call: jsonrpc.Call) -> None:
        method, params = call.request.method, call.request.params
        known = {
            "session/request_permission": self._permission,
            "fs/read_text_file": self._read_file,
            "fs/write_text_file": self._write_file,
        }.get(method)
        try:
            if known is None:
                raise jsonrpc.method_unknown(method)
            if not isinstance(params, dict):
                raise InvalidParams(f"{method} takes an object.")
            result = await known(call, params)
        except GoclawError as error:
            if not isinstance(error, (InvalidParams, PolicyDenied, MethodUnknown)):
                raise  # ours: a lost lease, a full disk
            await agent.refuse(call, error)
        else:
            await agent.answer(call, result)

    async def _permission(self, call: jsonrpc.Call, params: dict[str, Any]) -> object:
        """Its own question to a person: decided on, and asked where the policy says ask."""
        tool, options = params.get("toolCall"), params.get("options")
        if not isinstance(tool, dict) or not isinstance(options, list):
            raise InvalidParams("A permission needs a toolCall and options.")
        kinds = {
            str(one["optionId"]): str(one.get("kind", ""))
            for one in options
            if isinstance(one, dict) and "optionId" in one
        }
        resource = f"acp/{self._brain.name}/{tool.get('kind') or 'other'}"
        decision = self._gate.decide(
            self._task, self._session, self._brain.name, "tool.call", resource[:200],
            effect_class=EffectClass.IRREVERSIBLE, request=orjson.dumps(tool),
        )  # fmt: skip
        if decision.effect is Verdict.ASK:
            shown = {**tool, **self._of_ours({"toolCallId": "", **tool})}
            request = {"toolCall": shown, "options": options}
            chosen = await self._ask(call, request, decision)
        else:
            wanted = "allow" if decision.effect is Verdict.ALLOW else "reject"
            # what a rule allows is allowed once: the agent keeps no rules of its own
            fitting = sorted(kinds, key=lambda one: kinds[one] != f"{wanted}_once")
            chosen = next((one for one in fitting if kinds[one].startswith(wanted)), None)
            await self._attempt.emit([], [decision])
        if chosen is None or chosen not in kinds:
            chosen = next((one for one in kinds if kinds[one].startswith("reject")), None)
        if chosen is None:
            return {"outcome": {"outcome": "cancelled"}}
        return {"outcome": {"outcome": "selected", "optionId": chosen}}

    async def _ask(
        self, call: jsonrpc.Call, request: dict[str, Any], decision: Decision
    ) -> str | None:
        """A durable question about exactly this request; the attempt is parked until the answer."""
        await self._attempt.emit(await self._deltas.rest())
        exact = orjson.dumps([call.request.id, call.request.method, call.request.params])
        return await self._attempt.ask(hashlib.sha256(exact).digest(), request, [decision])

    async def _permitted(self, call: jsonrpc.Call, action: str, path: object) -> Capability:
        """The right to open the path. PolicyDenied."""
        if not isinstance(path, str):
            raise InvalidParams("`path` must be a text.")
        decision, place = await self._gate.decide_path(
            self._task, self._session, self._brain.name, action, path
        )
        verdict, why = decision.effect, f"{decision.reason} ({decision.rule_id})"
        if verdict is Verdict.ASK:
            title = f"{action} {place}"
            shown = {"toolCallId": f"{self._task.task_id}:{call.request.id}", "title": title}
            chosen = await self._ask(call, {"toolCall": shown, "options": _ASKED}, decision)
            verdict, why = (
                (Verdict.ALLOW if chosen == "allow" else Verdict.DENY),
                "a person said no",
            )
        else:
            await self._attempt.emit([], [decision])
        if verdict is not Verdict.ALLOW:
            raise PolicyDenied(
                f"{action} {place}: {why}.", hint="goclaw's policy.toml decides.",
                decisionId=decision.decision_id, reason=why,
            )  # fmt: skip
        return self._gate.granted(decision, answered=True)

    async def _read_file(self, call: jsonrpc.Call, params: dict[str, Any]) -> object:
        right = await self._permitted(call, "fs.read", params.get("path"))
        place = right.resource
        try:
            data = await self._gate.read(right, limits.FRAME_BYTES_MAX // 8)
        except OSError as error:
            raise InvalidParams(f"{place} cannot be read: {error.strerror}.") from None
        if len(data) > limits.FRAME_BYTES_MAX // 8:
            raise InvalidParams(f"{place} has over {limits.FRAME_BYTES_MAX // 8} bytes.")
        lines = data.decode("utf-8", "replace").splitlines(keepends=True)
        first, count = params.get("line"), params.get("limit")
        begin = max(0, first - 1) if type(first) is int else 0
        end = begin + max(0, count) if type(count) is int else len(lines)
        return {"content": "".join(lines[begin:end])}

    async def _write_file(self, call: jsonrpc.Call, params: dict[str, Any]) -> object:
        content = params.get("content")
        if not isinstance(content, str):
            raise InvalidParams("`content` must be a text.")
        right = await self._permitted(call, "fs.write", params.get("path"))
        place = right.resource
        try:
            await self._gate.write(right, content.encode("utf-8", "replace"))
        except OSError as error:
            raise InvalidParams(f"{place} cannot be written: {error.strerror}.") from None
        return None


def _told(payload: bytes) -> dict[str, Any]:
    """What goclaw noted on an update."""
    found: dict[str, Any] = orjson.loads(payload).get("_meta", {}).get("goclaw", {})
    return found


def _ended(agent: Agent, answer: jsonrpc.Answer) -> Done:
    response = answer.response
    if response.error is not None:
        why = f"The agent says: {response.error.message[: limits.MESSAGE_CHARS_MAX]}"
        return Done(error_output(why, "agent_failed"), failed=True)
    stop = response.result.get("stopReason") if isinstance(response.result, dict) else None
    if stop not in set(Outcome) - _NOT_ENDED:
        stop = Outcome.END_TURN
    text = "".join(agent.said)[: limits.RESULT_BYTES_MAX // 12]
    return Done(orjson.dumps({"stopReason": stop, "text": text}))
