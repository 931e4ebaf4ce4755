"""`goclaw replay RUN`: does the run, made once more from its record, come to the same? (E-11)

Owns the reading of the record and the comparison of the ends. Not in here: the attempt that answers
from the record (``engine/replay.py``), who has the home open. Nothing here writes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.decisions import Context, Decision, Subject, Verdict
from goclaw.core.errors import ConfigRefused, InvalidParams, UnknownId
from goclaw.core.records import Call, Failed, Succeeded, Task
from goclaw.core.states import EffectClass, State
from goclaw.engine.intake import session_of
from goclaw.engine.replay import Divergence, Recorded, Unrecorded
from goclaw.store import rows
from goclaw.tools.gate import Gate

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Collection

    from goclaw.core.records import Cleaner, Done, Outcome, Runner, Session
    from goclaw.tools.registry import Registry

    Read = Callable[..., Awaitable[list[tuple[Any, ...]]]]

__all__ = ["RecordedGate", "Replayed", "replay"]

_BUDGETS: Final = ("attempts_exhausted", "poison")
_POOL: Final = "pool"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found. ``whole``: up to the run's end, not only as far as it has come."""

    run_id: str
    task_id: str
    session_id: str
    state: str
    effects: int
    whole: bool
    divergence: Divergence | None

    def to_json(self) -> dict[str, Any]:
        """The object of `goclaw replay --json`."""
        found = self.divergence
        return {
            "runId": self.run_id,
            "taskId": self.task_id,
            "sessionId": self.session_id,
            "state": self.state,
            "verdict": "identical" if found is None else "diverged",
            "whole": self.whole,
            "effects": self.effects,
            "divergence": found
            and {
                "ordinal": found.ordinal,
                "what": found.what,
                "recorded": found.recorded,
                "requested": found.requested,
            },
        }


