"""Every error a user or a client can meet, with its stable code.

Owns the codes (PROTOCOL 2.4, SPEC 12 exit codes). Not in here: how an error is shown or sent.

GoclawError
├── UsageError             exit 2    -32602
├── ConfigRefused          exit 3
│   └── PolicyRefused      exit 3
├── HomeInUse              exit 4
├── DatabaseRefused        exit 5
├── ListenerFailed         exit 6
├── DaemonGone             exit 70   no daemon answers, and none could be started
├── StorageFailed          exit 70   nothing was acknowledged; the same key may be sent again
├── WireError              (answers that follow the JSON-RPC and ACP standards)
│   ├── ParseError                   -32700
│   ├── InvalidRequest               -32600
│   ├── MethodUnknown                -32601
│   ├── InvalidParams                -32602
│   ├── InternalError                -32603
│   ├── SessionUnknown               -32002
│   └── RequestCancelled             -32800
├── ReplayGap              -31001    CursorAhead       -31002
├── IdempotencyConflict    -31003    QueueFull         -31004
├── PolicyDenied           -31005    ShuttingDown      -31006
├── AlreadyResolved        -31007    HandshakeRequired -31008
├── LeaseLost              -31009    IllegalTransition -31010
├── Nondeterminism         -31011    RateLimited       -31012
├── ScopeMissing           -31013    EffectUnknown     -31015
├── UnknownId              -31016    TooLarge          -31017
├── BudgetExhausted        -31018
│   ├── TokensExhausted              ├── CostExhausted
│   ├── StepsExhausted               └── TimeExhausted
├── BrainFailed            the model's server said no and would say it again
│   ├── BrainKeyMissing              ├── BrainKeyRefused
│   ├── ModelUnknown                 ├── ContextOverflow
│   ├── QuotaExhausted               └── ToolLoop
├── SecretRefused          a key, a binding or a value does not fit; nobody got it
├── NoCapability           a tool reached for what no decision gave it; nothing happened
├── Unreachable            a name without address, a place that does not answer: nothing was sent
├── SkillRefused           -32602    manifest, module or ABI is not acceptable; nothing ran
├── SkillFailed            the skill itself says that it failed: a definite tool error
├── SkillCancelled         cut off by a cancel
└── SkillFault             (counted by the quarantine, K-7)
    ├── SkillTrapped                 ├── SkillOutputInvalid
    ├── SkillFuelExhausted           ├── SkillTimedOut
    ├── SkillMemoryExceeded          ├── SkillTableExceeded
    ├── SkillStackExceeded           ├── SkillOutputExceeded
    └── SkillLogExceeded             └── SkillHostCallsExceeded
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AlreadyResolved",
    "BrainFailed",
    "BrainKeyMissing",
    "BrainKeyRefused",
    "BudgetExhausted",
    "ConfigRefused",
    "ContextOverflow",
    "CostExhausted",
    "CursorAhead",
    "DaemonGone",
    "DatabaseRefused",
    "EffectUnknown",
    "GoclawError",
    "HandshakeRequired",
    "HomeInUse",
    "IdempotencyConflict",
    "IllegalTransition",
    "InternalError",
    "InvalidParams",
    "InvalidRequest",
    "LeaseLost",
    "ListenerFailed",
    "MethodUnknown",
    "ModelUnknown",
    "NoCapability",
    "Nondeterminism",
    "ParseError",
    "PolicyDenied",
    "PolicyRefused",
    "QueueFull",
    "QuotaExhausted",
    "RateLimited",
    "ReplayGap",
    "RequestCancelled",
    "ScopeMissing",
    "SecretRefused",
    "SessionUnknown",
    "ShuttingDown",
    "SkillCancelled",
    "SkillFailed",
    "SkillFault",
    "SkillFuelExhausted",
    "SkillHostCallsExceeded",
    "SkillLogExceeded",
    "SkillMemoryExceeded",
    "SkillOutputExceeded",
    "SkillOutputInvalid",
    "SkillRefused",
    "SkillStackExceeded",
    "SkillTableExceeded",
    "SkillTimedOut",
    "SkillTrapped",
    "StepsExhausted",
    "StorageFailed",
    "TimeExhausted",
    "TokensExhausted",
    "TooLarge",
    "ToolLoop",
    "UnknownId",
    "Unreachable",
    "UsageError",
    "WireError",
    "error_for_code",
    "error_for_name",
]

_by_code: dict[int, type[GoclawError]] = {}
_by_name: dict[str, type[GoclawError]] = {}


class GoclawError(Exception):
    """Base of all of goclaw's errors: ``str(error)`` says what and why, ``hint`` what to do next.

    ``code`` is the reason code of events and logs, ``rpc`` the JSON-RPC code, ``exit`` the exit
    status of the command line, ``data`` the machine-readable details sent beside the message.
    """

    code: ClassVar[str] = "internal"
    rpc: ClassVar[int] = -32603
    exit: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.code in _by_name:
            raise TypeError(f"two error classes with the code {cls.code!r}")
        _by_name[cls.code] = cls
        _by_code.setdefault(cls.rpc, cls)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def error_for_code(rpc: int) -> type[GoclawError]:
    """The class that a JSON-RPC error code stands for; GoclawError when the code is not ours."""
    return _by_code.get(rpc, GoclawError)


def error_for_name(name: str) -> type[GoclawError]:
    """The class that a reason code stands for; GoclawError when the name is not ours."""
    return _by_name.get(name, GoclawError)


class WireError(GoclawError):
    """The peer broke JSON-RPC or ACP; the connection lives on."""

    code = "wire_error"
    rpc = -32600


class ParseError(WireError):
    """Not JSON (or not JSON we accept: BOM, NaN, duplicate keys, too deep)."""

    code = "parse_error"
    rpc = -32700


class InvalidRequest(WireError):
    """JSON, but no JSON-RPC 2.0 request."""

    code = "invalid_request"
    rpc = -32600


_by_code[-32600] = InvalidRequest


class MethodUnknown(WireError):
    """No such method."""

    code = "method_unknown"
    rpc = -32601


class InvalidParams(WireError):
    """The parameters do not fit the method."""

    code = "invalid_params"
    rpc = -32602


class InternalError(WireError):
    """Our fault; the log has the details."""

    code = "internal_error"
    rpc = -32603
    exit = 70


class SessionUnknown(WireError):
    """No such session. The only error allowed to use this code and the words "not found"."""

    code = "session_unknown"
    rpc = -32002


class RequestCancelled(WireError):
    """The request was cancelled by ``$/cancel_request``."""

    code = "request_cancelled"
    rpc = -32800


class UsageError(GoclawError):
    """A command line that cannot be carried out."""

    code = "usage"
    rpc = -32602
    exit = 2


class ConfigRefused(GoclawError):
    """config.toml or an environment setting is not valid; nothing was started."""

    code = "config_refused"
    exit = 3


class PolicyRefused(GoclawError):
    """policy.toml is not valid; the message names the line, the old policy stays."""

    code = "policy_refused"
    exit = 3


class HomeInUse(GoclawError):
    """Another daemon holds this home (S-10)."""

    code = "home_in_use"
    exit = 4


class DatabaseRefused(GoclawError):
    """The database is newer than this program, altered, or damaged; it was not touched (S-3)."""

    code = "database_refused"
    exit = 5


class ListenerFailed(GoclawError):
    """A socket could not be opened."""

    code = "listener_failed"
    exit = 6


class DaemonGone(GoclawError):
    """No daemon answers on this home, and none could be started."""

    code = "daemon_gone"
    exit = 70


class StorageFailed(GoclawError):
    """A write did not reach the disk: nothing was acknowledged, the same key may be sent again."""

    code = "storage_failed"
    rpc = -32603
    exit = 70


class ReplayGap(GoclawError):
    """Events after the cursor are no longer kept; ``recover`` in data says how to go on."""

    code = "replay_gap"
    rpc = -31001


class CursorAhead(GoclawError):
    """The cursor is beyond the head, or belongs to another stream."""

    code = "cursor_ahead"
    rpc = -31002


class IdempotencyConflict(GoclawError):
    """The key was used before with another request; nothing ran (E-5)."""

    code = "idempotency_conflict"
    rpc = -31003


class QueueFull(GoclawError):
    """The intake bound is reached; nothing was accepted (Q-10)."""

    code = "queue_full"
    rpc = -31004


class PolicyDenied(GoclawError):
    """The policy says no; data names the decision."""

    code = "policy_denied"
    rpc = -31005
    exit = 10


class NoCapability(GoclawError):
    """Something was to be opened, dialled or started without its capability (A-2)."""

    code = "no_capability"


class ShuttingDown(GoclawError):
    """The daemon is stopping; try again after ``retryAfterMs``."""

    code = "shutting_down"
    rpc = -31006


class AlreadyResolved(GoclawError):
    """The approval has an answer already; the first one counts (A-7)."""

    code = "already_resolved"
    rpc = -31007


class HandshakeRequired(GoclawError):
    """``initialize`` comes first."""

    code = "handshake_required"
    rpc = -31008


class LeaseLost(GoclawError):
    """The lease token is stale: stop at once, nothing was changed (Q-4)."""

    code = "lease_lost"
    rpc = -31009


class IllegalTransition(GoclawError):
    """The task is not in a state that allows this; nothing was changed (Q-1)."""

    code = "illegal_transition"
    rpc = -31010


class Nondeterminism(GoclawError):
    """A re-run asked for another effect than the journal holds (E-2)."""

    code = "nondeterminism"
    rpc = -31011


class RateLimited(GoclawError):
    """Too many calls; try again after ``retryAfterMs``."""

    code = "rate_limited"
    rpc = -31012


class ScopeMissing(GoclawError):
    """The token does not carry the scope that this method needs."""

    code = "scope_missing"
    rpc = -31013


class EffectUnknown(GoclawError):
    """Nobody can know whether the effect happened; the task is SUSPENDED until it is settled."""

    code = "effect_unknown"
    rpc = -31015


class UnknownId(GoclawError):
    """No task, run, approval or effect has that id."""

    code = "unknown_id"
    rpc = -31016


class TooLarge(GoclawError):
    """Over a size bound of ``core/limits.py``."""

    code = "too_large"
    rpc = -31017


class BudgetExhausted(GoclawError):
    """A budget of the run is used up (B-5)."""

    code = "budget_exhausted"
    rpc = -31018


class TokensExhausted(BudgetExhausted):
    """The next answer might take the run beyond its ``run_tokens``."""

    code = "budget_tokens"


class CostExhausted(BudgetExhausted):
    """The next answer might take the run beyond its ``run_cost``."""

    code = "budget_cost"


class StepsExhausted(BudgetExhausted):
    """The run has had its ``run_steps`` answers."""

    code = "budget_steps"


class TimeExhausted(BudgetExhausted):
    """The run has waited ``run_s`` seconds for its model."""

    code = "budget_time"


class BrainFailed(GoclawError):
    """The brain's server refused the call and would refuse it again."""

    code = "brain_failed"


