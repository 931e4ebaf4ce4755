"""A model behind a server: one streamed call an answer, budgets, and the right word for each fault.

Owns what all providers share. Not in here: their protocols (openai, anthropic), the connection
(transport), what a model is shown (context).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from goclaw.brains.answers import Answer, Intent, Refusal, Usage
from goclaw.brains.context import Exchange, Past, steps_of, tokens_in, window
from goclaw.brains.transport import read_all, server_events
from goclaw.core import limits
from goclaw.core.errors import (
    BrainFailed,
    BrainKeyMissing,
    BrainKeyRefused,
    ContextOverflow,
    CostExhausted,
    ModelUnknown,
    QuotaExhausted,
    SecretRefused,
    StepsExhausted,
    TimeExhausted,
    TokensExhausted,
    UnknownId,
)
from goclaw.core.records import Retryable
from goclaw.core.states import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from goclaw.brains.answers import Turn
    from goclaw.brains.context import Window
    from goclaw.brains.deltas import Deltas
    from goclaw.brains.transport import Post, Reply, ServerEvent
    from goclaw.core.config import NamedBrain
    from goclaw.core.records import Tool

__all__ = ["Dialect", "ModelBrain", "Reading", "Request", "fault_of"]

_MASK: Final = "[key]"
_LONG: Final = re.compile(
    r"context.{0,20}(length|window|size)|maximum context|prompt is too long|too many.{0,20}tokens",
    re.IGNORECASE,
)
_POOR: Final = re.compile(r"insufficient_quota|billing|credit balance", re.IGNORECASE)
_STATUS: Final = {
    "authentication_error": 401, "permission_error": 403, "not_found_error": 404,
    "invalid_request_error": 400, "rate_limit_error": 429, "rate_limit_exceeded": 429,
    "overloaded_error": 529,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What goes out, without the key."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Reading:
    """What has come of an answer so far."""

    finish: str | None = None
    """How it ended, in ACP's words; calls need none."""
    refused: bool = False
    calls: dict[int, list[str]] = field(default_factory=dict)
    """By the server's index: [name, the text of the arguments]."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    bytes: int = 0


class Dialect(Protocol):
    """A provider's protocol: pure, no I/O."""

    needs_key: bool

    def base_url(self, brain: NamedBrain) -> str:
        """Where its server is."""

    def key_header(self, key: str) -> tuple[str, str]:
        """The header that carries the key."""

    def request(self, brain: NamedBrain, shown: Window, tools: Sequence[Tool]) -> Request:
        """The call that asks for the next answer."""

    def read(self, event: ServerEvent, reading: Reading) -> Iterable[tuple[str, str]]:
        """Take one event; ("say" or "think", text) of what is new. ValueError, KeyError and
        TypeError for what it does not understand; a fault that the server tells is raised."""


