"""The run loop: ask the brain, carry out what it wants, ask again, until it is done (the Runner).

Owns the order of steps, their bound and the result of a run. Not in here: what a step costs in
commits (engine's journal), what a brain says (its siblings), what a tool does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.brains.acp import AgentBrain, check_command
from goclaw.brains.answers import Answer, ToolResult, Turn
from goclaw.brains.context import FAILED, read_past, sameness
from goclaw.brains.deltas import Deltas
from goclaw.brains.direct import DirectBrain
from goclaw.brains.script import load_script
from goclaw.core import limits
from goclaw.core.decisions import Verdict
from goclaw.core.errors import ConfigRefused, PolicyDenied, ToolLoop
from goclaw.core.records import Failed, Succeeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from goclaw.brains.answers import Brain, Intent, Refusal
    from goclaw.brains.context import Past
    from goclaw.brains.named import NamedBrains
    from goclaw.core.decisions import Decision
    from goclaw.core.records import Attempt, CallResult, Outcome, Session, Stream, Task
    from goclaw.tools.gate import Gate
    from goclaw.tools.registry import Registry

    Read = Callable[..., Awaitable[list[tuple[Any, ...]]]]

__all__ = ["BrainRunner", "check_brain", "prompt_text", "run_result"]

_SCRIPT = "script:"
_ACP = "acp:"
_NOT_MADE = frozenset({"denied", "rejected"})


class BrainRunner:
    """Runs prompts and single tool calls. Implements ``core.records.Runner``."""

    def __init__(
        self,
        registry: Registry,
        gate: Gate,
        *,
        named: NamedBrains | None = None,
        read: Read | None = None,
    ) -> None:
        self._gate = gate
        self._direct = DirectBrain(registry)
        self._named, self._read = named, read

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        """See Runner."""
        if attempt.task.kind == "tool":
            return await self._run_tool(attempt)
        return await self._run_prompt(attempt)

    async def _brain(self, session: Session) -> Brain | AgentBrain:
        """The session's brain; ConfigRefused when there is none of that name."""
        name = session.brain
        if self._named is not None:
            brain = self._named.get(name)
            if brain is not None:
                return brain
        check_brain(name, self._named.names if self._named else ())
        if name == self._direct.name:
            return self._direct
        # Read anew each time: what was answered before stands in the journal.
        path = Path(session.cwd, name.removeprefix(_SCRIPT))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, load_script, path)

    def _may_think(self, attempt: Attempt, brain: Brain) -> list[Decision]:
        """It may answer, and be asked where it is; PolicyDenied names what must be allowed."""
        task, session = attempt.task, attempt.session
        decisions = [self._gate.decide_brain(task, session, brain.name)]
        if brain.secret is not None:
            decisions.append(
                self._gate.decide_own(task, session, brain.name, "secret.use", brain.secret)
            )
        if brain.address is not None:
            where = self._gate.decide_own(task, session, brain.name, "net.connect", brain.address)
            decisions.append(where)
        for decision in decisions:
            if decision.effect is not Verdict.ALLOW:
                raise PolicyDenied(
                    f"The brain {brain.name} may not answer: {decision.action} on"
                    f" {decision.resource}: {decision.reason} ({decision.rule_id}).",
                    hint=f"Allow {decision.action} in policy.toml; docs/brains.md shows how.",
                    decisionId=decision.decision_id,
                    reason=decision.reason,
                )
        return decisions

    async def _run_prompt(self, attempt: Attempt) -> Outcome:
        task = attempt.task
        brain = await self._brain(attempt.session)
        if isinstance(brain, AgentBrain):
            return await brain.run(attempt, self._gate)
        prompt = prompt_text(orjson.loads(task.payload)["prompt"])
        made: list[tuple[Answer, tuple[ToolResult, ...]]] = []
        past: Past | None = None
        failures: Counter[bytes] = Counter()
        for step in range(limits.STEPS_MAX):
            decisions = self._may_think(attempt, brain)
            results = made[-1][1] if made else ()
            turn = Turn(prompt, step, results, task.attempt, tuple(made))
            if brain.address is not None:
                permit = self._gate.own_permit(task, attempt.session, brain.name, decisions[-1])
                turn = replace(turn, permit=permit)

            async def answer(stream: Stream, turn: Turn = turn) -> dict[str, Any]:
                nonlocal past
                if past is None and brain.address is not None:
                    past = await self._past(attempt)
                return await _answered(brain, replace(turn, past=past), stream)

            record = await attempt.think(brain.name, {"step": step}, answer, decisions=decisions)
            said = Answer.from_json(record)
            fail = said.fail
            if fail and (fail.on_attempts is None or task.attempt in fail.on_attempts):
                return Failed(
                    fail.code, f"The script fails here with {fail.code}.", fail.retryable,
                    fingerprint=fail.code,
                )  # fmt: skip
            if said.sleep_ms is not None:
                await attempt.sleep(said.sleep_ms)
            made.append((said, await self._carry_out(attempt, brain, said)))
            refused = said.ask is not None and made[-1][1][0].status in _NOT_MADE
            if said.stop is not None or refused:
                return Succeeded(said.stop or "end_turn", _result_of(made))
            if brain.address is not None:
                _check_loop(failures, *made[-1])
        return Succeeded("max_turn_requests", _result_of(made))

    async def _past(self, attempt: Attempt) -> Past | None:
        """What a model is reminded of; a replay asks none."""
        if self._read is None:
            return None
        return await read_past(
            self._read, attempt.session.sid, attempt.task.run_id,
            bytes_max=limits.BRAIN_PAST_BYTES_MAX,
        )  # fmt: skip

    async def _carry_out(
        self, attempt: Attempt, brain: Brain, answer: Answer
    ) -> tuple[ToolResult, ...]:
        """The question and the calls of one answer, all of which commit before any is sent."""
        if answer.ask is not None:
            name = "ask"
            found = await attempt.perform([self._gate.question(answer.ask)])
            return (_tool_result(name, found[0]),)
        if not answer.intents:
            return ()
        return await self._perform(attempt, brain.name, answer.intents)

    async def _perform(
        self, attempt: Attempt, brain: str, intents: Sequence[Intent]
    ) -> tuple[ToolResult, ...]:
        task, session = attempt.task, attempt.session
        calls = [
            await self._gate.call(
                task, session, brain, intent.tool, intent.arguments, fault=intent.fault
            )
            for intent in intents
        ]
        found = await attempt.perform(calls)
        return tuple(
            _tool_result(call.name, result) for call, result in zip(calls, found, strict=True)
        )

    async def _run_tool(self, attempt: Attempt) -> Outcome:
        """One call; its output is the task's result, its failure the task's."""
        task: Task = attempt.task
        await attempt.look_at_taint()
        payload = orjson.loads(task.payload)
        call = await self._gate.call(
            task, attempt.session, self._direct.name, payload["tool"], payload["arguments"]
        )
        (found,) = await attempt.perform([call])
        if found.status == "completed":
            return Succeeded(result=found.output)
        code = {"denied": "policy_denied", "rejected": "approval_rejected"}.get(
            found.status, "effect_unknown" if found.status == "unknown" else "tool_failed"
        )
        return Failed(code, _error_of(found.output))