class BrainKeyMissing(BrainFailed):
    """The brain needs a key, and gets none from environment or secrets; nothing was sent."""

    code = "brain_key_missing"


class BrainKeyRefused(BrainFailed):
    """The server does not accept the key."""

    code = "brain_key_refused"


class ModelUnknown(BrainFailed):
    """The server has no model of that name."""

    code = "model_unknown"


class ContextOverflow(BrainFailed):
    """The model cannot take in even the shortest form of the conversation."""

    code = "context_overflow"


class QuotaExhausted(BrainFailed):
    """The account has nothing left: waiting does not help."""

    code = "quota_exhausted"


class ToolLoop(BrainFailed):
    """The model makes the same failing call again and again."""

    code = "tool_loop"


class SecretRefused(GoclawError):
    """A secret cannot be kept, opened or put in there; nobody got its value (A-5)."""

    code = "secret_refused"


class Unreachable(GoclawError):
    """A host has no address or does not answer; nothing was sent (A-4)."""

    code = "unreachable"


class SkillRefused(GoclawError):
    """The manifest, the module or its ABI is not acceptable; nothing ran (K-3, K-6)."""

    code = "skill_refused"
    rpc = -32602


class SkillFailed(GoclawError):
    """The skill says that it failed: a definite tool error that the brain is shown."""

    code = "skill_failed"