class ModelBrain:
    """A brain of the kinds ``openai`` and ``anthropic``. One object serves all sessions."""

    def __init__(
        self,
        brain: NamedBrain,
        dialect: Dialect,
        *,
        tools: Callable[[], Sequence[Tool]],
        post: Post,
        key: Callable[[], str | None],
        wall_ms: Callable[[], int],
    ) -> None:
        self._brain, self._dialect = brain, dialect
        self._tools, self._post, self._key, self._wall_ms = tools, post, key, wall_ms

    @property
    def name(self) -> str:
        """See Brain."""
        return self._brain.name

    @property
    def address(self) -> str:
        """See Brain."""
        return self._dialect.base_url(self._brain)

    @property
    def secret(self) -> str | None:
        """See Brain."""
        return self._brain.secret

    async def answer(self, turn: Turn, deltas: Deltas) -> Answer:
        """See Brain. Retryable and BrainFailed say what went wrong; BudgetExhausted comes before
        anything is sent."""
        brain, past = self._brain, turn.past or Past()
        key = self._needed_key()
        tools = self._tools()
        run = Exchange(turn.prompt, steps_of(turn.made))
        room = brain.context_tokens - self._answer_tokens - tokens_in(
            orjson.dumps([[tool.description, tool.input_schema] for tool in tools])
        )  # fmt: skip
        spent = _Spent(brain, turn, past)
        for cut in range(limits.BRAIN_CUTS_MAX + 1):
            shown = window(past, run, max(1, room >> cut))
            request = self._dialect.request(brain, shown, tools)
            tokens = tokens_in(request.body)
            reserved = spent.reserve(tokens, self._answer_tokens)
            await deltas.open(*_reservation(brain, deltas.message_id, tokens, reserved))
            begun_s = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(spent.seconds_left):
                    reading = await self._read(request, key, turn, deltas)
            except ContextOverflow:
                if cut == limits.BRAIN_CUTS_MAX or not (past.exchanges or run.steps):
                    raise
                continue
            except TimeoutError:
                raise TimeExhausted(f"The run may wait {brain.run_s} s for its model.") from None
            ms = round((asyncio.get_running_loop().time() - begun_s) * 1000)
            usage = _usage(brain, reading, tokens, ms)
            deltas.note(_usage_update(brain, deltas.message_id, usage, spent.cost + usage.cost))
            return _answered(reading, deltas.text, usage, shown.omitted)
        raise AssertionError("the last cut answers or raises")

    @property
    def _answer_tokens(self) -> int:
        return self._brain.answer_tokens or min(
            limits.BRAIN_ANSWER_TOKENS, self._brain.context_tokens // 4
        )

    def _needed_key(self) -> str | None:
        """Its key, looked up for each answer: a secret that was removed is dead."""
        try:
            key = self._key()
        except (SecretRefused, UnknownId) as error:
            raise BrainKeyMissing(
                f"The brain {self.name} gets no key: {error.message}", hint=error.hint
            ) from None
        if key is None and (self._brain.key_env or self._dialect.needs_key):
            raise BrainKeyMissing(
                f"The brain {self.name} needs a key, and the daemon has none:"
                f" {self._brain.key_env or 'key_env'} is not set.",
                hint="Set it in the environment in which the daemon starts, and start it anew.",
            )
        return key

    async def _read(self, request: Request, key: str | None, turn: Turn, deltas: Deltas) -> Reading:
        assert turn.permit is not None  # the loop decided about the address
        url = self.address.rstrip("/") + request.path
        own = () if key is None else (self._dialect.key_header(key),)
        reading = Reading()
        try:
            async with self._post(
                url, {**request.headers, **dict(own)}, request.body, turn.permit
            ) as reply:
                if reply.status != 200:
                    body = await read_all(reply, limits.BRAIN_HEAD_BYTES_MAX)
                    if self._brain.run_tokens or self._brain.run_cost:
                        nothing = Usage(0, 0, 0.0, 0)
                        await deltas.open(
                            _usage_update(self._brain, deltas.message_id, nothing, 0.0)
                        )
                    raise fault_of(reply.status, reply.headers, body, self._wall_ms())
                await self._stream(reply, reading, deltas)
        except (Retryable, BrainFailed) as error:
            raise self._named(error, key, turn) from None
        if reading.finish is None:
            cut = Retryable("stream_cut", "The server's answer ended in the middle.")
            raise self._named(cut, key, turn)
        return reading

    async def _stream(self, reply: Reply, reading: Reading, deltas: Deltas) -> None:
        async for event in server_events(reply.chunks()):
            reading.bytes += len(event.data)
            if reading.bytes > limits.BRAIN_ANSWER_BYTES_MAX * 16:  # each token in an envelope
                raise BrainFailed("The model's answer has no end.")
            try:
                pieces = list(self._dialect.read(event, reading))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"The server's stream cannot be understood: {type(error).__name__} {error}."
                raise Retryable("no_stream", why[: limits.SAID_CHARS_MAX]) from None
            for kind, text in pieces:
                (deltas.say if kind == "say" else deltas.think)(text)
            if pieces:
                await deltas.push()
            if len(deltas.text) > limits.BRAIN_ANSWER_BYTES_MAX // 4:
                raise BrainFailed("The model's answer has no end.")

    def _named(
        self, error: Retryable | BrainFailed, key: str | None, turn: Turn
    ) -> Retryable | BrainFailed:
        """With the brain's name, without its key."""
        message = f"{self.name}: {error.message}"
        error.message = message.replace(key, _MASK) if key else message
        error.args = (error.message,)
        if isinstance(error, Retryable):
            # Waiting as one was asked to is no poison; all else that repeats itself is.
            times = f":{turn.attempt}" if error.retry_after_ms is not None else ""
            error.fingerprint = f"{error.code}:{self.name}{times}"
        return error