def check_brain(name: str, named: Collection[str] = ()) -> None:
    """ConfigRefused, naming the brains there are, when this is none of their names. ``named``:
    those of config.toml."""
    if name in named or name == DirectBrain.name:
        return
    if name.startswith(_ACP) and name != _ACP:
        check_command(name.removeprefix(_ACP))
    elif not (name.startswith(_SCRIPT) and name != _SCRIPT):
        known = ", ".join([DirectBrain.name, *sorted(named)])
        raise ConfigRefused(
            f"There is no brain {name[:80]!r}.",
            hint=f"There are {known}, script:FILE and acp:COMMAND; docs/brains.md says more.",
        )


def _check_loop(failures: Counter[bytes], answer: Answer, results: Sequence[ToolResult]) -> None:
    """A model that makes the same failing call for ever is stopped."""
    for intent, result in zip(answer.intents, results, strict=True):
        failures[sameness(intent)] += result.status in FAILED
        if failures[sameness(intent)] >= limits.SAME_FAILURES_MAX:
            raise ToolLoop(
                f"The model made the same call of {intent.tool[:80]}"
                f" {limits.SAME_FAILURES_MAX} times, and each one was {result.status}."
            )


def _result_of(made: Sequence[tuple[Answer, tuple[ToolResult, ...]]]) -> bytes:
    text = "".join(answer.text for answer, _ in made)
    return run_result(text, [one for _, results in made for one in results], made[-1][0].refusal)


async def _answered(brain: Brain, turn: Turn, stream: Stream) -> dict[str, Any]:
    deltas = Deltas(stream)
    try:
        answer = await brain.answer(turn, deltas)
        return {**answer.to_json(), "updates": await deltas.rest()}
    finally:
        deltas.abandon()


def prompt_text(blocks: list[dict[str, Any]]) -> str:
    """The text of a prompt's blocks; a link is its URI."""
    parts = []
    for block in blocks:
        match block.get("type"):
            case "text":
                parts.append(str(block.get("text", "")))
            case "resource_link":
                parts.append(str(block.get("uri", "")))
            case "resource":
                parts.append(str(block.get("resource", {}).get("text", "")))
    return "".join(parts)


def _tool_result(name: str, result: CallResult) -> ToolResult:
    return ToolResult(name, result.status, result.output)


def _error_of(output: bytes) -> str:
    parsed = orjson.loads(output)
    return str(parsed.get("error", "")) if isinstance(parsed, dict) else ""


def run_result(text: str, tools: Sequence[ToolResult], refusal: Refusal | None = None) -> bytes:
    """What ``goclaw run --json`` prints, within RESULT_BYTES_MAX: the largest outputs give way,
    then the text. The journal has all of it."""
    error = {} if refusal is None else {"error": refusal.to_json()}
    outputs = [tool.output for tool in tools]
    largest_first = sorted(range(len(outputs)), key=lambda index: -len(outputs[index]))
    result = _encoded(text, tools, outputs, error)
    for index in largest_first:
        if len(result) <= limits.RESULT_BYTES_MAX:
            break
        outputs[index] = orjson.dumps({"omittedBytes": len(outputs[index])})
        result = _encoded(text, tools, outputs, error)
    if len(result) > limits.RESULT_BYTES_MAX:
        # six bytes a character, and as much for the names of the tools
        result = _encoded(text[: limits.RESULT_BYTES_MAX // 12], tools, outputs, error)
    return result


def _encoded(
    text: str, tools: Sequence[ToolResult], outputs: Sequence[bytes], error: dict[str, Any]
) -> bytes:
    shown = [
        {"name": tool.name, "status": tool.status, "output": orjson.Fragment(output)}
        for tool, output in zip(tools, outputs, strict=True)
    ]
    return orjson.dumps({"text": text, "tools": shown, **error})