class RecordedGate(Gate):
    """A gate to nothing: its calls have the hashes of real ones and are never carried out. No file
    is looked at and nothing is decided, since the record says what came of it."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, _allowed)

    async def call(
        self,
        task: Task,
        session: Session,
        brain: str,
        tool: str,
        arguments: dict[str, Any],
        *,
        fault: str | None = None,
    ) -> Call:
        """See Gate."""
        request = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS)
        return Call("tool", tool, request, EffectClass.PURE, _never)


def _allowed(
    subject: Subject, action: str, resource: str, context: Context, *, version: str | None = None
) -> Decision:
    return Decision(
        decision_id="", at_ms=0, subject=subject, action=action, resource=resource,
        context=context, effect=Verdict.ALLOW, rule_id="", reason="", policy_version="",
        obligations=(),
    )  # fmt: skip


async def _never(_key: str, _cancelled: asyncio.Event) -> Done:
    raise RuntimeError("a call of a replay was dispatched")


async def replay(
    read: Read,
    runner: Runner,
    run_id: str,
    *,
    repeatable: Collection[str],
    cleaner: Cleaner | None = None,
) -> Replayed:
    """Make the run once more. ``read`` runs a query of the store; ``runner`` has a RecordedGate;
    ``cleaner`` took secrets out of the record, and does so with what is said again.

    UnknownId for a run that there is not; InvalidParams for one whose control flow is a worker's.
    ConfigRefused when the brain's script cannot be read any more.
    """
    task_id = "task_" + run_id.removeprefix("run_")
    found = rows("task_by_id", await read("task_by_id", task_id=task_id))
    if not found:
        raise UnknownId(
            f"There is no run {run_id[:80]}.",
            hint="`goclaw task list --json` names all.",
            what="run",
            id=run_id[:80],
        )
    row = found[0]
    if row["kind"] == _POOL:
        raise InvalidParams(
            f"{run_id} was carried out by workers of the pool {row['pool']}.",
            hint="Only they know its control flow; `goclaw events` shows what they recorded.",
        )
    effects = rows("effects_of_task", await read("effects_of_task", tid=row["tid"]))
    attempt = Recorded(
        await _task(read, row),
        session_of(rows("session_by_sid", await read("session_by_sid", sid=row["sid"]))[0]),
        effects=effects,
        repeatable=repeatable,
        cleaner=cleaner,
    )
    divergence: Divergence | None = None
    whole = False
    try:
        outcome = await attempt.run(runner)
        _check_brain(outcome, attempt, row)
        _leftover(effects, attempt.asked)
        whole = _compared(row, outcome)
    except Divergence as error:
        divergence = error
    except Unrecorded as error:
        if row["state"] == State.SUCCEEDED:
            divergence = Divergence(
                "the run succeeded without this effect", error.ordinal, None, error.requested
            )
    return Replayed(
        run_id=row["run_id"], task_id=row["task_id"], session_id=row["session_id"],
        state=row["state"], effects=attempt.asked, whole=whole, divergence=divergence,
    )  # fmt: skip


async def _task(read: Read, row: dict[str, Any]) -> Task:
    ((payload, key, client, origin),) = await read("submission_of_task", tid=row["tid"])
    return Task(
        tid=row["tid"], sid=row["sid"], session_id=row["session_id"], task_id=row["task_id"],
        run_id=row["run_id"], kind=row["kind"], attempt=row["attempt"],
        max_attempts=row["max_attempts"], on_unknown="suspend", trace=row["trace"],
        payload=payload, key=key, client=client, origin=origin,
        policy_version=row["policy_version"] or "", failures=row["failures"],
    )  # fmt: skip


def _check_brain(outcome: Outcome, attempt: Recorded, row: dict[str, Any]) -> None:
    """ConfigRefused when there is no brain to make the run with, although there was one."""
    refused = isinstance(outcome, Failed) and outcome.code == ConfigRefused.code
    if refused and attempt.asked == 0 and row["reason"] != ConfigRefused.code:
        assert isinstance(outcome, Failed)
        raise ConfigRefused(outcome.message, hint="Put it back, then replay the run again.")


def _leftover(effects: list[dict[str, Any]], asked: int) -> None:
    """The run must have come as far as its record."""
    for row in effects:
        if row["ordinal"] >= asked:
            kept = {"kind": row["kind"], "name": row["name"], "hash": row["hash"].hex()}
            raise Divergence("the run ends before this effect", row["ordinal"], kept, None)


def _compared(row: dict[str, Any], outcome: Outcome) -> bool:
    """True when it is the run's own end, False when the run has none yet; else Divergence."""
    error = orjson.loads(row["error"]) if row["error"] else {}
    match State(row["state"]), outcome:
        case State.SUCCEEDED, Succeeded(stop_reason, result):
            recorded = _end(row["stop_reason"], row["result"])
            if recorded != _end(stop_reason, result):
                raise Divergence(
                    "the run ends otherwise", None, recorded, _end(stop_reason, result)
                )
            return True
        case State.SUCCEEDED, Failed(code):
            recorded = _end(row["stop_reason"], row["result"])
            raise Divergence("the run fails", None, recorded, {"code": code})
        case (State.FAILED | State.DEAD_LETTER | State.RETRY_WAIT) as state, Failed(code):
            if not _by_itself(row, error):
                return False
            if error["code"] != code:
                raise Divergence("the run fails otherwise", None, error, {"code": code})
            return state is not State.RETRY_WAIT
        case State.FAILED, Succeeded(stop_reason, result):
            if _by_itself(row, error) and len(result) <= limits.RESULT_BYTES_MAX:
                raise Divergence("the run succeeds", None, error, _end(stop_reason, result))
            return True
        case _:
            return False


def _by_itself(row: dict[str, Any], error: dict[str, Any]) -> bool:
    """It failed by its own last word, and neither by a crash nor by somebody else's."""
    return bool(error) and row["reason"] in (error["code"], *_BUDGETS)


def _end(stop_reason: str | None, result: bytes | None) -> dict[str, Any]:
    digest = hashlib.sha256(result or b"null").hexdigest()
    return {"stopReason": stop_reason, "resultHash": digest}