# -- the answer ------------------------------------------------------------------------------------


def _answered(reading: Reading, text: str, usage: Usage, omitted: tuple[int, int] | None) -> Answer:
    if reading.refused:
        refusal = Refusal("model_refused", text[: limits.SAID_CHARS_MAX] or "The model refuses.")
        return Answer(text, stop=Outcome.REFUSAL, refusal=refusal, usage=usage, omitted=omitted)
    if len(reading.calls) > limits.BRAIN_CALLS_MAX:
        raise BrainFailed(f"One answer with more than {limits.BRAIN_CALLS_MAX} calls.")
    if reading.calls:
        intents = tuple(_intent(*reading.calls[index]) for index in sorted(reading.calls))
        return Answer(text, intents, usage=usage, omitted=omitted)
    if not text.strip() and reading.finish == Outcome.END_TURN:
        why = "The model answered with nothing."
        raise Retryable("empty_answer", why, fingerprint="empty_answer")
    return Answer(text, stop=reading.finish, usage=usage, omitted=omitted)


def _intent(name: str, text: str) -> Intent:
    """What cannot be read becomes a call that fails and tells the model why (B-1)."""
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        return Intent(name, {}, f"its arguments are no JSON: {error}")
    if not isinstance(arguments, dict):
        return Intent(name, {}, "its arguments are no JSON object")
    return Intent(name, arguments)


# -- budgets ---------------------------------------------------------------------------------------


class _Spent:
    """What a run has used up: its answers, and what cut calls had reserved (B-5)."""

    def __init__(self, brain: NamedBrain, turn: Turn, past: Past) -> None:
        made = [answer.usage for answer, _ in turn.made if answer.usage is not None]
        self._brain, self._steps = brain, len(turn.made)
        self._tokens = past.lost_tokens + sum(one.input_tokens + one.output_tokens for one in made)
        self.cost = past.lost_cost + sum(one.cost for one in made)
        self._ms = sum(one.ms for one in made)

    @property
    def seconds_left(self) -> float | None:
        return self._brain.run_s - self._ms / 1000 if self._brain.run_s else None

    def reserve(self, input_tokens: int, output_tokens: int) -> tuple[int, float]:
        """Tokens and cost of the next answer at the most; BudgetExhausted when there is no room."""
        brain = self._brain
        tokens, cost = input_tokens + output_tokens, _cost(brain, input_tokens, output_tokens)
        if brain.run_steps and self._steps >= brain.run_steps:
            raise StepsExhausted(f"The run has had its {brain.run_steps} answers.")
        if self.seconds_left is not None and self.seconds_left <= 0:
            raise TimeExhausted(f"The run has waited {brain.run_s} s for its model.")
        if brain.run_tokens and self._tokens + tokens > brain.run_tokens:
            raise TokensExhausted(
                f"The run has used {self._tokens} tokens; the next answer may take {tokens}, and"
                f" run_tokens is {brain.run_tokens}."
            )
        if brain.run_cost and self.cost + cost > brain.run_cost:
            raise CostExhausted(
                f"The run has cost {self.cost:.4f}; the next answer may cost {cost:.4f}, and"
                f" run_cost is {brain.run_cost}."
            )
        return tokens, cost


def _cost(brain: NamedBrain, input_tokens: int, output_tokens: int) -> float:
    total = input_tokens * brain.input_price + output_tokens * brain.output_price
    return total / 1_000_000