class SkillCancelled(GoclawError):
    """The call was cut off by a cancel; the skill is not to blame."""

    code = "skill_cancelled"


class SkillFault(GoclawError):
    """The skill broke its sandbox's rules; enough of these quarantine it (K-7)."""

    code = "skill_fault"


class SkillTrapped(SkillFault):
    """The module trapped: unreachable code, bad memory access, division by zero."""

    code = "skill_trapped"


class SkillOutputInvalid(SkillFault):
    """The module ended well but its stdout is no JSON."""

    code = "skill_output_invalid"


class SkillFuelExhausted(SkillFault):
    """The call used up its instructions."""

    code = "skill_fuel_exhausted"


class SkillTimedOut(SkillFault):
    """The call used up its wall time."""

    code = "skill_timed_out"


class SkillMemoryExceeded(SkillFault):
    """The module wants more memory than it may have."""

    code = "skill_memory_exceeded"


class SkillTableExceeded(SkillFault):
    """The module wants more table elements than it may have."""

    code = "skill_table_exceeded"


class SkillStackExceeded(SkillFault):
    """The module recursed too deep."""

    code = "skill_stack_exceeded"


class SkillOutputExceeded(SkillFault):
    """The module wrote more to stdout than it may."""

    code = "skill_output_exceeded"


class SkillLogExceeded(SkillFault):
    """The module wrote more to stderr than it may."""

    code = "skill_log_exceeded"


class SkillHostCallsExceeded(SkillFault):
    """The module called the host more often than it may."""

    code = "skill_host_calls_exceeded"