def _reservation(
    brain: NamedBrain, message_id: str, used: int, reserved: tuple[int, float]
) -> list[dict[str, Any]]:
    """Only a run with a budget has to remember what it set aside."""
    if not brain.run_tokens and not brain.run_cost:
        return []
    told = {"messageId": message_id, "reserved": {"tokens": reserved[0], "cost": reserved[1]}}
    return [
        {
            "sessionUpdate": "usage_update", "used": used, "size": brain.context_tokens,
            "_meta": {"goclaw": told},
        }
    ]  # fmt: skip


def _usage(brain: NamedBrain, reading: Reading, asked: int, ms: int) -> Usage:
    """As the server counted; where it does not say, as we estimate."""
    tokens_in_, tokens_out = reading.input_tokens, reading.output_tokens
    if tokens_in_ is None or tokens_out is None:
        tokens_in_, tokens_out = asked, reading.bytes // 3
    return Usage(tokens_in_, tokens_out, _cost(brain, tokens_in_, tokens_out), ms)


def _usage_update(brain: NamedBrain, message_id: str, usage: Usage, cost: float) -> dict[str, Any]:
    priced = brain.input_price or brain.output_price
    return {
        "sessionUpdate": "usage_update",
        "used": usage.input_tokens + usage.output_tokens,
        "size": brain.context_tokens,
        **({"cost": {"amount": cost, "currency": "USD"}} if priced else {}),
        "_meta": {"goclaw": {"messageId": message_id, "usage": usage.to_json()}},
    }


# -- faults ----------------------------------------------------------------------------------------


def fault_of(
    status: int, headers: Mapping[str, str], body: bytes, wall_ms: int
) -> Retryable | BrainFailed:
    """What an answer other than 200 means: come again, or never."""
    text, code = _said(body)
    said = f"{status} {text}".strip()[: limits.MESSAGE_CHARS_MAX]
    if code in _STATUS and status == 200:
        status = _STATUS[code]
    if status in (401, 403):
        return BrainKeyRefused(f"The server does not accept the key ({said}).")
    if status == 402 or (status == 429 and _POOR.search(f"{code} {text}")):
        return QuotaExhausted(f"The account has nothing left ({said}).")
    if status in (400, 413) and (code == "context_length_exceeded" or _LONG.search(text)):
        return ContextOverflow(f"The conversation is too long for the model ({said}).")
    if status == 404 or code == "model_not_found":
        if "model" in f"{code} {text}".lower():
            return ModelUnknown(f"The server has no such model ({said}).")
        return BrainFailed(f"There is nothing at that address ({said}).", hint="Check base_url.")
    if status == 429:
        wait_ms = _retry_after_ms(headers, wall_ms)
        return Retryable("rate_limited", f"Too many calls ({said}).", retry_after_ms=wait_ms)
    if status in (200, 408, 409, 425) or status >= 500:
        wait_ms = _retry_after_ms(headers, wall_ms)
        return Retryable("server_error", f"The server failed ({said}).", retry_after_ms=wait_ms)
    if 300 <= status < 400:
        where = headers.get("location", "")[: limits.SAID_CHARS_MAX]
        return BrainFailed(f"The server points elsewhere, to {where}.", hint="Mend base_url.")
    return BrainFailed(f"The server refuses the call ({said}).")


def _said(body: bytes) -> tuple[str, str]:
    """(message, code) of an error, however the server puts it."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[: limits.SAID_CHARS_MAX].decode("utf-8", "replace"), ""
    if not isinstance(found, dict):
        return "", ""
    error = found.get("error", found)
    if not isinstance(error, dict):
        return str(error), ""
    message = error.get("message") or error.get("detail") or ""
    return str(message), str(error.get("code") or error.get("type") or "")


def _retry_after_ms(headers: Mapping[str, str], wall_ms: int) -> int | None:
    """The far side's own word: seconds, or a date."""
    text = headers.get("retry-after", "")
    if text.replace(".", "", 1).isdigit() and text.isascii():
        return round(float(text) * 1000)
    try:
        return max(0, round(parsedate_to_datetime(text).timestamp() * 1000) - wall_ms)
    except (ValueError, TypeError):
        return None
